package registry_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
)

var (
	inputsA = "sha256:" + strings.Repeat("a", 64)
	inputsB = "sha256:" + strings.Repeat("b", 64)
)

// madeFrom makes a layout of a disk of n MiB that says its inputs.
func madeFrom(t testing.TB, mib int, inputs string) (dir string, disk []byte, made oci.Result) {
	_, disk, _ = packed(t, mib)
	path := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, os.WriteFile(path, disk, 0o600))
	m := metadata
	m.Annotations = map[string]string{oci.AnnotationInputs: inputs, oci.AnnotationGuest: "Debian 12"}
	dir = filepath.Join(t.TempDir(), "layout")
	made, err := oci.Pack(t.Context(), path, dir, m, progress.Discard)
	require.NoError(t, err)
	return dir, disk, made
}

func push(t testing.TB, dir, ref string, o registry.Options) {
	_, err := registry.Push(t.Context(), dir, ref, o, progress.Discard)
	require.NoError(t, err)
}

func fetchOptions(t testing.TB, o registry.Options) registry.FetchOptions {
	return registry.FetchOptions{Options: o, CacheDir: filepath.Join(t.TempDir(), "cache")}
}

// left lists what lies in the cache.
func left(t testing.TB, dir string) (files []string) {
	require.NoError(t, filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, filepath.Base(name))
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}))
	return files
}

func TestADiskIsFetchedFromARealRegistryByTagAndByDigest(t *testing.T) {
	t.Parallel()
	d := newDebianRegistry(t)
	dir, disk, made := madeFrom(t, 3, inputsA)
	push(t, dir, d.ref(), d.options())
	o := fetchOptions(t, d.options())
	for i, ref := range []string{d.ref(), d.ref() + "@" + made.Digest, d.host + "/lab/ubuntu@" + made.Digest} {
		o.Want.Digest = made.Digest
		got, err := registry.Fetch(t.Context(), ref, o, progress.Discard)
		require.NoError(t, err, ref)
		content, err := os.ReadFile(got.Path)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(disk, content))
		at, _, _ := strings.Cut(ref, "@")
		assert.Equal(t, at+"@"+made.Digest, got.Reference)
		assert.Equal(t, made.DiskDigest, got.Digest)
		assert.Equal(t, made.Digest, got.Manifest)
		assert.Equal(t, inputsA, got.Inputs)
		assert.Equal(t, "Debian 12", got.Hints[0])
		assert.Equal(t, i > 0, got.Cached)
	}
	assert.Equal(t, []string{"disk", "disk.json", "image.json"}, left(t, o.CacheDir))

	o.Want = oci.Want{Digest: inputsB}
	_, err := registry.Fetch(t.Context(), d.ref(), o, progress.Discard)
	require.ErrorContains(t, err, "has the digest "+made.Digest)
}

func TestFetchNamesWhatIsWrongWithoutSecrets(t *testing.T) {
	t.Parallel()
	d := newDebianRegistry(t)
	dir, _, _ := madeFrom(t, 1, inputsA)
	push(t, dir, d.ref(), d.options())
	wrong := d.options()
	wrong.Password = "wrong-PLANTED"
	for ref, c := range map[string]struct {
		o    registry.Options
		says string
	}{
		d.ref():                   {wrong, "refuses user"},
		d.host + "/lab/ubuntu:v2": {d.options(), "reading"},
		d.host + "/lab/ubuntu":    {d.options(), "names no image"},
		"oci://" + d.ref():        {d.options(), "names no image"},
	} {
		o := fetchOptions(t, c.o)
		_, err := registry.Fetch(t.Context(), ref, o, progress.Discard)
		require.Error(t, err, ref)
		if c.says != "reading" {
			assert.ErrorContains(t, err, c.says)
		}
		_, ok := failure.In(err)
		assert.True(t, ok, "%v", err)
		keepsSecrets(t, err.Error())
		assert.Empty(t, left(t, o.CacheDir))
	}
}

func TestABrokenTransferIsBegunAgain(t *testing.T) {
	t.Parallel()
	dir, disk, made := madeFrom(t, 4, inputsA)
	layer, err := os.ReadFile(filepath.Join(dir, "blobs/sha256", strings.TrimPrefix(made.Layer.Digest.String(), "sha256:")))
	require.NoError(t, err)
	var broken atomic.Int32
	s := newServer(t, nil)
	push(t, dir, s.ref(), alice)
	s.mu.Lock()
	s.handle = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, made.Layer.Digest.String()) || broken.Add(1) > 2 {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(layer)))
		_, _ = w.Write(layer[:len(layer)/2])
		panic(http.ErrAbortHandler)
	}
	s.mu.Unlock()
	o, w := fetchOptions(t, alice), &watcher{}
	got, err := registry.Fetch(t.Context(), s.ref(), o, w)
	require.NoError(t, err)
	content, err := os.ReadFile(got.Path)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(disk, content))
	assert.Contains(t, w.text(), "trying again")
	assert.EqualValues(t, 3, broken.Load())
	assert.Equal(t, []string{"disk", "disk.json", "image.json"}, left(t, o.CacheDir))
}

func TestAnotherLayerThanTheManifestSaysIsNotTaken(t *testing.T) {
	t.Parallel()
	dir, _, made := madeFrom(t, 1, inputsA)
	s := newServer(t, nil)
	push(t, dir, s.ref(), alice)
	s.mu.Lock()
	s.handle = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, made.Layer.Digest.String()) {
			return false
		}
		layer, err := os.ReadFile(filepath.Join(dir, "blobs/sha256", strings.TrimPrefix(made.Layer.Digest.String(), "sha256:")))
		if err == nil {
			layer[len(layer)-1] ^= 1
			_, _ = w.Write(layer)
		}
		return true
	}
	s.mu.Unlock()
	o := fetchOptions(t, alice)
	_, err := registry.Fetch(t.Context(), s.ref(), o, progress.Discard)
	require.Error(t, err)
	assert.Empty(t, left(t, o.CacheDir))
}

func TestFetchWaitsUntilTheTagHasTheInputs(t *testing.T) {
	t.Parallel()
	d := newDebianRegistry(t)
	old, _, _ := madeFrom(t, 1, inputsB)
	fresh, disk, made := madeFrom(t, 2, inputsA)
	o := fetchOptions(t, d.options())
	o.Want.Inputs, o.Wait = inputsA, time.Minute
	w := &watcher{}
	step := make(chan string, 100)
	w.onActivity = func(what string) {
		if strings.Contains(what, "waiting") {
			select {
			case step <- what:
			default: // it looks often
			}
		}
	}
	done := make(chan error, 1)
	var got registry.Fetched
	go func() {
		var err error
		got, err = registry.Fetch(t.Context(), d.ref(), o, w)
		done <- err
	}()
	assert.Contains(t, <-step, "there is no image")
	push(t, old, d.ref(), d.options())
	for said := range step {
		if strings.Contains(said, "other inputs ("+inputsB+")") {
			break
		}
	}
	w.mu.Lock()
	w.onActivity = nil
	w.mu.Unlock()
	push(t, fresh, d.ref(), d.options())
	require.NoError(t, <-done)
	assert.Equal(t, d.ref()+"@"+made.Digest, got.Reference)
	content, err := os.ReadFile(got.Path)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(disk, content))
}

func TestWaitingEndsWithAClearError(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	o := fetchOptions(t, alice)
	o.Want.Inputs = inputsA
	_, err := registry.Fetch(t.Context(), s.ref(), o, progress.Discard)
	require.ErrorContains(t, err, "there is no image "+s.ref()+" yet: build that image first, or wait for it longer with BASE_TIMEOUT")

	dir, _, _ := madeFrom(t, 1, inputsB)
	push(t, dir, s.ref(), alice)
	o.Wait = 50 * time.Millisecond
	_, err = registry.Fetch(t.Context(), s.ref(), o, progress.Discard)
	require.ErrorContains(t, err, "was made from other inputs ("+inputsB+") than "+inputsA+", after 50ms of waiting: ")
	assert.Empty(t, left(t, o.CacheDir))
}

func TestTheEndOfTheContextEndsAFetchAndLeavesNothing(t *testing.T) {
	t.Parallel()
	dir, _, _ := madeFrom(t, 4, inputsB)
	s := newServer(t, nil)
	push(t, dir, s.ref(), alice)
	for what, inputs := range map[string]string{"while it waits": inputsA, "while it reads": ""} {
		ctx, cancel := context.WithCancelCause(t.Context())
		stop := func() { cancel(errors.New("stopped by the test")) }
		w := &watcher{onActivity: func(what string) {
			if strings.Contains(what, "waiting") {
				stop()
			}
		}, onBytes: func(int64) { stop() }}
		o := fetchOptions(t, alice)
		o.Want.Inputs, o.Wait = inputs, time.Hour
		_, err := registry.Fetch(ctx, s.ref(), o, w)
		require.EqualError(t, err, "stopped by the test", what)
		assert.Empty(t, left(t, o.CacheDir), what)
	}
}

// wantsALogin is a registry that was private all along.
func wantsALogin(w http.ResponseWriter, r *http.Request) bool {
	if _, _, ok := r.BasicAuth(); ok {
		return false
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

func TestADiskThatWasFetchedIsThereForThoseWithoutALogin(t *testing.T) {
	t.Parallel()
	dir, _, made := madeFrom(t, 1, inputsA)
	s := newServer(t, wantsALogin)
	push(t, dir, s.ref(), alice)
	o := fetchOptions(t, alice)
	o.Want.Inputs = inputsA
	fetched, err := registry.Fetch(t.Context(), s.ref(), o, progress.Discard)
	require.NoError(t, err)

	o.Options = registry.Options{}.Quick()
	w := &watcher{}
	again, err := registry.Fetch(t.Context(), s.ref(), o, w)
	require.NoError(t, err)
	assert.Contains(t, w.text(), "wants a login for lab/ubuntu")
	fetched.Cached = true
	assert.Equal(t, fetched, again)

	s.seen()
	for _, ref := range []string{s.ref() + "@" + made.Digest, s.host() + "/lab/ubuntu@" + made.Digest} {
		w := &watcher{}
		again, err = registry.Fetch(t.Context(), ref, o, w)
		require.NoError(t, err)
		assert.Equal(t, fetched.Extracted, again.Extracted)
		assert.NotContains(t, w.text(), "revoked", "whoever has no login need not know")
	}
	assert.NotContains(t, strings.Join(s.seen(), " "), "blobs", "it is asked for only whether it was revoked")

	for what, change := range map[string]func(o *registry.FetchOptions) (ref string){
		"other inputs":          func(o *registry.FetchOptions) string { o.Want.Inputs = inputsB; return s.ref() },
		"no inputs":             func(o *registry.FetchOptions) string { o.Want.Inputs = ""; return s.ref() },
		"another tag":           func(*registry.FetchOptions) string { return s.host() + "/lab/ubuntu:v2" },
		"another digest":        func(*registry.FetchOptions) string { return s.host() + "/lab/ubuntu@" + inputsB },
		"another cache":         func(o *registry.FetchOptions) string { o.CacheDir = t.TempDir(); return s.ref() },
		"a digest, not inputs'": func(o *registry.FetchOptions) string { o.Want.Inputs = inputsB; return s.ref() + "@" + made.Digest },
	} {
		other := o
		ref := change(&other)
		_, err := registry.Fetch(t.Context(), ref, other, progress.Discard)
		assert.ErrorContains(t, err, "wants a login", what)
	}
}

func TestADiskThatIsNotWhatWasFetchedIsFetchedAgain(t *testing.T) {
	t.Parallel()
	dir, disk, made := madeFrom(t, 1, inputsA)
	s := newServer(t, wantsALogin)
	push(t, dir, s.ref(), alice)
	for _, file := range []string{"disk", "disk.json", "image.json"} {
		o := fetchOptions(t, alice)
		o.Want.Digest = made.Digest
		got, err := registry.Fetch(t.Context(), s.ref(), o, progress.Discard)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(got.Path), file), []byte("{}"), 0o600))

		anonymous := o
		anonymous.Options = registry.Options{}.Quick()
		_, err = registry.Fetch(t.Context(), s.ref(), anonymous, progress.Discard)
		require.ErrorContains(t, err, "wants a login", file)
		got, err = registry.Fetch(t.Context(), s.ref(), o, progress.Discard)
		require.NoError(t, err)
		content, err := os.ReadFile(got.Path)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(disk, content), file)
	}
}

func TestTheLastDiskFromATagIsTaken(t *testing.T) {
	t.Parallel()
	s := newServer(t, wantsALogin)
	o := fetchOptions(t, alice)
	o.Want.Inputs = inputsA
	var last registry.Fetched
	for _, mib := range []int{3, 1, 2} {
		dir, _, _ := madeFrom(t, mib, inputsA)
		push(t, dir, s.ref(), alice)
		var err error
		last, err = registry.Fetch(t.Context(), s.ref(), o, progress.Discard)
		require.NoError(t, err)
	}
	o.Options = registry.Options{}.Quick()
	got, err := registry.Fetch(t.Context(), s.ref(), o, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, last.Reference, got.Reference)
}
