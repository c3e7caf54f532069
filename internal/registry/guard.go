package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/netgroup-polito/diskforge/internal/httpclient"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// guard stands between go-containerregistry and the network. Every request
// passes here, also those that a registry asked for by a redirect, an upload
// Location or a token realm. It lets none of them leave in plain HTTP where
// that is not allowed, and knows what must not appear in an error.
type guard struct {
	next     http.RoundTripper
	registry string       // host and port
	insecure bool         // plain HTTP is allowed everywhere
	outside  atomic.Bool  // the registry is on the Internet
	read     atomic.Int64 // bytes, in the bodies of answers

	mu         sync.Mutex
	secrets    []string
	retryAfter time.Duration // the longest that answers asked for
}

// refusal is the error of a request that the guard does not let pass.
type refusal struct {
	what, try string
	// fallback is a request that the registry did not ask for: the library
	// tries http for private addresses when https fails. The failure of https
	// is what matters then.
	fallback bool
}

func (r *refusal) Error() string { return r.what }

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	req, err := fresh(req)
	if err != nil {
		return nil, err
	}
	if refused := g.admit(req); refused != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, refused
	}
	if _, token, ok := strings.Cut(req.Header.Get("Authorization"), " "); ok {
		g.hide(token)
	}
	resp, err := g.send(req)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	g.retryAfter = max(g.retryAfter, httpclient.RetryAfter(resp))
	g.mu.Unlock()
	left := int64(maxJSON)
	if strings.Contains(httpclient.First(req).URL.Path, "/blobs/") {
		left = math.MaxInt64
	}
	resp.Body = &answer{resp.Body, g, left}
	return resp, nil
}

// fresh gives a request its body anew. The library sends a request again where
// its token has died, though the body has been read.
func fresh(req *http.Request) (*http.Request, error) {
	if req.Body == nil || req.GetBody == nil {
		return req, nil
	}
	req.Body.Close()
	body, err := req.GetBody()
	if err != nil {
		return nil, err
	}
	again := *req
	again.Body = body
	return &again, nil
}

// send does a request. Where a registry on this machine, or one that may, speaks
// plain HTTP, that is found out here: of the library's two attempts the failure
// of https would hide what is wrong with the other.
func (g *guard) send(req *http.Request) (*http.Response, error) {
	own := req.URL.Host == g.registry
	ctx := req.Context()
	if own {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
			g.outside.Store(!httpclient.Private(hostname(c.Conn.RemoteAddr().String())))
		}})
	} else if g.outside.Load() {
		// It has no business to send us to services of our network.
		ctx = httpclient.Public(ctx, req.URL.Hostname())
	}
	resp, err := g.next.RoundTrip(req.WithContext(ctx))
	_, notTLS := errors.AsType[tls.RecordHeaderError](err)
	if notTLS && own && req.Body == nil && g.mayBePlain(req.URL.Hostname()) {
		plain := req.Clone(ctx)
		plain.URL.Scheme = "http"
		return g.next.RoundTrip(plain)
	}
	return resp, err
}

// answer is the body of an answer: counted, and with an end.
type answer struct {
	io.ReadCloser
	guard *guard
	left  int64
}

// Read implements io.Reader.
func (a *answer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	a.guard.read.Add(int64(n))
	if a.left -= int64(n); a.left < 0 {
		return 0, fmt.Errorf("its answer has more than %d MiB", maxJSON>>20)
	}
	if err != nil && err != io.EOF {
		err = &url.Error{Op: "Get", Err: err} // one of the connection, as those of requests
	}
	return n, err
}

// admit says why a request must not leave, or nil.
func (g *guard) admit(req *http.Request) *refusal {
	host, from := req.URL.Hostname(), httpclient.First(req).URL.Hostname()
	if req.URL.Scheme != "https" && !g.mayBePlain(host) {
		return &refusal{
			"plain HTTP to " + req.URL.Host + " is not allowed",
			"everybody on the way could read it; use https, or allow it with REGISTRY_INSECURE=true",
			req.Response == nil && req.URL.Host == g.registry && req.URL.Path == "/v2/",
		}
	}
	if host != from && httpclient.Private(host) && !httpclient.Private(from) {
		return &refusal{what: fmt.Sprintf("a redirect from %s to the private address %s is not followed", from, host)}
	}
	// The library sets Authorization for one host only. A token that is the
	// body of a request (OAuth's form) would follow a 307 anywhere.
	form := req.Method == http.MethodPost && req.Header.Get("Content-Type") == "application/x-www-form-urlencoded"
	_, _, password := req.BasicAuth()
	if form && host != from || (form || password) && !g.mayKnow(req.Context(), req.URL.Host) {
		return &refusal{
			what: fmt.Sprintf("%s wants the login to be sent to %s", g.registry, req.URL.Host),
			try: "nothing was sent: name the registry by the name that it has for itself, or say by docker login " +
				req.URL.Host + " that this host may know it",
		}
	}
	return nil
}

// mayBePlain says whether a host may be spoken to in plain HTTP: within this
// machine, or everywhere. A registry elsewhere has no business to send us to
// services of ours.
func (g *guard) mayBePlain(host string) bool {
	return g.insecure || httpclient.Loopback(host) && httpclient.Loopback(g.registry)
}

// mayKnow says whether a token service may be given the login: that of the
// registry's own host or domain (auth.docker.io for index.docker.io, gitlab.com
// for registry.gitlab.com), and those that the Docker config has a login for.
// Others a registry must not name: whoever can forge one answer of it would
// have the password.
func (g *guard) mayKnow(ctx context.Context, realm string) bool {
	registry, host := hostname(g.registry), hostname(realm)
	if host == registry || httpclient.Loopback(host) && httpclient.Loopback(registry) {
		return true
	}
	if _, err := netip.ParseAddr(registry); err != nil {
		_, domain, _ := strings.Cut(registry, ".")
		if strings.Contains(domain, ".") && (host == domain || strings.HasSuffix(host, "."+domain)) {
			return true
		}
	}
	return loggedIn(ctx, realm)
}

// pause is how long the registry has asked us to wait since the last call.
func (g *guard) pause() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	asked := g.retryAfter
	g.retryAfter = 0
	return asked
}

func (g *guard) hide(secret string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if secret != "" && !slices.Contains(g.secrets, secret) {
		g.secrets = append(g.secrets, secret)
	}
}

// maxMessage bounds what we repeat of a registry's words, in characters.
const maxMessage = 300

// query is the query of a URL inside a text.
var query = regexp.MustCompile(`\?[^\s"]*`)

// clean makes one harmless line of an error or of a registry's words, without
// secrets and queries of URLs, which may be signed.
func (g *guard) clean(said string) string {
	said, _, _ = strings.Cut(said, "\n")
	g.mu.Lock()
	said = text.Redactor(g.secrets...).Replace(said)
	g.mu.Unlock()
	return text.Cut(text.Line(query.ReplaceAllString(said, "")), maxMessage)
}

// hostname takes the port and brackets away.
func hostname(hostport string) string { return (&url.URL{Host: hostport}).Hostname() }
