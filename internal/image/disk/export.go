package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/lima-vm/go-qcow2reader/image/qcow2"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// An output writes a disk in a form that others take. The same disk and the same
// Machine give the same bytes, and memory does not grow with the disk.
type output struct {
	extension string // of its file's name, behind the dot; it is its name in OUTPUTS, too
	write     func(ctx context.Context, d *exported, to *os.File, p progress.Reporter) error
}

// outputs are all that there are.
var outputs = []output{{FormatQCOW2, writeQCOW2}, {"raw.zst", writeRawZstd}, {"ova", writeOVA}}

// Outputs are the names of the forms that Export writes.
func Outputs() (names []string) {
	for _, o := range outputs {
		names = append(names, o.extension)
	}
	return names
}

// Machine is the virtual machine that an appliance is made for.
type Machine struct {
	Name      string
	MemoryMiB int
	CPUs      int
	// Distribution is the guest's, "debian" or "ubuntu"; other ones are some Linux.
	Distribution string
}

// Exported is a file that Export wrote.
type Exported struct {
	Path   string `json:"path"`
	Digest string `json:"digest"` // "sha256:…", as CDI's checksum of an HTTP source wants it
	Size   int64  `json:"size"`   // bytes
}

// exported is a disk that is handed on.
type exported struct {
	*os.File
	about   Info
	digest  string // "sha256:…"
	machine Machine
	scratch string // folder for what is needed while one is written
}

// Export writes the disk at path, digest of which is its "sha256:…", into dir, which is there, in the
// forms that names lists, as NAME.EXTENSION with NAME that of the machine, and their
// sums, as sha256sum reads them, into NAME.SHA256SUMS. Either all of the files get their
// names or none; those of an earlier export are
// replaced, and its other files stay, with their sums.
func Export(ctx context.Context, path, digest, dir string, names []string, m Machine, p progress.Reporter) ([]Exported, error) {
	about, err := Inspect(ctx, path)
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	for _, name := range names {
		if info, err := os.Stat(filepath.Join(dir, m.Name+"."+name)); err == nil && !info.Mode().IsRegular() {
			return nil, failure.New(filepath.Join(dir, m.Name+"."+name)+" is no file", "move it away, or choose another folder")
		}
	}
	f, err := host.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	scratch, err := os.MkdirTemp(dir, "export-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(scratch)
	d := &exported{f, about, digest, m, scratch}
	var done []Exported
	var files []*host.AtomicFile
	sumsFile := filepath.Join(dir, m.Name+".SHA256SUMS")
	sums, err := earlierSums(sumsFile, names, p)
	if err != nil {
		return nil, err
	}
	for _, o := range outputs {
		if !slices.Contains(names, o.extension) {
			continue
		}
		name := filepath.Join(dir, m.Name+"."+o.extension)
		p.Activity("writing " + filepath.Base(name))
		file, err := host.Create(name, 0o644)
		if err != nil {
			return nil, err
		}
		defer file.Discard()
		if err := o.write(ctx, d, file.File, p); err != nil {
			return nil, explain(ctx, err, dir)
		}
		p.Activity("hashing " + filepath.Base(name))
		one := Exported{Path: name}
		if one.Digest, err = host.DigestFile(ctx, file.Name(), p); err != nil {
			return nil, err
		}
		if one.Size, err = file.Seek(0, io.SeekEnd); err != nil {
			return nil, err
		}
		sums += fmt.Sprintf("%s  %s\n", strings.TrimPrefix(one.Digest, "sha256:"), filepath.Base(name))
		done, files = append(done, one), append(files, file)
	}
	// From here on only the names are missing.
	for _, file := range files {
		if err := file.Commit(); err != nil {
			return nil, explain(ctx, err, dir)
		}
	}
	return done, host.WriteFile(sumsFile, 0o644, func(w io.Writer) error {
		_, err := io.WriteString(w, sums)
		return err
	})
}

// maxSums bounds a list of sums, in bytes: it has a line for each of the outputs.
const maxSums = 64 << 10

// earlierSums are the lines of the list for files of an earlier export which are there
// and are not written now. They may be another disk's, and are warned of.
func earlierSums(list string, names []string, p progress.Reporter) (sums string, err error) {
	content, err := host.ReadFile(list, maxSums)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	for line := range strings.Lines(string(content)) {
		_, file, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		again := slices.ContainsFunc(names, func(name string) bool { return strings.HasSuffix(file, "."+name) })
		if _, missing := os.Stat(filepath.Join(filepath.Dir(list), filepath.Base(file))); ok && !again && missing == nil {
			sums += line
			p.Warn(file + " is of an earlier export, and stays")
		}
	}
	return sums, err
}

// ExportNeeds estimates the room that the outputs of a compressed disk of size bytes
// take. An appliance is written from a disk of its own; zlib takes a fifth more than
// zstd.
func ExportNeeds(names []string, size int64) (needs []host.Need) {
	for _, name := range names {
		switch {
		case name == "ova":
			needs = append(needs, host.Need{Bytes: size * 12 / 5, What: "the appliance and its disk"})
		case slices.Contains(Outputs(), name):
			needs = append(needs, host.Need{Bytes: size, What: "the " + name})
		}
	}
	return needs
}

// guest is what the guest sees of the disk.
func (d *exported) guest() (io.ReaderAt, error) {
	if d.about.Format == FormatRaw {
		return d, nil
	}
	return qcow2.Open(d, nil)
}

// writeQCOW2 writes the qcow2 image as it is.
func writeQCOW2(ctx context.Context, d *exported, to *os.File, p progress.Reporter) error {
	if d.about.Format != FormatQCOW2 {
		return convert(ctx, image{d.Name(), d.about.Format}, to.Name(), Zstd, d.about.DataSize, p)
	}
	_, err := host.Copy(ctx, to, progress.Reader(io.NewSectionReader(d, 0, d.about.FileSize), d.about.FileSize, p))
	return err
}

// writeRawZstd writes the disk as the guest sees it, compressed by zstd: what CDI takes by
// HTTP, and dd from a pipe.
func writeRawZstd(ctx context.Context, d *exported, to *os.File, p progress.Reporter) error {
	guest, err := d.guest()
	if err != nil {
		return err
	}
	// The concurrency is not the host's: nothing of it may be in the bytes.
	z, err := zstd.NewWriter(to, zstd.WithEncoderConcurrency(2), zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return err
	}
	if _, err = host.Copy(ctx, z, progress.Reader(io.NewSectionReader(guest, 0, d.about.VirtualSize), d.about.VirtualSize, p)); err != nil {
		z.Close()
		return err
	}
	return z.Close()
}
