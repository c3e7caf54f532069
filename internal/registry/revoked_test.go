package registry_test

import (
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/attest"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// attached is a registry that keeps referrers. It notes what it is asked, and answers
// otherwise where it is told to.
type attached struct {
	host string

	mu     sync.Mutex
	asked  []string
	refuse func(r *http.Request) (status int)
}

func newAttached(t *testing.T) *attached {
	a := &attached{}
	inner := ggcr.New(ggcr.WithReferrersSupport(true), ggcr.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		a.asked = append(a.asked, r.Method+" "+r.URL.Path)
		refuse := a.refuse
		a.mu.Unlock()
		if refuse != nil && refuse(r) != 0 {
			w.WriteHeader(refuse(r))
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	a.host = strings.TrimPrefix(server.URL, "http://")
	return a
}

// told returns what it was asked since the last call, but for logins, and has it refuse
// from now on.
func (a *attached) told(refuse func(*http.Request) int) (asked []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, request := range a.asked {
		if !strings.HasSuffix(request, "/v2/") {
			asked = append(asked, request)
		}
	}
	a.asked, a.refuse = nil, refuse
	return asked
}

// made pushes an image that was made from another one.
func made(t *testing.T, ref, base string) registry.Entry {
	t.Helper()
	_, disk, _ := packed(t, 1)
	copy(disk, ref)
	file, dir := filepath.Join(t.TempDir(), "disk.raw"), filepath.Join(t.TempDir(), "layout")
	require.NoError(t, os.WriteFile(file, disk, 0o600))
	_, digest, _ := strings.Cut(base, "@")
	_, err := oci.Pack(t.Context(), file, dir, oci.Metadata{Architecture: "amd64", BaseName: base, BaseDigest: digest}, progress.Discard)
	require.NoError(t, err)
	push(t, dir, ref, registry.Options{})
	e, there, err := session(t, registry.Options{}).Entry(t.Context(), ref)
	require.NoError(t, err)
	require.True(t, there)
	return e
}

// say attaches a statement to an image.
func say(t *testing.T, e registry.Entry, kind string, predicate any) {
	t.Helper()
	private, _ := testkit.CosignKey(t, "")
	key, err := attest.ReadKey(private, "")
	require.NoError(t, err)
	s, err := attest.New(kind, e.Digest, "", predicate)
	require.NoError(t, err)
	bundle, err := key.Bundle(t.Context(), s)
	require.NoError(t, err)
	require.NoError(t, session(t, registry.Options{}).Attach(t.Context(), e.Repository+"@"+e.Digest, []registry.Referrer{{
		ArtifactType: attest.BundleType, Content: bundle, Annotations: map[string]string{attest.AnnotationKind: kind},
	}}, progress.Discard))
}

func TestThatAnImageIsNotRevokedCostsOneRequestAndTwoForEachAncestor(t *testing.T) {
	t.Parallel()
	a := newAttached(t)
	base := made(t, a.host+"/lab/base:1", "")
	child := made(t, a.host+"/lab/child:1", a.host+"/lab/base:1@"+base.Digest)
	for _, e := range []registry.Entry{base, child} {
		say(t, e, attest.SPDX, json.RawMessage(`{"large": true}`))
		say(t, e, attest.Signature, struct{}{})
	}
	a.told(nil)
	require.NoError(t, session(t, registry.Options{}).Revoked(t.Context(), child, nil))
	list := func(e registry.Entry) string {
		return "GET /v2/" + strings.SplitN(e.Repository, "/", 2)[1] + "/referrers/" + e.Digest
	}
	assert.Equal(t, []string{list(child), "GET /v2/lab/base/manifests/" + base.Digest, list(base)}, a.told(nil), "no bundle is read")

	for _, status := range []int{http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed} {
		a.told(func(r *http.Request) int {
			if strings.Contains(r.URL.Path, "/referrers/") {
				return status
			}
			return 0
		})
		require.NoError(t, session(t, registry.Options{}).Revoked(t.Context(), child, nil), status)
		assert.Len(t, a.told(nil), 1, "a registry that keeps none is asked once")
	}
}

func TestARefreshIsRevokedWithWhatItsOriginalWasMadeFromThoughThatIsGone(t *testing.T) {
	t.Parallel()
	a := newAttached(t)
	base := made(t, a.host+"/lab/base:1", "")
	java := made(t, a.host+"/lab/java:1", a.host+"/lab/base:1@"+base.Digest)
	s := session(t, registry.Options{})
	original := java.AsOriginal()
	original.Refreshes = 2
	file, dir := filepath.Join(t.TempDir(), "disk.raw"), filepath.Join(t.TempDir(), "layout")
	_, disk, _ := packed(t, 1)
	require.NoError(t, os.WriteFile(file, disk, 0o600))
	gone := "sha256:" + strings.Repeat("0", 64) // the refresh before, which nobody kept
	_, err := oci.Pack(t.Context(), file, dir, oci.Metadata{
		Architecture: "amd64", BaseName: a.host + "/lab/java:2@" + gone, BaseDigest: gone, Original: original,
	}, progress.Discard)
	require.NoError(t, err)
	push(t, dir, a.host+"/lab/java:3", registry.Options{})
	require.NoError(t, s.RevokedAt(t.Context(), a.host+"/lab/java:3", nil))

	say(t, base, attest.Revocation, attest.Revoked{Reason: "a password is in it"})
	_, err = s.Delete(t.Context(), a.host+"/lab/java:1")
	require.NoError(t, err)
	require.ErrorContains(t, s.RevokedAt(t.Context(), a.host+"/lab/java:3", nil), "was made from "+a.host+"/lab/base@"+base.Digest+", which is revoked")
	_, err = s.Delete(t.Context(), a.host+"/lab/base:1")
	require.NoError(t, err)
	require.ErrorContains(t, s.RevokedAt(t.Context(), a.host+"/lab/java:3", nil), "which is revoked", "a registry may keep what was attached to an image longer than that")
}

func TestARevocationIsFoundInAnotherRegistryAndRefusesWhereItCannotBeRead(t *testing.T) {
	t.Parallel()
	a, elsewhere := newAttached(t), newAttached(t)
	base := made(t, elsewhere.host+"/os/base:1", "")
	child := made(t, a.host+"/lab/child:1", elsewhere.host+"/os/base:1@"+base.Digest)
	say(t, base, attest.Revocation, "not even an object")
	err := session(t, registry.Options{}).Revoked(t.Context(), child, nil)
	require.ErrorContains(t, err, a.host+"/lab/child@"+child.Digest+" was made from "+elsewhere.host+"/os/base@"+base.Digest+
		", which is revoked (by whom was not checked): no reason is given")
	require.ErrorAs(t, err, new(registry.Revocation))

	blobs := func(r *http.Request) int {
		if strings.Contains(r.URL.Path, "/blobs/") {
			return http.StatusNotFound
		}
		return 0
	}
	elsewhere.told(blobs)
	err = session(t, registry.Options{}).Revoked(t.Context(), base, nil)
	require.ErrorContains(t, err, "nobody knows whether it is revoked")
	require.NoError(t, session(t, registry.Options{}).Revoked(t.Context(), child, nil), "a registry that an image names does not decide whether others answer")
	elsewhere.told(func(*http.Request) int { return http.StatusUnauthorized })
	require.NoError(t, session(t, registry.Options{}).Revoked(t.Context(), child, nil))
}

func TestAnotherImageOfTheSameInputsIsFoundInPlaceOfARevokedOne(t *testing.T) {
	t.Parallel()
	a := newAttached(t)
	ref := a.host + "/lab/ubuntu:v2"
	one := stored(t, ref, registry.Options{}, "sha256:one")
	s := session(t, registry.Options{})
	e, _, err := s.Entry(t.Context(), ref)
	require.NoError(t, err)
	say(t, e, attest.Revocation, attest.Revoked{Reason: "old"})
	found, ok, err := s.Find(t.Context(), ref, "sha256:one")
	require.NoError(t, err)
	assert.False(t, ok)
	assert.Equal(t, "is revoked (by whom was not checked): old", found.Revoked)
	assert.Equal(t, "v2", found.Tag)
	assert.Equal(t, one.Digest, found.Digest)

	two := stored(t, a.host+"/lab/ubuntu:v1", registry.Options{}, "sha256:one", func(m *oci.Metadata) { m.Title = "again" })
	found, ok, err = s.Find(t.Context(), ref, "sha256:one")
	require.NoError(t, err)
	require.True(t, ok)
	assert.Equal(t, two.Digest, found.Digest)
	assert.Empty(t, found.Revoked)
}

func TestAChannelKeepsWhatItNames(t *testing.T) {
	t.Parallel()
	stable, old, latest := image("r/a", 1, 90), image("r/a", 2, 80), image("r/a", 3, 70)
	stable.Tags, old.Tags, latest.Tags = []string{"20260901", "stable"}, []string{"20260902-2"}, []string{"latest"}
	all := []registry.Entry{stable, old, latest}
	assert.Equal(t, []string{"r/a:20260902-2"}, gone(registry.Policy{Younger: day}, all...))
	assert.Equal(t, "channel stable", registry.Policy{Younger: day, Now: now}.Decide(all)[0].Why)
	for tag, good := range map[string]bool{"stable": true, "pre-release": true, "v1": false, "2026": false, "": false, "a/b": false} {
		assert.Equal(t, good, registry.CheckChannel(tag) == nil, tag)
	}
}
