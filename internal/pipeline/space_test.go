package pipeline

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/settings"
)

func TestTheEstimateFollowsTheBaseAndNeverExceedsTheDisk(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	out := t.TempDir()
	bytes := func(c settings.Config) (all []int64) {
		for _, n := range needs(c, workDir(out), gib/2) {
			all = append(all, n.Bytes)
		}
		return all
	}
	c := settings.Config{OutputDir: out, MemoryMiB: 1024, CPUs: 4, DiskSize: 10 * gib, Sparsify: "trim", Compression: "zstd"}
	assert.Equal(t, []int64{2 * gib, gib, gib, gib}, bytes(c))
	assert.Equal(t, Resources{CPUs: 2, MemoryMiB: 1536, Disk: 15 * gib / 2, Keep: 3 * gib / 2}, Estimate(c))
	other := c
	other.Sparsify, other.Compression = "virt-sparsify", "none"
	assert.Equal(t, []int64{2 * gib, 2 * gib, 2 * gib, 2 * gib}, bytes(other))
	other.DiskSize = gib
	assert.EqualValues(t, gib+gib/100, bytes(other)[0])

	require.NoError(t, os.MkdirAll(workDir(out), 0o755))
	for file, size := range map[string]int64{provisioning.file: gib, sparsifying.file: 3 * gib} {
		f, err := os.Create(filepath.Join(workDir(out), file))
		require.NoError(t, err)
		require.NoError(t, f.Truncate(size))
		require.NoError(t, f.Close())
	}
	assert.Equal(t, []int64{gib, 0, gib, gib}, bytes(c), "what is there takes no room any more")
}
