package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// opened pushes an image of some MiB and opens it again.
func opened(t *testing.T, ref string, o registry.Options) (*registry.Image, v1.Descriptor) {
	t.Helper()
	dir, _, made := packed(t, 3)
	_, err := registry.Push(t.Context(), dir, ref, o, progress.Discard)
	require.NoError(t, err)
	i, err := registry.Open(t.Context(), ref, o)
	require.NoError(t, err)
	t.Cleanup(i.Close)
	assert.Equal(t, made.Digest, i.Digest)
	var m v1.Manifest
	require.NoError(t, json.Unmarshal(i.Manifest, &m))
	assert.Equal(t, made.Layer.Digest.String(), m.Layers[0].Digest.String())
	return i, m.Layers[0]
}

// blob is one of an image's.
func blob(t *testing.T, i *registry.Image, d v1.Descriptor) oci.Blob {
	t.Helper()
	b, err := i.Blob(d)
	require.NoError(t, err)
	return b
}

// whole reads a blob to its end.
func whole(t *testing.T, b oci.Blob) []byte {
	t.Helper()
	rc, err := b.Open()
	require.NoError(t, err)
	defer rc.Close()
	all, err := io.ReadAll(rc)
	require.NoError(t, err)
	return all
}

func TestPartsOfALayerAreReadAndCounted(t *testing.T) {
	t.Parallel()
	d := newDebianRegistry(t)
	open, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	for name, c := range map[string]struct {
		ref string
		o   registry.Options
	}{
		"docker-registry with TLS and users": {d.ref(), d.options()},
		"docker-registry":                    {open + "/lab/ubuntu:v1", alice},
		"in memory":                          {newServer(t, nil).ref(), alice},
	} {
		t.Run(name, func(t *testing.T) {
			i, layer := opened(t, c.ref, c.o)
			before := i.BytesRead()
			assert.Less(t, before, int64(8<<10), "manifest and config are small")
			assert.Positive(t, before)
			b := blob(t, i, layer)
			part := make([]byte, 1000)
			n, err := b.ReadAt(part, 4321)
			require.NoError(t, err)
			assert.Equal(t, 1000, n)
			assert.Equal(t, before+1000, i.BytesRead())

			all := whole(t, b)
			assert.Equal(t, layer.Size, int64(len(all)))
			assert.True(t, bytes.Equal(all[4321:5321], part))
			n, err = b.ReadAt(part, layer.Size-10)
			require.ErrorIs(t, err, io.EOF)
			assert.True(t, bytes.Equal(all[layer.Size-10:], part[:n]))
			_, err = b.ReadAt(part, layer.Size)
			require.ErrorIs(t, err, io.EOF)
			_, err = b.ReadAt(part, -1)
			require.Error(t, err)

			tags, err := i.Tags()
			require.NoError(t, err)
			assert.Equal(t, []string{"v1"}, tags)
			_, err = registry.Open(t.Context(), strings.TrimSuffix(c.ref, ":v1")+"@"+i.Digest, c.o)
			require.NoError(t, err)
		})
	}
}

// storage answers for blobs from a second host, as S3 does for a registry.
func storage(t *testing.T, to string, status int) (*remoteServer, *int) {
	moved := 0
	s := newRemoteServer(t, nil)
	s.handle = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Host == "other.example" {
			moved++
			assert.Empty(t, r.Header.Get("Authorization"), "the login was given to the storage")
			return false
		}
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, to+r.URL.Path, status)
			return true
		}
		return false
	}
	return s, &moved
}

func TestPartsAreReadFromTheStorageThatARegistryRedirectsTo(t *testing.T) {
	t.Parallel()
	s, moved := storage(t, "https://other.example", http.StatusTemporaryRedirect)
	i, layer := opened(t, remoteRef, s.options)
	part := make([]byte, 100)
	_, err := blob(t, i, layer).ReadAt(part, 700)
	require.NoError(t, err)
	assert.Equal(t, whole(t, blob(t, i, layer))[700:800], part)
	assert.Equal(t, 3, *moved, "the config, a part and the whole")
}

func TestAReadIsNotRedirectedToPlainHTTPOrIntoThePrivateNetwork(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	for to, words := range map[string]string{
		"http://other.example":    "plain HTTP to other.example is not allowed",
		"http://169.254.169.254":  "169.254.169.254",
		"https://169.254.169.254": "the private address 169.254.169.254 is not followed",
		"https://10.0.0.1":        "the private address 10.0.0.1 is not followed",
		"https://127.0.0.1":       "the private address 127.0.0.1 is not followed",
		"https://[::1]":           "the private address ::1 is not followed",
	} {
		s, moved := storage(t, to, http.StatusFound)
		_, err := registry.Push(t.Context(), dir, remoteRef, s.options, progress.Discard)
		require.NoError(t, err)
		_, err = registry.Open(t.Context(), remoteRef, s.options)
		require.ErrorContains(t, err, words)
		_, ok := failure.In(err)
		assert.True(t, ok)
		keepsSecrets(t, err.Error())
		assert.Zero(t, *moved)
		for _, addr := range s.dialled {
			assert.Equal(t, "registry.example:443", addr)
		}
	}
}

func TestARegistryWithoutRangesSaysSo(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	i, layer := opened(t, s.ref(), alice)
	s.mu.Lock()
	s.handle = func(_ http.ResponseWriter, r *http.Request) bool { r.Header.Del("Range"); return false }
	s.mu.Unlock()
	_, err := blob(t, i, layer).ReadAt(make([]byte, 100), 5)
	require.ErrorIs(t, err, oci.ErrNoRanges)
	assert.Len(t, whole(t, blob(t, i, layer)), int(layer.Size))
}

func TestARegistryThatLiesAboutALayerIsCaught(t *testing.T) {
	t.Parallel()
	partial := func(header, body string, length int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", header)
			w.Header().Set("Content-Length", strconv.Itoa(length))
			w.WriteHeader(http.StatusPartialContent)
			fmt.Fprint(w, body)
		}
	}
	ten := strings.Repeat("x", 10)
	s := newServer(t, nil)
	i, layer := opened(t, s.ref(), alice)
	right := fmt.Sprintf("bytes 5-14/%d", layer.Size)
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		words   string
	}{
		"another offset":     {partial(fmt.Sprintf("bytes 6-15/%d", layer.Size), ten, 10), "another part"},
		"another size":       {partial("bytes 5-14/99", ten, 10), "another part"},
		"no size":            {partial("bytes 5-14/*", ten, 10), "another part"},
		"no range":           {partial("", ten, 10), "another part"},
		"more than asked":    {partial(right, ten+ten, 20), "another part"},
		"less than it says":  {partial(right, "x", 10), "the connection to registry"},
		"nonsense":           {partial("bytes=x?y", ten, 10), "another part"},
		"it is not there":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, "has no lab/ubuntu"},
		"no such range":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusRequestedRangeNotSatisfiable) }, "(416)"},
		"no right to read":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, `does not let user "alice" read from lab/ubuntu`},
		"it always fails":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, "5 times in a row"},
		"a redirect forever": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, "10 redirects"},
	} {
		t.Run(name, func(t *testing.T) {
			s.mu.Lock()
			s.handle = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("Range") == "" {
					return false
				}
				c.handler(w, r)
				return true
			}
			s.mu.Unlock()
			_, err := blob(t, i, layer).ReadAt(make([]byte, 10), 5)
			require.ErrorContains(t, err, c.words)
			_, ok := failure.In(err)
			assert.True(t, ok)
			assert.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestAnImageThatIsNotThereIsNamedAndNoLoginIsSpokenOf(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	stored(t, s.ref(), alice, digestOf(1))
	for ref, words := range map[string]string{
		":v9":             "has no tag v9 of lab/ubuntu, or it is private (404",
		"@" + digestOf(9): "has no image " + digestOf(9) + " of lab/ubuntu, or it is private (404",
	} {
		_, err := registry.Open(t.Context(), s.host()+"/lab/ubuntu"+ref, alice)
		require.ErrorContains(t, err, words)
		assert.NotContains(t, err.Error(), "alice")
	}
}

func TestABlobWithAnotherDigestOrSizeIsNotGivenOut(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	i, layer := opened(t, s.ref(), alice)
	content := whole(t, blob(t, i, layer))
	damaged := bytes.Clone(content)
	damaged[4000]++
	for name, body := range map[string][]byte{
		"damaged": damaged, "longer": append([]byte{'x'}, content...), "shorter": content[:len(content)-1], "empty": nil,
	} {
		t.Run(name, func(t *testing.T) {
			s.mu.Lock()
			s.handle = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, layer.Digest.Hex) {
					return false
				}
				_, _ = w.Write(body)
				return true
			}
			s.mu.Unlock()
			rc, err := blob(t, i, layer).Open()
			require.NoError(t, err)
			defer rc.Close()
			got, err := io.ReadAll(rc)
			require.Error(t, err)
			assert.Less(t, len(got), len(content))
		})
	}
}

func TestAManifestWithAnotherDigestOrThatIsTooLargeIsRefused(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	i, _ := opened(t, s.ref(), alice)
	byDigest := s.host() + "/lab/ubuntu@" + i.Digest
	send := func(body string) error {
		s.mu.Lock()
		s.handle = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", i.MediaType)
			w.Header().Set("Docker-Content-Digest", i.Digest)
			fmt.Fprint(w, body)
			return true
		}
		s.mu.Unlock()
		_, err := registry.Open(t.Context(), byDigest, alice)
		return err
	}
	require.ErrorContains(t, send(string(i.Manifest)+" "), "does not match")
	byDigest = s.ref()
	require.ErrorContains(t, send(strings.Repeat(" ", 5<<20)), "more than 4 MiB")
	require.ErrorContains(t, send(strings.Repeat(" ", 120<<20)), "cannot read from")
	require.ErrorContains(t, send("{"), "no manifest of an image")
	require.ErrorContains(t, send(`{"config":{"size":99999999}}`), "a config of 99999999 bytes")
}

func TestAReadEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	dir, _, _ := packed(t, 1)
	_, err := registry.Push(t.Context(), dir, s.ref(), alice, progress.Discard)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	i, err := registry.Open(ctx, s.ref(), alice)
	require.NoError(t, err)
	defer i.Close()
	var m v1.Manifest
	require.NoError(t, json.Unmarshal(i.Manifest, &m))
	s.mu.Lock()
	s.handle = func(_ http.ResponseWriter, r *http.Request) bool { cancel(); <-r.Context().Done(); return true }
	s.mu.Unlock()
	_, err = blob(t, i, m.Layers[0]).ReadAt(make([]byte, 10), 0)
	require.ErrorIs(t, err, context.Canceled)
}

func TestWhereNobodyListensAQuestionIsGivenUpSoonAndATransferIsNot(t *testing.T) {
	t.Parallel()
	host := testkit.FreeAddress(t)
	ref, in := host+"/lab/ubuntu:v1", session(t, alice)
	dir, _, _ := packed(t, 1)
	for what, c := range map[string]struct {
		do    func() error
		tries int
	}{
		"inspect": {func() error { _, err := registry.Open(t.Context(), ref, alice); return err }, 2},
		"plan":    {func() error { _, _, err := in.Find(t.Context(), ref, digestOf(1)); return err }, 2},
		"list":    {func() error { _, err := in.Repositories(t.Context(), host); return err }, 2},
		"delete":  {func() error { _, err := in.Delete(t.Context(), ref); return err }, 2},
		"tag":     {func() error { return in.Tag(t.Context(), host+"/lab/ubuntu@"+digestOf(1), "v2") }, 5},
		"push":    {func() error { _, err := registry.Push(t.Context(), dir, ref, alice, progress.Discard); return err }, 5},
		"fetch": {func() error {
			_, err := registry.Fetch(t.Context(), ref, fetchOptions(t, alice), progress.Discard)
			return err
		}, 5},
		"fetch what was made from some inputs": {func() error {
			o := fetchOptions(t, alice)
			o.Want.Inputs = inputsA
			_, err := registry.Fetch(t.Context(), ref, o, progress.Discard)
			return err
		}, 5},
	} {
		err := c.do()
		require.ErrorContains(t, err, "registry "+host+" cannot be reached", what)
		assert.ErrorContains(t, err, fmt.Sprintf("connection refused, %d times in a row", c.tries), what)
		f, ok := failure.In(err)
		require.True(t, ok, what)
		assert.Empty(t, f.Lines, "%s: the line has said it", what)
	}
}
