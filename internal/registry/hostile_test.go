package registry_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
)

// drip answers with a byte now and then, for ever.
func drip(w http.ResponseWriter, r *http.Request) {
	for r.Context().Err() == nil {
		_, _ = w.Write([]byte(" "))
		_ = http.NewResponseController(w).Flush()
		time.Sleep(5 * time.Millisecond)
	}
}

// ways are all that asks a registry.
func ways(t *testing.T, dir, ref string, o registry.Options) map[string]func() error {
	repository, _, _ := strings.Cut(ref, ":v1")
	return map[string]func() error{
		"push":  func() error { _, err := registry.Push(t.Context(), dir, ref, o, progress.Discard); return err },
		"check": func() error { return registry.CheckAccess(t.Context(), ref, o) },
		"open": func() error {
			i, err := registry.Open(t.Context(), ref, o)
			if err == nil {
				i.Close()
			}
			return err
		},
		"find":    func() error { _, _, err := session(t, o).Find(t.Context(), ref, digestOf(1)); return err },
		"entries": func() error { _, err := session(t, o).Entries(t.Context(), repository); return err },
		"delete":  func() error { _, err := session(t, o).Delete(t.Context(), ref); return err },
	}
}

func TestARegistryOfAByteNowAndThenIsLeft(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	var asked sync.WaitGroup
	for where, match := range map[string]func(*http.Request) bool{
		"ping":      func(r *http.Request) bool { return r.URL.Path == "/v2/" },
		"manifests": func(r *http.Request) bool { return r.Method == http.MethodGet && pathHas("/manifests/")(r) },
		"tags":      pathHas("/tags/list"),
		"uploads":   func(r *http.Request) bool { return r.Method == http.MethodPost },
	} {
		s := newServer(t, times(1000, match, drip))
		for what, do := range ways(t, dir, s.ref(), alice.Hasty()) {
			asked.Go(func() {
				err := do() // it ends
				if what == "open" && where == "manifests" || what == "entries" && where == "tags" {
					assert.ErrorContains(t, err, "broke: the transfer got on by only", "%s where %s drip", what, where)
				}
			})
		}
	}
	asked.Wait()
}

func TestARegistryThatRedirectsInCirclesIsLeftWhateverTheMethod(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	for _, m := range []string{"GET", "HEAD", "POST", "PATCH", "PUT"} {
		s := newServer(t, func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != m || r.URL.Path == "/v2/" {
				return false
			}
			http.Redirect(w, r, r.URL.String(), http.StatusTemporaryRedirect)
			return true
		})
		err := failed(t, dir, s.ref(), alice, "redirects")
		assert.NotContains(t, err.Error(), "in a row")
		assert.Less(t, len(s.seen()), 25, m)
	}
}

func TestAConnectionThatIsCutInTheFirstPingIsTriedAgain(t *testing.T) {
	t.Parallel()
	dir, _, made := packed(t, 1)
	ping := func(r *http.Request) bool { return r.URL.Path == "/v2/" }
	s, w := newServer(t, times(2, ping, cut)), &watcher{}
	result, err := registry.Push(t.Context(), dir, s.ref(), alice, w)
	require.NoError(t, err)
	assert.Equal(t, s.ref()+"@"+made.Digest, result)

	s = newServer(t, times(1000, ping, cut))
	err = failed(t, dir, s.ref(), alice, "the connection to registry "+s.host()+" broke", "5 times in a row")
	assert.NotContains(t, err.Error(), "plain HTTP")
}

func TestATokenThatDiesDuringALayerIsFetchedAgain(t *testing.T) {
	t.Parallel()
	dir, _, made := packed(t, 3)
	var tokens atomic.Int32
	s := newRemoteServer(t, func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/token" && tokens.Add(1) == 1:
			fmt.Fprint(w, `{"token":"DYING"}`)
		case r.URL.Path == "/token":
			fmt.Fprint(w, `{"token":"SECRET-TOKEN"}`)
		case r.Header.Get("Authorization") == "Bearer DYING" && r.Method != http.MethodPatch:
			return false
		default:
			if r.Header.Get("Authorization") == "Bearer DYING" {
				_, _ = io.Copy(io.Discard, r.Body)
			}
			return challenge("https://registry.example/token")(w, r)
		}
		return true
	})
	w := &watcher{}
	_, err := registry.Push(t.Context(), dir, remoteRef, s.options, w)
	require.NoError(t, err)
	assert.NotContains(t, w.text(), "trying again")
	assert.Equal(t, int32(2), tokens.Load())
	s.options.Username, s.options.Password = "", ""
	i, layer := opened(t, remoteRef, s.options)
	assert.Len(t, whole(t, blob(t, i, layer)), int(made.Layer.Size), "its digest is checked at its end")
	assert.Equal(t, made.Digest, i.Digest)
}

func TestARegistrysRefusalIsExplainedByItsOwnWords(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	for name, c := range map[string]struct {
		status  int
		body    string
		has     []string
		without []string
	}{
		"Harbor's quota": {403, `{"errors":[{"code":"DENIED","message":"adding 2.1 GiB of storage resource, which when updated to current usage of 8.9 GiB will exceed the configured upper limit of 10.0 GiB."}]}`,
			[]string{"the quota for", "is full (403", "delete images there or ask for more"}, []string{"ask for the right"}},
		"no room at all": {507, ``, []string{"is full (507"}, []string{"in a row"}},
		"ECR's immutable tag": {400, `{"errors":[{"code":"TAG_INVALID","message":"The image tag 'v1' already exists in the 'lab/ubuntu' repository and cannot be overwritten because the repository is immutable."}]}`,
			[]string{"tag v1 of", "is there and may not be changed", "use a new IMAGE_TAG"}, []string{"later"}},
		"Harbor's immutable tag": {412, `{"errors":[{"code":"PRECONDITION","message":"Failed to process request due to 'ubuntu:v1' configured as immutable."}]}`,
			[]string{"may not be changed", "use a new IMAGE_TAG"}, nil},
		"no OCI": {415, `{"errors":[{"code":"MANIFEST_INVALID","message":"manifest invalid"}]}`,
			[]string{"refuses the manifest of an OCI image"}, []string{"later"}},
		"another refusal": {405, `{"errors":[{"code":"UNSUPPORTED","message":"no"}]}`, []string{"its log says more"}, []string{"later"}},
		"no right":        {403, `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`, []string{"ask for the right to push"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, times(1000, func(r *http.Request) bool { return r.Method == http.MethodPut && pathHas("/manifests/")(r) },
				func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(c.status); _, _ = w.Write([]byte(c.body)) }))
			err := failed(t, dir, s.ref(), alice, c.has...)
			for _, word := range c.without {
				assert.NotContains(t, err.Error(), word)
			}
		})
	}
	proxied := newServer(t, times(1000, pathHas("/blobs/"), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusProxyAuthRequired) }))
	failed(t, dir, proxied.ref(), alice, "the proxy answers 407 Proxy Authentication Required", "HTTPS_PROXY")
}

func TestALeftOverHelperStopsAPushAndNotWhatEverybodyMayRead(t *testing.T) {
	dir, _, _ := packed(t, 1)
	s := newServer(t, nil)
	_, err := registry.Push(t.Context(), dir, s.ref(), alice, progress.Discard)
	require.NoError(t, err)
	config := t.TempDir()
	t.Setenv("DOCKER_CONFIG", config)
	require.NoError(t, os.WriteFile(filepath.Join(config, "config.json"), []byte(`{"credsStore":"gone"}`), 0o600))
	o := registry.Options{}.Quick()
	for what, do := range ways(t, dir, s.ref(), o) {
		switch err := do(); what {
		case "push", "check", "delete":
			require.ErrorContains(t, err, "credsStore in "+config+"/config.json names docker-credential-gone, which is not installed", what)
		default:
			require.NoError(t, err, what)
		}
	}
	s.answers(wantsALogin)
	_, err = registry.Open(t.Context(), s.ref(), o)
	require.ErrorContains(t, err, "wants a login for lab/ubuntu")
	require.ErrorContains(t, err, "credsStore in "+config+"/config.json")
}

func TestALoginGoesToATokenServiceOfTheSameDomainOnly(t *testing.T) {
	dir, _, _ := packed(t, 1)
	token := func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			fmt.Fprint(w, `{"token":"SECRET-TOKEN"}`)
		}
		return r.URL.Path == "/token"
	}
	for realm, refused := range map[string]bool{
		"https://other.example/token": true, "https://registry.example:8443/token": false, "https://registry.example.evil.example/token": true,
	} {
		s := newRemoteServer(t, func(w http.ResponseWriter, r *http.Request) bool { return challenge(realm)(w, r) || token(w, r) })
		if !refused {
			_, err := registry.Push(t.Context(), dir, remoteRef, s.options, progress.Discard)
			require.NoError(t, err, realm)
			continue
		}
		failed(t, dir, remoteRef, s.options, "registry.example wants the login to be sent to ", "docker login")
		for i := range s.requests {
			assert.Empty(t, s.logins[i])
		}
	}
	// Whoever has logged in there has said that it may know it.
	s := newRemoteServer(t, func(w http.ResponseWriter, r *http.Request) bool {
		return challenge("https://other.example/token")(w, r) || token(w, r)
	})
	config := t.TempDir()
	t.Setenv("DOCKER_CONFIG", config)
	auth := base64.StdEncoding.EncodeToString([]byte("a:b"))
	require.NoError(t, os.WriteFile(filepath.Join(config, "config.json"), []byte(`{"auths":{"other.example":{"auth":"`+auth+`"}}}`), 0o600))
	_, err := registry.Push(t.Context(), dir, remoteRef, s.options, progress.Discard)
	require.NoError(t, err)
}

// onTheInternet is a connection that says so.
type onTheInternet struct{ net.Conn }

func (onTheInternet) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443}
}

func TestARegistryOnTheInternetLeadsToNoNameOfAPrivateAddress(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	s := newRemoteServer(t, away(method("PATCH"), 307, "https://other.example"))
	_, err := registry.Push(t.Context(), dir, remoteRef, s.options, progress.Discard)
	require.NoError(t, err, "a registry in the private network may lead to others there")

	s = newRemoteServer(t, away(method("PATCH"), 307, "https://other.example"))
	public := s.options.Through(func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := s.dial(ctx, network, addr)
		if err == nil && addr == "registry.example:443" {
			conn = onTheInternet{conn}
		}
		return conn, err
	})
	failed(t, dir, remoteRef, public, "sends us to other.example: its name stands for a private address")
	for _, request := range s.seen() {
		assert.NotContains(t, request, "other.example")
	}
}

func TestTheDomainOfARegistryIsItsOwn(t *testing.T) {
	t.Parallel()
	for registered, hosts := range map[string]map[string]bool{
		"index.docker.io":           {"auth.docker.io": true, "docker.io": true, "evil.io": false, "auth.docker.io.evil.io": false},
		"registry.gitlab.com":       {"gitlab.com": true, "notgitlab.com": false},
		"registry.example.org:5050": {"gitlab.example.org": true, "example.com": false},
		"ghcr.io":                   {"ghcr.io": true, "evil.io": false, "io": false},
		"10.0.0.5:5000":             {"10.0.0.5:443": true, "11.0.0.5": false},
		"127.0.0.1:5000":            {"127.0.0.1:5001": true, "localhost:1": true, "evil.io": false},
	} {
		for host, right := range hosts {
			assert.Equal(t, right, registry.MayKnow(t.Context(), registered, host), "%s, %s", registered, host)
		}
	}
}

func TestARegistryThatKeepsNothingIsFoundOut(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	put := func(r *http.Request) bool { return r.Method == http.MethodPut && pathHas("/manifests/")(r) }
	s := newServer(t, times(1000, put, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }))
	failed(t, dir, s.ref(), alice, "accepted ", "but does not have it")
	// One that needs a moment is asked again, and who may not pull is not.
	read := func(r *http.Request) bool { return r.Method == http.MethodGet && pathHas("/manifests/")(r) }
	for _, status := range []int{http.StatusNotFound, http.StatusForbidden} {
		s = newServer(t, times(2, read, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		_, err := registry.Push(t.Context(), dir, s.ref(), alice, progress.Discard)
		require.NoError(t, err)
	}
}

func TestADeletionThatTheRegistryOnlyPromisesIsFoundOut(t *testing.T) {
	t.Parallel()
	// go-containerregistry's registry drops the digest and keeps the tags.
	s := newServer(t, nil)
	stored(t, s.host()+"/lab/ubuntu:v1", alice, digestOf(1))
	made := stored(t, s.host()+"/lab/ubuntu:v2", alice, digestOf(1))
	_, err := session(t, alice).Delete(t.Context(), s.host()+"/lab/ubuntu@"+made.Digest)
	require.NoError(t, err)
	left, err := session(t, alice).Entries(t.Context(), s.host()+"/lab/ubuntu")
	require.NoError(t, err)
	assert.Empty(t, left, "tags are left")

	s = newServer(t, times(1000, method(http.MethodDelete), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }))
	stored(t, s.host()+"/lab/ubuntu:v1", alice, digestOf(1))
	_, err = session(t, alice).Delete(t.Context(), s.host()+"/lab/ubuntu:v1")
	require.ErrorContains(t, err, "but still has it")
}

func TestAListOfHugeManifestsTakesLittleMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("it reads 450 MiB of JSON")
	}
	const tags = 150
	huge := append([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","annotations":{"x":"`), bytes.Repeat([]byte("x"), 3<<20)...)
	names := make([]string, tags)
	for i := range names {
		names[i] = fmt.Sprint("v", i)
	}
	list, err := json.Marshal(map[string]any{"tags": names})
	require.NoError(t, err)
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case pathHas("/tags/list")(r):
			_, _ = w.Write(list)
		case pathHas("/manifests/")(r):
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			_, _ = w.Write(huge)
			fmt.Fprintf(w, `%s","org.opencontainers.image.created":"2026-01-01T00:00:00Z"}}`, r.URL.Path)
		default:
			return false
		}
		return true
	})
	over := make(chan uint64)
	done := make(chan struct{})
	go func() {
		var most uint64
		for m := (runtime.MemStats{}); ; time.Sleep(20 * time.Millisecond) {
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapAlloc)
			select {
			case <-done:
				over <- most
				return
			default:
			}
		}
	}()
	all, err := session(t, alice).Entries(t.Context(), s.host()+"/lab/ubuntu")
	close(done)
	require.NoError(t, err)
	assert.Len(t, all, tags)
	assert.Less(t, <-over, uint64(300<<20), "bytes of the heap, for %d MiB of manifests", tags*3)
}

func TestAManifestOrIndexThatIsTooLargeIsAnError(t *testing.T) {
	t.Parallel()
	body := ""
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case pathHas("/tags/list")(r):
			_, _ = w.Write([]byte(`{"tags":["v1"]}`))
		case pathHas("/manifests/")(r):
			w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
			_, _ = w.Write([]byte(body))
		default:
			return false
		}
		return true
	})
	body = `{"manifests":[` + strings.Repeat(`{"digest":"`+digestOf(1)+`"},`, 2000) + `{"digest":"` + digestOf(1) + `"}]}`
	_, err := session(t, alice).Entries(t.Context(), s.host()+"/lab/ubuntu")
	require.ErrorContains(t, err, "an index of 2001 images")
	body = strings.Repeat(" ", 5<<20)
	for what, do := range ways(t, "", s.ref(), alice) {
		if what != "push" && what != "check" {
			require.ErrorContains(t, do(), "more than 4 MiB", what)
		}
	}
}
