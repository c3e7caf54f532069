package base_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/base"
)

const mib = 1 << 20

// content is the file that the tests fetch: 6 MiB of noise.
var content = func() []byte {
	b := make([]byte, 6*mib)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}()

var published = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func sum256(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func sum512(b []byte) string { return fmt.Sprintf("sha512:%x", sha512.Sum512(b)) }

// mirror is a server of content that can be made to fail.
type mirror struct {
	*httptest.Server
	mu       sync.Mutex
	requests []http.Header
	body     []byte
	etag     string
	// fail handles the request with that number, counted from 1, if it
	// returns true.
	fail func(n int, w http.ResponseWriter, r *http.Request) bool
}

func newMirror(t testing.TB) *mirror {
	m := unstarted()
	m.Start()
	t.Cleanup(m.Close)
	return m
}

func unstarted() *mirror {
	m := &mirror{body: content, etag: `"v1"`}
	m.Server = httptest.NewUnstartedServer(m)
	return m
}

func (m *mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	m.requests = append(m.requests, r.Header.Clone())
	n, body, etag, fail := len(m.requests), m.body, m.etag, m.fail
	m.mu.Unlock()
	if fail != nil && fail(n, w, r) {
		return
	}
	if etag != "" {
		w.Header().Set("ETag", etag)
	}
	http.ServeContent(w, r, "", published, bytes.NewReader(body))
}

func (m *mirror) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.requests)
}

func (m *mirror) request(n int) http.Header {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.requests[n-1]
}

func (m *mirror) url() string { return m.URL + "/images/disk.qcow2" }

// cutAfter sends the first n bytes of a whole answer and cuts the connection.
func cutAfter(w http.ResponseWriter, n int, header map[string]string) {
	for k, v := range header {
		w.Header().Set(k, v)
	}
	w.Header().Set("Content-Length", "6291456")
	_, _ = w.Write(content[:n])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// first makes only the first requests fail.
func first(n int, fail http.HandlerFunc) func(int, http.ResponseWriter, *http.Request) bool {
	return func(i int, w http.ResponseWriter, r *http.Request) bool {
		if i <= n {
			fail(w, r)
		}
		return i <= n
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// options are quick to try again.
func options(t testing.TB) base.DownloadOptions {
	return base.DownloadOptions{CacheDir: t.TempDir(), Backoff: time.Millisecond}
}

// tree lists every file below dir.
func tree(t testing.TB, dir string) []string {
	t.Helper()
	list := []string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list = append(list, filepath.Base(path))
		}
		return err
	}))
	return list
}

func write(t testing.TB, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, b, 0o600))
	return path
}

// recorder is a Reporter that remembers.
type recorder struct {
	mu         sync.Mutex
	done       []int64
	warnings   []string
	activities []string
	onBytes    func(done int64)
	onActivity func()
}

func (r *recorder) Bytes(done, _ int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done = append(r.done, done)
	if r.onBytes != nil {
		r.onBytes(done)
	}
}

func (r *recorder) Activity(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.activities = append(r.activities, what)
	if r.onActivity != nil {
		r.onActivity()
	}
}

func (r *recorder) Warn(message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.warnings = append(r.warnings, message)
}
