package hygiene_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// minixDisk is a disk with a file system that debugfs cannot read.
func minixDisk(t testing.TB) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, os.WriteFile(disk, make([]byte, 8*mib), 0o600))
	tool(t, "mkfs.minix", "-3", disk)
	return disk
}

// archive is the tree as libguestfs sends it.
func archive(t testing.TB, tree map[string]file) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tree.tar")
	tool(t, "tar", "--numeric-owner", "-C", folder(t, tree), "-cf", path, ".")
	return path
}

func TestOtherFileSystemsAreReadThroughLibguestfs(t *testing.T) {
	t.Parallel()
	disk, clean, dirty, said := minixDisk(t), archive(t, cleanTree()), archive(t, planted()), filepath.Join(t.TempDir(), "said")
	o := guestfished(t, disk, `echo "$1 $2 $5 $6 $7 $8 $LIBGUESTFS_BACKEND" >`+said+"\ncat "+clean)
	o.LibguestfsEnv = append(o.LibguestfsEnv, "LIBGUESTFS_BACKEND=direct")
	r, err := hygiene.Scan(t.Context(), o, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, hygiene.Libguestfs, r.Method)
	assert.Equal(t, []hygiene.FileSystem{{Type: "minix", Mount: "the disk", Partition: 0}}, r.FileSystems)
	b, err := os.ReadFile(said)
	require.NoError(t, err)
	assert.Equal(t, "--ro --format=raw --inspector tar-out / - direct\n", string(b))

	r, err = hygiene.Scan(t.Context(), guestfished(t, disk, "cat "+dirty), progress.Discard)
	assertDefects(t, r, err)
}

func TestAnUncleanJournalAndUnknownFeaturesAreLeftToLibguestfs(t *testing.T) {
	t.Parallel()
	dirty := archive(t, with(map[string]file{"/var/log/wtmp": {"boot", 0}}))
	for _, feature := range []string{"needs_recovery", "FEATURE_I24"} {
		disk := rawDisk(t, cleanTree())
		debugfs(t, disk, "feature "+feature)
		t.Run(feature, func(t *testing.T) {
			t.Parallel()
			r, err := hygiene.Scan(t.Context(), guestfished(t, disk, "cat "+dirty), progress.Discard)
			require.Error(t, err)
			assert.Equal(t, hygiene.Libguestfs, r.Method)
			assert.Equal(t, []string{"logs /var/log/wtmp"}, found(r))
		})
	}
}

func TestADiskThatIsReadInTwoWaysWarnsOnce(t *testing.T) {
	t.Parallel()
	disk := rawDisk(t, cleanTree())
	debugfs(t, disk, "feature needs_recovery")
	o := guestfished(t, disk, "cat "+archive(t, cleanTree()))
	o.Secrets = []hygiene.Secret{{Name: "SHORT", Value: "bin"}}
	var said recorder
	r, err := hygiene.Scan(t.Context(), o, &said)
	require.NoError(t, err)
	assert.Equal(t, hygiene.Libguestfs, r.Method)
	assert.Equal(t, []string{"the disk is not searched for SHORT, which has fewer than 6 characters"}, said.warnings)
}

func TestFilesThatLibguestfsDidNotMountDoNotPass(t *testing.T) {
	t.Parallel()
	disk := twoPartitions(t, cleanTree(), map[string]file{"/packer": {"", fs.ModeDir | 0o700}})
	debugfs(t, disk, "feature needs_recovery")
	r, err := hygiene.Scan(t.Context(), guestfished(t, disk, "cat "+archive(t, cleanTree())), progress.Discard)
	require.Error(t, err)
	assert.Equal(t, []string{"unmounted partition 2"}, found(r))
	assert.Equal(t, hygiene.Libguestfs, r.Method)
}

func TestWhatLibguestfsSaysIsTold(t *testing.T) {
	t.Parallel()
	disk, tree := minixDisk(t), archive(t, cleanTree())
	for script, want := range map[string]string{
		"echo 'guestfish: no operating system was found on this disk' >&2; exit 1": "no operating system was found",
		"head -c 3000 " + tree + "; echo 'tar-out: broken' >&2; exit 1":            "tar-out: broken",
		"echo hello": "libguestfs cannot read the disk",
	} {
		_, err := hygiene.Scan(t.Context(), guestfished(t, disk, script), progress.Discard)
		require.ErrorContains(t, err, want, script)
	}
}

func TestALyingArchiveEndsTheScan(t *testing.T) {
	t.Parallel()
	disk, dir := minixDisk(t), t.TempDir()
	big := filepath.Join(dir, "big")
	require.NoError(t, os.WriteFile(big, nil, 0o600))
	require.NoError(t, os.Truncate(big, 1<<40))
	head := filepath.Join(dir, "head")
	pipe(t, "", "sh", "-c", "tar -C "+dir+" -cf - big 2>/dev/null | head -c 4096 >"+head)
	_, err := hygiene.Scan(t.Context(), guestfished(t, disk, "cat "+head), progress.Discard)
	require.ErrorContains(t, err, "its files are longer than it can hold")
}

func TestAnEndedLibguestfsLeavesNothing(t *testing.T) {
	t.Parallel()
	disk := minixDisk(t)
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := hygiene.Scan(ctx, guestfished(t, disk, "setsid sleep 1; exit 1"), &recorder{activity: func(what string) {
		if what == "reading the files with libguestfs" {
			cancel(stop)
		}
	}})
	require.ErrorIs(t, err, stop)
}
