//go:build nightly

package base_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

func TestBothSuitesAreMadeAndThenComeFromTheCache(t *testing.T) {
	for _, suite := range []string{"bookworm", "trixie"} {
		t.Run(suite, func(t *testing.T) {
			o := base.Options{Suite: suite, CacheDir: t.TempDir(), Mirror: os.Getenv("APT_MIRROR")}
			made, err := base.Make(t.Context(), o, progress.Discard)
			require.NoError(t, err)
			assert.False(t, made.Cached)
			again, err := base.Make(t.Context(), o, progress.Discard)
			require.NoError(t, err)
			assert.True(t, again.Cached)
			assert.Equal(t, made.Digest, again.Digest)
			left, err := os.ReadDir(o.CacheDir)
			require.NoError(t, err)
			assert.Len(t, left, 3, "the image, its record and its kernel")
		})
	}
}

// mounts looks for mmdebstrap's while it works.
type mounts struct {
	progress.Reporter
	t *testing.T
}

func (m mounts) Activity(string) {
	all, err := os.ReadFile("/proc/self/mounts")
	assert.NoError(m.t, err)
	assert.NotContains(m.t, string(all), "mmdebstrap", "they would stay where it is killed")
}

func TestAKilledBaseWouldLeaveNoMountsOnThisHost(t *testing.T) {
	o := base.Options{Suite: "bookworm", CacheDir: t.TempDir(), Mirror: os.Getenv("APT_MIRROR")}
	_, err := base.Make(t.Context(), o, mounts{progress.Discard, t})
	require.NoError(t, err)
}
