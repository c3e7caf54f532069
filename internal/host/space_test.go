package host_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

func TestNeedsAddUp(t *testing.T) {
	t.Parallel()
	small := testkit.MountTmpfs(t, "8m")
	check := func(a, b int64) error {
		return host.CheckSpace(small, "OUTPUT_DIR", host.Need{Bytes: a, What: "the work"}, host.Need{Bytes: b, What: "the layout"})
	}
	require.NoError(t, check(4*mib, 3*mib))
	err := check(5*mib, 4*mib)
	require.EqualError(t, err, small+" has 8 MiB free, but about 9 MiB are needed (the work 5 MiB, the layout 4 MiB): "+
		"free some there, or set OUTPUT_DIR to a directory on a larger disk")
}

func TestTooLittleSpaceIsToldWithNumbersAndTheSetting(t *testing.T) {
	t.Parallel()
	dir := testkit.MountTmpfs(t, "1g")
	require.NoError(t, host.CheckSpace(dir, "OUTPUT_DIR", host.Need{Bytes: gib, What: "the disk"}))
	err := host.CheckSpace(filepath.Join(dir, "not", "there", "yet"), "OUTPUT_DIR", host.Need{Bytes: 3 * gib / 2, What: "the disk"})
	require.EqualError(t, err, dir+" has 1.0 GiB free, but about 1.5 GiB are needed (the disk 1.5 GiB): "+
		"free some there, or set OUTPUT_DIR to a directory on a larger disk")
}
