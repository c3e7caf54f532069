package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Extracted is a disk that was taken out of a containerdisk, with what its
// image says about it.
type Extracted struct {
	Path   string
	Format string // disk.FormatQCOW2 or disk.FormatRaw
	Size   int64  // bytes of the file
	Digest string // of the disk file, "sha256:…"
	Cached bool   // it had been taken out before

	Manifest string    // digest of the image's manifest
	Inputs   string    // AnnotationInputs, or empty
	Created  time.Time // zero where the image does not say
	// Hints are what may tell the guest's distribution: AnnotationGuest, then
	// the names of the image's base and of the image.
	Hints []string
}

// Want is what an image must be. An empty field demands nothing.
type Want struct {
	Digest string // of the manifest, "sha256:…"
	Inputs string // AnnotationInputs
}

// Check says in a line why an image is not the wanted one.
func (w Want) Check(name, digest, inputs string) error {
	switch {
	case w.Digest != "" && w.Digest != digest:
		return failure.New(fmt.Sprintf("%s has the digest %s, not %s", name, digest, w.Digest), "correct the digest in ISO_URL or ISO_CHECKSUM, or bring the image back")
	case w.Inputs != "" && inputs == "":
		return failure.New(fmt.Sprintf("%s does not say from which inputs it was made", name), "name it by its digest: sha256: in ISO_CHECKSUM")
	case w.Inputs != "" && w.Inputs != inputs:
		return failure.New(fmt.Sprintf("%s was made from other inputs (%s) than %s", name, inputs, w.Inputs), "build that image first")
	}
	return nil
}

// Stored is an image in a layout or in a registry.
type Stored struct {
	Name             string // for errors
	Digest           string // of the manifest, "sha256:…"
	Manifest, Config []byte // checked
	// Open opens the layer. Reading it to its end must fail where it has
	// another size or digest than the manifest says.
	Open func(layer v1.Descriptor) (io.ReadCloser, error)
}

const (
	maxDisk    = 2 << 40   // bytes of a disk, those of the largest virtual size
	maxEntries = 16        // of a layer; a containerdisk has two
	maxWindow  = 128 << 20 // bytes of memory that unpacking may take
	sparseStep = 64 << 10  // bytes of zeros that become a hole

	// A layer that is smaller than what it claims may unpack to 16 GiB, or to
	// so many times its size: a disk of zeros alone does so to a thousand.
	alwaysUnpacked = 16 << 30
	mostInflated   = 256
)

// Inflated says whether an entry claims to be absurdly larger than the layer of
// so many bytes that it is in: it would be unpacked for hours.
func Inflated(h *tar.Header, layer int64) bool {
	return h.Size > max(alwaysUnpacked, min(layer, math.MaxInt64/mostInflated)*mostInflated)
}

// Sparse says whether an entry leaves holes out (PAX, as GNU tar writes it).
func Sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// Extract takes the disk out of the layout in dir, into cacheDir.
func Extract(ctx context.Context, dir string, want Want, cacheDir string, p progress.Reporter) (Extracted, error) {
	l, err := Load(dir)
	if err != nil {
		return Extracted{}, err
	}
	s := Stored{Name: dir, Digest: l.Digest}
	if s.Manifest, err = l.Image.RawManifest(); err != nil {
		return Extracted{}, err
	}
	if s.Config, err = l.Image.RawConfigFile(); err != nil {
		return Extracted{}, err
	}
	s.Open = func(layer v1.Descriptor) (io.ReadCloser, error) { return blob{dir, layer}.Compressed() }
	return s.Extract(ctx, want, cacheDir, p)
}

// Extract takes the disk out of an image's layer, into a folder of cacheDir
// that the layer's digest names. A disk that is there is hashed again and not
// taken out twice. The layer may be plain, gzip or zstd, whatever its media
// type says; it must hold one regular file in disk/ and nothing else. The disk
// must be one that disk.Inspect accepts, with the digest of AnnotationDisk
// where the image has that. What fails or is stopped leaves nothing. Errors
// that a person must act on are *failure.Error.
func (s Stored) Extract(ctx context.Context, want Want, cacheDir string, p progress.Reporter) (Extracted, error) {
	about, layer, annotated, err := s.about()
	if err != nil {
		return Extracted{}, failure.Wrap(err, s.Name+" is no containerdisk", "")
	}
	if err := want.Check(s.Name, s.Digest, about.Inputs); err != nil {
		return Extracted{}, err
	}
	dir := filepath.Join(cacheDir, "sha256-"+layer.Digest.Hex)
	held, err := host.LockDir(ctx, dir, "waiting for another process that takes out the same disk", p)
	if err != nil {
		return Extracted{}, stopped(ctx, failure.New(err.Error(), "check CACHE_DIR"))
	}
	defer held.Close()
	defer os.Remove(dir) // where nothing came into it
	x := extraction{image: s, about: about, layer: layer, annotated: annotated, dir: dir}
	if x.cached(ctx, p) {
		return x.about, nil
	}
	if err := x.run(ctx, p); err != nil {
		return Extracted{}, stopped(ctx, err)
	}
	return x.about, nil
}

// about reads what the image says of itself.
func (s Stored) about() (Extracted, v1.Descriptor, string, error) {
	var m v1.Manifest
	var c v1.ConfigFile
	if err := json.Unmarshal(s.Manifest, &m); err != nil {
		return Extracted{}, v1.Descriptor{}, "", fmt.Errorf("its manifest: %w", err)
	}
	if err := json.Unmarshal(s.Config, &c); err != nil {
		return Extracted{}, v1.Descriptor{}, "", fmt.Errorf("its config: %w", err)
	}
	if len(m.Layers) != 1 {
		return Extracted{}, v1.Descriptor{}, "", fmt.Errorf("it has %d layers, not one", len(m.Layers))
	}
	layer, annotated := m.Layers[0], m.Annotations[AnnotationDisk]
	switch {
	case !host.ValidDigest(layer.Digest.String()):
		return Extracted{}, layer, "", fmt.Errorf("its layer's digest is %q, not a sha256", layer.Digest)
	case layer.Size < 0:
		return Extracted{}, layer, "", fmt.Errorf("its layer has %d bytes", layer.Size)
	case annotated != "" && !host.ValidDigest(annotated):
		return Extracted{}, layer, "", fmt.Errorf("its annotation %s is no digest", AnnotationDisk)
	}
	x := Extracted{Manifest: s.Digest, Inputs: m.Annotations[AnnotationInputs], Created: c.Created.UTC()}
	if t, err := time.Parse(time.RFC3339, m.Annotations["org.opencontainers.image.created"]); err == nil {
		x.Created = t.UTC()
	}
	for _, hint := range []string{m.Annotations[AnnotationGuest], BaseName(m.Annotations), m.Annotations["org.opencontainers.image.title"]} {
		if hint != "" {
			x.Hints = append(x.Hints, hint)
		}
	}
	return x, layer, annotated, nil
}

// extraction takes one disk out of its layer.
type extraction struct {
	image     Stored
	about     Extracted
	layer     v1.Descriptor
	annotated string // digest that the disk must have, or empty
	dir       string // ours, and locked
}

// record says what the disk beside it is.
type record struct {
	Digest string `json:"digest"`
	Format string `json:"format"`
}

func (x *extraction) disk() string   { return filepath.Join(x.dir, "disk") }
func (x *extraction) record() string { return filepath.Join(x.dir, "disk.json") }

// cached says whether the disk is there and is what it was.
func (x *extraction) cached(ctx context.Context, p progress.Reporter) bool {
	var r record
	b, err := readFile(x.record())
	if err != nil || json.Unmarshal(b, &r) != nil || x.annotated != "" && r.Digest != x.annotated {
		return false
	}
	f, err := openRegular(x.disk())
	if err != nil {
		return false
	}
	defer f.Close()
	p.Activity("checking the disk that was taken out before")
	got, err := host.Digest(ctx, f, p)
	if err != nil {
		return false // run says so if it is for ctx
	}
	if got != r.Digest {
		p.Warn(fmt.Sprintf("the cached disk was changed: it is %s, not %s; it is taken out again", got, r.Digest))
		return false
	}
	info, err := f.Stat()
	x.about.Path, x.about.Format, x.about.Digest, x.about.Cached = x.disk(), r.Format, r.Digest, true
	if err == nil {
		x.about.Size = info.Size()
	}
	return err == nil
}

// run takes the disk out and gives it its name when it is what it must be.
func (x *extraction) run(ctx context.Context, p progress.Reporter) error {
	p.Activity("taking the disk out of " + x.image.Name)
	temp := x.disk() + ".part"
	_ = os.RemoveAll(temp) // of a process that was killed
	defer os.Remove(temp)
	sum, err := x.copy(ctx, temp, p)
	if err == nil {
		err = x.check(ctx, temp, sum)
	}
	if err == nil {
		err = x.keep(temp)
	}
	return x.explain(err)
}

// copy writes the disk in the layer to a file and returns its digest.
func (x *extraction) copy(ctx context.Context, to string, p progress.Reporter) (string, error) {
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	defer out.Close()
	raw, err := x.image.Open(x.layer)
	if err != nil {
		return "", err
	}
	defer raw.Close()
	in := &contextReader{ctx, progress.Reader(raw, x.layer.Size, p)}
	sum, err := takeDisk(in, x.layer.Size, out)
	if err == nil {
		// To the end of the layer, where its digest is checked.
		_, err = io.Copy(io.Discard, in)
	}
	if err == nil {
		err = out.Sync()
	}
	return sum, errors.Join(err, out.Close())
}

// takeDisk unpacks a layer of a size and writes the disk in it.
func takeDisk(layer io.Reader, size int64, out *os.File) (string, error) {
	unpacked, end, err := unpack(layer)
	if err != nil {
		return "", err
	}
	defer end()
	archive, sum := tar.NewReader(unpacked), ""
	for range maxEntries {
		h, err := archive.Next()
		if err == io.EOF && sum == "" {
			return "", errors.New("there is no file in its disk/")
		}
		if err == io.EOF {
			return sum, nil
		}
		if err != nil {
			return "", fmt.Errorf("unpacking its layer: %w", err)
		}
		isDisk, err := classify(h)
		switch {
		case err != nil:
			return "", err
		case isDisk && Inflated(h, size):
			return "", fmt.Errorf("its layer of %d bytes claims to hold a disk of %d GiB", size, h.Size>>30)
		case isDisk && sum != "":
			return "", fmt.Errorf("there is a second file in its disk/: %q", h.Name)
		case isDisk:
			if sum, err = writeDisk(archive, h.Size, out); err != nil {
				return "", fmt.Errorf("unpacking its layer: %w", err)
			}
		}
	}
	return "", fmt.Errorf("its layer has more than %d files", maxEntries)
}

// unpack sees by the first bytes how a layer is compressed.
func unpack(layer io.Reader) (io.Reader, func(), error) {
	in := bufio.NewReaderSize(layer, blockSize)
	head, err := in.Peek(4)
	switch {
	case err != nil && err != io.EOF:
		return nil, nil, err
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(in)
		return z, func() {}, err
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return in, func() {}, nil
}

// classify says whether an entry is the disk. Anything that is neither that
// nor a directory has no place in a containerdisk.
func classify(h *tar.Header) (isDisk bool, err error) {
	name := strings.TrimPrefix(strings.TrimPrefix(h.Name, "."), "/")
	clean := strings.TrimSuffix(name, "/")
	switch {
	case h.Typeflag == tar.TypeXGlobalHeader:
		return false, nil // it names no file
	case clean != "" && (clean != path.Clean(clean) || !filepath.IsLocal(clean)):
		return false, fmt.Errorf("its layer has a file of the name %q", h.Name)
	case h.Typeflag == tar.TypeDir && (clean == "" || clean == "disk"):
		return false, nil
	case h.Typeflag != tar.TypeReg || path.Dir(clean) != "disk":
		return false, fmt.Errorf("its layer has %q, which is no file in disk/", h.Name)
	case h.Size <= 0 || h.Size > maxDisk:
		return false, fmt.Errorf("its disk has %d bytes", h.Size)
	}
	return true, nil
}

// writeDisk copies the disk, leaving holes where it has long runs of zeros, and
// returns its digest.
func writeDisk(in io.Reader, size int64, out *os.File) (string, error) {
	sum := newDigester()
	defer sum.stop()
	holes := &sparseWriter{file: out}
	n, err := io.CopyBuffer(io.MultiWriter(sum, holes), struct{ io.Reader }{in}, make([]byte, blockSize))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = out.Truncate(size)
	}
	return sum.sum().String(), err
}

// sparseWriter writes at its place what is not all zeros.
type sparseWriter struct {
	file *os.File
	at   int64
}

var zeros [sparseStep]byte

// Write implements io.Writer.
func (s *sparseWriter) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		step := b[:min(len(b), sparseStep)]
		if !bytes.Equal(step, zeros[:len(step)]) {
			if _, err := s.file.WriteAt(step, s.at); err != nil {
				return 0, err
			}
		}
		s.at += int64(len(step))
		b = b[len(step):]
	}
	return n, nil
}

// check says whether the file is the disk that the image tells of, and one
// that may be used.
func (x *extraction) check(ctx context.Context, file, sum string) error {
	if x.annotated != "" && sum != x.annotated {
		return fmt.Errorf("%w: its disk has the digest %s, not %s", ErrDamaged, sum, x.annotated)
	}
	info, err := disk.Inspect(ctx, file)
	if err != nil {
		return err
	}
	x.about.Path, x.about.Format, x.about.Size, x.about.Digest = x.disk(), info.Format, info.FileSize, sum
	return nil
}

// keep gives the disk its name. The record goes first: a disk without one, or
// with another's, is not used.
func (x *extraction) keep(temp string) error {
	b, err := json.Marshal(record{x.about.Digest, x.about.Format})
	if err != nil {
		return err
	}
	part := x.record() + ".part"
	_ = os.RemoveAll(part)
	defer os.Remove(part)
	if err := errors.Join(writeFile(part, b), os.Rename(part, x.record()), os.Rename(temp, x.disk())); err != nil {
		os.Remove(x.record())
		return err
	}
	return host.Sync(x.dir)
}

func (x *extraction) explain(err error) error {
	if f, ok := failure.In(err); ok {
		return &failure.Error{What: fmt.Sprintf("the disk of %s cannot be used: %s", x.image.Name, strings.TrimPrefix(f.What, x.disk()+".part: ")), Try: f.Try, Lines: f.Lines, Err: err}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return failure.Wrap(err, "no room for the base's disk in "+filepath.Dir(x.dir), "free some, or set CACHE_DIR")
	case errors.Is(err, os.ErrPermission):
		return failure.Wrap(err, "cannot keep the base's disk", "check CACHE_DIR")
	}
	return failure.Wrap(err, "no disk can be taken out of "+x.image.Name, "")
}
