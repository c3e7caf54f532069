package registry

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/netgroup-polito/diskforge/internal/text"
)

// guard stands between go-containerregistry and the network. Every request
// passes here, also those that a registry asked for by a redirect, an upload
// Location or a token realm. It lets none of them leave in plain HTTP where
// that is not allowed, and knows what must not appear in an error.
type guard struct {
	next     http.RoundTripper
	registry string // host and port
	insecure bool   // plain HTTP is allowed everywhere

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
	if err := g.admit(req); err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	if _, token, ok := strings.Cut(req.Header.Get("Authorization"), " "); ok {
		g.hide(token)
	}
	resp, err := g.next.RoundTrip(req)
	if err == nil {
		g.mu.Lock()
		g.retryAfter = max(g.retryAfter, retryAfter(resp.Header.Get("Retry-After")))
		g.mu.Unlock()
	}
	return resp, err
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

// handOverError says that a redirect would have sent a token to another host.
type handOverError struct{ from, to string }

func (e *handOverError) Error() string {
	return fmt.Sprintf("%s wants a token to be sent to %s", e.from, e.to)
}

func (g *guard) admit(req *http.Request) error {
	if req.URL.Scheme != "https" && !g.insecure && !g.bothLoopback(req.URL.Hostname()) {
		fallback := req.Response == nil && req.URL.Host == g.registry && req.URL.Path == "/v2/"
		return &plainHTTPError{req.URL.Host, fallback}
	}
	// The library sets Authorization for one host only. A token that is the
	// body of a request (OAuth's form) would follow a 307 anywhere.
	form := req.Method == http.MethodPost && req.Header.Get("Content-Type") == "application/x-www-form-urlencoded"
	if from := redirectedFrom(req); form && from != "" && from != req.URL.Host {
		return &handOverError{from, req.URL.Host}
	}
	return nil
}

// bothLoopback allows plain HTTP within this machine. A registry elsewhere has
// no business to send us to services of ours.
func (g *guard) bothLoopback(host string) bool {
	return loopback(host) && loopback(hostname(g.registry))
}

func redirectedFrom(req *http.Request) string {
	if req.Response == nil || req.Response.Request == nil {
		return ""
	}
	return req.Response.Request.URL.Host
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
