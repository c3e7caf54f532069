package registry_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

var metadata = oci.Metadata{Architecture: "amd64", Title: "ubuntu"}

// packed makes a layout of a raw disk of n MiB that does not compress.
func packed(t testing.TB, mib int) (dir string, disk []byte, made oci.Result) {
	disk = make([]byte, mib<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(disk)
	copy(disk[446:], make([]byte, 64)) // no partitions
	copy(disk[510:], "\x55\xAA")
	path := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, os.WriteFile(path, disk, 0o600))
	dir = filepath.Join(t.TempDir(), "layout")
	made, err := oci.Pack(t.Context(), path, dir, metadata, progress.Discard)
	require.NoError(t, err)
	return dir, disk, made
}

// diskIn takes the disk out of a pulled layer.
func diskIn(t *testing.T, layer []byte) []byte {
	in := tar.NewReader(bytes.NewReader(layer))
	_, err := in.Next()
	require.NoError(t, err)
	_, err = in.Next()
	require.NoError(t, err)
	b, err := io.ReadAll(in)
	require.NoError(t, err)
	return b
}

var alice = registry.Options{Username: user, Password: password, UserAgent: "diskforge/test"}.Quick()

func TestATagIsFreeOnlyWhereNoImageHasIt(t *testing.T) {
	t.Parallel()
	d := newDebianRegistry(t)
	dir, _, _ := packed(t, 1)
	ref := d.host + "/lab/ubuntu:20261129"
	for _, want := range []string{ref, ref + "-2", ref + "-3"} { // there is no repository at first
		free, err := registry.FreeTag(t.Context(), ref, d.options())
		require.NoError(t, err)
		require.Equal(t, want, free)
		_, err = registry.Push(t.Context(), dir, free, d.options(), progress.Discard)
		require.NoError(t, err)
	}
}

func TestWhoMayPushAndNotReadSetsTheTag(t *testing.T) {
	t.Parallel()
	s := newServer(t, answer(method("GET"), http.StatusForbidden))
	_, err := registry.FreeTag(t.Context(), s.ref(), alice)
	require.ErrorContains(t, err, "set IMAGE_TAG")
	s = newServer(t, answer(method("GET"), http.StatusTeapot))
	_, err = registry.FreeTag(t.Context(), s.ref(), alice)
	require.Error(t, err)
	require.NotContains(t, err.Error(), "IMAGE_TAG")
}

// failed expects a push to fail with all the words in one line, without any
// secret in what a user may see, and returns the error.
func failed(t *testing.T, dir, ref string, o registry.Options, words ...string) error {
	t.Helper()
	w := &watcher{}
	result, err := registry.Push(t.Context(), dir, ref, o, w)
	require.Error(t, err)
	assert.Empty(t, result)
	for _, word := range words {
		assert.ErrorContains(t, err, word)
	}
	f, ok := failure.In(err)
	require.True(t, ok, "not an error for people: %v", err)
	assert.NotContains(t, err.Error(), "\n")
	keepsSecrets(t, fmt.Sprintf("%v %+v %v %s", err, f, f.Err, w.text()))
	return err
}

func keepsSecrets(t *testing.T, text string) {
	t.Helper()
	for _, secret := range []string{
		password, "PLANTED", url.QueryEscape(password), base64.StdEncoding.EncodeToString([]byte(user + ":" + password)), "SECRET-TOKEN",
	} {
		assert.NotContains(t, text, secret)
	}
}

func nothingThere(t *testing.T, s *server) {
	t.Helper()
	s.mu.Lock()
	s.handle = nil
	s.mu.Unlock()
	tag, err := name.NewTag(s.ref())
	require.NoError(t, err)
	_, err = remote.Head(tag)
	require.ErrorContains(t, err, "404", "something was published")
}

func TestAPushedImageComesBackAsItWas(t *testing.T) {
	t.Parallel()
	s, w := newServer(t, nil), &watcher{}
	dir, disk, made := packed(t, 3)
	result, err := registry.Push(t.Context(), dir, s.ref(), alice, w)
	require.NoError(t, err)
	assert.Equal(t, s.ref()+"@"+made.Digest, result)
	assert.Equal(t, made.Layer.Size, w.done)
	assert.Equal(t, made.Layer.Size, w.total)
	requests := s.seen()
	assert.Equal(t, []string{"PUT " + s.host() + " /v2/lab/ubuntu/manifests/v1", "GET " + s.host() + " /v2/lab/ubuntu/manifests/v1"}, requests[len(requests)-2:],
		"the manifest goes last, and is asked for")

	layer, digest := pulled(t, s.ref(), registry.Options{})
	assert.Equal(t, made.Digest, digest)
	assert.True(t, bytes.Equal(disk, diskIn(t, layer)))
	repo, err := name.NewRepository(s.host() + "/lab/ubuntu")
	require.NoError(t, err)
	tags, err := remote.List(repo)
	require.NoError(t, err)
	assert.Equal(t, []string{"v1"}, tags, "no other tags: CrownLabs would take them for versions")
}

func TestWhatIsThereAlreadyIsNotSentAgain(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	dir, _, _ := packed(t, 1)
	first, err := registry.Push(t.Context(), dir, s.ref(), alice, progress.Discard)
	require.NoError(t, err)
	s.seen()

	second, err := registry.Push(t.Context(), dir, s.ref(), alice, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, first, second)
	asked := s.seen()
	require.Len(t, asked, 5)
	assert.Equal(t, []string{"GET " + s.host() + " /v2/", "HEAD " + s.host() + " /v2/lab/ubuntu/manifests/v1"}, []string{asked[0], asked[3]})
	for _, blob := range asked[1:3] {
		assert.Contains(t, blob, "HEAD "+s.host()+" /v2/lab/ubuntu/blobs/sha256:")
	}

	// Under another tag, only the manifest is sent.
	_, err = registry.Push(t.Context(), dir, s.host()+"/lab/ubuntu:v2", alice, progress.Discard)
	require.NoError(t, err)
	for _, request := range s.seen() {
		assert.NotContains(t, request, "POST")
		assert.NotContains(t, request, "PATCH")
	}
}

func TestWhatTheRegistryHasLostIsSentAgain(t *testing.T) {
	t.Parallel()
	d := newDebianRegistry(t)
	dir, disk, made := packed(t, 1)
	_, err := registry.Push(t.Context(), dir, d.ref(), d.options(), progress.Discard)
	require.NoError(t, err)
	blob := d.stored(t, "/blobs/sha256/"+made.Layer.Digest.String()[7:9]+"/"+strings.TrimPrefix(made.Layer.Digest.String(), "sha256:")+"/data")
	require.Len(t, blob, 1)
	require.NoError(t, os.Remove(blob[0]))

	_, err = registry.Push(t.Context(), dir, d.ref(), d.options(), progress.Discard)
	require.NoError(t, err)
	layer, _ := pulled(t, d.ref(), d.options())
	assert.True(t, bytes.Equal(disk, diskIn(t, layer)), "though its manifest was there")
}

func TestManyPushesOfOneImageAtATimeEndWell(t *testing.T) {
	t.Parallel()
	d, images := newDebianRegistry(t), 20
	if testing.Short() {
		images = 4
	}
	for i := range images {
		disk := filepath.Join(t.TempDir(), "disk.raw")
		content := make([]byte, 4<<10) // small, so that the pushes meet
		copy(content, fmt.Sprint(i))
		copy(content[510:], "\x55\xaa")
		require.NoError(t, os.WriteFile(disk, content, 0o600))
		layout := filepath.Join(t.TempDir(), "layout")
		_, err := oci.Pack(t.Context(), disk, layout, oci.Metadata{Architecture: "amd64"}, progress.Discard)
		require.NoError(t, err)
		var pushes errgroup.Group
		for range 4 {
			pushes.Go(func() error {
				_, err := registry.Push(t.Context(), layout, fmt.Sprintf("%s/lab/image-%d:v1", d.host, i), d.options(), progress.Discard)
				return err
			})
		}
		require.NoError(t, pushes.Wait())
	}
}

func TestARegistryThatRefusesIsNamedWithWhatToDo(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	for _, c := range []struct {
		status int
		words  []string
	}{
		{401, []string{`refuses user "alice" for lab/ubuntu (401`, "check REGISTRY_USER"}},
		{403, []string{`does not let user "alice" push to lab/ubuntu (403`, "ask for the right"}},
		{404, []string{"has no lab/ubuntu", "(404", "make the project"}},
		{413, []string{"does not take a layer of this size", "(413"}},
		{501, []string{"Not Implemented", "(501"}},
	} {
		t.Run(fmt.Sprint(c.status), func(t *testing.T) {
			var uploads atomic.Int32
			s := newServer(t, func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == "/v2/" || r.Method == http.MethodHead {
					return false
				}
				uploads.Add(1)
				http.Error(w, `{"errors":[{"code":"DENIED","message":"you sent `+r.Header.Get("Authorization")+`"}]}`, c.status)
				return true
			})
			failed(t, dir, s.ref(), alice, append(c.words, s.host())...)
			assert.LessOrEqual(t, uploads.Load(), int32(2), "the layer and the config, once each")
			nothingThere(t, s)
		})
	}
}

func TestARegistryThatWantsALoginSaysSo(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	s := newServer(t, answer(func(*http.Request) bool { return true }, http.StatusUnauthorized))
	failed(t, dir, s.ref(), registry.Options{}.Quick(), "wants a login for lab/ubuntu", "docker login "+s.host())
}

func TestAServerThatIsNoRegistryIsNamed(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	s := newServer(t, answer(func(*http.Request) bool { return true }, http.StatusNotFound))
	failed(t, dir, s.ref(), alice, s.host()+" is no registry", "TARGET_REGISTRY")
}

// answer answers the requests that match with a status.
func answer(match func(*http.Request) bool, status int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if match(r) {
			w.WriteHeader(status)
			return true
		}
		return false
	}
}

func method(m string) func(*http.Request) bool {
	return func(r *http.Request) bool { return r.Method == m }
}

func TestAnErrorThatStaysIsGivenUpAfterFiveTries(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	for _, m := range []string{"HEAD", "POST", "PATCH", "PUT"} {
		t.Run(m, func(t *testing.T) {
			s := newServer(t, answer(method(m), http.StatusInternalServerError))
			failed(t, dir, s.ref(), alice, "registry "+s.host()+" failed for lab/ubuntu: Internal Server Error (500), 5 times in a row")
			tries := 0
			for _, r := range s.seen() {
				if strings.HasPrefix(r, m+" ") {
					tries++
				}
			}
			assert.Equal(t, 5, tries)
			nothingThere(t, s)
		})
	}
}

// times does something the first n times only.
func times(n int32, match func(*http.Request) bool, do http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
	var count atomic.Int32
	return func(w http.ResponseWriter, r *http.Request) bool {
		if match(r) && count.Add(1) <= n {
			do(w, r)
			return true
		}
		return false
	}
}

func TestWhatFailsTwiceAndThenSucceedsIsPublished(t *testing.T) {
	t.Parallel()
	dir, disk, made := packed(t, 1)
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	for what, handle := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"500 to an upload":    times(2, method("PATCH"), status(500)),
		"503 to a ping":       times(2, func(r *http.Request) bool { return r.URL.Path == "/v2/" }, status(503)),
		"502 to the manifest": times(2, func(r *http.Request) bool { return r.Method == "PUT" && strings.Contains(r.URL.Path, "manifests") }, status(502)),
		"429 without a date":  times(2, method("POST"), status(429)),
		"an upload that is lost": times(1, method("PATCH"), func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}`, 404)
		}),
		"two uploads of one blob at a time": times(2, func(r *http.Request) bool { return r.Method == "PUT" && strings.Contains(r.URL.Path, "manifests") }, func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"errors":[{"code":"DIGEST_INVALID"},{"code":"MANIFEST_BLOB_UNKNOWN"}]}`, 400)
		}),
		"a connection cut in the middle of an upload": times(2, method("PATCH"), cut),
	} {
		t.Run(what, func(t *testing.T) {
			s, w := newServer(t, handle), &watcher{}
			_, err := registry.Push(t.Context(), dir, s.ref(), alice, w)
			require.NoError(t, err)
			assert.Contains(t, w.text(), "trying again in")
			keepsSecrets(t, w.text())
			layer, digest := pulled(t, s.ref(), registry.Options{})
			assert.Equal(t, made.Digest, digest)
			assert.True(t, bytes.Equal(disk, diskIn(t, layer)))
		})
	}
}

// cut takes some of a request and closes the connection.
func cut(w http.ResponseWriter, r *http.Request) {
	_, _ = io.CopyN(io.Discard, r.Body, 1000)
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		conn.Close()
	}
}

func TestARegistryThatAlwaysCutsTheConnectionIsGivenUp(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	s := newServer(t, times(1000, method("PATCH"), cut))
	failed(t, dir, s.ref(), alice, "the connection to registry "+s.host()+" broke", "5 times in a row", "diskforge push "+dir)
	nothingThere(t, s)
}

func TestARegistryThatIsNotThereIsNamed(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	failed(t, dir, testkit.FreeAddress(t)+"/lab/ubuntu:v1", alice, "cannot be reached", "connection refused")
}

func TestRetryAfterIsHonoured(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	wait := func(seconds string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", seconds)
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}
	s, w := newServer(t, times(1, method("HEAD"), wait("1"))), &watcher{}
	_, err := registry.Push(t.Context(), dir, s.ref(), alice, w)
	require.NoError(t, err)
	assert.Contains(t, w.text(), "trying again in 1s (2 of 5)")

	s = newServer(t, times(1, method("HEAD"), wait("7200")))
	failed(t, dir, s.ref(), alice, "(429)", "come back in 2h0m0s")
}

func TestACancelledPushPublishesNothing(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 8)
	s, stop := newServer(t, nil), errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := registry.Push(ctx, dir, s.ref(), alice, &watcher{onBytes: func(done int64) {
		if done > 1<<20 {
			cancel(stop)
		}
	}})
	require.ErrorIs(t, err, stop)
	nothingThere(t, s)
}

func TestTheEndOfTheContextEndsThePauseBetweenTries(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Retry-After", "60")
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	ctx, cancel := context.WithCancel(t.Context())
	_, err := registry.Push(ctx, dir, s.ref(), alice, warned(cancel))
	require.ErrorIs(t, err, context.Canceled)
}

// warned calls itself at the first warning.
type warned func()

func (warned) Bytes(int64, int64) {}
func (warned) Activity(string)    {}
func (f warned) Warn(string)      { f() }

func TestADamagedLayoutIsNotPublished(t *testing.T) {
	t.Parallel()
	dir, _, made := packed(t, 3)
	blob := filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(made.Layer.Digest.String(), "sha256:"))
	f, err := os.OpenFile(blob, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("damage"), 4000)
	require.NoError(t, errors.Join(err, f.Close()))
	s := newServer(t, nil)
	err = failed(t, dir, s.ref(), alice, "the layout is damaged", "pack it again")
	assert.NotContains(t, err.Error(), "in a row", "it stays damaged however often it is sent")
	nothingThere(t, s)

	failed(t, t.TempDir(), s.ref(), alice, "no OCI image layout")
}

func TestTheDockerConfigAndItsHelpersAreAsked(t *testing.T) {
	dir, _, _ := packed(t, 1)
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == basic {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	config := t.TempDir()
	t.Setenv("DOCKER_CONFIG", config)
	write := func(path, content string, mode os.FileMode) {
		require.NoError(t, os.WriteFile(path, []byte(content), mode))
	}
	write(filepath.Join(config, "config.json"), `{"auths":{"`+s.host()+`":{"auth":"`+strings.TrimPrefix(basic, "Basic ")+`"}}}`, 0o600)
	_, err := registry.Push(t.Context(), dir, s.ref(), registry.Options{}.Quick(), progress.Discard)
	require.NoError(t, err)

	write(filepath.Join(config, "docker-credential-planted"), "#!/bin/sh\necho '"+`{"Username":"`+user+`","Secret":"`+password+`"}`+"'\n", 0o700)
	t.Setenv("PATH", config+":"+os.Getenv("PATH"))
	write(filepath.Join(config, "config.json"), `{"credHelpers":{"`+s.host()+`":"planted"}}`, 0o600)
	_, err = registry.Push(t.Context(), dir, s.host()+"/lab/ubuntu:v2", registry.Options{}.Quick(), progress.Discard)
	require.NoError(t, err)

	write(filepath.Join(config, "config.json"), `{"credHelpers":{"`+s.host()+`":"missing"}}`, 0o600)
	failed(t, dir, s.ref(), registry.Options{}.Quick(), "credHelpers in "+filepath.Join(config, "config.json")+" names docker-credential-missing, which is not installed")
}

func TestAccessIsCheckedWithoutLeavingAnything(t *testing.T) {
	t.Parallel()
	d := newDebianRegistry(t)
	require.NoError(t, registry.CheckAccess(t.Context(), d.ref(), d.options()))
	assert.Empty(t, d.stored(t, "startedat"), "an upload was left open")

	wrong := d.options()
	wrong.Password = "wrong-" + password
	err := registry.CheckAccess(t.Context(), d.ref(), wrong)
	require.ErrorContains(t, err, `refuses user "alice" for lab/ubuntu (401`)
	keepsSecrets(t, err.Error())

	s := newServer(t, answer(method("POST"), http.StatusForbidden))
	require.ErrorContains(t, registry.CheckAccess(t.Context(), s.ref(), alice), "does not let")
	s = newServer(t, times(2, method("POST"), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }))
	require.NoError(t, registry.CheckAccess(t.Context(), s.ref(), alice))
}

func TestDebiansRegistryWithTLSAndUsers(t *testing.T) {
	t.Parallel()
	d := newDebianRegistry(t)
	dir, disk, made := packed(t, 3)

	wrong := d.options()
	wrong.Password = "wrong-" + password
	failed(t, dir, d.ref(), wrong, `refuses user "alice" for lab/ubuntu (401`)
	untrusting := d.options()
	untrusting.CAFile = ""
	failed(t, dir, d.ref(), untrusting, "signed by an unknown authority", "CA_FILE")
	assert.Empty(t, d.stored(t, ""), "something was stored")

	result, err := registry.Push(t.Context(), dir, d.ref(), d.options(), progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, d.ref()+"@"+made.Digest, result)
	layer, digest := pulled(t, d.ref(), d.options())
	assert.Equal(t, made.Digest, digest)
	assert.True(t, bytes.Equal(disk, diskIn(t, layer)))
	again, err := registry.Push(t.Context(), dir, d.ref(), d.options(), progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, result, again)
}

func TestACancelledPushPublishesNothingInDebiansRegistry(t *testing.T) {
	t.Parallel()
	d := newDebianRegistry(t)
	dir, _, _ := packed(t, 32)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := registry.Push(ctx, dir, d.ref(), d.options(), &watcher{onBytes: func(done int64) {
		if done > 4<<20 {
			cancel()
		}
	}})
	require.ErrorIs(t, err, context.Canceled)
	assert.Empty(t, d.stored(t, "_manifests"))
}
