// Package registry publishes containerdisks in OCI registries.
package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Options say how to reach a registry and as whom.
type Options struct {
	// Username and Password; where both are empty, the Docker config and its
	// credential helpers are asked.
	Username, Password string
	// Insecure allows plain HTTP off loopback.
	Insecure bool
	// CAFile has further authorities' certificates (PEM), or is empty.
	CAFile    string
	UserAgent string // for example "diskforge/1.0"

	dial    func(ctx context.Context, network, addr string) (net.Conn, error) // for tests
	backoff time.Duration                                                     // for tests
	idle    time.Duration                                                     // for tests
}

const (
	patientAttempts = 5                      // of a push, in all
	hastyAttempts   = 2                      // of a question, where nobody listens
	firstBackoff    = 500 * time.Millisecond // doubles each time
	longestPause    = time.Minute            // that a registry may ask for
	// answerTimeout is how long a registry may think about a request that it
	// has received; some copy the whole layer to their storage meanwhile.
	answerTimeout = 10 * time.Minute
	maxAnswer     = 64 << 10 // bytes of an answer without an image
)

// Push uploads the image in layoutDir to ref, REGISTRY/REPOSITORY:TAG, and
// returns REGISTRY/REPOSITORY:TAG@DIGEST. What the registry has already is not
// sent again; the manifest goes last, so that a tag never points to half an
// image. Answers that promise to pass (429, 5xx) and broken connections are
// tried again, at most five times in all. What a broken upload leaves, the
// registry clears by itself: nobody else can (docker-registry refuses to cancel
// an upload that was cut). Errors are *failure.Error, except for the cause of
// ctx.
func Push(ctx context.Context, layoutDir, ref string, o Options, p progress.Reporter) (string, error) {
	tag, err := parse(ref, o.Insecure)
	if err != nil {
		return "", err
	}
	c, err := newClient(ctx, tag.Context(), pushing, o)
	if err != nil {
		return "", err
	}
	defer c.close()
	layout, err := oci.Load(layoutDir)
	if err != nil {
		return "", err
	}
	c.later = fmt.Sprintf("later, diskforge push %s %s sends what is missing", layoutDir, ref)
	err = c.try(ctx, p, func() error {
		p.Activity("pushing to " + ref)
		signed, err := c.signed(ctx, c.guard, transport.PushScope)
		if err != nil {
			return err
		}
		options := append(c.remote(ctx), remote.WithTransport(signed))
		if err := c.write(ctx, tag, observed{layout.Image, p}, options); err != nil {
			return err
		}
		return c.confirm(ctx, tag, layout.Digest, options)
	})
	if err != nil {
		return "", err
	}
	p.Bytes(layout.Layer.Size, layout.Layer.Size)
	return ref + "@" + layout.Digest, nil
}

// write sends what the registry has not. It asks for every blob: one may be
// lost though the manifest is there, with which the library would be content.
func (c *client) write(ctx context.Context, tag name.Tag, image v1.Image, o []remote.Option) error {
	pusher, err := remote.NewPusher(o...)
	if err != nil {
		return err
	}
	blobs, err := image.Layers()
	if err != nil {
		return err
	}
	config, err := partial.ConfigLayer(image)
	if err != nil {
		return err
	}
	for _, blob := range append(blobs, config) {
		if err := pusher.Upload(ctx, tag.Context(), blob); err != nil {
			return err
		}
	}
	return pusher.Push(ctx, tag, image)
}

// looks is how often a registry is asked for what it has taken: some need a
// moment.
const looks = 3

// confirm asks for what was sent, as whoever pulls it will. A tag that somebody
// else has moved meanwhile is his; the image must be there all the same. Who may
// push and not pull has the registry's word alone.
func (c *client) confirm(ctx context.Context, tag name.Tag, digest string, o []remote.Option) error {
	var ref name.Reference = tag
	for look := 1; ; look++ {
		stored, err := remote.Get(ref, o...)
		answer := answered(err)
		switch {
		case err == nil && stored.Digest.String() == digest:
			return nil
		case err == nil:
			ref = c.repo.Digest(digest)
			continue
		case answer == nil:
			return err
		case answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden:
			return nil
		case answer.StatusCode != http.StatusNotFound:
			return err
		case look >= looks:
			return failure.New(fmt.Sprintf("registry %s said that it has taken %s, and has it not", c.repo.RegistryStr(), ref), "its log says more")
		}
		select {
		case <-time.After(time.Duration(look) * c.backoff):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// CheckAccess asks the registry, before a long build, whether the credentials
// may push to ref: it begins an upload and takes it back. Nothing stays there.
func CheckAccess(ctx context.Context, ref string, o Options) error {
	tag, err := parse(ref, o.Insecure)
	if err != nil {
		return err
	}
	c, err := newClient(ctx, tag.Context(), pushing, o)
	if err != nil {
		return err
	}
	defer c.close()
	return c.try(ctx, progress.Discard, func() error {
		return c.tryUpload(ctx)
	})
}

func (c *client) tryUpload(ctx context.Context) error {
	repo := c.repo
	signed, err := c.signed(ctx, c.guard, transport.PushScope)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: signed}
	uploads := url.URL{Scheme: repo.Scheme(), Host: repo.RegistryStr(), Path: "/v2/" + repo.RepositoryStr() + "/blobs/uploads/"}
	resp, err := ask(ctx, client, http.MethodPost, uploads.String())
	if err != nil {
		return err
	}
	if err := transport.CheckError(resp, http.StatusAccepted); err != nil {
		return err
	}
	// Out of courtesy only: a token for pushing may not be one for deleting.
	if location, err := resp.Location(); err == nil {
		_, _ = ask(ctx, client, http.MethodDelete, location.String())
	}
	return nil
}

// ask sends a request without a body. The body of the answer is short and has
// been read.
func ask(ctx context.Context, client *http.Client, method, to string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, to, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, err
}

// observed is an image whose layer reports how much of it has been sent.
type observed struct {
	v1.Image
	to progress.Reporter
}

// Layers returns the image's layers.
func (o observed) Layers() ([]v1.Layer, error) {
	layers, err := o.Image.Layers()
	for i, l := range layers {
		layers[i] = observedLayer{l, o.to}
	}
	return layers, err
}

type observedLayer struct {
	v1.Layer
	to progress.Reporter
}

// Compressed opens the layer; each call begins to count anew.
func (l observedLayer) Compressed() (io.ReadCloser, error) {
	size, err := l.Size()
	if err != nil {
		return nil, err
	}
	rc, err := l.Layer.Compressed()
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{progress.Reader(rc, size, l.to), rc}, nil
}
