package registry

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/netgroup-polito/diskforge/internal/httpclient"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// guard stands between go-containerregistry and the network. Every request
// passes here, also those that a registry asked for by a redirect, an upload
// Location or a token realm. It lets none of them leave in plain HTTP where
// that is not allowed, and knows what must not appear in an error.
type guard struct {
	next     http.RoundTripper
	registry string                 // host and port
	insecure bool                   // plain HTTP is allowed everywhere
	trusts   func(host string) bool // with the login; it may be nil
	outside  atomic.Bool            // the registry is on the Internet

	mu         sync.Mutex
	secrets    map[string]bool
	retryAfter time.Duration // the longest that answers asked for
}

func newGuard(next http.RoundTripper, registry string, insecure bool, a authn.AuthConfig) *guard {
	g := &guard{next: next, registry: registry, insecure: insecure, secrets: map[string]bool{}}
	g.hide(a.Password, a.Auth, a.IdentityToken, a.RegistryToken)
	if a.Password != "" {
		g.hide(base64.StdEncoding.EncodeToString([]byte(a.Username + ":" + a.Password)))
	}
	return g
}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	req, err := fresh(req)
	if err == nil {
		if err = g.admit(req); err != nil && req.Body != nil {
			req.Body.Close()
		}
	}
	if err != nil {
		return nil, err
	}
	if _, token, ok := strings.Cut(req.Header.Get("Authorization"), " "); ok {
		g.hide(token)
	}
	resp, err := g.send(req)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	g.retryAfter = max(g.retryAfter, retryAfter(resp.Header.Get("Retry-After")))
	g.mu.Unlock()
	resp.Body = &answer{resp.Body, most(req)}
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
	req = req.WithContext(ctx)
	resp, err := g.next.RoundTrip(req)
	var notTLS tls.RecordHeaderError
	if errors.As(err, &notTLS) && own && req.Method == http.MethodGet && g.mayBePlain(req.URL.Hostname()) {
		plain := req.Clone(ctx)
		plain.URL.Scheme = "http"
		return g.next.RoundTrip(plain)
	}
	return resp, err
}

// most is how many bytes an answer may have: only a layer's are not counted.
func most(req *http.Request) int64 {
	if strings.Contains(httpclient.First(req).URL.Path, "/blobs/") {
		return math.MaxInt64
	}
	return maxJSON
}

// answer is the body of an answer that does not go on for ever.
type answer struct {
	io.ReadCloser
	left int64
}

// Read implements io.Reader.
func (a *answer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if a.left -= int64(n); a.left < 0 {
		return 0, fmt.Errorf("its answer has more than %d MiB, which is absurd", maxJSON>>20)
	}
	if err != nil && err != io.EOF {
		err = broken(err)
	}
	return n, err
}

// plainHTTPError says what would have been sent in the clear.
type plainHTTPError struct {
	host string
	// fallback is a request that the registry did not ask for: the library
	// tries http for private addresses when https fails. The failure of https
	// is what matters then.
	fallback bool
}

func (e *plainHTTPError) Error() string { return "plain HTTP to " + e.host + " is not allowed" }

// handOverError says that the login would have gone to another host.
type handOverError struct{ from, to string }

func (e *handOverError) Error() string {
	return fmt.Sprintf("%s wants the login to be sent to %s", e.from, e.to)
}

func (g *guard) admit(req *http.Request) error {
	host, from := req.URL.Hostname(), httpclient.First(req).URL.Hostname()
	if req.URL.Scheme != "https" && !g.mayBePlain(host) {
		fallback := req.Response == nil && req.URL.Host == g.registry && req.URL.Path == "/v2/"
		return &plainHTTPError{req.URL.Host, fallback}
	}
	if host != from && httpclient.Private(host) && !httpclient.Private(from) {
		return fmt.Errorf("a redirect from %s to the private address %s is not followed", from, host)
	}
	// The library sets Authorization for one host only. A token that is the
	// body of a request (OAuth's form) would follow a 307 anywhere.
	form := req.Method == http.MethodPost && req.Header.Get("Content-Type") == "application/x-www-form-urlencoded"
	_, _, password := req.BasicAuth()
	if form && host != from || (form || password) && !g.mayKnow(req.URL.Host) {
		return &handOverError{g.registry, req.URL.Host}
	}
	return nil
}

// mayBePlain says whether a host may be spoken to in plain HTTP: within this
// machine, or everywhere. A registry elsewhere has no business to send us to
// services of ours.
func (g *guard) mayBePlain(host string) bool {
	return g.insecure || httpclient.Loopback(host) && httpclient.Loopback(hostname(g.registry))
}

// mayKnow says whether a token service may be given the login: that of the
// registry's own host or domain (auth.docker.io for index.docker.io, gitlab.com
// for registry.gitlab.com), and those to which somebody has logged in himself.
// Others a registry must not name: whoever can forge one answer of it would
// have the password.
func (g *guard) mayKnow(realm string) bool {
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
	return g.trusts != nil && g.trusts(realm)
}

// retryAfter reads the header of that name: seconds or a date (RFC 9110).
func retryAfter(value string) time.Duration {
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if date, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(date))
	}
	return 0
}

// pause is how long the registry has asked us to wait since the last call.
func (g *guard) pause() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	asked := g.retryAfter
	g.retryAfter = 0
	return asked
}

func (g *guard) hide(secrets ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range secrets {
		if s != "" {
			g.secrets[s] = true
		}
	}
}

// maxMessage bounds what we repeat of a registry's words, in characters.
const maxMessage = 300

// clean makes one harmless line of an error or of a registry's words, without
// secrets and queries of URLs, which may be signed.
func (g *guard) clean(said string) string {
	said, _, _ = strings.Cut(said, "\n")
	g.mu.Lock()
	secrets := slices.Collect(maps.Keys(g.secrets))
	g.mu.Unlock()
	// The longest first: a password may be a part of a token.
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) })
	for _, s := range secrets {
		said = strings.ReplaceAll(said, s, "***")
		said = strings.ReplaceAll(said, url.QueryEscape(s), "***")
	}
	said = query.ReplaceAllString(said, "")
	return text.Cut(text.Line(said), maxMessage)
}
