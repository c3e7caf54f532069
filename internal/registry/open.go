package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

const (
	maxJSON  = 4 << 20 // bytes of a manifest or config; registries refuse larger ones
	maxDepth = 3       // of indexes within indexes
)

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

	ctx   context.Context
	c     *client
	http  *http.Client
	meter *meter
	ref   name.Reference
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
	return open(ctx, ref, reading, o)
}

func open(ctx context.Context, ref string, what purpose, o Options) (*Image, error) {
	parsed, err := parseStored(ref, o.Insecure)
	if err != nil {
		return nil, err
	}
	c, err := newClient(ctx, parsed.Context(), what, o)
	if err != nil {
		return nil, err
	}
	i := &Image{ctx: ctx, c: c, ref: parsed, meter: &meter{next: c.guard}}
	err = c.try(ctx, progress.Discard, i.connect)
	if err == nil {
		err = i.readManifest(parsed)
	}
	if err == nil {
		err = i.readConfig()
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return i, nil
}

// Close ends the connections.
func (i *Image) Close() { i.c.close() }

// BytesRead is how many bytes came over the wire, in the bodies of answers.
func (i *Image) BytesRead() int64 { return i.meter.read.Load() }

func (i *Image) connect() error {
	signed, err := i.c.signed(i.ctx, i.meter, transport.PullScope)
	i.http = &http.Client{Transport: signed}
	return err
}

func (i *Image) options() []remote.Option {
	return append(i.c.remote(i.ctx), remote.WithTransport(i.http.Transport))
}

// readManifest follows indexes to a manifest.
func (i *Image) readManifest(ref name.Reference) error {
	for range maxDepth {
		var got *remote.Descriptor
		err := i.c.try(i.ctx, progress.Discard, func() (err error) {
			got, err = remote.Get(ref, i.options()...)
			return err
		})
		if err != nil {
			return err
		}
		if !got.MediaType.IsIndex() {
			i.Digest, i.MediaType, i.Manifest = got.Digest.String(), string(got.MediaType), got.Manifest
			return nil
		}
		chosen, index, err := Choose(got.Manifest)
		if err != nil {
			return failure.Wrap(err, fmt.Sprintf("no image can be taken from %s", ref), "")
		}
		index.Digest = got.Digest.String()
		i.Index, ref = index, i.c.repo.Digest(chosen.Digest.String())
	}
	return failure.New(fmt.Sprintf("%s is an index of indexes", i.ref), "name one image of it by its digest")
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
	platform := d.Platform.OS + "/" + d.Platform.Architecture
	if d.Platform.Variant != "" {
		platform += "/" + d.Platform.Variant
	}
	return platform
}

func (i *Image) readConfig() error {
	var m v1.Manifest
	if err := json.Unmarshal(i.Manifest, &m); err != nil {
		return failure.Wrap(err, fmt.Sprintf("%s has no manifest of an image", i.ref), "")
	}
	if m.Config.Size < 0 || m.Config.Size > maxJSON {
		return failure.New(fmt.Sprintf("%s: a config of %d bytes is absurd", i.ref, m.Config.Size), "")
	}
	return i.c.try(i.ctx, progress.Discard, func() error {
		rc, err := i.Blob(m.Config).get()
		if err != nil {
			return err
		}
		defer rc.Close()
		i.Config, err = io.ReadAll(rc)
		return err
	})
}

// Tags returns the first tags of the repository, as many as the registry gives
// at once.
func (i *Image) Tags() ([]string, error) {
	var tags []string
	err := i.c.try(i.ctx, progress.Discard, func() error {
		puller, err := remote.NewPuller(i.options()...)
		if err != nil {
			return err
		}
		lister, err := puller.Lister(i.ctx, i.c.repo)
		if err != nil || !lister.HasNext() {
			return err
		}
		page, err := lister.Next(i.ctx)
		if err == nil {
			tags = page.Tags
		}
		return err
	})
	return tags, err
}

// Blob is a blob of the image, which is not read yet.
func (i *Image) Blob(d v1.Descriptor) *Blob { return &Blob{i, d} }

// Blob gives out the parts of a blob, or all of it.
type Blob struct {
	image *Image
	desc  v1.Descriptor
}

// ReadAt asks the registry for a part of the blob, which no digest checks. It
// fails with ErrNoRanges where the registry gives the whole only.
func (b *Blob) ReadAt(p []byte, offset int64) (int, error) {
	want := min(int64(len(p)), b.desc.Size-offset)
	switch {
	case offset < 0:
		return 0, fmt.Errorf("there is nothing at %d", offset)
	case want <= 0:
		return 0, io.EOF
	}
	err := b.image.c.try(b.image.ctx, progress.Discard, func() error { return b.part(p[:want], offset) })
	if err != nil {
		return 0, err
	}
	if want < int64(len(p)) {
		return int(want), io.EOF
	}
	return int(want), nil
}

// part reads exactly len(p) bytes from offset.
func (b *Blob) part(p []byte, offset int64) error {
	last := offset + int64(len(p)) - 1
	resp, err := b.request(fmt.Sprintf("bytes=%d-%d", offset, last))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return failure.Wrap(ErrNoRanges, "cannot read a part of the layer", "")
	}
	said, right := resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", offset, last, b.desc.Size)
	if said != right || resp.ContentLength >= 0 && resp.ContentLength != int64(len(p)) {
		return failure.New(fmt.Sprintf("registry %s answers with another part of blob %s (%q, %d bytes) than it was asked for (%q)",
			b.image.c.repo.RegistryStr(), b.desc.Digest, b.image.c.guard.clean(said), resp.ContentLength, right), "")
	}
	if _, err = io.ReadFull(resp.Body, p); err == io.EOF || err == io.ErrUnexpectedEOF {
		err = broken(io.ErrUnexpectedEOF)
	}
	return err
}

// Open reads the whole blob. Its last bytes are not given out where it has
// another digest or size than the manifest says.
func (b *Blob) Open() (io.ReadCloser, error) {
	var rc io.ReadCloser
	err := b.image.c.try(b.image.ctx, progress.Discard, func() (err error) {
		rc, err = b.get()
		return err
	})
	return rc, err
}

func (b *Blob) get() (io.ReadCloser, error) {
	if b.desc.Digest.Algorithm != "sha256" {
		return nil, failure.New(fmt.Sprintf("blob %s has no sha256 as its digest", b.desc.Digest), "")
	}
	resp, err := b.request("")
	if err != nil {
		return nil, err
	}
	return &checked{blob: b, body: resp.Body, hash: sha256.New()}, nil
}

// request asks for the blob or a range of it.
func (b *Blob) request(byteRange string) (*http.Response, error) {
	repo := b.image.c.repo
	blob := url.URL{Scheme: repo.Scheme(), Host: repo.RegistryStr(), Path: "/v2/" + repo.RepositoryStr() + "/blobs/" + b.desc.Digest.String()}
	req, err := http.NewRequestWithContext(b.image.ctx, http.MethodGet, blob.String(), nil)
	if err != nil {
		return nil, err
	}
	if byteRange != "" {
		req.Header.Set("Range", byteRange)
	}
	resp, err := b.image.http.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// checked reads a blob to its end and checks it there.
type checked struct {
	blob  *Blob
	body  io.ReadCloser
	hash  hash.Hash
	done  int64
	err   error // how it ended
	cause error // of err, where the connection broke
}

// Read implements io.Reader.
func (c *checked) Read(p []byte) (int, error) {
	if c.err != nil || len(p) == 0 {
		return 0, c.err
	}
	left := c.blob.desc.Size - c.done
	n, err := c.body.Read(p[:min(int64(len(p)), max(left, 1))])
	c.hash.Write(p[:n])
	c.done += int64(n)
	switch {
	case c.done == c.blob.desc.Size && c.right():
		c.err = io.EOF
	case c.done >= c.blob.desc.Size:
		n, c.err = 0, failure.New(fmt.Sprintf("registry %s gives another blob than %s", c.blob.image.c.repo.RegistryStr(), c.blob.desc.Digest), "push the image again")
	case err == io.EOF:
		c.err = c.explain(broken(io.ErrUnexpectedEOF))
	case err != nil:
		c.err = c.explain(err)
	}
	return n, c.err
}

func (c *checked) right() bool {
	return hex.EncodeToString(c.hash.Sum(nil)) == c.blob.desc.Digest.Hex
}

func (c *checked) explain(err error) error {
	if ctx := c.blob.image.ctx; ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c.cause = err
	return c.blob.image.c.explain(c.cause, 1)
}

// Close implements io.Closer.
func (c *checked) Close() error { return c.body.Close() }

// broken makes the error of a body one of the connection, as the errors of
// requests are.
func broken(err error) error { return &url.Error{Op: "Get", Err: err} }

// meter counts the bytes of the bodies that come through it.
type meter struct {
	next http.RoundTripper
	read atomic.Int64
}

// RoundTrip implements http.RoundTripper.
func (m *meter) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := m.next.RoundTrip(req)
	if err == nil && resp.Body != nil {
		resp.Body = &metered{resp.Body, m}
	}
	return resp, err
}

type metered struct {
	io.ReadCloser
	meter *meter
}

// Read implements io.Reader.
func (m *metered) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	m.meter.read.Add(int64(n))
	return n, err
}
