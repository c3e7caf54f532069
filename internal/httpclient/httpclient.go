// Package httpclient is the way to servers that are not trusted: registries,
// the hosts of base images, mirrors. Whoever it asks can neither hang nor lead
// around in circles: a request that gets nowhere ends, and so does one that is
// redirected again and again, whatever its method.
package httpclient

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

const (
	// idle is how long a request may get nowhere.
	idle = time.Minute
	// least is how many bytes a body must get on by within that time, unless it
	// ends: one byte a second is no progress.
	least = 256 << 10
	// maxRedirects is as many as net/http follows by itself.
	maxRedirects = 10
)

// Dial connects to an address, HOST:PORT.
type Dial func(ctx context.Context, network, addr string) (net.Conn, error)

// Options say how to reach a server.
type Options struct {
	// CAFile has further authorities' certificates (PEM), or is empty.
	CAFile string
	// Idle is how long a request may get nowhere. Zero means one minute.
	Idle time.Duration
	// Think is how long a server may think about a body that it was sent. Zero
	// means as long as Idle.
	Think time.Duration
	// Dial is net.Dialer's where it is nil.
	Dial Dial
}

// Transport is a http.RoundTripper that takes its proxy from the environment.
type Transport struct {
	http        *http.Transport
	idle, think time.Duration
}

// New makes a transport.
func New(o Options) (*Transport, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DisableCompression = true   // digests are of the bytes as published
	t.WriteBufferSize = 256 << 10 // the default sends a layer in calls of 4 KiB
	t.MaxIdleConnsPerHost = 8
	t.MaxResponseHeaderBytes = 256 << 10
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	t.OnProxyConnectResponse = func(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
		return refusal(answer)
	}
	if t.DialContext = dial; o.Dial != nil {
		t.DialContext = o.Dial.checked
	}
	if o.CAFile != "" {
		roots, err := authorities(o.CAFile)
		if err != nil {
			return nil, err
		}
		t.TLSClientConfig.RootCAs = roots
	}
	patience := cmp.Or(o.Idle, idle)
	return &Transport{http: t, idle: patience, think: max(o.Think, patience)}, nil
}

// authorities are the host's, with those of a file.
func authorities(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, failure.Wrap(err, "cannot read CA_FILE", "")
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, failure.New("CA_FILE "+file+" has no certificate in it", "it must be in PEM form (BEGIN CERTIFICATE)")
	}
	return roots, nil
}

// CloseIdleConnections is that of http.Transport.
func (t *Transport) CloseIdleConnections() { t.http.CloseIdleConnections() }

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if _, redirects := origin(req); redirects > maxRedirects {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, ErrRedirects
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	asking := newWatch(ctx, cancel, t.idle)
	req = req.Clone(ctx)
	t.watchBody(req, asking)
	asking.run()
	resp, err := t.http.RoundTrip(req)
	asking.finish()
	if err == nil {
		if err = refusal(resp); err != nil {
			resp.Body.Close()
		}
	}
	if err != nil {
		err = asking.why(err)
		cancel(nil)
		return nil, err
	}
	resp.Body = &received{resp.Body, newWatch(ctx, cancel, t.idle)}
	return resp, nil
}

// watchBody watches the body of a request, of which net/http gets another where a
// connection has died. A PUT without one ends an upload, and is thought about.
func (t *Transport) watchBody(req *http.Request, w *watch) {
	if req.Body == nil || req.Body == http.NoBody {
		if req.Method == http.MethodPut {
			w.grant(t.think)
		}
		return
	}
	req.Body = &sent{req.Body, w, t.think}
	if again := req.GetBody; again != nil {
		req.GetBody = func() (io.ReadCloser, error) {
			body, err := again()
			if err != nil {
				return nil, err
			}
			return &sent{body, w, t.think}, nil
		}
	}
}

// ErrRedirects is the error of a request that leads around in circles.
var ErrRedirects = fmt.Errorf("more than %d redirects", maxRedirects)

// origin is the request from which redirects led to this one, and how many did.
// http.Client would count them, but only where nobody gave it a rule of their own.
func origin(req *http.Request) (first *http.Request, redirects int) {
	for redirects <= maxRedirects && req.Response != nil && req.Response.Request != nil {
		req = req.Response.Request
		redirects++
	}
	return req, redirects
}

// First is the request from which redirects led to this one.
func First(req *http.Request) *http.Request {
	first, _ := origin(req)
	return first
}

// ProxyError is the refusal of the proxy on the way.
type ProxyError struct{ Status string }

func (e *ProxyError) Error() string { return "the proxy answers " + e.Status }

// Advice says what to do about it.
func (e *ProxyError) Advice() string {
	if strings.HasPrefix(e.Status, "407") {
		return "write its user and password into HTTPS_PROXY, as in http://USER:PASSWORD@HOST:PORT"
	}
	return "check HTTPS_PROXY and NO_PROXY"
}

// refusal is the error of a proxy's answer: to CONNECT any but 200, and 407
// wherever it stands.
func refusal(answer *http.Response) error {
	connect := answer.Request == nil || answer.Request.Method == http.MethodConnect
	if answer.StatusCode == http.StatusProxyAuthRequired || connect && answer.StatusCode != http.StatusOK {
		return &ProxyError{fmt.Sprintf("%d %s", answer.StatusCode, http.StatusText(answer.StatusCode))}
	}
	return nil
}

// Certificate says what is wrong with a server's certificate, and what to do about
// it, where that is the error.
func Certificate(err error) (what, try string, is bool) {
	certificate, is := errors.AsType[*tls.CertificateVerificationError](err)
	if !is {
		return "", "", false
	}
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown {
		return "was signed by an unknown authority", "name the authority's certificate with CA_FILE", true
	}
	return "is not valid: " + certificate.Err.Error(), "", true
}

// RetryAfter is how long an answer asks to wait: seconds or until a date (RFC 9110).
func RetryAfter(answer *http.Response) time.Duration {
	value := answer.Header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if date, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(date))
	}
	return 0
}

// Lasting says whether the request whose error this is would fail likewise again:
// its certificate, its proxy, its name, where it is sent, or what is spoken there
// stands in its way.
func Lasting(err error) bool {
	_, _, certificate := Certificate(err)
	_, alert := errors.AsType[tls.AlertError](err)
	_, proxy := errors.AsType[*ProxyError](err)
	dns, named := errors.AsType[*net.DNSError](err)
	return certificate || alert || proxy || named && dns.IsNotFound || errors.Is(err, http.ErrSchemeMismatch) ||
		errors.Is(err, ErrRedirects) || errors.Is(err, ErrPrivate)
}

// Loopback says whether a host, or a host with its port, is this machine:
// 127.0.0.0/8, ::1 or localhost.
func Loopback(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return strings.EqualFold(host, "localhost") || err == nil && addr.Unmap().IsLoopback()
}

// Private says whether a host is an address that is not one of the Internet.
func Private(host string) bool {
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	addr = addr.Unmap()
	return err == nil && (addr.IsPrivate() || addr.IsLinkLocalUnicast() || addr.IsUnspecified() || addr.IsLoopback())
}

// ErrPrivate is the error of a name that stands for a private address.
var ErrPrivate = errors.New("its name stands for a private address")

type publicHost struct{}

// Public returns a context in which a request to the host does not connect to
// an address of this machine or of a private network, whatever its name stands
// for. A proxy looks names up by itself.
func Public(ctx context.Context, host string) context.Context {
	return context.WithValue(ctx, publicHost{}, host)
}

func mustBePublic(ctx context.Context, addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	return err == nil && ctx.Value(publicHost{}) == host
}

func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 30 * time.Second}
	if mustBePublic(ctx, addr) {
		d.Control = func(_, resolved string, _ syscall.RawConn) error {
			if ip, _, err := net.SplitHostPort(resolved); err != nil || Private(ip) {
				return ErrPrivate
			}
			return nil
		}
	}
	return d.DialContext(ctx, network, addr)
}

// checked is d that keeps no connection to a private address which must not be one.
func (d Dial) checked(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := d(ctx, network, addr)
	if err != nil || !mustBePublic(ctx, addr) {
		return conn, err
	}
	if ip, _, err := net.SplitHostPort(conn.RemoteAddr().String()); err != nil || Private(ip) {
		conn.Close()
		return nil, ErrPrivate
	}
	return conn, nil
}
