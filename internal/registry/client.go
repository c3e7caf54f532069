package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/httpclient"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// client is one repository, with the way to it.
type client struct {
	repo      name.Repository
	purpose   purpose
	auth      authn.Authenticator
	user      string       // for messages; empty without a login
	noLogin   *configError // why there is none, or nil
	userAgent string
	later     string // what to do when the registry is better again
	guard     *guard
	http      *httpclient.Transport
	backoff   time.Duration
}

// purpose is what a client is for, in the words of its errors.
type purpose struct {
	doing, do string // "pushing to", "push to"
	right     string // what somebody who may not do it asks for
	missing   string // what to do where the repository is not there
	where     string // what to check where the registry is not there
	// public says that everybody may do it somewhere: no login is needed.
	public bool
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
		public: true,
		doing:  "reading from", do: "read from",
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
func newClientOn(ctx context.Context, network *httpclient.Transport, repo name.Repository, what purpose, o Options) (*client, error) {
	login, err := o.login(ctx, repo)
	var config *configError
	if err != nil && !(what.public && errors.As(err, &config)) {
		return nil, err
	}
	c := &client{
		repo: repo, purpose: what, user: login.Username, noLogin: config, userAgent: o.UserAgent, http: network, backoff: o.backoff,
		guard: newGuard(network, repo.RegistryStr(), o.Insecure, login),
		auth:  authn.Anonymous,
		later: "try again later",
	}
	c.guard.trusts = func(host string) bool { return loggedIn(ctx, host) }
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
	login, err := dockerLogin(ctx, repo.Registry)
	if err != nil {
		return authn.AuthConfig{}, &configError{dockerProblem(err, repo.RegistryStr())}
	}
	return login, nil
}

// dockerLogin asks the Docker config and its credential helpers.
func dockerLogin(ctx context.Context, registry name.Registry) (authn.AuthConfig, error) {
	auth, err := authn.Resolve(ctx, authn.DefaultKeychain, registry)
	if err != nil {
		return authn.AuthConfig{}, err
	}
	login, err := authn.Authorization(ctx, auth)
	if err != nil {
		return authn.AuthConfig{}, err
	}
	return *login, nil
}

// loggedIn says whether the Docker config has a login for the host.
func loggedIn(ctx context.Context, host string) bool {
	registry, err := name.NewRegistry(host)
	if err != nil {
		return false
	}
	login, err := dockerLogin(ctx, registry)
	return err == nil && login != authn.AuthConfig{}
}

// configError is the error of a Docker config out of which no login comes.
// What everybody may read needs none.
type configError struct{ problem *failure.Error }

func (c *configError) Error() string { return c.problem.Error() }

func (c *configError) Unwrap() error { return c.problem }

// dockerProblem names the file and the key that give no login.
func dockerProblem(err error, registry string) *failure.Error {
	const instead = ", or set REGISTRY_USER and REGISTRY_PASS"
	dir := os.Getenv("DOCKER_CONFIG")
	if home, homeErr := os.UserHomeDir(); dir == "" && homeErr == nil {
		dir = filepath.Join(home, ".docker")
	}
	file := filepath.Join(dir, "config.json")
	var config struct {
		CredsStore  string            `json:"credsStore"`
		CredHelpers map[string]string `json:"credHelpers"`
	}
	if text, readErr := os.ReadFile(file); readErr == nil {
		_ = json.Unmarshal(text, &config)
	}
	key, helper := "credsStore", config.CredsStore
	if own := config.CredHelpers[registry]; own != "" {
		key, helper = "credHelpers", own
	}
	if helper == "" {
		return failure.Wrap(err, "the login for "+registry+" in "+file+" cannot be read", "mend that file"+instead)
	}
	program := "docker-credential-" + helper
	if _, missing := exec.LookPath(program); missing != nil {
		return failure.New(fmt.Sprintf("%s in %s names %s, which is not installed", key, file, program), "take that key out of the file, or install the program"+instead)
	}
	return failure.Wrap(err, fmt.Sprintf("%s, which %s in %s names, gives no login for %s", program, key, file, registry), "mend it, or take that key out of the file"+instead)
}

func (o Options) network() (*httpclient.Transport, error) {
	return httpclient.New(httpclient.Options{CAFile: o.CAFile, Idle: o.idle, Think: answerTimeout, Dial: o.dial})
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
	var stalled *httpclient.IdleError
	if (c.nobody(err) || errors.As(err, &stalled)) && !c.purpose.patient {
		return hastyAttempts
	}
	return patientAttempts
}
