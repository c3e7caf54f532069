package registry_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/attest"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// both pushes an image for each architecture to a repository, as v1-ARCHITECTURE, and
// returns their digests.
func both(t *testing.T, repository string) (digests []string) {
	disk := filepath.Join(t.TempDir(), "disk.raw")
	for i, architecture := range []string{"amd64", "arm64"} {
		content := make([]byte, 64<<10)
		copy(content[510:], "\x55\xaa")
		content[1000] = byte(i)
		require.NoError(t, os.WriteFile(disk, content, 0o600))
		layout := filepath.Join(t.TempDir(), "layout")
		made, err := oci.Pack(t.Context(), disk, layout, oci.Metadata{
			Architecture: architecture, Title: "lab", Annotations: map[string]string{
				oci.AnnotationInputs: []string{inputsA, inputsB}[i], oci.AnnotationSettings: `{"ARCHITECTURE": "` + architecture + `"}`,
				oci.AnnotationBuilt: []string{"2026-11-02T00:00:00Z", "2026-11-01T00:00:00Z"}[i],
			},
		}, progress.Discard)
		require.NoError(t, err)
		push(t, layout, repository+":v1-"+architecture, registry.Options{})
		digests = append(digests, made.Digest)
	}
	return digests
}

func parts(repository string) []registry.Part {
	return []registry.Part{{Reference: repository + ":v1-arm64", Inputs: inputsB}, {Reference: repository + ":v1-amd64", Inputs: inputsA}}
}

func TestAnIndexOfARealRegistryIsChosenFromAsOthersChoose(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	repository := host + "/labs/lab"
	digests := both(t, repository)
	s := session(t, registry.Options{})
	made, err := s.Index(t.Context(), repository+":v1", parts(repository), 0, progress.Discard)
	require.NoError(t, err)
	again, err := s.Index(t.Context(), repository+":v1", parts(repository), 0, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, made, again)
	for i, architecture := range []string{"amd64", "arm64"} {
		out, err := exec.CommandContext(t.Context(), "skopeo", "--override-arch", architecture, "--override-os", "linux",
			"inspect", "--tls-verify=false", "--format", "{{.Architecture}}", "docker://"+repository+":v1").CombinedOutput()
		require.NoError(t, err, string(out))
		assert.Equal(t, architecture, strings.TrimSpace(string(out)))
		o := fetchOptions(t, registry.Options{})
		o.Want.Architecture = architecture
		got, err := registry.Fetch(t.Context(), repository+":v1", o, progress.Discard)
		require.NoError(t, err)
		assert.Equal(t, digests[i], got.Manifest)
	}
	entries, err := s.Entries(t.Context(), repository)
	require.NoError(t, err)
	repo := registry.Repository{Name: repository, Entries: entries}
	var newest []string
	for _, e := range repo.Newest() {
		newest = append(newest, e.Digest)
	}
	assert.Equal(t, digests, newest, "of each architecture, and no index")
	for _, d := range (registry.Policy{Keep: 1, Now: time.Now()}).Decide(entries) {
		assert.False(t, d.Delete, d.Why)
		assert.True(t, d.Ours())
	}
	kept := 0
	for _, d := range (registry.Policy{Younger: time.Hour, KeepTags: []string{"v1"}, Now: time.Now()}).Decide(entries) {
		if !d.Delete {
			kept++
		}
	}
	assert.Equal(t, 3, kept, "what the index needs")
}

func TestAnIndexWaitsForItsImagesAndTakesNoOthers(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	repository := host + "/labs/lab"
	s := session(t, registry.Options{}.Quick())
	_, err := s.Index(t.Context(), repository+":v1", parts(repository), 50*time.Millisecond, progress.Discard)
	require.ErrorContains(t, err, "there is no image "+repository+":v1-arm64 yet, after 50ms of waiting")
	done := make(chan error, 1)
	go func() {
		_, err := s.Index(t.Context(), repository+":v1", parts(repository), time.Minute, progress.Discard)
		done <- err
	}()
	digests := both(t, repository)
	require.NoError(t, <-done)

	for says, of := range map[string][]registry.Part{
		"was made from other inputs": {{Reference: repository + ":v1-arm64", Inputs: inputsA}},
		"is an index itself":         {{Reference: repository + ":v1"}},
		"are both for amd64":         {{Reference: repository + ":v1-amd64"}, {Reference: repository + "@" + digests[0]}},
		"has images of that repository alone, and not " + host + "/labs/other:v1": {{Reference: host + "/labs/other:v1"}},
	} {
		_, err := s.Index(t.Context(), repository+":v2", of, 0, progress.Discard)
		require.ErrorContains(t, err, says)
	}
	_, there, err := s.Entry(t.Context(), repository+":v2")
	require.NoError(t, err)
	assert.False(t, there, "nothing is half-published")
}

func TestARegistryThatTakesNoIndexIsNamed(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.Contains(r.Header.Get("Content-Type"), "index") {
			http.Error(w, `{"errors":[{"code":"MANIFEST_INVALID","message":"unknown media type"}]}`, http.StatusBadRequest)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	repository := strings.TrimPrefix(server.URL, "http://") + "/labs/lab"
	both(t, repository)
	_, err := session(t, registry.Options{}).Index(t.Context(), repository+":v1", parts(repository), 0, progress.Discard)
	require.ErrorContains(t, err, "takes no index of images (400")
	require.ErrorContains(t, err, "unknown media type")
	require.ErrorContains(t, err, "use each image by its own tag")
}

func TestARevokedImageGetsIntoNoIndexAndOneThatHasItIsRefused(t *testing.T) {
	t.Parallel()
	a := newAttached(t)
	repository := a.host + "/labs/lab"
	digests := both(t, repository)
	s := session(t, registry.Options{})
	_, err := s.Index(t.Context(), repository+":v1", parts(repository), 0, progress.Discard)
	require.NoError(t, err)
	e, _, err := s.Entry(t.Context(), repository+"@"+digests[1])
	require.NoError(t, err)
	say(t, e, attest.Revocation, attest.Revoked{Reason: "a password is in it"})
	_, err = s.Index(t.Context(), repository+":v2", parts(repository), 0, progress.Discard)
	require.ErrorContains(t, err, "a password is in it")
	require.ErrorContains(t, s.RevokedAt(t.Context(), repository+":v1", nil), "is an index of "+repository+"@"+digests[1])
}
