package oci

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

const (
	layoutFile    = "oci-layout"
	indexFile     = "index.json"
	layoutVersion = "1.0.0"

	// maxJSON bounds what is read into memory of a layout that others made, in
	// bytes. Registries refuse manifests above 4 MiB.
	maxJSON = 4 << 20
)

// ErrDamaged is the cause of errors of blobs that are not what their digest
// says.
var ErrDamaged = errors.New("the layout is damaged")

// Layout is an OCI image layout with one containerdisk in it.
type Layout struct {
	// Image is the containerdisk. Its layer checks itself while it is read:
	// the last bytes of a blob with another digest are never given out.
	Image      v1.Image
	Digest     string // of the manifest, "sha256:…"
	Layer      Layer
	DiskDigest string // of the disk in the layer, or empty where Pack did not make it
	Reference  string // where it was meant to go when it was packed, or empty
	Verified   bool   // the disk in it has been booted
}

// Load reads the layout in dir and checks all of it but the content of the
// layer, of which it checks the size. Its errors are *failure.Error.
func Load(dir string) (*Layout, error) {
	l, err := load(dir)
	if err != nil {
		return nil, failure.Wrap(err, dir+" has no containerdisk", LayoutHint(dir, "pack it again"))
	}
	return l, nil
}

// LayoutHint says where the layout is, of a directory that was taken for one: it
// is no layout itself, but exactly one directory in it is. Else it says otherwise.
func LayoutHint(dir, otherwise string) string {
	entries, err := os.ReadDir(dir)
	if err != nil || isLayout(dir) {
		return otherwise
	}
	if _, err := os.Lstat(filepath.Join(dir, "manifest.json")); err == nil {
		return fmt.Sprintf("skopeo copy dir:%s oci:NEW makes a layout of it", dir)
	}
	var found []string
	for _, e := range entries {
		if child := filepath.Join(dir, e.Name()); isLayout(child) {
			found = append(found, child)
		}
	}
	if len(found) != 1 {
		return otherwise
	}
	return "the layout is " + found[0]
}

func isLayout(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, layoutFile))
	return err == nil
}

func load(dir string) (*Layout, error) {
	index, err := readIndex(dir)
	if err != nil {
		return nil, err
	}
	if n := len(index.Manifests); n != 1 {
		return nil, fmt.Errorf("the layout has %d images, not one", n)
	}
	desc := index.Manifests[0]
	raw, err := readBlob(dir, desc)
	if err != nil {
		return nil, fmt.Errorf("its manifest: %w", err)
	}
	m, err := parseManifest(raw)
	if err != nil {
		return nil, err
	}
	config, err := readBlob(dir, m.Config)
	if err != nil {
		return nil, fmt.Errorf("its config: %w", err)
	}
	layer := blob{dir, m.Layers[0]}
	f, err := layer.open()
	if err != nil {
		return nil, fmt.Errorf("its layer: %w", err)
	}
	f.Close()
	image, err := partial.CompressedToImage(&image{raw, config, layer})
	if err != nil {
		return nil, err
	}
	disk := m.Annotations[AnnotationDisk]
	return &Layout{
		Image:      image,
		Digest:     desc.Digest.String(),
		Layer:      Layer{layer.desc.Digest.String(), layer.desc.Size, string(layer.desc.MediaType)},
		DiskDigest: disk,
		Reference:  reference(desc.Annotations),
		Verified:   disk != "" && desc.Annotations[AnnotationVerified] == disk,
	}, nil
}

// reference is where an image was meant to go: layouts of earlier releases have
// the whole reference for the tag.
func reference(annotations map[string]string) string {
	if whole := annotations[annotationName]; whole != "" {
		return whole
	}
	if old := annotations[annotationTag]; strings.Contains(old, "/") {
		return old
	}
	return ""
}

// readIndex reads index.json of a directory that says that it is a layout.
func readIndex(dir string) (*v1.IndexManifest, error) {
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, errors.New("there is no such directory")
	}
	marker, err := readFile(filepath.Join(dir, layoutFile))
	if err != nil {
		return nil, fmt.Errorf("it is no OCI image layout: %w", err)
	}
	var layout struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := json.Unmarshal(marker, &layout); err != nil || layout.Version != layoutVersion {
		return nil, fmt.Errorf("it is no OCI image layout of version %s", layoutVersion)
	}
	raw, err := readFile(filepath.Join(dir, indexFile))
	if err != nil {
		return nil, fmt.Errorf("it is no OCI image layout: %w", err)
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

// parseManifest accepts what CONTAINERDISK.md demands of a manifest: OCI media
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

// readBlob reads a small blob and checks it.
func readBlob(dir string, desc v1.Descriptor) ([]byte, error) {
	if desc.Size > maxJSON {
		return nil, fmt.Errorf("%d bytes are too many", desc.Size)
	}
	rc, err := blob{dir, desc}.Compressed()
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

// readFile reads a small file, of which nobody has stated the size.
func readFile(path string) ([]byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxJSON+1))
	if err == nil && len(b) > maxJSON {
		err = fmt.Errorf("%s is larger than %d bytes", filepath.Base(path), maxJSON)
	}
	return b, err
}

// openRegular opens a file of a layout. A symbolic link or a device in there
// would make us publish something else.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(fmt.Errorf("%s is no regular file", filepath.Base(path)), err)
	}
	return f, nil
}

// image implements partial.CompressedImageCore with bytes that were checked.
type image struct {
	manifest, config []byte
	layer            blob
}

func (i *image) RawManifest() ([]byte, error)        { return i.manifest, nil }
func (i *image) RawConfigFile() ([]byte, error)      { return i.config, nil }
func (i *image) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

func (i *image) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	if h != i.layer.desc.Digest {
		return nil, fmt.Errorf("the image has no layer %s", h)
	}
	return i.layer, nil
}

// blob implements partial.CompressedLayer with a file of a layout.
type blob struct {
	dir  string
	desc v1.Descriptor
}

func (b blob) Digest() (v1.Hash, error)            { return b.desc.Digest, nil }
func (b blob) Size() (int64, error)                { return b.desc.Size, nil }
func (b blob) MediaType() (types.MediaType, error) { return b.desc.MediaType, nil }
func (b blob) Descriptor() (*v1.Descriptor, error) { return &b.desc, nil }

// Compressed opens the blob. Reading it to its end fails, before the last
// bytes, where it has another digest than its name says.
func (b blob) Compressed() (io.ReadCloser, error) {
	f, err := b.open()
	if err != nil {
		return nil, err
	}
	return &checkedReader{file: f, desc: b.desc, hash: sha256.New()}, nil
}

func (b blob) open() (*os.File, error) {
	if b.desc.Digest.Algorithm != "sha256" {
		return nil, fmt.Errorf("its digest is %q, not a sha256", b.desc.Digest)
	}
	f, err := openRegular(filepath.Join(b.dir, "blobs", "sha256", b.desc.Digest.Hex))
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Size() != b.desc.Size {
		err = fmt.Errorf("blob %s has %d bytes, not %d", b.desc.Digest, info.Size(), b.desc.Size)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// checkedReader reads a file and holds its last bytes back until the digest of
// all is right. It hides the file: os.File.WriteTo would go past the check.
type checkedReader struct {
	file *os.File
	desc v1.Descriptor
	hash hash.Hash
	done int64
	err  error // how it ended: io.EOF where all is well
}

func (c *checkedReader) Close() error { return c.file.Close() }

func (c *checkedReader) Read(p []byte) (int, error) {
	if c.err != nil || len(p) == 0 {
		return 0, c.err
	}
	n, err := c.file.Read(p[:min(int64(len(p)), c.desc.Size-c.done)])
	c.hash.Write(p[:n])
	c.done += int64(n)
	switch {
	case c.done == c.desc.Size:
		if c.err = c.verdict(); c.err != io.EOF {
			n = 0
		}
	case err == io.EOF:
		c.err = io.ErrUnexpectedEOF
	default:
		c.err = err
	}
	return n, c.err
}

func (c *checkedReader) verdict() error {
	if got := hex.EncodeToString(c.hash.Sum(nil)); got != c.desc.Digest.Hex {
		return fmt.Errorf("%w: blob %s has the digest sha256:%s", ErrDamaged, c.desc.Digest, got)
	}
	return io.EOF
}
