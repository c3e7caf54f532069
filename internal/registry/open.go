package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

const maxDepth = 3 // of indexes within indexes

// ErrNoRanges is the error of a blob of which the registry gives no parts.
var ErrNoRanges = errors.New("the registry answers range requests with the whole layer")

// Image is an image in a registry. Its manifest and config are there; of its
// blobs comes over the wire what is asked for.
type Image struct {
	Digest    string // of the manifest, "sha256:…"
	MediaType string // of the manifest
	Manifest  []byte
	Config    []byte
	// Index is set where the reference names several images.
	Index *Index
	// Tags returns the tags of the repository, those of referrers among them.
	Tags func() ([]string, error)

	access *access
	close  func()
	// try is access.try with the context that Open was given: what reads the
	// image later is an io.Reader, which is given none.
	try func(do func(context.Context) error) error
}

// Index tells which of several images was taken.
type Index struct {
	Digest    string   `json:"digest"`
	Taken     string   `json:"taken"`     // platform, "linux/amd64"
	Platforms []string `json:"platforms"` // all that there are
}

// Open reads the manifest and config of ref: REGISTRY/REPOSITORY with :TAG,
// @DIGEST or both. Of an index it takes the image for linux/amd64 (see Choose).
// All reads of the image end with ctx. The caller must call Close. Errors are
// *failure.Error, except for the cause of ctx.
func Open(ctx context.Context, ref string, o Options) (*Image, error) {
	parsed, err := parseStored(ref)
	if err != nil {
		return nil, err
	}
	session, err := NewSession(o)
	if err != nil {
		return nil, err
	}
	i, err := session.open(ctx, parsed, reading)
	if err != nil {
		session.Close()
		return nil, err
	}
	i.close = session.Close
	return i, nil
}

func (s *Session) open(ctx context.Context, ref name.Reference, what purpose) (*Image, error) {
	a := s.access(ref.Context(), what)
	i := &Image{access: a}
	i.Tags = func() ([]string, error) { return a.allTags(ctx) }
	i.try = func(do func(context.Context) error) error {
		return a.try(ctx, progress.Discard, func() error { return do(ctx) })
	}
	return i, i.try(func(ctx context.Context) error { return i.load(ctx, ref) })
}

// Close ends the connections.
func (i *Image) Close() { i.close() }

// BytesRead is how many bytes came over the wire, in the bodies of answers.
func (i *Image) BytesRead() int64 { return i.access.guard.read.Load() }

// load reads the config and, through indexes, the manifest.
func (i *Image) load(ctx context.Context, named name.Reference) error {
	ref := named
	for range maxDepth {
		got, err := i.access.get(ctx, ref)
		if err != nil {
			return err
		}
		if !got.MediaType.IsIndex() {
			i.Digest, i.MediaType, i.Manifest = got.Digest.String(), string(got.MediaType), got.Manifest
			break
		}
		chosen, index, err := Choose(got.Manifest)
		if err != nil {
			return failure.Wrap(err, fmt.Sprintf("no image can be taken from %s", ref), "")
		}
		index.Digest = got.Digest.String()
		i.Index, ref = index, i.access.repo.Digest(chosen.Digest.String())
	}
	if i.Manifest == nil {
		return failure.New(fmt.Sprintf("%s is an index of indexes", named), "name one image of it by its digest")
	}
	var m v1.Manifest
	if err := json.Unmarshal(i.Manifest, &m); err != nil {
		return failure.Wrap(err, fmt.Sprintf("%s has no manifest of an image", named), "")
	}
	if m.Config.Size > maxJSON {
		return failure.New(fmt.Sprintf("%s has a config of %d bytes: no registry takes that", named, m.Config.Size), "")
	}
	config, err := i.access.read(ctx, m.Config)
	i.Config = config
	return err
}

// Choose takes an image out of an OCI index or a Docker manifest list as nodes
// and CDI choose it, by OS, architecture and no variant: the one for amd64, one
// that says no platform, or one for another architecture that KubeVirt runs. An
// index without any is refused as they refuse it.
func Choose(raw []byte) (v1.Descriptor, *Index, error) {
	var list v1.IndexManifest
	if err := json.Unmarshal(raw, &list); err != nil {
		return v1.Descriptor{}, nil, fmt.Errorf("its index: %w", err)
	}
	var chosen *v1.Descriptor
	index, best := &Index{Platforms: []string{}}, len(platforms)
	for _, d := range list.Manifests {
		// BuildKit lists its attestations as if they were images.
		if _, attestation := d.Annotations["vnd.docker.reference.type"]; attestation || !d.MediaType.IsImage() && !d.MediaType.IsIndex() {
			continue
		}
		platform := platformOf(d)
		index.Platforms = append(index.Platforms, platform)
		if rank := slices.Index(platforms, platform); rank >= 0 && rank < best {
			chosen, best, index.Taken = &d, rank, platform
		}
	}
	switch {
	case len(index.Platforms) == 0:
		return v1.Descriptor{}, nil, errors.New("its index lists no image")
	case chosen == nil:
		return v1.Descriptor{}, nil, fmt.Errorf("its index has no image for linux/amd64, linux/arm64 or linux/s390x, by which nodes and CDI choose, but for %s",
			strings.Join(index.Platforms[:min(len(index.Platforms), 5)], ", "))
	}
	return *chosen, index, nil
}

// platforms are those that are taken, the best first.
var platforms = []string{"linux/amd64", "unknown", "linux/arm64", "linux/arm64/v8", "linux/s390x"}

// platformOf is OS/ARCHITECTURE[/VARIANT] of an image in an index.
func platformOf(d v1.Descriptor) string {
	if d.Platform == nil {
		return "unknown"
	}
	return strings.TrimSuffix(d.Platform.OS+"/"+d.Platform.Architecture+"/"+d.Platform.Variant, "/")
}

// Blob gives out the parts of a blob, or all of it. A part comes from the
// registry, and no digest checks it. Where the registry gives the whole only,
// ReadAt fails with ErrNoRanges.
type Blob struct {
	io.ReaderAt
	image *Image
	desc  v1.Descriptor
}

// Blob is a blob of the image, which is not read yet.
func (i *Image) Blob(d v1.Descriptor) *Blob {
	parts := readerAt(func(p []byte, offset int64) error {
		return i.try(func(ctx context.Context) error { return i.access.readPart(ctx, d, p, offset) })
	})
	return &Blob{io.NewSectionReader(parts, 0, d.Size), i, d}
}

// readerAt is an io.ReaderAt that reads all of p or nothing.
type readerAt func(p []byte, offset int64) error

// ReadAt implements io.ReaderAt.
func (r readerAt) ReadAt(p []byte, offset int64) (int, error) {
	if err := r(p, offset); err != nil {
		return 0, err
	}
	return len(p), nil
}

// readPart reads exactly len(p) bytes of a blob from offset.
func (a *access) readPart(ctx context.Context, d v1.Descriptor, p []byte, offset int64) error {
	last := offset + int64(len(p)) - 1
	resp, err := a.blob(ctx, d, http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", offset, last)}})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return failure.Wrap(ErrNoRanges, "cannot read a part of the layer", "")
	}
	said, right := resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", offset, last, d.Size)
	if said != right || resp.ContentLength >= 0 && resp.ContentLength != int64(len(p)) {
		return failure.New(fmt.Sprintf("registry %s answers with another part of blob %s (%q, %d bytes) than it was asked for (%q)",
			a.repo.RegistryStr(), d.Digest, a.guard.clean(said), resp.ContentLength, right), "")
	}
	_, err = io.ReadFull(resp.Body, p)
	return err
}

// Open reads the whole blob. Its last bytes are not given out where it has
// another digest or size than the manifest says.
func (b *Blob) Open() (all io.ReadCloser, err error) {
	err = b.image.try(func(ctx context.Context) error {
		rc, err := b.image.access.open(ctx, b.desc)
		all = watched{rc, func(err error) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return b.image.access.explain(err, 1)
		}}
		return err
	})
	return all, err
}

// readCloser is a reader with what closes it.
type readCloser struct {
	io.Reader
	io.Closer
}

// watched is a reader whose errors become others.
type watched struct {
	io.ReadCloser
	failed func(error) error
}

// Read implements io.Reader.
func (w watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = w.failed(err)
	}
	return n, err
}

// open opens a whole blob, once. Its errors are those that diagnose explains.
func (a *access) open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	if d.Digest.Algorithm != "sha256" || d.Size < 0 {
		return nil, failure.New(fmt.Sprintf("blob %q of %d bytes has no sha256 as its digest, or no size", d.Digest, d.Size), "")
	}
	resp, err := a.blob(ctx, d, nil)
	if err != nil {
		return nil, err
	}
	checked := host.Verify(resp.Body, d.Size, d.Digest.String(), func(string) error {
		return failure.New(fmt.Sprintf("registry %s gives another blob than %s", a.repo.RegistryStr(), d.Digest), "push the image again")
	})
	return readCloser{checked, resp.Body}, nil
}

// read reads a small blob.
func (a *access) read(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	rc, err := a.open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

func (a *access) blob(ctx context.Context, d v1.Descriptor, header http.Header) (*http.Response, error) {
	return a.send(ctx, http.MethodGet, a.url(a.path("/blobs/"+d.Digest.String())), header, nil, http.StatusOK, http.StatusPartialContent)
}
