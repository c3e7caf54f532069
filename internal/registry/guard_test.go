package registry_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
)

// away answers the requests that match with a redirect to a URL that has the
// path appended.
func away(match func(*http.Request) bool, status int, to string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Host == "other.example" || !match(r) {
			return false
		}
		http.Redirect(w, r, to+r.URL.Path, status)
		return true
	}
}

// challenge wants a bearer token from the realm for everything.
func challenge(realm string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/token") || r.Header.Get("Authorization") == "Bearer SECRET-TOKEN" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="test"`, realm))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}

func pathHas(part string) func(*http.Request) bool {
	return func(r *http.Request) bool { return strings.Contains(r.URL.Path, part) }
}

func TestNothingLeavesInPlainHTTP(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	for what, handle := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"a redirect of the ping":     away(func(r *http.Request) bool { return r.URL.Path == "/v2/" }, 307, "http://other.example"),
		"a redirect of a question":   away(pathHas("/manifests/"), 302, "http://other.example"),
		"a redirect of an upload":    away(method("PATCH"), 307, "http://other.example"),
		"a redirect to this machine": away(pathHas("/manifests/"), 307, "http://localhost:1"),
		"a realm":                    challenge("http://other.example/token"),
		"a redirect of a realm": func(w http.ResponseWriter, r *http.Request) bool {
			return challenge("https://registry.example/token")(w, r) || away(pathHas("/token"), 307, "http://other.example")(w, r)
		},
		"an upload Location": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPost {
				return false
			}
			w.Header().Set("Location", "http://other.example/v2/lab/ubuntu/blobs/uploads/1?_state=SECRET-TOKEN")
			w.WriteHeader(http.StatusAccepted)
			return true
		},
	} {
		t.Run(what, func(t *testing.T) {
			s := newRemoteServer(t, handle)
			err := failed(t, dir, remoteRef, s.options)
			assert.Regexp(t, `plain HTTP to \S+ is not allowed|realm scheme "http" not allowed|not allowed for a secure registry`, err.Error())
			for _, addr := range s.dialled {
				assert.Equal(t, "registry.example:443", addr)
			}
			for _, request := range s.seen() {
				assert.Contains(t, request, " registry.example ")
			}
		})
	}
}

func TestARegistryOnLoopbackCannotSendALoginAwayInPlainHTTP(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	for what, handle := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"a realm":    challenge("http://other.example/token"),
		"a redirect": away(pathHas("/manifests/"), 307, "http://other.example"),
	} {
		t.Run(what, func(t *testing.T) {
			s := newServer(t, handle)
			failed(t, dir, s.ref(), alice, "plain HTTP to other.example is not allowed", "REGISTRY_INSECURE")
		})
	}
}

// Private addresses and .local names: there the library would speak plain HTTP
// by itself.
func TestARegistryThatSpeaksPlainHTTPIsRefusedUnlessAllowed(t *testing.T) {
	t.Parallel()
	dir, _, made := packed(t, 1)
	for _, host := range []string{"10.0.0.5:5000", "192.168.1.1:5000", "registry.local", "registry.localhost:5000", "registry.example"} {
		t.Run(host, func(t *testing.T) {
			s := newServer(t, nil)
			remote := &remoteServer{server: s}
			o := registry.Options{Username: user, Password: password}.Quick().Through(remote.dial)
			failed(t, dir, host+"/lab/ubuntu:v1", o, "registry "+host+" speaks plain HTTP, not https")
			assert.Empty(t, s.seen())

			o.Insecure = true
			result, err := registry.Push(t.Context(), dir, host+"/lab/ubuntu:v1", o, progress.Discard)
			require.NoError(t, err)
			assert.Equal(t, host+"/lab/ubuntu:v1@"+made.Digest, result)
		})
	}
}

func TestEveryAddressOfThisMachineMayBeSpokenToInPlainHTTP(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	for _, host := range []string{"127.0.0.1", "127.8.9.10", "localhost", "[::1]"} {
		s := newServer(t, nil)
		remote := &remoteServer{server: s}
		o := registry.Options{}.Quick().Through(remote.dial)
		o.Username, o.Password = user, password
		_, err := registry.Push(t.Context(), dir, host+":5000/lab/ubuntu:v1", o, progress.Discard)
		require.NoError(t, err, host)
	}
}

func TestALoginIsNotGivenToTheHostOfARedirect(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	basic := func(w http.ResponseWriter, r *http.Request) bool {
		if r.Host == "other.example" || r.Header.Get("Authorization") != "" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	s := newRemoteServer(t, func(w http.ResponseWriter, r *http.Request) bool {
		return basic(w, r) || away(method("PATCH"), 307, "https://other.example")(w, r)
	})
	_, err := registry.Push(t.Context(), dir, remoteRef, s.options, progress.Discard)
	require.NoError(t, err)
	others := 0
	for i, request := range s.requests {
		if strings.Contains(request, " other.example ") {
			others++
			assert.Empty(t, s.logins[i], request)
		}
	}
	assert.NotZero(t, others)
}

func TestATokenIsFetchedAndUsedAndShownToNobody(t *testing.T) {
	t.Parallel()
	dir, _, made := packed(t, 1)
	realm := func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/token" {
			return false
		}
		name, secret, _ := r.BasicAuth()
		if name != user || secret != password {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		fmt.Fprint(w, `{"token":"SECRET-TOKEN"}`)
		return true
	}
	s := newRemoteServer(t, func(w http.ResponseWriter, r *http.Request) bool {
		return challenge("https://registry.example/token")(w, r) || realm(w, r)
	})
	result, err := registry.Push(t.Context(), dir, remoteRef, s.options, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, remoteRef+"@"+made.Digest, result)

	wrong := s.options
	wrong.Password = "wrong"
	failed(t, dir, remoteRef, wrong, `refuses user "alice"`)

	// A registry that repeats what it was sent.
	s = newRemoteServer(t, func(w http.ResponseWriter, r *http.Request) bool {
		if challenge("https://registry.example/token")(w, r) || realm(w, r) {
			return true
		}
		if r.Method == http.MethodPost {
			http.Error(w, `{"errors":[{"code":"DENIED","message":"quota\n`+r.Header.Get("Authorization")+` of `+password+`"}]}`, http.StatusForbidden)
			return true
		}
		return false
	})
	failed(t, dir, remoteRef, s.options, "(403, DENIED quota")
}

func TestARefreshTokenDoesNotFollowARedirectToAnotherHost(t *testing.T) {
	dir, _, _ := packed(t, 1)
	config := t.TempDir()
	t.Setenv("DOCKER_CONFIG", config)
	auth := base64.StdEncoding.EncodeToString([]byte("<token>:"))
	require.NoError(t, os.WriteFile(filepath.Join(config, "config.json"),
		[]byte(`{"auths":{"registry.example":{"auth":"`+auth+`","identitytoken":"SECRET-TOKEN"}}}`), 0o600))
	s := newRemoteServer(t, func(w http.ResponseWriter, r *http.Request) bool {
		return challenge("https://registry.example/token")(w, r) || away(pathHas("/token"), 307, "https://other.example")(w, r)
	})
	s.options.Username, s.options.Password = "", ""
	failed(t, dir, remoteRef, s.options, "registry.example wants the login to be sent to other.example")
	for _, request := range s.seen() {
		assert.NotContains(t, request, "other.example")
	}
}

func TestACertificateThatIsNotTheRegistrysIsRefused(t *testing.T) {
	t.Parallel()
	dir, _, _ := packed(t, 1)
	s := newRemoteServer(t, nil)
	failed(t, dir, "unnamed.example/lab/ubuntu:v1", s.options, "the certificate of registry unnamed.example is not valid")
	assert.Empty(t, s.seen())

	s.options.CAFile = filepath.Join(t.TempDir(), "missing")
	failed(t, dir, remoteRef, s.options, "cannot read CA_FILE")
	require.NoError(t, os.WriteFile(s.options.CAFile, []byte("no certificate"), 0o600))
	failed(t, dir, remoteRef, s.options, "has no certificate in it")
}
