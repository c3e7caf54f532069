package fleet_test

import (
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/fleet"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/testkit"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// revoke revokes an image with some key.
func revoke(t *testing.T, ref string) {
	t.Helper()
	private, _ := testkit.CosignKey(t, "")
	key := filepath.Join(t.TempDir(), "cosign.key")
	require.NoError(t, os.WriteFile(key, private, 0o600))
	b := pipeline.Build{Config: settings.Config{SigningKey: key}, UI: ui.New(io.Discard, false), Version: "test"}
	_, err := b.Revoke(t.Context(), ref, "it has a hole")
	require.NoError(t, err)
}

func TestARevokedImageIsBuiltAnewWithWhatStartsFromIt(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(ggcr.New(ggcr.WithReferrersSupport(true), ggcr.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	s, m := newSite(t, familyCatalogue), &maker{days: 10}
	s.env["TARGET_REGISTRY"] = strings.TrimPrefix(server.URL, "http://")
	first := s.run(m)
	m.taken()
	revoke(t, reference(first, "lab"))
	const why = "build: what there is is revoked (by whom was not checked): it has a hole"
	assert.Equal(t, map[string]string{"debian": "skip: unchanged; others start from it", "lab": why, "exam": "skip: unchanged"}, s.said())
	m.days = 0
	s.run(m)
	assert.Equal(t, []string{"lab"}, m.taken(), "what lies in OUTPUT_DIR is the revoked one: it is not sent again")
	assert.Equal(t, "skip: unchanged", s.said()["lab"])

	revoke(t, reference(first, "debian"))
	assert.Equal(t, map[string]string{"debian": why, "lab": "build: debian is built", "exam": "build: debian is built"}, s.said())
	assert.True(t, s.planned()["debian"].Anew, "nobody may take it from a cache")
	s.run(m)
	assert.Equal(t, everyone, m.taken())
	assert.Equal(t, "skip: unchanged", s.said()["exam"])

	// An image whose base is another's, and revoked, cannot be built, nor is what there is left.
	s.env["OUTPUT_DIR"] = t.TempDir()
	s.write("catalogue.yaml", `
defaults: {ansible-dir: playbooks, size: 1G, memory: 256, cpus: 1, tags: v1}
images:
  - {name: one, base: {url: "oci://`+reference(first, "exam")+`", checksum: "`+digestIn(reference(first, "exam"))+`"}, playbook: base}
  - {name: two, base: {url: "https://example.org/debian.qcow2", checksum: "`+zeros+`"}, playbook: base}
`)
	s.run(m)
	m.taken()
	revoke(t, reference(first, "exam"))
	said := s.said()
	assert.Equal(t, "blocked: "+s.env["TARGET_REGISTRY"]+"/exam@"+digestIn(reference(first, "exam"))+
		" is revoked (by whom was not checked): it has a hole: take another image", said["one"])
	assert.Equal(t, "skip: unchanged", said["two"])
	assert.Equal(t, fleet.Blocked, s.planned()["one"].Action)
}

func digestIn(ref string) string { return ref[strings.Index(ref, "sha256:"):] }
