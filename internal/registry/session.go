package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/httpclient"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

const (
	// parallel is how many manifests of a repository are read at a time.
	parallel = 8
	// pageSize is how many names a page of a list is asked to have. More than
	// the registry allows is an error in some (docker-registry's
	// PAGINATION_NUMBER_INVALID), so it is the lowest limit that is known.
	pageSize = 100
	// What a list may have at most. They stop a registry that never ends; no
	// real one comes near.
	mostPages = 1000
	mostNames = 100_000
	mostParts = 1000 // images of an index
)

// ghcr is GitHub's registry, which has no list of repositories, deletes nothing
// by the OCI API, and calls what is not there DENIED.
const ghcr = "ghcr.io"

// Session asks registries many things, with the same credentials and over the
// same connections; each repository is logged in to once. It is safe for
// concurrent use. The caller must call Close. Errors of its methods are
// *failure.Error, except for the cause of a context.
type Session struct {
	options Options
	network *httpclient.Transport

	mu   sync.Mutex
	ways map[string]*way
}

// NewSession returns a Session that asks nothing yet.
func NewSession(o Options) (*Session, error) {
	network, err := o.network()
	if err != nil {
		return nil, err
	}
	return &Session{options: o, network: network, ways: map[string]*way{}}, nil
}

// Close ends the Session's connections.
func (s *Session) Close() { s.network.CloseIdleConnections() }

// way is a client that has logged in for one purpose.
type way struct {
	*client
	login func(ctx context.Context) (http.RoundTripper, error)

	mu     sync.Mutex
	signed http.RoundTripper // nil before the login
}

// to returns the way to a repository with the right to do something there
// (transport.PullScope, …).
func (s *Session) to(ctx context.Context, repo name.Repository, what purpose, action string) (*way, error) {
	return s.way(ctx, repo, what, repo.Scope(action), func(c *client) func(context.Context) (http.RoundTripper, error) {
		return func(ctx context.Context) (http.RoundTripper, error) { return c.signed(ctx, c.guard, action) }
	})
}

// way returns the way of that key, made on first use.
func (s *Session) way(ctx context.Context, repo name.Repository, what purpose, key string, login func(*client) func(context.Context) (http.RoundTripper, error)) (*way, error) {
	key = repo.RegistryStr() + " " + what.do + " " + key
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.ways[key]; w != nil {
		return w, nil
	}
	c, err := newClientOn(ctx, s.network, repo, what, s.options)
	if err != nil {
		return nil, err
	}
	w := &way{client: c, login: login(c)}
	s.ways[key] = w
	return w, nil
}

// logIn returns the transport that carries the login. One that failed is tried
// again by the next caller.
func (w *way) logIn(ctx context.Context) (http.RoundTripper, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.signed != nil {
		return w.signed, nil
	}
	signed, err := w.login(ctx)
	if err == nil {
		w.signed = signed
	}
	return signed, err
}

// do does something over the way, several times where its errors promise to
// pass.
func (w *way) do(ctx context.Context, what func(http.RoundTripper) error) error {
	return w.try(ctx, progress.Discard, func() error { return w.once(ctx, what) })
}

// look is do for questions: that there is no such thing is no error.
func (w *way) look(ctx context.Context, what func(http.RoundTripper) error) (there bool, err error) {
	err = w.try(ctx, progress.Discard, func() error {
		err := w.once(ctx, what)
		if there = !w.absent(err); !there {
			return nil
		}
		return err
	})
	return there && err == nil, err
}

func (w *way) once(ctx context.Context, what func(http.RoundTripper) error) error {
	signed, err := w.logIn(ctx)
	if err != nil {
		return err
	}
	return what(signed)
}

// absent says whether an answer means that there is no such thing. GitHub's
// registry does not tell a package that is not there from one that may not be
// read; a push will.
func (w *way) absent(err error) bool {
	answer := answered(err)
	if answer == nil {
		return false
	}
	ping := answer.Request != nil && answer.Request.URL.Path == "/v2/"
	return answer.StatusCode == http.StatusNotFound && !ping ||
		answer.StatusCode == http.StatusForbidden && w.repo.RegistryStr() == ghcr
}

// over returns the options of go-containerregistry to use a login that is there.
func (w *way) over(ctx context.Context, signed http.RoundTripper) []remote.Option {
	return append(w.remote(ctx), remote.WithTransport(signed))
}

// manifest reads a manifest of at most 4 MiB, or returns nil where there is
// none.
func (w *way) manifest(ctx context.Context, ref name.Reference) (d *remote.Descriptor, err error) {
	there, err := w.look(ctx, func(signed http.RoundTripper) error {
		d, err = remote.Get(ref, w.over(ctx, signed)...)
		return err
	})
	if !there {
		return nil, err
	}
	return d, nil
}

// address is the URL of a path at the registry. Its scheme is the one that the
// login found to work.
func (w *way) address(path string) *url.URL {
	return &url.URL{Scheme: w.repo.Scheme(), Host: w.repo.RegistryStr(), Path: path}
}

// pages reads a list page by page, following the links of the registry: only to
// the registry itself, and not for ever. Where there is no first page, there is
// no such list; one that breaks off later is there and an error.
func (w *way) pages(ctx context.Context, first *url.URL, read func(page []byte) error) (there bool, err error) {
	seen := map[string]bool{}
	for next := first; next != nil; {
		if seen[next.String()] || len(seen) == mostPages {
			return true, failure.New(fmt.Sprintf("registry %s does not come to the end of its list for %s", w.repo.RegistryStr(), w.repo.RepositoryStr()),
				"name the repositories instead of their prefix")
		}
		seen[next.String()] = true
		found, err := w.look(ctx, func(signed http.RoundTripper) error {
			page, link, err := w.page(ctx, signed, next)
			if err != nil {
				return err
			}
			there = true
			if err = read(page); err == nil {
				next, err = follow(first, next, link)
			}
			return err
		})
		switch {
		case err != nil || !there:
			return there, err
		case !found:
			return true, failure.New(fmt.Sprintf("registry %s's list for %s breaks off: a page of it is not there", w.repo.RegistryStr(), w.repo.RepositoryStr()),
				"try again: it may have changed meanwhile")
		}
	}
	return true, nil
}

// page reads a page and the target of its link to the next.
func (w *way) page(ctx context.Context, signed http.RoundTripper, at *url.URL) (page []byte, link string, err error) {
	client := &http.Client{Transport: signed, CheckRedirect: stay}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	if err := transport.CheckError(resp, http.StatusOK); err != nil {
		return nil, "", err
	}
	page, err = io.ReadAll(resp.Body)
	return page, nextLink(resp.Header.Values("Link")), err
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// stay follows redirects within one host.
func stay(req *http.Request, via []*http.Request) error {
	if req.URL.Host != via[0].URL.Host {
		return fmt.Errorf("the list is said to be at another host, %s", req.URL.Host)
	}
	return nil
}

// webLink is one link of a Link header (RFC 8288): its target and parameters.
var (
	webLink = regexp.MustCompile(`<([^<>]*)>([^<]*)`)
	relNext = regexp.MustCompile(`;\s*rel="?next"?\s*(;|,|$)`)
)

// nextLink returns the target of the link to the next page, or nothing. Harbor
// has one to the previous page before it.
func nextLink(header []string) string {
	for _, line := range header {
		for _, link := range webLink.FindAllStringSubmatch(line, -1) {
			if relNext.MatchString(link[2]) {
				return link[1]
			}
		}
	}
	return ""
}

// follow resolves a link of the page at. Registries behind a proxy often name
// another scheme than the one they are reached by, so the first page's is kept.
func follow(first, at *url.URL, link string) (*url.URL, error) {
	if link == "" {
		return nil, nil
	}
	next, err := at.Parse(link)
	if err != nil {
		return nil, errors.New("its link to the next page is no URL")
	}
	if next.Host != first.Host {
		return nil, fmt.Errorf("the next page is said to be at another host, %s", next.Host)
	}
	next.Scheme, next.User, next.Fragment = first.Scheme, nil, ""
	return next, nil
}
