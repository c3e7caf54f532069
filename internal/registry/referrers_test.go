package registry_test

import (
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// pushed is a session with a registry that has an image, ref:v1.
func pushed(t *testing.T, address string) (s *registry.Session, ref string, made oci.Result) {
	t.Helper()
	dir, _, made := packed(t, 1)
	ref = address + "/labs/ubuntu"
	_, err := registry.Push(t.Context(), dir, ref+":v1", registry.Options{}, progress.Discard)
	require.NoError(t, err)
	s, err = registry.NewSession(registry.Options{})
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s, ref, made
}

func TestReferrersAreAttachedWithoutATag(t *testing.T) {
	server := httptest.NewServer(ggcr.New(ggcr.WithReferrersSupport(true), ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	s, ref, made := pushed(t, strings.TrimPrefix(server.URL, "http://"))

	takes, err := s.TakesReferrers(t.Context(), ref+":v1")
	require.NoError(t, err)
	assert.True(t, takes)
	digest, none, broken, err := s.Referrers(t.Context(), ref+":v1", "application/x-note")
	require.NoError(t, err)
	assert.Equal(t, made.Digest, digest)
	assert.Empty(t, none)
	assert.Zero(t, broken)

	note := registry.Referrer{ArtifactType: "application/x-note", Annotations: map[string]string{"by": "me"}, Content: []byte("good")}
	other := registry.Referrer{ArtifactType: "application/x-other", Content: []byte("else")}
	require.NoError(t, s.Attach(t.Context(), ref+"@"+made.Digest, []registry.Referrer{note, other}, progress.Discard))
	require.NoError(t, s.Attach(t.Context(), ref+"@"+made.Digest, []registry.Referrer{note}, progress.Discard), "the same again")
	_, all, _, err := s.Referrers(t.Context(), ref+":v1", "application/x-note")
	require.NoError(t, err)
	require.Equal(t, []registry.Referrer{note}, all)

	entries, err := s.Entries(t.Context(), ref)
	require.NoError(t, err)
	require.Len(t, entries, 1, "what is attached is no image")
	assert.Equal(t, []string{"v1"}, entries[0].Tags)

	err = s.Attach(t.Context(), ref+":v2", []registry.Referrer{note}, progress.Discard)
	require.ErrorContains(t, err, "has no")
}

func TestARegistryWithoutReferrersIsNamed(t *testing.T) {
	address, _ := testkit.StartRegistry(t, testkit.RegistryOptions{}) // Distribution 2.8
	s, ref, made := pushed(t, address)
	takes, err := s.TakesReferrers(t.Context(), ref+":v1")
	require.NoError(t, err)
	assert.False(t, takes)
	err = s.Attach(t.Context(), ref+"@"+made.Digest, []registry.Referrer{{ArtifactType: "application/x-note", Content: []byte("x")}}, progress.Discard)
	require.ErrorIs(t, err, registry.ErrNoReferrers)
	entries, err := s.Entries(t.Context(), ref)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	assert.Equal(t, []string{"v1"}, entries[0].Tags, "no tag with a list of referrers")
}
