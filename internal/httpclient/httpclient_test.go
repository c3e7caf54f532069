package httpclient_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/httpclient"
)

const idle = 300 * time.Millisecond

// client follows every redirect, as go-containerregistry's does.
func client(t *testing.T) *http.Client { return patient(t, idle) }

func patient(t *testing.T, idle time.Duration) *http.Client {
	transport, err := httpclient.New(httpclient.Options{Idle: idle})
	require.NoError(t, err)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return nil }}
}

func serve(t *testing.T, handle http.HandlerFunc) string {
	s := httptest.NewServer(handle)
	t.Cleanup(s.Close)
	return s.URL
}

func do(c *http.Client, method, to string, body io.Reader) ([]byte, error) {
	req, err := http.NewRequest(method, to, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

func TestAServerThatGetsNowhereIsLeft(t *testing.T) {
	t.Parallel()
	drip := func(pause time.Duration) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte("x"))
				_ = http.NewResponseController(w).Flush()
				select {
				case <-time.After(pause):
				case <-r.Context().Done():
				}
			}
		}
	}
	for name, c := range map[string]struct {
		handle http.HandlerFunc
		words  string
	}{
		"no answer":           {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "silent"},
		"a silent body":       {drip(time.Hour), "by only 1 bytes"},
		"a byte now and then": {drip(20 * time.Millisecond), "bytes in 300ms"},
	} {
		t.Run(name, func(t *testing.T) {
			begun := time.Now()
			_, err := do(client(t), http.MethodGet, serve(t, c.handle), nil)
			var stalled *httpclient.IdleError
			require.ErrorAs(t, err, &stalled)
			assert.ErrorContains(t, err, c.words)
			assert.Less(t, time.Since(begun), 10*idle)
		})
	}
}

func TestAServerThatTakesNothingMoreOfABodyIsLeft(t *testing.T) {
	t.Parallel()
	over := make(chan struct{})
	to := serve(t, func(http.ResponseWriter, *http.Request) { <-over })
	t.Cleanup(func() { close(over) })
	_, err := do(client(t), http.MethodPatch, to, io.LimitReader(zeros{}, 1<<40))
	var stalled *httpclient.IdleError
	require.ErrorAs(t, err, &stalled)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestWhoReadsSlowlyIsNotTakenForTheServer(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("x"), 4<<20)
	to := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) })
	resp, err := patient(t, 4*idle).Get(to)
	require.NoError(t, err)
	defer resp.Body.Close()
	for b := make([]byte, len(content)/5); ; {
		if _, err = io.ReadFull(resp.Body, b); err != nil {
			break
		}
		time.Sleep(idle) // longer than 4 * idle in all
	}
	require.ErrorIs(t, err, io.ErrUnexpectedEOF, "the rest of a division, and no other end")
}

func TestASteadyServerMayTakeItsTime(t *testing.T) {
	t.Parallel()
	part := bytes.Repeat([]byte("x"), 300<<10)
	to := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		for range 5 {
			_, _ = w.Write(part)
			_ = http.NewResponseController(w).Flush()
			time.Sleep(idle)
		}
	})
	b, err := do(patient(t, 4*idle), http.MethodGet, to, nil) // longer than 4 * idle in all
	require.NoError(t, err)
	assert.Len(t, b, 5*len(part))
}

func TestAServerMayThinkAboutWhatItWasSent(t *testing.T) {
	t.Parallel()
	to := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		time.Sleep(3 * idle)
	})
	transport, err := httpclient.New(httpclient.Options{Idle: idle, Think: 20 * idle})
	require.NoError(t, err)
	t.Cleanup(transport.CloseIdleConnections)
	c := &http.Client{Transport: transport}
	_, err = do(c, http.MethodPut, to, nil) // the end of an upload
	require.NoError(t, err)
	_, err = do(c, http.MethodPatch, to, strings.NewReader("body"))
	require.NoError(t, err)
	_, err = do(c, http.MethodGet, to, nil)
	var stalled *httpclient.IdleError
	require.ErrorAs(t, err, &stalled)
}

func TestARedirectInCirclesEndsForEveryMethod(t *testing.T) {
	t.Parallel()
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPatch, http.MethodPut, http.MethodDelete} {
		var asked atomic.Int32
		to := serve(t, func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		})
		_, err := do(client(t), method, to+"/x", strings.NewReader("body"))
		require.ErrorIs(t, err, httpclient.ErrRedirects, method)
		assert.Equal(t, int32(11), asked.Load(), method)
	}
}

// The proxy of a process is read from its environment once; so this one is the
// whole test's.
func TestMain(m *testing.M) {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Proxy-Authenticate", "Basic")
		w.WriteHeader(http.StatusProxyAuthRequired)
	}))
	os.Setenv("HTTPS_PROXY", proxy.URL)
	os.Setenv("HTTP_PROXY", proxy.URL)
	own, _ := os.Hostname()
	os.Setenv("NO_PROXY", own+",ip6-localhost,ip6-loopback,localhost.localdomain")
	os.Exit(m.Run())
}

func TestAProxyThatWantsALoginIsNamedAsTheProxy(t *testing.T) {
	t.Parallel()
	for _, to := range []string{"https://registry.example/v2/", "http://mirror.example/image"} {
		_, err := do(client(t), http.MethodGet, to, nil)
		var refused *httpclient.ProxyError
		require.ErrorAs(t, err, &refused, to)
		assert.Contains(t, err.Error(), "the proxy answers 407 Proxy Authentication Required")
		assert.Contains(t, refused.Advice(), "HTTPS_PROXY")
	}
}

func TestANameForAPrivateAddressIsNotConnectedToWhereItMustBePublic(t *testing.T) {
	t.Parallel()
	name := ""
	own, _ := os.Hostname()
	for _, n := range []string{own, "ip6-localhost", "ip6-loopback", "localhost.localdomain"} {
		if all, err := net.LookupHost(n); err == nil && len(all) > 0 && httpclient.Private(all[0]) && !httpclient.Private(n) {
			name = n
			break
		}
	}
	if name == "" {
		t.Skip("no name of this host stands for a private address")
	}
	l, err := net.Listen("tcp", ":0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	transport, err := httpclient.New(httpclient.Options{Idle: idle})
	require.NoError(t, err)
	req, err := http.NewRequestWithContext(httpclient.Public(t.Context(), name), http.MethodGet, "http://"+net.JoinHostPort(name, port), nil)
	require.NoError(t, err)
	_, err = transport.RoundTrip(req)
	require.ErrorIs(t, err, httpclient.ErrPrivate)
	_ = l.(*net.TCPListener).SetDeadline(time.Now())
	_, err = l.Accept()
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, "somebody connected")
}

func TestWhatAnotherAttemptDoesNotChangeLasts(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		&tls.CertificateVerificationError{Err: errors.New("expired")}, tls.AlertError(40), &httpclient.ProxyError{Status: "407 x"},
		&net.DNSError{IsNotFound: true}, http.ErrSchemeMismatch, httpclient.ErrRedirects, httpclient.ErrPrivate,
	} {
		assert.True(t, httpclient.Lasting(&url.Error{Op: "Get", Err: err}), "%v", err)
	}
	for _, err := range []error{io.ErrUnexpectedEOF, &net.DNSError{IsTimeout: true}, &httpclient.IdleError{}, syscall.ECONNREFUSED} {
		assert.False(t, httpclient.Lasting(&url.Error{Op: "Get", Err: err}), "%v", err)
	}
}
