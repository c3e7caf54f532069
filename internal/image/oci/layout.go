package oci

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
)

const (
	layoutFile    = "oci-layout"
	indexFile     = "index.json"
	layoutVersion = "1.0.0"

	// maxArchived bounds the entries of an archived layout.
	maxArchived = 10_000
)

// ErrDamaged is the cause of errors of blobs that are not what their digest
// says.
var ErrDamaged = errors.New("the layout is damaged")

// Files are those of an OCI image layout that others may have made: in a
// directory, or in a tar archive of one.
type Files struct {
	dir     string // where it is no archive
	archive *os.File
	stored  map[string]*io.SectionReader // in the archive
	opened  []io.Closer
}

// OpenFiles opens the files of the layout at a path. The caller must call Close.
func OpenFiles(at string) (*Files, error) {
	info, err := os.Stat(at)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	if info.IsDir() {
		return &Files{dir: at}, nil
	}
	archive, err := host.Open(at)
	if err != nil {
		return nil, err
	}
	f := &Files{archive: archive, stored: map[string]*io.SectionReader{}, opened: []io.Closer{archive}}
	if err := f.scan(io.NewSectionReader(archive, 0, info.Size())); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Close closes the archive, if it is one, and the blobs.
func (f *Files) Close() {
	for _, c := range f.opened {
		c.Close()
	}
}

// scan lists the files of an archive, which are read where they lie. Of two with
// one name the first counts.
func (f *Files) scan(whole *io.SectionReader) error {
	in := tar.NewReader(whole)
	for h, err := range Entries(in, whole.Size(), maxArchived) {
		if err != nil {
			return fmt.Errorf("it is no tar archive that can be read: %w", err)
		}
		name := path.Clean(h.Name)
		if _, known := f.stored[name]; known || h.Typeflag != tar.TypeReg || Sparse(h) {
			continue
		}
		at, err := whole.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		f.stored[name] = io.NewSectionReader(whole, at, h.Size)
	}
	return nil
}

// file is a regular file of a layout.
type file struct {
	*io.SectionReader
	io.Closer
}

// open opens a file by its slash-separated path. No link leads out of a
// directory: it would make us publish something else.
func (f *Files) open(name string) (file, error) {
	if f.archive != nil {
		if r, ok := f.stored[name]; ok {
			return file{io.NewSectionReader(r, 0, r.Size()), io.NopCloser(nil)}, nil
		}
		return file{}, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return file{}, err
	}
	defer root.Close()
	opened, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return file{}, err
	}
	info, err := opened.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: host.ErrNotRegular}
	}
	if err != nil {
		opened.Close()
		return file{}, err
	}
	return file{io.NewSectionReader(opened, 0, info.Size()), opened}, nil
}

func (f *Files) has(name string) bool {
	opened, err := f.open(name)
	if err != nil {
		return false
	}
	opened.Close()
	return true
}

// read reads a small file, of which nobody has stated the size.
func (f *Files) read(name string) ([]byte, error) {
	opened, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	b, err := host.ReadAll(opened, maxJSON)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

// index reads index.json, where the files say that they are a layout.
func (f *Files) index() ([]byte, error) {
	marker, err := f.read(layoutFile)
	if err != nil {
		return nil, fmt.Errorf("it is no OCI image layout: %w", err)
	}
	var layout struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := json.Unmarshal(marker, &layout); err != nil || layout.Version != layoutVersion {
		return nil, fmt.Errorf("it is no OCI image layout of version %s", layoutVersion)
	}
	index, err := f.read(indexFile)
	if err != nil {
		return nil, fmt.Errorf("it is no OCI image layout: %w", err)
	}
	return index, nil
}

// Image is the one in the layout that nodes and CDI would take, whose blobs can
// be read until the files are closed.
func (f *Files) Image() (i Image, err error) {
	index, err := f.index()
	if err != nil {
		return i, err
	}
	i, err = Resolve(v1.Descriptor{MediaType: types.OCIImageIndex}, index, "", f.small("manifest"), f.small("config"))
	i.Blob = func(d v1.Descriptor) (Blob, error) {
		opened, err := f.blob(d)
		if err != nil {
			return Blob{}, err
		}
		f.opened = append(f.opened, opened)
		return Blob{opened, func() (io.ReadCloser, error) { return f.whole(d) }}, nil
	}
	return i, err
}

// blob opens a blob, of the size that its descriptor says.
func (f *Files) blob(d v1.Descriptor) (file, error) {
	if d.Digest.Algorithm != "sha256" {
		return file{}, fmt.Errorf("its digest is %q, not a sha256", d.Digest)
	}
	opened, err := f.open("blobs/sha256/" + d.Digest.Hex)
	if err == nil && opened.Size() != d.Size {
		opened.Close()
		err = fmt.Errorf("blob %s has %d bytes, not %d", d.Digest, opened.Size(), d.Size)
	}
	return opened, err
}

// whole reads all of a blob. That fails with ErrDamaged, before its last bytes
// are given out, where it has another digest than its name says.
func (f *Files) whole(d v1.Descriptor) (io.ReadCloser, error) {
	opened, err := f.blob(d)
	if err != nil {
		return nil, err
	}
	checked := host.Verify(opened, d.Size, d.Digest.String(), func(got string) error {
		return fmt.Errorf("%w: blob %s has the digest %s", ErrDamaged, d.Digest, got)
	})
	return struct {
		io.Reader
		io.Closer
	}{checked, opened}, nil
}

// small reads small blobs, which are the image's so-called.
func (f *Files) small(what string) func(v1.Descriptor) ([]byte, error) {
	return func(d v1.Descriptor) (all []byte, err error) {
		if d.Size > maxJSON {
			return nil, fmt.Errorf("its %s: %d bytes are too many", what, d.Size)
		}
		blob, err := f.whole(d)
		if err == nil {
			defer blob.Close()
			all, err = io.ReadAll(blob)
		}
		if err != nil {
			return nil, fmt.Errorf("its %s: %w", what, err)
		}
		return all, nil
	}
}

// Layout is an OCI image layout with one containerdisk in it.
type Layout struct {
	Image
	Layer       v1.Descriptor
	Annotations map[string]string // of the manifest
	DiskDigest  string            // of the disk in the layer, or empty where Pack did not make it
	Reference   string            // where it was meant to go when it was packed, or empty
	Verified    bool              // the disk in it has been booted

	layer layer
}

// Load reads the layout in dir and checks all of it but the content of the
// layer, of which it checks the size. Its errors are *failure.Error.
func Load(dir string) (*Layout, error) {
	l, err := load(dir)
	if err != nil {
		try := "pack it again"
		if _, absent := os.Stat(filepath.Join(dir, layoutFile)); absent != nil {
			try = "give the folder of a layout, which has the file " + layoutFile + " in it"
		}
		return nil, failure.Wrap(err, dir+" has no containerdisk", LayoutHint(dir, try))
	}
	return l, nil
}

// LayoutHint says how to come to a layout from a path, at, that was taken for one:
// another tool's image can become one, or exactly one directory in it is one.
// Else it says otherwise.
func LayoutHint(at, otherwise string) string {
	f, err := OpenFiles(at)
	if err != nil {
		return otherwise
	}
	defer f.Close()
	found, _ := fs.Glob(os.DirFS(at), "*/"+layoutFile)
	switch {
	case f.has(layoutFile):
	case f.has("manifest.json") && f.archive != nil:
		return fmt.Sprintf("skopeo copy docker-archive:%s oci:NEW makes a layout of it", at)
	case f.has("manifest.json"):
		return fmt.Sprintf("skopeo copy dir:%s oci:NEW makes a layout of it", at)
	case len(found) == 1:
		return "the layout is " + filepath.Join(at, filepath.Dir(found[0]))
	}
	return otherwise
}

func load(dir string) (*Layout, error) {
	files := &Files{dir: dir}
	index, err := readIndex(dir)
	if err != nil {
		return nil, err
	}
	if n := len(index.Manifests); n != 1 {
		return nil, fmt.Errorf("the layout has %d images, not one", n)
	}
	described := index.Manifests[0]
	raw, err := files.small("manifest")(described)
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(raw)
	if err != nil {
		return nil, err
	}
	l := &Layout{
		Layer:       m.Layers[0],
		Annotations: m.Annotations,
		DiskDigest:  m.Annotations[AnnotationDisk],
		Reference:   described.Annotations[annotationName],
		layer:       layer{files, m.Layers[0]},
	}
	l.Verified = l.DiskDigest != "" && described.Annotations[AnnotationVerified] == l.DiskDigest
	if l.Image, err = Resolve(described, raw, "", nil, files.small("config")); err != nil {
		return nil, err
	}
	b, err := files.blob(l.Layer)
	if err != nil {
		return nil, fmt.Errorf("its layer: %w", err)
	}
	b.Close()
	l.Name, l.Image.Blob = dir, func(v1.Descriptor) (Blob, error) { return Blob{Open: l.layer.Compressed}, nil }
	return l, nil
}

// readIndex reads what images there are in the layout in dir.
func readIndex(dir string) (*v1.IndexManifest, error) {
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, errors.New("there is no such directory")
	}
	raw, err := (&Files{dir: dir}).index()
	if err != nil {
		return nil, err
	}
	return parseIndex(raw)
}

func parseIndex(raw []byte) (*v1.IndexManifest, error) {
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("its %s: %w", indexFile, err)
	}
	for _, d := range index.Manifests {
		if d.MediaType != types.OCIManifestSchema1 {
			return nil, fmt.Errorf("its %s lists a %q, not an OCI image", indexFile, d.MediaType)
		}
	}
	return &index, nil
}

// parseManifest accepts what KubeVirt and CDI demand of a manifest: OCI media
// types and one layer.
func parseManifest(raw []byte) (*v1.Manifest, error) {
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("its manifest: %w", err)
	}
	if m.Config.MediaType != types.OCIConfigJSON {
		return nil, fmt.Errorf("its config is a %q, not that of an OCI image", m.Config.MediaType)
	}
	if len(m.Layers) != 1 {
		return nil, fmt.Errorf("the image has %d layers, not one", len(m.Layers))
	}
	switch mt := m.Layers[0].MediaType; mt {
	case types.OCIUncompressedLayer, types.OCILayerZStd, types.OCILayer:
		return &m, nil
	default:
		return nil, fmt.Errorf("its layer is a %q, not one of an OCI image", mt)
	}
}

// RawManifest and MediaType make a layout what a registry's client pushes.
func (l *Layout) RawManifest() ([]byte, error) { return l.Manifest, nil }

// MediaType implements what RawManifest says.
func (l *Layout) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// Blobs are the layer, which checks itself while it is read, and the config.
func (l *Layout) Blobs() ([]v1.Layer, error) {
	disk, err := partial.CompressedToLayer(l.layer)
	return []v1.Layer{disk, static.NewLayer(l.Config, types.OCIConfigJSON)}, err
}

// layer implements partial.CompressedLayer with a blob that is opened each time.
type layer struct {
	files *Files
	desc  v1.Descriptor
}

func (l layer) Digest() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l layer) Size() (int64, error)                { return l.desc.Size, nil }
func (l layer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }
func (l layer) Compressed() (io.ReadCloser, error)  { return l.files.whole(l.desc) }
