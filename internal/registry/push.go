// Package registry publishes containerdisks in OCI registries.
package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/netgroup-polito/diskforge/internal/containerdisk"
	"github.com/netgroup-polito/diskforge/internal/failure"
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
}

const (
	attempts     = 5                      // of a push, in all
	firstBackoff = 500 * time.Millisecond // doubles each time
	longestPause = time.Minute            // that a registry may ask for
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
	c, err := newClient(ctx, ref, o)
	if err != nil {
		return "", err
	}
	defer c.close()
	layout, err := containerdisk.Load(layoutDir)
	if err != nil {
		return "", err
	}
	c.later = fmt.Sprintf("later, diskforge push %s %s sends what is missing", layoutDir, ref)
	err = c.try(ctx, p, func() error {
		p.Activity("pushing to " + ref)
		return remote.Write(c.tag, observed{layout.Image, p}, c.remote(ctx)...)
	})
	if err != nil {
		return "", err
	}
	p.Bytes(layout.Layer.Size, layout.Layer.Size)
	return ref + "@" + layout.Digest, nil
}

// CheckAccess asks the registry, before a long build, whether the credentials
// may push to ref: it begins an upload and takes it back. Nothing stays there.
func CheckAccess(ctx context.Context, ref string, o Options) error {
	c, err := newClient(ctx, ref, o)
	if err != nil {
		return err
	}
	defer c.close()
	return c.try(ctx, progress.Discard, func() error {
		return c.tryUpload(ctx)
	})
}

func (c *client) tryUpload(ctx context.Context) error {
	repo := c.tag.Context()
	asking := transport.NewUserAgent(c.guard, c.userAgent)
	signed, err := transport.NewWithContext(ctx, repo.Registry, c.auth, asking, []string{repo.Scope(transport.PushScope)})
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

// client is one reference, with the way to it.
type client struct {
	tag       name.Tag
	auth      authn.Authenticator
	user      string // for messages; empty without a login
	userAgent string
	later     string // what to do when the registry is better again
	guard     *guard
	http      *http.Transport
	backoff   time.Duration
}

func newClient(ctx context.Context, ref string, o Options) (*client, error) {
	tag, err := parse(ref, o.Insecure)
	if err != nil {
		return nil, err
	}
	login, err := o.login(ctx, tag.Context())
	if err != nil {
		return nil, err
	}
	network, err := o.network()
	if err != nil {
		return nil, err
	}
	c := &client{
		tag: tag, user: login.Username, userAgent: o.UserAgent, http: network, backoff: o.backoff,
		guard: newGuard(network, tag.RegistryStr(), o.Insecure, login),
		auth:  authn.Anonymous,
		later: "try again later",
	}
	if login != (authn.AuthConfig{}) {
		c.auth = authn.FromConfig(login)
	}
	if c.backoff == 0 {
		c.backoff = firstBackoff
	}
	return c, nil
}

func (c *client) close() { c.http.CloseIdleConnections() }

// login returns the credentials for a repository; none is no error.
func (o Options) login(ctx context.Context, repo name.Repository) (authn.AuthConfig, error) {
	switch {
	case o.Username != "" && o.Password != "":
		return authn.AuthConfig{Username: o.Username, Password: o.Password}, nil
	case o.Username != "":
		return authn.AuthConfig{}, failure.New("REGISTRY_USER is set without a password", "set REGISTRY_PASS or REGISTRY_PASS_FILE")
	case o.Password != "":
		return authn.AuthConfig{}, failure.New("a registry password is set without a user", "set REGISTRY_USER")
	}
	auth, err := authn.Resolve(ctx, authn.DefaultKeychain, repo)
	if err != nil {
		return authn.AuthConfig{}, failure.Wrap(err, "cannot read the Docker config's credentials", "run docker login, or set REGISTRY_USER and REGISTRY_PASS")
	}
	login, err := authn.Authorization(ctx, auth)
	if err != nil {
		return authn.AuthConfig{}, failure.Wrap(err, "cannot read the Docker config's credentials", "run docker login, or set REGISTRY_USER and REGISTRY_PASS")
	}
	return *login, nil
}

func (o Options) network() (*http.Transport, error) {
	t := remote.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = answerTimeout
	t.WriteBufferSize = 256 << 10 // the default sends a layer in calls of 4 KiB
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if o.dial != nil {
		t.DialContext = o.dial
	}
	if o.CAFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(o.CAFile)
	if err != nil {
		return nil, failure.Wrap(err, "cannot read CA_FILE", "")
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, failure.New("CA_FILE "+o.CAFile+" has no certificate in it", "it must be in PEM form (BEGIN CERTIFICATE)")
	}
	t.TLSClientConfig.RootCAs = roots
	return t, nil
}

// remote returns the options of go-containerregistry. Its retries are off: they
// know no Retry-After and sleep on when the context has ended; try does them.
func (c *client) remote(ctx context.Context) []remote.Option {
	return []remote.Option{
		remote.WithContext(ctx),
		remote.WithAuth(c.auth),
		remote.WithTransport(c.guard),
		remote.WithUserAgent(c.userAgent),
		remote.WithRetryPredicate(func(error) bool { return false }),
		remote.WithRetryStatusCodes(),
		remote.WithReferrersTagFallback(false),
	}
}

// try does something until it succeeds, fails for good or has failed often
// enough.
func (c *client) try(ctx context.Context, p progress.Reporter, do func() error) error {
	backoff := c.backoff
	for try := 1; ; try++ {
		err := do()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		asked := c.guard.pause()
		if asked > longestPause && transient(err) {
			return failure.New(c.diagnose(err).What, fmt.Sprintf("it asks to come back in %v", asked.Round(time.Second)))
		}
		if try == attempts || !transient(err) {
			return c.explain(err, try)
		}
		pause := max(asked, backoff+rand.N(backoff/4+1))
		p.Warn(fmt.Sprintf("%s; trying again in %v (%d of %d)", c.diagnose(err).What, pause.Round(100*time.Millisecond), try+1, attempts))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		backoff *= 2
	}
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
