package oci

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

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
	// Hints may name the guest's distribution: AnnotationGuest, then
	// the names of the image's base and of the image.
	Hints []string
}

// Want is what an image must be. An empty field demands nothing.
type Want struct {
	Digest string // of the manifest, "sha256:…"
	Inputs string // see MadeFrom
	// Architecture is the one of an index's images that is taken; empty: as nodes choose.
	Architecture string
}

// Check says in a line why an image is not the wanted one.
func (w Want) Check(name, digest string, annotations map[string]string) error {
	inputs := annotations[AnnotationInputs]
	switch {
	case w.Digest != "" && w.Digest != digest:
		return failure.New(fmt.Sprintf("%s has the digest %s, not %s", name, digest, w.Digest),
			"correct the digest in ISO_URL or ISO_CHECKSUM, or bring the image back")
	case w.Inputs != "" && inputs == "":
		return failure.New(fmt.Sprintf("%s does not say from which inputs it was made", name), "name it by its digest: sha256: in ISO_CHECKSUM")
	case w.Inputs != "" && !MadeFrom(w.Inputs, annotations):
		return failure.New(fmt.Sprintf("%s was made from other inputs (%s) than %s", name, inputs, w.Inputs), "build that image first")
	}
	return nil
}

const (
	maxDisk    = 2 << 40 // bytes of a disk, those of the largest virtual size
	maxEntries = 16      // of a layer; a containerdisk has two
)

// Extract takes the disk out of the layout in dir, into cacheDir.
func Extract(ctx context.Context, dir string, want Want, cacheDir string, p progress.Reporter) (Extracted, error) {
	l, err := Load(dir)
	if err != nil {
		return Extracted{}, err
	}
	return l.Image.Extract(ctx, want, cacheDir, p)
}

// Extract takes the disk out of an image's layer, into a folder of cacheDir
// that the layer's digest names. A disk that is there is hashed again and not
// taken out twice. The layer may be plain, gzip or zstd, whatever its media
// type says; it must hold one regular file in disk/ and nothing else. The disk
// must be one that disk.Inspect accepts, with the digest of AnnotationDisk
// where the image has that. What fails or is stopped leaves nothing. Errors
// that a person must act on are *failure.Error.
func (i Image) Extract(ctx context.Context, want Want, cacheDir string, p progress.Reporter) (Extracted, error) {
	x, err := i.read()
	if err != nil {
		return Extracted{}, failure.Wrap(err, i.Name+" is no containerdisk", "")
	}
	if err := want.Check(i.Name, i.Digest, x.annotations); err != nil {
		return Extracted{}, err
	}
	dir := filepath.Join(cacheDir, "sha256-"+x.layer.Digest.Hex)
	held, err := host.LockDir(ctx, dir, "waiting for another process that takes out the same disk", p)
	if err != nil {
		return Extracted{}, stopped(ctx, failure.Wrap(err, "cannot keep the base's disk", "check CACHE_DIR"))
	}
	defer held.Close()
	defer os.Remove(dir) // where nothing came into it
	x.Path, x.record = filepath.Join(dir, "disk"), filepath.Join(dir, "disk.json")
	if x.cached(ctx, p) {
		return x.Extracted, nil
	}
	if err := x.run(ctx, p); err != nil {
		return Extracted{}, stopped(ctx, x.explain(err))
	}
	return x.Extracted, nil
}

// extraction takes one disk out of its layer.
type extraction struct {
	Extracted
	image       Image
	layer       v1.Descriptor
	annotated   string            // digest that the disk must have, or empty
	annotations map[string]string // of the image
	record      string            // the file that says what the disk beside it is
}

// recorded is the content of that file.
type recorded struct {
	Digest string `json:"digest"`
	Format string `json:"format"`
}

// read reads what the image says of itself.
func (i Image) read() (*extraction, error) {
	var m v1.Manifest
	var c v1.ConfigFile
	if err := json.Unmarshal(i.Manifest, &m); err != nil {
		return nil, fmt.Errorf("its manifest: %w", err)
	}
	if err := json.Unmarshal(i.Config, &c); err != nil {
		return nil, fmt.Errorf("its config: %w", err)
	}
	if len(m.Layers) != 1 {
		return nil, fmt.Errorf("it has %d layers, not one", len(m.Layers))
	}
	x := &extraction{image: i, layer: m.Layers[0], annotated: m.Annotations[AnnotationDisk], annotations: m.Annotations}
	switch {
	case !host.ValidDigest(x.layer.Digest.String()):
		return nil, fmt.Errorf("its layer's digest is %q, not a sha256", x.layer.Digest)
	case x.layer.Size < 0:
		return nil, fmt.Errorf("its layer has %d bytes", x.layer.Size)
	case x.annotated != "" && !host.ValidDigest(x.annotated):
		return nil, fmt.Errorf("its annotation %s is no digest", AnnotationDisk)
	}
	x.Manifest, x.Inputs, x.Created = i.Digest, m.Annotations[AnnotationInputs], c.Created.UTC()
	if t, err := time.Parse(time.RFC3339, m.Annotations[AnnotationCreated]); err == nil {
		x.Created = t.UTC()
	}
	for _, hint := range []string{m.Annotations[AnnotationGuest], BaseName(m.Annotations), m.Annotations[AnnotationTitle]} {
		if hint != "" {
			x.Hints = append(x.Hints, hint)
		}
	}
	return x, nil
}

// cached says whether the disk is there and is what it was.
func (x *extraction) cached(ctx context.Context, p progress.Reporter) bool {
	var r recorded
	if host.ReadJSON(x.record, &r) != nil || x.annotated != "" && r.Digest != x.annotated {
		return false
	}
	f, err := host.OpenNoFollow(x.Path)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false
	}
	p.Activity("checking the disk that was taken out before")
	got, err := host.Digest(ctx, f, p)
	if err != nil {
		return false // run says so if it is for ctx
	}
	if got != r.Digest {
		p.Warn(fmt.Sprintf("the cached disk was changed: it is %s, not %s; it is taken out again", got, r.Digest))
		return false
	}
	x.Format, x.Size, x.Digest, x.Cached = r.Format, info.Size(), r.Digest, true
	return true
}

// run takes the disk out and gives it its name when it is what it must be.
func (x *extraction) run(ctx context.Context, p progress.Reporter) error {
	p.Activity("taking the disk out of " + x.image.Name)
	out, err := host.Create(x.Path, 0o600)
	if err != nil {
		return err
	}
	defer out.Discard()
	if x.Digest, err = x.copy(ctx, out.File, p); err != nil {
		return err
	}
	if x.annotated != "" && x.Digest != x.annotated {
		return fmt.Errorf("%w: its disk has the digest %s, not %s", ErrDamaged, x.Digest, x.annotated)
	}
	info, err := disk.Inspect(ctx, out.Name())
	if err != nil {
		return err
	}
	x.Format, x.Size = info.Format, info.FileSize
	// The record goes first: a disk without one, or with another's, is not used.
	if err = host.WriteJSON(x.record, 0o600, recorded{x.Digest, x.Format}); err == nil {
		err = out.Commit()
	}
	if err != nil {
		os.Remove(x.record)
	}
	return err
}

// copy writes the disk in the layer to a file and returns its digest.
func (x *extraction) copy(ctx context.Context, out *os.File, p progress.Reporter) (digest string, err error) {
	blob, err := x.image.Blob(x.layer)
	if err != nil {
		return "", err
	}
	raw, err := blob.Open()
	if err != nil {
		return "", err
	}
	defer raw.Close()
	in := host.Reader(ctx, progress.Reader(raw, x.layer.Size, p))
	unpacked, _, err := host.Unpack(in)
	if err != nil {
		return "", err
	}
	defer unpacked.Close()
	archive := tar.NewReader(unpacked)
	for h, err := range Entries(archive, x.layer.Size, maxEntries) {
		if err != nil {
			return "", fmt.Errorf("unpacking its layer: %w", err)
		}
		isDisk, err := classify(h)
		switch {
		case err != nil:
			return "", err
		case isDisk && digest != "":
			return "", fmt.Errorf("there is a second file in its disk/: %q", h.Name)
		case isDisk:
			if digest, err = writeDisk(ctx, archive, h.Size, out); err != nil {
				return "", fmt.Errorf("unpacking its layer: %w", err)
			}
		}
	}
	if digest == "" {
		return "", errors.New("there is no file in its disk/")
	}
	_, err = io.Copy(io.Discard, in) // to the layer's end, where its digest is checked
	return digest, err
}

// classify says whether an entry is the disk. Anything that is neither that
// nor a directory has no place in a containerdisk.
func classify(h *tar.Header) (isDisk bool, err error) {
	name := strings.TrimPrefix(strings.TrimPrefix(h.Name, "."), "/")
	clean := strings.TrimSuffix(name, "/")
	switch {
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
func writeDisk(ctx context.Context, in io.Reader, size int64, out *os.File) (string, error) {
	h := newHasher()
	defer h.Close()
	n, err := host.Copy(ctx, io.MultiWriter(h, &host.SparseWriter{File: out}), in)
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = out.Truncate(size)
	}
	digest, _ := h.sum()
	return digest.String(), err
}

func (x *extraction) explain(err error) error {
	if f, ok := failure.In(err); ok {
		what := strings.TrimPrefix(f.What, x.Path+".part: ")
		return &failure.Error{
			What: fmt.Sprintf("the disk of %s cannot be used: %s", x.image.Name, what),
			Try:  f.Try, Lines: f.Lines, Err: err,
		}
	}
	switch {
	case host.DiskFull(err):
		return failure.Wrap(err, "no room for the base's disk in "+filepath.Dir(filepath.Dir(x.Path)), "free some, or set CACHE_DIR")
	case errors.Is(err, os.ErrPermission):
		return failure.Wrap(err, "cannot keep the base's disk", "check CACHE_DIR")
	}
	return failure.Wrap(err, "no disk can be taken out of "+x.image.Name, "")
}
