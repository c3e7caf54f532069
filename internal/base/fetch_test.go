package base_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// got requires that the fetched file is content.
func got(t *testing.T, f base.File, err error) {
	t.Helper()
	require.NoError(t, err)
	b, err := os.ReadFile(f.Path)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(content, b))
	assert.Equal(t, sum256(content), f.Digest)
	assert.EqualValues(t, len(content), f.Size)
}

func TestAFileIsFetchedOnceAndThenComesFromTheCache(t *testing.T) {
	t.Parallel()
	for _, sum := range []string{sum256(content), sum512(content)} {
		m, o := newMirror(t), options(t)
		f, err := base.Fetch(t.Context(), m.url(), sum, o, progress.Discard)
		got(t, f, err)
		assert.False(t, f.Cached)
		assert.Equal(t, published, f.Modified)
		again, err := base.Fetch(t.Context(), m.url(), sum, o, progress.Discard)
		got(t, again, err)
		assert.True(t, again.Cached)
		assert.Equal(t, published, again.Modified)
		assert.Equal(t, 1, m.count())
		assert.Equal(t, []string{"image", "source.json"}, tree(t, o.CacheDir))
	}
}

func TestAChangedFileInTheCacheIsFetchedAgainAndThatIsSaid(t *testing.T) {
	t.Parallel()
	m, o, seen := newMirror(t), options(t), &recorder{}
	f, err := base.Fetch(t.Context(), m.url(), sum256(content), o, progress.Discard)
	got(t, f, err)
	require.NoError(t, os.WriteFile(f.Path, []byte("tampered"), 0o600))
	f, err = base.Fetch(t.Context(), m.url(), sum256(content), o, seen)
	got(t, f, err)
	assert.False(t, f.Cached)
	require.Len(t, seen.warnings, 1)
	assert.Contains(t, seen.warnings[0], "the cached file was changed")
}

func TestALinkInTheCacheIsNotFollowed(t *testing.T) {
	t.Parallel()
	m, o := newMirror(t), options(t)
	f, err := base.Fetch(t.Context(), m.url(), sum256(content), o, progress.Discard)
	got(t, f, err)
	elsewhere := write(t, "elsewhere", content)
	require.NoError(t, os.Remove(f.Path))
	require.NoError(t, os.Symlink(elsewhere, f.Path))
	f, err = base.Fetch(t.Context(), m.url(), sum256(content), o, progress.Discard)
	got(t, f, err)
	assert.False(t, f.Cached)
	st, err := os.Lstat(f.Path)
	require.NoError(t, err)
	assert.True(t, st.Mode().IsRegular())
}

func TestAWrongChecksumNamesBothDigestsAndLeavesNothing(t *testing.T) {
	t.Parallel()
	m, o := newMirror(t), options(t)
	want := sum256([]byte("something else"))
	_, err := base.Fetch(t.Context(), m.url(), want, o, progress.Discard)
	require.ErrorContains(t, err, "wrong checksum of "+m.url())
	assert.Contains(t, err.Error(), want)
	assert.Contains(t, err.Error(), sum256(content))
	assert.Equal(t, 1, m.count(), "another attempt would bring the same")
	assert.Empty(t, tree(t, o.CacheDir))
}

func TestAServerThatIsBusyIsAskedAgain(t *testing.T) {
	t.Parallel()
	for _, code := range []int{429, 500, 502, 503} {
		m, seen := newMirror(t), &recorder{}
		m.fail = first(2, status(code))
		f, err := base.Fetch(t.Context(), m.url(), sum256(content), options(t), seen)
		got(t, f, err)
		assert.Equal(t, 3, m.count())
		require.Len(t, seen.warnings, 2)
		assert.Contains(t, seen.warnings[0], "trying again in 1ms")
		assert.Contains(t, seen.warnings[1], "trying again in 2ms")
	}
}

func TestTheServersRetryAfterIsHonoured(t *testing.T) {
	t.Parallel()
	m, seen := newMirror(t), &recorder{}
	m.fail = first(1, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	f, err := base.Fetch(t.Context(), m.url(), sum256(content), options(t), seen)
	got(t, f, err)
	assert.Contains(t, seen.warnings[0], "trying again in 1s")
}

func TestAServerThatFailsForEverIsGivenUp(t *testing.T) {
	t.Parallel()
	m, o := newMirror(t), options(t)
	m.fail = first(100, status(500))
	_, err := base.Fetch(t.Context(), m.url(), sum256(content), o, progress.Discard)
	require.ErrorContains(t, err, m.url()+": gave up after 6 attempts: the server answers 500")
	assert.Equal(t, 6, m.count())
	assert.Empty(t, tree(t, o.CacheDir))
}

func TestAnAnswerThatIsFinalIsNotAskedForAgain(t *testing.T) {
	t.Parallel()
	for code, want := range map[int]string{404: "404 Not Found: check the URL", 410: "410 Gone", 401: "credentials", 403: "credentials", 418: "418"} {
		m, o := newMirror(t), options(t)
		m.fail = first(100, status(code))
		secret := strings.Replace(m.url(), "//", "//user:planted@", 1) + "?signature=planted"
		_, err := base.Fetch(t.Context(), secret, sum256(content), o, progress.Discard)
		require.ErrorContains(t, err, want)
		assert.Contains(t, err.Error(), "/images/disk.qcow2")
		assert.NotContains(t, err.Error(), "planted")
		assert.Equal(t, 1, m.count())
		assert.Empty(t, tree(t, o.CacheDir))
	}
}

func TestAPasswordIsNeverInAMessageNorInTheCache(t *testing.T) {
	t.Parallel()
	m, o, seen := newMirror(t), options(t), &recorder{}
	m.fail = first(1, status(500))
	secret := strings.Replace(m.url(), "//", "//user:planted@", 1) + "?signature=planted"
	f, err := base.Fetch(t.Context(), secret, sum256(content), o, seen)
	got(t, f, err)
	user, password, _ := (&http.Request{Header: m.request(2)}).BasicAuth()
	assert.Equal(t, "user planted", user+" "+password)
	assert.NotContains(t, strings.Join(seen.warnings, ""), "planted")
	b, err := os.ReadFile(filepath.Join(filepath.Dir(f.Path), "source.json"))
	require.NoError(t, err)
	assert.NotContains(t, string(b), "planted")
	for _, bad := range []string{"https://user:planted@ho st/x", "ftp://user:planted@host/x", "https://user:planted@127.0.0.1:1/x"} {
		_, err = base.Fetch(t.Context(), bad, sum256(content), options(t), seen)
		require.Error(t, err)
		assert.NotContains(t, err.Error(), "planted")
	}
}

func TestABrokenConnectionGoesOnWhereItBroke(t *testing.T) {
	t.Parallel()
	for name, header := range map[string]map[string]string{
		"by its tag":  {"ETag": `"v1"`},
		"by its date": {"Last-Modified": published.Format(http.TimeFormat)},
	} {
		t.Run(name, func(t *testing.T) {
			m, seen := newMirror(t), &recorder{}
			m.etag = header["ETag"]
			m.fail = first(1, func(w http.ResponseWriter, _ *http.Request) { cutAfter(w, 2*mib, header) })
			f, err := base.Fetch(t.Context(), m.url(), sum512(content), options(t), seen)
			got(t, f, err)
			assert.Equal(t, 2, m.count())
			assert.Equal(t, "bytes=2097152-", m.request(2).Get("Range"))
			require.Len(t, seen.warnings, 1)
			assert.Contains(t, seen.warnings[0], "unexpected EOF")
		})
	}
}

func TestWhatIsKeptOfADownloadIsSaidAndNothingElse(t *testing.T) {
	t.Parallel()
	for kept, header := range map[bool]map[string]string{true: {"ETag": `"v1"`}, false: nil} {
		m := newMirror(t)
		m.fail = func(n int, w http.ResponseWriter, _ *http.Request) bool {
			if n > 1 {
				w.WriteHeader(http.StatusBadGateway)
				return true
			}
			cutAfter(w, 2*mib, header)
			return true
		}
		o := options(t)
		_, err := base.Fetch(t.Context(), m.url(), sum256(content), o, progress.Discard)
		require.ErrorContains(t, err, "try again later")
		assert.Equal(t, kept, strings.Contains(err.Error(), "what has arrived is kept"))
		assert.Equal(t, kept, len(tree(t, o.CacheDir)) > 0)
	}
}

func TestAServerThatBreaksOftenButGetsOnIsNotGivenUp(t *testing.T) {
	t.Parallel()
	m := newMirror(t)
	m.fail = func(n int, w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Range") == "" {
			cutAfter(w, mib/2, map[string]string{"ETag": `"v1"`})
		}
		return n%2 == 0 && func() bool { status(500)(w, r); return true }()
	}
	f, err := base.Fetch(t.Context(), m.url(), sum256(content), options(t), progress.Discard)
	got(t, f, err)
}

func TestWithoutAVersionADownloadStartsAgain(t *testing.T) {
	t.Parallel()
	m := newMirror(t)
	m.fail = first(1, func(w http.ResponseWriter, _ *http.Request) { cutAfter(w, 2*mib, nil) })
	f, err := base.Fetch(t.Context(), m.url(), sum256(content), options(t), progress.Discard)
	got(t, f, err)
	assert.Empty(t, m.request(2).Get("Range"))
}

func TestAFileThatChangedMeanwhileIsFetchedFromItsStart(t *testing.T) {
	t.Parallel()
	m := newMirror(t)
	m.fail = first(1, func(w http.ResponseWriter, _ *http.Request) { cutAfter(w, 2*mib, map[string]string{"ETag": `"v0"`}) })
	f, err := base.Fetch(t.Context(), m.url(), sum256(content), options(t), progress.Discard)
	got(t, f, err)
	assert.Equal(t, `"v0"`, m.request(2).Get("If-Range"))
}

func TestAWrongPartFromTheServerIsNotAppended(t *testing.T) {
	t.Parallel()
	for name, header := range map[string]map[string]string{
		"another place":   {"Content-Range": "bytes 5-6291455/6291456", "ETag": `"v1"`},
		"another version": {"Content-Range": "bytes 2097152-6291455/6291456", "ETag": `"v2"`},
		"no range":        {"ETag": `"v1"`},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMirror(t)
			m.fail = func(n int, w http.ResponseWriter, _ *http.Request) bool {
				switch n {
				case 1:
					cutAfter(w, 2*mib, map[string]string{"ETag": `"v1"`})
				case 2:
					for k, v := range header {
						w.Header().Set(k, v)
					}
					w.WriteHeader(http.StatusPartialContent)
					_, _ = w.Write(content[5:])
				}
				return n <= 2
			}
			f, err := base.Fetch(t.Context(), m.url(), sum256(content), options(t), progress.Discard)
			got(t, f, err)
			assert.Empty(t, m.request(3).Get("Range"))
		})
	}
}

// interrupted starts a fetch that is cancelled after 2 MiB.
func interrupted(t *testing.T, m *mirror, o base.DownloadOptions) {
	t.Helper()
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	m.fail = first(1, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		w.Header().Set("Content-Length", "6291456")
		_, _ = w.Write(content[:2*mib])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	seen := &recorder{onBytes: func(done int64) {
		if done == 2*mib {
			cancel(stop)
		}
	}}
	_, err := base.Fetch(ctx, m.url(), sum256(content), o, seen)
	require.ErrorIs(t, err, stop)
	assert.Equal(t, []string{"image.part", "source.json"}, tree(t, o.CacheDir))
}

func part(t *testing.T, o base.DownloadOptions) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(o.CacheDir, "*", "image.part"))
	require.NoError(t, err)
	require.Len(t, found, 1)
	return found[0]
}

func TestACancelledDownloadIsResumedByTheNextOne(t *testing.T) {
	t.Parallel()
	m, o := newMirror(t), options(t)
	interrupted(t, m, o)
	st, err := os.Stat(part(t, o))
	require.NoError(t, err)
	assert.EqualValues(t, 2*mib, st.Size())
	assert.Less(t, st.Sys().(*syscall.Stat_t).Blocks*512, int64(3*mib), "the reserved space is given back")
	f, err := base.Fetch(t.Context(), m.url(), sum256(content), o, progress.Discard)
	got(t, f, err)
	assert.Equal(t, "bytes=2097152-", m.request(2).Get("Range"))
	assert.Equal(t, []string{"image", "source.json"}, tree(t, o.CacheDir))
}

func TestADamagedBeginningIsThrownAway(t *testing.T) {
	t.Parallel()
	m, o, seen := newMirror(t), options(t), &recorder{}
	interrupted(t, m, o)
	require.NoError(t, os.WriteFile(part(t, o), make([]byte, 2*mib), 0o600))
	f, err := base.Fetch(t.Context(), m.url(), sum256(content), o, seen)
	got(t, f, err)
	assert.Equal(t, []string{"what an earlier download left was damaged, starting again"}, seen.warnings)
}

func TestTheBeginningOfAnotherURLIsNotResumed(t *testing.T) {
	t.Parallel()
	m, other, o := newMirror(t), newMirror(t), options(t)
	interrupted(t, m, o)
	f, err := base.Fetch(t.Context(), other.url(), sum256(content), o, progress.Discard)
	got(t, f, err)
	assert.Empty(t, other.request(1).Get("Range"))
}

func TestABeginningThatIsTooLongStartsAgain(t *testing.T) {
	t.Parallel()
	m, o := newMirror(t), options(t)
	interrupted(t, m, o)
	require.NoError(t, os.WriteFile(part(t, o), make([]byte, 7*mib), 0o600))
	f, err := base.Fetch(t.Context(), m.url(), sum256(content), o, progress.Discard)
	got(t, f, err)
}

func TestAPlantedLinkIsNotWrittenThrough(t *testing.T) {
	t.Parallel()
	m, o := newMirror(t), options(t)
	interrupted(t, m, o)
	victim, name := write(t, "victim", []byte("precious")), part(t, o)
	require.NoError(t, os.Remove(name))
	require.NoError(t, os.Symlink(victim, name))
	_, err := base.Fetch(t.Context(), m.url(), sum256(content), o, progress.Discard)
	require.ErrorIs(t, err, syscall.ELOOP)
	b, err := os.ReadFile(victim)
	require.NoError(t, err)
	assert.Equal(t, "precious", string(b))
}

func TestASilentServerIsLeftAndAskedAgain(t *testing.T) {
	t.Parallel()
	m, o, seen := newMirror(t), options(t), &recorder{}
	o.Stall = 100 * time.Millisecond
	m.fail = first(1, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(content[:10])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	f, err := base.Fetch(t.Context(), m.url(), sum256(content), o, seen)
	got(t, f, err)
	assert.Contains(t, seen.warnings[0], "by only 10 bytes in 100ms")
}

func TestAServerOfAByteNowAndThenIsGivenUp(t *testing.T) {
	t.Parallel()
	m, o := newMirror(t), options(t)
	o.Stall = 50 * time.Millisecond
	m.fail = first(100, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			_, _ = w.Write(content[:1])
			w.(http.Flusher).Flush()
			time.Sleep(time.Millisecond)
		}
	})
	for _, sum := range []string{sum256(content), "file:" + m.url()} {
		_, err := base.Fetch(t.Context(), m.url(), sum, o, progress.Discard)
		require.ErrorContains(t, err, "gave up after 6 attempts")
	}
}

func TestAFileWithoutAnEndIsNotKept(t *testing.T) {
	t.Parallel()
	m, o := newMirror(t), options(t)
	o.Most = 3 * mib
	m.fail = first(100, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			_, _ = w.Write(content)
			w.(http.Flusher).Flush()
		}
	})
	_, err := base.Fetch(t.Context(), m.url(), sum256(content), o, progress.Discard)
	require.ErrorContains(t, err, "does not say how large the file is")
	assert.Equal(t, 1, m.count())
	assert.Empty(t, tree(t, o.CacheDir))
}

func TestRedirectsInCirclesAreFinal(t *testing.T) {
	t.Parallel()
	m, o := newMirror(t), options(t)
	m.fail = func(_ int, w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, r.URL.Path, http.StatusFound)
		return true
	}
	_, err := base.Fetch(t.Context(), m.url(), sum256(content), o, progress.Discard)
	require.ErrorContains(t, err, "redirects")
	assert.LessOrEqual(t, m.count(), 11)
}

func TestAFullDiskIsFoundBeforeTheDownloadAndLeavesNothing(t *testing.T) {
	t.Parallel()
	o := options(t)
	o.CacheDir = testkit.MountTmpfs(t, "3m")
	for name, fail := range map[string]http.HandlerFunc{
		"length known":   nil,
		"length unknown": func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush(); _, _ = w.Write(content) },
	} {
		m, seen := newMirror(t), &recorder{}
		if fail != nil {
			m.fail = first(1, fail)
		}
		_, err := base.Fetch(t.Context(), m.url(), sum256(content), o, seen)
		require.ErrorContains(t, err, "no space left in "+o.CacheDir, name)
		assert.Contains(t, err.Error(), "CACHE_DIR")
		assert.Equal(t, 1, m.count())
		assert.Equal(t, fail == nil, len(seen.done) == 0, "nothing is fetched if the length was known")
		assert.Empty(t, tree(t, o.CacheDir))
	}
}

func TestTwoAtOnceFetchTheFileOnce(t *testing.T) {
	t.Parallel()
	m, o := newMirror(t), options(t)
	seen := &recorder{}
	waiting := make(chan struct{})
	seen.onActivity = sync.OnceFunc(func() { close(waiting) })
	m.fail = first(1, func(w http.ResponseWriter, r *http.Request) {
		<-waiting
		_, _ = w.Write(content)
	})
	var group sync.WaitGroup
	for range 2 {
		group.Go(func() {
			f, err := base.Fetch(t.Context(), m.url(), sum256(content), o, seen)
			assert.NoError(t, err)
			assert.Equal(t, sum256(content), f.Digest)
		})
	}
	group.Wait()
	assert.Equal(t, 1, m.count())
}

func TestWaitingForTheOtherEndsWithTheContext(t *testing.T) {
	t.Parallel()
	m, o := newMirror(t), options(t)
	interrupted(t, m, o)
	other, err := os.Open(filepath.Dir(part(t, o)))
	require.NoError(t, err)
	defer other.Close()
	require.NoError(t, syscall.Flock(int(other.Fd()), syscall.LOCK_EX))
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	seen := &recorder{onActivity: func() { cancel(stop) }}
	_, err = base.Fetch(ctx, m.url(), sum256(content), o, seen)
	require.ErrorIs(t, err, stop)
	assert.Equal(t, 1, m.count())
}

func TestAnUnknownAuthorityIsNamedAndCAFileMendsIt(t *testing.T) {
	t.Parallel()
	m, o := unstarted(), options(t)
	m.Config.ErrorLog = log.New(io.Discard, "", 0)
	m.StartTLS()
	t.Cleanup(m.Close)
	_, err := base.Fetch(t.Context(), m.url(), sum256(content), o, progress.Discard)
	require.ErrorContains(t, err, "its certificate was signed by an unknown authority: name the authority's certificate with CA_FILE")
	o.CAFile = write(t, "ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.Certificate().Raw}))
	f, err := base.Fetch(t.Context(), m.url(), sum256(content), o, progress.Discard)
	got(t, f, err)
	o.CAFile = write(t, "ca.pem", []byte("no certificate"))
	_, err = base.Fetch(t.Context(), m.url(), sum256(content), o, progress.Discard)
	require.ErrorContains(t, err, "has no certificate in it")
	o.CAFile = filepath.Join(t.TempDir(), "missing")
	_, err = base.Fetch(t.Context(), m.url(), sum256(content), o, progress.Discard)
	require.ErrorContains(t, err, "no such file")
}

func TestALocalFileIsHashedWhereItLies(t *testing.T) {
	t.Parallel()
	path, o := write(t, "disk.qcow2", content), options(t)
	for _, url := range []string{path, "file://" + path, "file://localhost" + path} {
		f, err := base.Fetch(t.Context(), url, sum256(content), o, progress.Discard)
		got(t, f, err)
		assert.Equal(t, path, f.Path)
	}
	assert.Empty(t, tree(t, o.CacheDir))
	_, err := base.Fetch(t.Context(), path, sum256(nil), o, progress.Discard)
	require.ErrorContains(t, err, "wrong checksum of "+path)
	assert.FileExists(t, path, "the user's own file stays")
}

func TestALocalFileThatCannotBeReadIsNamed(t *testing.T) {
	t.Parallel()
	pipe := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	for path, want := range map[string]string{
		"/no/such/disk.qcow2":    "no such file",
		t.TempDir():              "not a regular file",
		pipe:                     "not a regular file",
		"":                       "the URL is empty",
		"s3://bucket/disk.qcow2": "cannot be fetched: s3://bucket/disk.qcow2",
		"file://host/disk.qcow2": "three slashes",
	} {
		_, err := base.Fetch(t.Context(), path, sum256(content), options(t), progress.Discard)
		require.ErrorContains(t, err, want)
	}
}

func TestNothingIsFetchedWithoutAChecksum(t *testing.T) {
	t.Parallel()
	m := newMirror(t)
	_, err := base.Fetch(t.Context(), m.url(), "", options(t), progress.Discard)
	require.ErrorContains(t, err, "needs a checksum")
	assert.Zero(t, m.count())
}

func hexOf(b []byte) string { return strings.TrimPrefix(sum256(b), "sha256:") }

// sums is a server of a list of checksums that can be made to fail.
func sums(t *testing.T, list string) *mirror {
	m := newMirror(t)
	m.body = []byte(list)
	return m
}

func TestTheDigestIsLookedUpInAListByTheFilesName(t *testing.T) {
	t.Parallel()
	m := newMirror(t)
	list := hexOf(nil) + "  other.qcow2\n" + hexOf(content) + " *disk.qcow2\n"
	web := sums(t, list)
	web.fail = first(2, status(503))
	for _, name := range []string{web.URL + "/SHA256SUMS", write(t, "SHA256SUMS", []byte(list))} {
		f, err := base.Fetch(t.Context(), m.url()+"?x=y", "file:"+name, options(t), progress.Discard)
		got(t, f, err)
	}
}

func TestAListThatDoesNotHelpIsNamed(t *testing.T) {
	t.Parallel()
	m := newMirror(t)
	plain := sums(t, "")
	plain.fail = first(100, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://mirror.invalid/SHA256SUMS", http.StatusFound)
	})
	missing := sums(t, "")
	missing.fail = first(100, status(404))
	for want, url := range map[string]string{
		"no entry for disk.qcow2":  sums(t, hexOf(nil)+"  other.qcow2").URL,
		"no list of digests":       sums(t, "<html></html>").URL,
		"too long for a list":      sums(t, strings.Repeat("x\n", 3*mib)).URL,
		"404 Not Found":            missing.URL,
		"redirected to plain http": plain.URL,
		"no such file":             "/no/such/SHA256SUMS",
	} {
		_, err := base.Fetch(t.Context(), m.url(), "file:"+url, options(t), progress.Discard)
		require.ErrorContains(t, err, want)
		assert.Contains(t, err.Error(), "checksum file "+url)
	}
	assert.Zero(t, m.count())
}

func TestTheProxyOfTheEnvironmentIsUsed(t *testing.T) {
	const child = "DISKFORGE_TEST_FETCH_BY_PROXY"
	if cache := os.Getenv(child); cache != "" {
		f, err := base.Fetch(t.Context(), "http://mirror.invalid/disk.qcow2", sum256(content), base.DownloadOptions{CacheDir: cache}, progress.Discard)
		got(t, f, err)
		return
	}
	proxy := newMirror(t)
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$") // net/http reads the environment once in a process
	cmd.Env = append(os.Environ(), child+"="+t.TempDir(), "HTTP_PROXY="+proxy.URL, "http_proxy="+proxy.URL, "NO_PROXY=", "no_proxy=")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Equal(t, 1, proxy.count())
}
