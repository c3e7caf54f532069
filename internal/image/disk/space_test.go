package disk_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

const gib = 1 << 30

func TestNeedsAddUp(t *testing.T) {
	t.Parallel()
	small := testkit.MountTmpfs(t, "8m")
	check := func(a, b int64) error {
		return disk.CheckSpace(small, "OUTPUT_DIR", disk.Need{Bytes: a, What: "the work"}, disk.Need{Bytes: b, What: "the layout"})
	}
	require.NoError(t, check(4*mib, 3*mib))
	err := check(5*mib, 4*mib)
	require.EqualError(t, err, small+" has 8 MiB free, but about 9 MiB are needed (the work 5 MiB, the layout 4 MiB): "+
		"free some there, or set OUTPUT_DIR to a directory on a larger disk")
}

func TestTooLittleSpaceIsToldWithNumbersAndTheSetting(t *testing.T) {
	t.Parallel()
	dir := testkit.MountTmpfs(t, "1g")
	require.NoError(t, disk.CheckSpace(dir, "OUTPUT_DIR", disk.Need{Bytes: gib, What: "the disk"}))
	err := disk.CheckSpace(filepath.Join(dir, "not", "there", "yet"), "OUTPUT_DIR", disk.Need{Bytes: 3 * gib / 2, What: "the disk"})
	require.EqualError(t, err, dir+" has 1.0 GiB free, but about 1.5 GiB are needed (the disk 1.5 GiB): "+
		"free some there, or set OUTPUT_DIR to a directory on a larger disk")
}

func TestTheEstimateFollowsTheBaseAndNeverExceedsTheDisk(t *testing.T) {
	t.Parallel()
	plan := disk.BuildPlan{
		Base: disk.Info{DataSize: gib / 2}, DiskSize: 10 * gib, Method: disk.Trim, Compression: disk.Zstd,
	}
	assert.Equal(t, []int64{2 * gib, gib, gib, gib}, bytes(disk.BuildNeeds(plan)))
	resumed := plan
	resumed.Left = disk.Left{Provisioned: gib, Sparsified: 3 * gib}
	assert.Equal(t, []int64{gib, 0, gib, gib}, bytes(disk.BuildNeeds(resumed)), "what is there takes no room any more")
	plan.Method, plan.Compression = disk.VirtSparsify, disk.NoCompression
	assert.Equal(t, []int64{2 * gib, 2 * gib, 2 * gib, 2 * gib}, bytes(disk.BuildNeeds(plan)))
	plan.DiskSize = gib
	assert.EqualValues(t, gib+gib/100, disk.BuildNeeds(plan)[0].Bytes)
}

func bytes(needs []disk.Need) []int64 {
	var all []int64
	for _, n := range needs {
		all = append(all, n.Bytes)
	}
	return all
}
