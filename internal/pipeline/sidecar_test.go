package pipeline_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// described makes a disk with a sidecar.
func described(t *testing.T) (string, pipeline.Sidecar) {
	disk := filepath.Join(t.TempDir(), "disk.qcow2")
	require.NoError(t, os.WriteFile(disk, []byte("disk"), 0o600))
	digest, err := host.DigestFile(t.Context(), disk, progress.Discard)
	require.NoError(t, err)
	s := pipeline.Sidecar{
		Digest: digest, Trimmed: true, BaseName: "https://host/base.qcow2", BaseDigest: digest, Source: "https://host/repo",
		Revision: "abc", Created: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC), Architecture: "amd64", Title: "lab", Version: "1", Verified: digest,
	}
	require.NoError(t, pipeline.WriteSidecar(disk, s))
	return disk, s
}

func TestASidecarIsReadBackForTheSameDisk(t *testing.T) {
	disk, want := described(t)
	got, err := pipeline.ReadSidecar(t.Context(), disk, progress.Discard.Warn)
	require.NoError(t, err)
	assert.Equal(t, want, got)
	assert.True(t, got.IsVerified())
}

func TestASidecarOfAnotherDiskIsIgnoredWithAWarning(t *testing.T) {
	disk, _ := described(t)
	require.NoError(t, os.WriteFile(disk, []byte("desk"), 0o600))
	w := listen()
	got, err := pipeline.ReadSidecar(t.Context(), disk, w.Warn)
	require.NoError(t, err)
	digest, err := host.DigestFile(t.Context(), disk, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, pipeline.Sidecar{Digest: digest}, got)
	assert.False(t, got.IsVerified())
	require.Len(t, w.said, 1)
	assert.Contains(t, w.said[0], "is ignored: it belongs to the disk")
}

func TestADiskWithoutASidecarIsKnownByItsDigestOnly(t *testing.T) {
	disk, s := described(t)
	require.NoError(t, os.Remove(disk+".json"))
	w := listen()
	got, err := pipeline.ReadSidecar(t.Context(), disk, w.Warn)
	require.NoError(t, err)
	assert.Equal(t, pipeline.Sidecar{Digest: s.Digest}, got)
	assert.Empty(t, w.said)
}

func TestAnUnreadableSidecarIsIgnoredWithAWarning(t *testing.T) {
	disk, s := described(t)
	elsewhere, _ := described(t)
	for name, spoil := range map[string]func() error{
		"no JSON":   func() error { return os.WriteFile(disk+".json", []byte("{"), 0o600) },
		"no digest": func() error { return os.WriteFile(disk+".json", []byte("{}"), 0o600) },
		"a link": func() error {
			require.NoError(t, os.Remove(disk+".json"))
			return os.Symlink(elsewhere+".json", disk+".json")
		},
	} {
		require.NoError(t, spoil(), name)
		w := listen()
		got, err := pipeline.ReadSidecar(t.Context(), disk, w.Warn)
		require.NoError(t, err)
		assert.Equal(t, pipeline.Sidecar{Digest: s.Digest}, got, name)
		assert.Len(t, w.said, 1, name)
	}
}

func TestASidecarIsVerifiedOnlyForItsOwnDigest(t *testing.T) {
	_, s := described(t)
	s.Verified = "sha256:other"
	assert.False(t, s.IsVerified())
	assert.False(t, pipeline.Sidecar{}.IsVerified())
	require.Error(t, pipeline.WriteSidecar(filepath.Join(t.TempDir(), "disk"), pipeline.Sidecar{}))
}
