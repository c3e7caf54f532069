package registry_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	memory "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/bcrypt"

	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

const (
	user     = "alice"
	password = "pässword-PLANTED+/="
)

// server is an in-process registry that writes down what it is asked. Handle
// may answer instead of it: it returns true when it has.
type server struct {
	*httptest.Server
	handle func(w http.ResponseWriter, r *http.Request) bool

	mu       sync.Mutex
	requests []string // METHOD host path
	logins   []string // Authorization of each
}

func newServer(t *testing.T, handle func(w http.ResponseWriter, r *http.Request) bool) *server {
	s := &server{handle: handle}
	s.Server = httptest.NewServer(s.handler())
	t.Cleanup(s.Close)
	return s
}

func (s *server) handler() http.Handler {
	inner := memory.New(memory.Logger(log.New(io.Discard, "", 0)))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r.Method+" "+r.Host+" "+r.URL.Path)
		s.logins = append(s.logins, r.Header.Get("Authorization"))
		handle := s.handle
		s.mu.Unlock()
		if handle == nil || !handle(w, r) {
			inner.ServeHTTP(w, r)
		}
	})
}

// answers changes what answers instead of the registry.
func (s *server) answers(handle func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handle = handle
}

// seen returns the requests since the last call.
func (s *server) seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.requests
	s.requests = nil
	return seen
}

func (s *server) host() string { return s.Listener.Addr().String() }

// ref is where the tests push to.
func (s *server) ref() string { return s.host() + "/lab/ubuntu:v1" }

// remoteServer is a registry with TLS under the name registry.example, which
// is reached on loopback. Whatever else is dialled is written down in dialled
// and reaches the same server.
type remoteServer struct {
	*server
	options registry.Options

	mu      sync.Mutex
	dialled []string
}

func newRemoteServer(t *testing.T, handle func(w http.ResponseWriter, r *http.Request) bool) *remoteServer {
	ca := testkit.NewAuthority(t)
	certFile, keyFile := ca.Issue(t, "registry.example", "other.example", "ghcr.io")
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	require.NoError(t, err)
	s := &remoteServer{server: &server{handle: handle}}
	s.Server = httptest.NewUnstartedServer(s.handler())
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	s.StartTLS()
	t.Cleanup(s.Close)
	s.options = registry.Options{Username: user, Password: password, CAFile: ca.File}.Quick().Through(s.dial)
	return s
}

func (s *remoteServer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	s.mu.Lock()
	s.dialled = append(s.dialled, addr)
	s.mu.Unlock()
	return new(net.Dialer).DialContext(ctx, network, s.Listener.Addr().String())
}

// remoteRef is a reference at a remoteServer.
const remoteRef = "registry.example/lab/ubuntu:v1"

// debianRegistry is Debian's docker-registry, with TLS and one user.
type debianRegistry struct {
	host, data string
	ca         *testkit.Authority
}

func (d *debianRegistry) ref() string { return d.host + "/lab/ubuntu:v1" }

func (d *debianRegistry) options() registry.Options {
	return registry.Options{Username: user, Password: password, CAFile: d.ca.File}.Quick()
}

func newDebianRegistry(t testing.TB, changes ...func(*testkit.RegistryOptions)) *debianRegistry {
	d := &debianRegistry{ca: testkit.NewAuthority(t)}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	require.NoError(t, err)
	o := testkit.RegistryOptions{Htpasswd: filepath.Join(t.TempDir(), "htpasswd")}
	require.NoError(t, os.WriteFile(o.Htpasswd, []byte(user+":"+string(hash)+"\n"), 0o600))
	o.Cert, o.Key = d.ca.Issue(t)
	for _, change := range changes {
		change(&o)
	}
	d.host, d.data = testkit.StartRegistry(t, o)
	return d
}

// stored returns the paths of the registry's files that contain part.
func (d *debianRegistry) stored(t testing.TB, part string) []string {
	var found []string
	err := filepath.WalkDir(d.data, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && strings.Contains(path, part) {
			found = append(found, path)
		}
		return nil
	})
	require.NoError(t, err)
	return found
}

// pulled returns the layer's content, uncompressed, and the manifest's digest.
func pulled(t *testing.T, ref string, o registry.Options) ([]byte, string) {
	tag, err := name.NewTag(ref)
	require.NoError(t, err)
	transport := remote.DefaultTransport.(*http.Transport).Clone()
	if o.CAFile != "" {
		roots := x509.NewCertPool()
		b, err := os.ReadFile(o.CAFile)
		require.NoError(t, err)
		roots.AppendCertsFromPEM(b)
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	}
	t.Cleanup(transport.CloseIdleConnections)
	image, err := remote.Image(tag, remote.WithTransport(transport),
		remote.WithAuth(&authn.Basic{Username: o.Username, Password: o.Password}))
	require.NoError(t, err)
	digest, err := image.Digest()
	require.NoError(t, err)
	layers, err := image.Layers()
	require.NoError(t, err)
	require.Len(t, layers, 1)
	rc, err := layers[0].Uncompressed()
	require.NoError(t, err)
	defer rc.Close()
	b, err := io.ReadAll(rc)
	require.NoError(t, err)
	return b, digest.String()
}

// watcher is a Reporter that keeps everything; mind what a user may read.
type watcher struct {
	mu          sync.Mutex
	done, total int64
	lines       []string
	onBytes     func(done int64)
	onActivity  func(what string)
}

func (w *watcher) Bytes(done, total int64) {
	w.mu.Lock()
	w.done, w.total = done, total
	w.mu.Unlock()
	if w.onBytes != nil {
		w.onBytes(done)
	}
}

func (w *watcher) Activity(what string) {
	w.add(what)
	w.mu.Lock()
	on := w.onActivity
	w.mu.Unlock()
	if on != nil {
		on(what)
	}
}

func (w *watcher) Warn(what string) { w.add(what) }

func (w *watcher) add(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, line)
}

func (w *watcher) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.lines, "\n")
}
