package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// client is one repository, with the way to it.
type client struct {
	repo      name.Repository
	purpose   purpose
	auth      authn.Authenticator
	user      string // for messages; empty without a login
	userAgent string
	later     string // what to do when the registry is better again
	guard     *guard
	http      *http.Transport
	backoff   time.Duration
}

// purpose is what a client is for, in the words of its errors.
type purpose struct {
	doing, do string // "pushing to", "push to"
	right     string // what somebody who may not do it asks for
	missing   string // what to do where the repository is not there
	where     string // what to check where the registry is not there
	// patient is what waits for a registry that is starting: hours of building
	// may come before it. Somebody who asks waits for the answer.
	patient bool
}

var (
	pushing = purpose{
		doing: "pushing to", do: "push to",
		right:   "ask for the right to push there, or check REGISTRY_PREFIX and IMAGE_NAME",
		missing: "make the project there first, or check REGISTRY_PREFIX and IMAGE_NAME",
		where:   "check TARGET_REGISTRY",
		patient: true,
	}
	reading = purpose{
		doing: "reading from", do: "read from",
		right:   "ask for the right to read there, or check the reference",
		missing: "check the reference",
		where:   "check the reference",
	}
	fetching = patiently(reading)
)

func patiently(p purpose) purpose {
	p.patient = true
	return p
}

func newClient(ctx context.Context, repo name.Repository, what purpose, o Options) (*client, error) {
	network, err := o.network()
	if err != nil {
		return nil, err
	}
	return newClientOn(ctx, network, repo, what, o)
}

// newClientOn makes a client that shares a network with others.
func newClientOn(ctx context.Context, network *http.Transport, repo name.Repository, what purpose, o Options) (*client, error) {
	login, err := o.login(ctx, repo)
	if err != nil {
		return nil, err
	}
	c := &client{
		repo: repo, purpose: what, user: login.Username, userAgent: o.UserAgent, http: network, backoff: o.backoff,
		guard: newGuard(network, repo.RegistryStr(), o.Insecure, login),
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

// signed returns the way to the registry with the login's rights to do
// something (transport.PullScope, …) to the repository, through next, which is
// the guard or stands before it.
func (c *client) signed(ctx context.Context, next http.RoundTripper, action string) (http.RoundTripper, error) {
	return c.signedFor(ctx, next, c.repo.Scope(action))
}

// signedFor is signed for a whole scope (distribution specification, "Token
// scope").
func (c *client) signedFor(ctx context.Context, next http.RoundTripper, scope string) (http.RoundTripper, error) {
	asking := transport.NewUserAgent(next, c.userAgent)
	return transport.NewWithContext(ctx, c.repo.Registry, c.auth, asking, []string{scope})
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
		attempts := c.attempts(err)
		if try >= attempts || !transient(err) {
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

// attempts is how often, in all, something is tried that fails so.
func (c *client) attempts(err error) int {
	if c.nobody(err) && !c.purpose.patient {
		return hastyAttempts
	}
	return patientAttempts
}
