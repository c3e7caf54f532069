package contract

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/registry"
)

// blob is a layer as it is stored.
type blob interface {
	io.ReaderAt
	// Open reads all of it and fails at its end where it has another digest.
	Open() (io.ReadCloser, error)
}

func openRemote(ctx context.Context, ref string, o registry.Options) (*image, error) {
	opened, err := registry.Open(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	i := &image{
		reference: ref, digest: opened.Digest, mediaType: opened.MediaType, manifest: opened.Manifest, config: opened.Config,
		index: opened.Index, remote: true, tags: opened.Tags, read: opened.BytesRead, close: opened.Close,
		blob: func(d v1.Descriptor) (blob, error) { return opened.Blob(d), nil },
	}
	if tag, err := name.NewTag(ref); err == nil {
		i.tag = tag.TagStr()
	}
	return i, nil
}

const (
	maxJSON    = 4 << 20 // bytes of a manifest, index or config
	maxDepth   = 3       // of indexes within indexes
	maxArchive = 10_000  // entries of an archived layout
)

// files are those of a layout.
type files interface {
	// open opens a regular file by its slash-separated path.
	open(name string) (*io.SectionReader, error)
	close()
}

func openLayout(path string) (*image, error) {
	f, err := openFiles(path)
	if err != nil {
		return nil, err
	}
	i := &image{
		reference: path, read: func() int64 { return 0 }, close: f.close,
		blob: func(d v1.Descriptor) (blob, error) { return openStored(f, d) },
	}
	if err := i.readLayout(f); err != nil {
		f.close()
		return nil, err
	}
	return i, nil
}

// readLayout follows index.json to the manifest and the config.
func (i *image) readLayout(f files) error {
	if _, err := f.open("oci-layout"); err != nil {
		if _, archived := f.(*archive); archived {
			if _, other := f.open("manifest.json"); other == nil {
				return failure.New("it is an archive of docker save, not an OCI layout", fmt.Sprintf("skopeo copy docker-archive:%s oci:NEW makes a layout of it", i.reference))
			}
		}
		return fmt.Errorf("it is no OCI image layout: %w", err)
	}
	raw, err := readAll(f, "index.json")
	if err != nil {
		return fmt.Errorf("it is no OCI image layout: %w", err)
	}
	for depth := range maxDepth {
		d, index, err := registry.Choose(raw)
		if err != nil {
			return err
		}
		if depth > 0 || len(index.Platforms) > 1 {
			i.index = index
		}
		if raw, err = readStored(f, d); err != nil {
			return fmt.Errorf("its manifest: %w", err)
		}
		if d.MediaType.IsIndex() {
			continue
		}
		i.digest, i.mediaType, i.manifest = d.Digest.String(), string(d.MediaType), raw
		return i.readConfig(f)
	}
	return errors.New("it is an index of indexes")
}

func (i *image) readConfig(f files) error {
	m, err := v1.ParseManifest(strings.NewReader(string(i.manifest)))
	if err != nil {
		return fmt.Errorf("its manifest: %w", err)
	}
	if i.config, err = readStored(f, m.Config); err != nil {
		return fmt.Errorf("its config: %w", err)
	}
	return nil
}

func readAll(f files, name string) ([]byte, error) {
	r, err := f.open(name)
	if err != nil {
		return nil, err
	}
	if r.Size() > maxJSON {
		return nil, fmt.Errorf("%s has %d bytes, which is absurd", name, r.Size())
	}
	return io.ReadAll(r)
}

// readStored reads a small blob and checks it.
func readStored(f files, d v1.Descriptor) ([]byte, error) {
	if d.Size > maxJSON {
		return nil, fmt.Errorf("%d bytes are absurd", d.Size)
	}
	b, err := openStored(f, d)
	if err != nil {
		return nil, err
	}
	rc, err := b.Open()
	if err != nil {
		return nil, err
	}
	return io.ReadAll(rc)
}

// stored is a blob in a layout.
type stored struct {
	*io.SectionReader
	digest v1.Hash
}

func openStored(f files, d v1.Descriptor) (*stored, error) {
	if d.Digest.Algorithm != "sha256" {
		return nil, fmt.Errorf("its digest is %q, not a sha256", d.Digest)
	}
	r, err := f.open("blobs/sha256/" + d.Digest.Hex)
	if err != nil {
		return nil, err
	}
	if r.Size() != d.Size {
		return nil, fmt.Errorf("blob %s has %d bytes, not %d", d.Digest, r.Size(), d.Size)
	}
	return &stored{r, d.Digest}, nil
}

// Open implements blob.
func (s *stored) Open() (io.ReadCloser, error) {
	whole := io.NewSectionReader(s.SectionReader, 0, s.Size())
	return io.NopCloser(&hashing{whole, sha256.New(), s.digest}), nil
}

// hashing fails, instead of ending, where the digest is another one.
type hashing struct {
	io.Reader
	hash hash.Hash
	want v1.Hash
}

// Read implements io.Reader.
func (h *hashing) Read(p []byte) (int, error) {
	n, err := h.Reader.Read(p)
	h.hash.Write(p[:n])
	if got := ""; err == io.EOF {
		if got = hex.EncodeToString(h.hash.Sum(nil)); got != h.want.Hex {
			err = fmt.Errorf("blob %s has the digest sha256:%s", h.want, got)
		}
	}
	return n, err
}

func openFiles(name string) (files, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	if info.IsDir() {
		root, err := os.OpenRoot(name)
		return &directory{root: root}, err
	}
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	a, err := scan(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return a, nil
}

// directory is a layout in a directory. No link leads out of it.
type directory struct {
	root   *os.Root
	opened []*os.File
}

func (d *directory) open(name string) (*io.SectionReader, error) {
	f, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	d.opened = append(d.opened, f)
	return regular(f)
}

func (d *directory) close() {
	for _, f := range d.opened {
		f.Close()
	}
	d.root.Close()
}

// regular returns all of a regular file.
func regular(f *os.File) (*io.SectionReader, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path.Base(f.Name()))
	}
	return io.NewSectionReader(f, 0, info.Size()), nil
}

// archive is a layout in a tar archive, which is read where it lies.
type archive struct {
	file   *os.File
	stored map[string]*io.SectionReader
}

func (a *archive) open(name string) (*io.SectionReader, error) {
	if r, ok := a.stored[name]; ok {
		return r, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

func (a *archive) close() { a.file.Close() }

// scan lists the files of an archive. Of two with one name the first counts.
func scan(f *os.File) (*archive, error) {
	whole, err := regular(f)
	if err != nil {
		return nil, err
	}
	a := &archive{f, map[string]*io.SectionReader{}}
	in := tar.NewReader(whole)
	for range maxArchive {
		h, err := in.Next()
		if err == io.EOF {
			return a, nil
		}
		if err != nil {
			return nil, fmt.Errorf("it is no tar archive that can be read: %w", err)
		}
		name := path.Clean(h.Name)
		if _, known := a.stored[name]; known || h.Typeflag != tar.TypeReg || oci.Sparse(h) {
			continue
		}
		at, err := whole.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		a.stored[name] = io.NewSectionReader(f, at, h.Size)
	}
	return nil, fmt.Errorf("it has more than %d files", maxArchive)
}
