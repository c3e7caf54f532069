// Package registry publishes containerdisks in OCI registries, and finds,
// lists, fetches, tags, deletes and prunes them there.
//
// go-containerregistry speaks the protocol. Around it stand, each once:
//
//   - a Session, the network and the login of one user, and an access, a
//     repository with a right to do something there
//   - the guard, through which every request goes: what a hostile registry must
//     not make us send, and what must not appear in an error
//   - access.try, which tries again and minds Retry-After. The library's own
//     tries know neither that nor the end of a context
//   - diagnose, which makes of every error a line that says what to do
//   - list, which follows the pages of a list: the library's stops at a link to
//     another scheme or to the page before, and follows a circle for ever
package registry

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/httpclient"
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
	maxJSON       = 4 << 20 // bytes of a manifest, config or page; registries refuse larger manifests
)

// ghcr is GitHub's registry, which has no list of repositories, deletes nothing
// by the OCI API, and calls what is not there DENIED.
const ghcr = "ghcr.io"

// purpose is what an access is for: its right, and the words of its errors.
type purpose struct {
	action  string // of the token's scope: transport.PullScope, …
	do      string // "push to"
	right   string // what somebody who may not do it asks for
	missing string // what to do where the repository is not there
	where   string // what to check where the registry is not there
	// public says that everybody may do it somewhere: no login is needed.
	public bool
	// patient is what waits for a registry that is starting: hours of building
	// may come before it. Somebody who asks waits for the answer.
	patient bool
	// harbor is for Harbor's own API, which takes the password itself.
	harbor bool
}

var (
	pushing = purpose{
		action: transport.PushScope, do: "push to", patient: true,
		right:   "ask for the right to push there, or check REGISTRY_PREFIX and IMAGE_NAME",
		missing: "make the project there first, or check REGISTRY_PREFIX and IMAGE_NAME",
		where:   "check TARGET_REGISTRY",
	}
	reading = purpose{
		action: transport.PullScope, do: "read from", public: true,
		right:   "ask for the right to read there, or check the reference",
		missing: "check the reference",
		where:   "check the reference",
	}
	listing = purpose{
		action: transport.CatalogScope, do: "list", public: true,
		right:   "ask for the right, or name the repositories themselves",
		missing: "it has no such list: name the repositories themselves",
		where:   "check TARGET_REGISTRY",
	}
	deleting = purpose{
		action: transport.DeleteScope, do: "delete from",
		right:   "ask for the right to delete there: in Harbor a role or a robot account that may delete artifacts",
		missing: "check the reference",
		where:   "check the reference",
	}
)

// fetching is reading behind, and before, hours of building.
func fetching() purpose {
	p := reading
	p.patient = true
	return p
}

// Session asks registries many things, with the same credentials and over the
// same connections; each repository is logged in to once. It is safe for
// concurrent use. The caller must call Close. Errors of its methods are
// *failure.Error, except for the cause of a context.
type Session struct {
	options Options
	network *httpclient.Transport

	mu       sync.Mutex
	accesses map[target]*access
	stranger *Session // see Stranger
}

type target struct {
	name.Repository
	purpose
}

// NewSession returns a Session that asks nothing yet.
func NewSession(o Options) (*Session, error) {
	network, err := httpclient.New(httpclient.Options{CAFile: o.CAFile, Idle: o.idle, Think: answerTimeout, Dial: o.dial})
	if err != nil {
		return nil, err
	}
	return &Session{options: o, network: network, accesses: map[target]*access{}}, nil
}

// Close ends the Session's connections.
func (s *Session) Close() { s.network.CloseIdleConnections() }

// access is a repository, with the right to do something there.
type access struct {
	repo    name.Repository
	purpose purpose
	options Options
	guard   *guard
	later   string // what to do when the registry is better again

	mu      sync.Mutex
	auth    authn.Authenticator // nil before anybody asked for it
	user    string              // for messages; empty without a login
	noLogin *failure.Error      // why there is none, or nil
	signed  http.RoundTripper   // nil before the login
}

// access returns the access to a repository for a purpose. It logs in when it
// is used.
func (s *Session) access(repo name.Repository, what purpose) *access {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accesses[target{repo, what}]
	if a == nil {
		g := &guard{next: s.network, registry: repo.RegistryStr(), insecure: s.options.Insecure}
		a = &access{repo: repo, purpose: what, options: s.options, guard: g, later: "try again later"}
		s.accesses[target{repo, what}] = a
	}
	return a
}

// logIn returns the transport that carries the login. One that failed is tried
// again by the next caller.
func (a *access) logIn(ctx context.Context) (http.RoundTripper, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.signed != nil {
		return a.signed, nil
	}
	if a.auth == nil {
		login, problem := a.options.login(ctx, a.repo.Registry)
		if problem != nil && !a.purpose.public {
			return nil, problem
		}
		a.auth, a.user, a.noLogin = authn.FromConfig(login), login.Username, problem
		a.guard.hide(login.Password)
		a.guard.hide(login.IdentityToken)
	}
	agent := transport.NewUserAgent(a.guard, a.options.UserAgent)
	var err error
	if a.purpose.harbor {
		a.signed, err = transport.FromToken(a.repo.Registry, a.auth, agent, &transport.Challenge{Scheme: "Basic"}, nil)
		return a.signed, err
	}
	scope := a.repo.Scope(a.purpose.action)
	if a.purpose.action == transport.CatalogScope {
		scope = a.repo.Registry.Scope(a.purpose.action)
	}
	a.signed, err = transport.NewWithContext(ctx, a.repo.Registry, a.auth, agent, []string{scope})
	return a.signed, err
}

// remote returns the options of go-containerregistry to act with the login. Its
// tries again are off: try does them.
func (a *access) remote(ctx context.Context) ([]remote.Option, error) {
	signed, err := a.logIn(ctx)
	return []remote.Option{
		remote.WithContext(ctx),
		remote.WithTransport(signed),
		remote.WithRetryPredicate(func(error) bool { return false }),
		remote.WithReferrersTagFallback(false),
	}, err
}

// url is that of a path at the registry. Where it speaks plain HTTP, the login
// and the guard find that out.
func (a *access) url(path string) string { return "https://" + a.repo.RegistryStr() + path }

// path is that of something in the repository, as in "/manifests/v1".
func (a *access) path(of string) string { return "/v2/" + a.repo.RepositoryStr() + of }

// redirects says whether a redirect is followed, as http.Client's CheckRedirect.
type redirects = func(req *http.Request, via []*http.Request) error

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// sameHost follows redirects within one host.
func sameHost(req *http.Request, via []*http.Request) error {
	if req.URL.Host != via[0].URL.Host {
		return fmt.Errorf("the list is said to be at another host, %s", req.URL.Host)
	}
	return nil
}

// send sends a request without a body, with the login, and returns an answer
// that has one of the statuses; any, where none is named. The caller must close
// its body.
func (a *access) send(
	ctx context.Context, method, url string, header http.Header, follow redirects, statuses ...int,
) (*http.Response, error) {
	signed, err := a.logIn(ctx)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header
	}
	resp, err := (&http.Client{Transport: signed, CheckRedirect: follow}).Do(req)
	if err != nil {
		return nil, err
	}
	if len(statuses) > 0 {
		if err := transport.CheckError(resp, statuses...); err != nil {
			resp.Body.Close()
			return nil, err
		}
	}
	return resp, nil
}

// try does something until it succeeds, fails for good or has failed often
// enough.
func (a *access) try(ctx context.Context, p progress.Reporter, do func() error) error {
	return host.Retry(ctx, do, func(tried int, err error) (time.Duration, error) {
		f, again := a.diagnose(err)
		asked, most := a.guard.pause(), patientAttempts
		if !a.purpose.patient && (a.nobody(err) || stalled(err)) {
			most = hastyAttempts
		}
		switch {
		case again && asked > longestPause:
			f.Try = fmt.Sprintf("it asks to come back in %v", asked.Round(time.Second))
			return 0, f
		case !again || tried >= most:
			return 0, a.explain(err, tried)
		}
		pause := host.Backoff(a.backoff(), longestPause, tried)
		pause = max(asked, pause+rand.N(pause/4+1))
		p.Warn(fmt.Sprintf("%s; trying again in %v (%d of %d)", f.What, pause.Round(100*time.Millisecond), tried+1, most))
		return pause, nil
	})
}

// backoff is the shortest pause between two tries.
func (a *access) backoff() time.Duration { return cmp.Or(a.options.backoff, firstBackoff) }

// look is try for questions: that there is no such thing is no error.
func (a *access) look(ctx context.Context, do func() error) (there bool, err error) {
	err = a.try(ctx, progress.Discard, func() error {
		err := do()
		if there = !a.absent(err); !there {
			return nil
		}
		return err
	})
	return there && err == nil, err
}

// absent says whether an answer means that there is no such thing. GitHub's
// registry does not tell a package that is not there from one that may not be
// read; a push will.
func (a *access) absent(err error) bool {
	answer := answered(err)
	return answer != nil && (answer.StatusCode == http.StatusNotFound && !isPing(answer) ||
		answer.StatusCode == http.StatusForbidden && a.repo.RegistryStr() == ghcr)
}

// get reads a manifest, once.
func (a *access) get(ctx context.Context, ref name.Reference) (*remote.Descriptor, error) {
	options, err := a.remote(ctx)
	if err != nil {
		return nil, err
	}
	return remote.Get(ref, options...)
}

// manifest reads a manifest, or returns nil where there is none.
func (a *access) manifest(ctx context.Context, ref name.Reference) (d *remote.Descriptor, err error) {
	there, err := a.look(ctx, func() error {
		d, err = a.get(ctx, ref)
		return err
	})
	if !there {
		return nil, err
	}
	return d, nil
}
