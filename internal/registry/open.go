package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Image is an image in a registry. Its manifest and config are there; of its
// blobs comes over the wire what is asked for.
type Image struct {
	oci.Image
	session *Session
	access  *access
	close   func()
}

// Open reads the manifest and config of ref: REGISTRY/REPOSITORY with :TAG,
// @DIGEST or both. Of an index it takes the image as oci.Resolve does. All reads
// of the image end with ctx. The caller must call Close. Errors are
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
	i, err := session.open(ctx, parsed, "", reading)
	if err != nil {
		session.Close()
		return nil, err
	}
	i.Name, i.close = ref, session.Close
	return i, nil
}

func (s *Session) open(ctx context.Context, ref name.Reference, architecture string, what purpose) (*Image, error) {
	a := s.access(ref.Context(), what)
	i := &Image{session: s, access: a}
	err := a.try(ctx, progress.Discard, func() error { return i.load(ctx, ref, architecture) })
	i.Blob = func(d v1.Descriptor) (oci.Blob, error) { return a.lazy(ctx, d), nil }
	i.BytesRead, i.Tags = a.guard.read.Load, func() ([]string, error) { return a.allTags(ctx) }
	return i, err
}

// Close ends the connections.
func (i *Image) Close() { i.close() }

// load reads the config and, through indexes, the manifest.
func (i *Image) load(ctx context.Context, named name.Reference, architecture string) error {
	first, err := i.access.get(ctx, named)
	if err != nil {
		return err
	}
	var failed error // to answer
	manifest := func(d v1.Descriptor) ([]byte, error) {
		var got *remote.Descriptor
		if got, failed = i.access.get(ctx, i.access.repo.Digest(d.Digest.String())); failed != nil {
			return nil, failed
		}
		return got.Manifest, nil
	}
	config := func(d v1.Descriptor) (b []byte, err error) {
		b, failed = i.access.read(ctx, d)
		return b, failed
	}
	i.Image, err = oci.Resolve(first.Descriptor, first.Manifest, architecture, manifest, config)
	if err == nil || failed != nil {
		return err
	}
	try := ""
	if first.MediaType.IsIndex() {
		try = "name one image of it by its digest"
	}
	return failure.Wrap(err, fmt.Sprintf("no image can be taken from %s", named), try)
}

// lazy is a blob that is not read yet. What reads it later is an io.Reader, which
// is given no context: it has this one.
func (a *access) lazy(ctx context.Context, d v1.Descriptor) oci.Blob {
	parts := readerAt(func(p []byte, offset int64) error {
		return a.try(ctx, progress.Discard, func() error { return a.readPart(ctx, d, p, offset) })
	})
	open := func() (all io.ReadCloser, err error) {
		err = a.try(ctx, progress.Discard, func() error {
			rc, err := a.open(ctx, d)
			all = watched{rc, func(err error) error {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return a.explain(err, 1)
			}}
			return err
		})
		return all, err
	}
	return oci.Blob{ReaderAt: io.NewSectionReader(parts, 0, d.Size), Open: open}
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
		return failure.Wrap(oci.ErrNoRanges, "cannot read a part of the layer", "")
	}
	said, right := resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", offset, last, d.Size)
	if said != right || resp.ContentLength >= 0 && resp.ContentLength != int64(len(p)) {
		return failure.New(fmt.Sprintf("registry %s answers with another part of blob %s (%q, %d bytes) than it was asked for (%q)",
			a.repo.RegistryStr(), d.Digest, a.guard.clean(said), resp.ContentLength, right), "")
	}
	_, err = io.ReadFull(resp.Body, p)
	return err
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
