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
	disk, clean, dirty, said := minixDisk(t), archive(t, cleanTree()), archive(t, planted()), filepath.Join(t.TempDir(), "said")
	fakeGuestfish(t, `echo "$1 $2 $5 $6 $7 $8 $LIBGUESTFS_BACKEND" >`+said+"\ncat "+clean)
	o := options(t, disk)
	o.LibguestfsEnv = []string{"LIBGUESTFS_BACKEND=direct"}
	r, err := hygiene.Scan(t.Context(), o, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, hygiene.Libguestfs, r.Method)
	assert.Equal(t, []hygiene.FileSystem{{Type: "minix", Mount: "the disk", Partition: 0}}, r.FileSystems)
	b, err := os.ReadFile(said)
	require.NoError(t, err)
	assert.Equal(t, "--ro --format=raw --inspector tar-out / - direct\n", string(b))

	fakeGuestfish(t, "cat "+dirty)
	r, err = scan(t, disk)
	assertDefects(t, r, err)
}

func TestAnUncleanJournalAndUnknownFeaturesAreLeftToLibguestfs(t *testing.T) {
	dirty := archive(t, with(map[string]file{"/var/log/wtmp": {"boot", 0}}))
	for _, feature := range []string{"needs_recovery", "FEATURE_I24"} {
		disk := rawDisk(t, cleanTree())
		debugfs(t, disk, "feature "+feature)
		t.Run(feature, func(t *testing.T) {
			fakeGuestfish(t, "cat "+dirty)
			r, err := scan(t, disk)
			require.Error(t, err)
			assert.Equal(t, hygiene.Libguestfs, r.Method)
			assert.Equal(t, []string{"logs /var/log/wtmp"}, found(r))
		})
	}
}

func TestADiskThatIsReadInTwoWaysWarnsOnce(t *testing.T) {
	disk := rawDisk(t, cleanTree())
	debugfs(t, disk, "feature needs_recovery")
	fakeGuestfish(t, "cat "+archive(t, cleanTree()))
	o := options(t, disk)
	o.Secrets = []hygiene.Secret{{Name: "SHORT", Value: "bin"}}
	var said recorder
	r, err := hygiene.Scan(t.Context(), o, &said)
	require.NoError(t, err)
	assert.Equal(t, hygiene.Libguestfs, r.Method)
	assert.Equal(t, []string{"the disk is not searched for SHORT, which has fewer than 6 characters"}, said.warnings)
}

func TestFilesThatLibguestfsDidNotMountDoNotPass(t *testing.T) {
	disk := twoPartitions(t, cleanTree(), map[string]file{"/packer": {"", fs.ModeDir | 0o700}})
	debugfs(t, disk, "feature needs_recovery")
	fakeGuestfish(t, "cat "+archive(t, cleanTree()))
	r, err := scan(t, disk)
	require.Error(t, err)
	assert.Equal(t, []string{"unmounted partition 2"}, found(r))
	assert.Equal(t, hygiene.Libguestfs, r.Method)
}

func TestWhatLibguestfsSaysIsTold(t *testing.T) {
	disk, tree := minixDisk(t), archive(t, cleanTree())
	for script, want := range map[string]string{
		"echo 'guestfish: no operating system was found on this disk' >&2; exit 1": "no operating system was found",
		"head -c 3000 " + tree + "; echo 'tar-out: broken' >&2; exit 1":            "tar-out: broken",
		"echo hello": "libguestfs cannot read the disk",
	} {
		fakeGuestfish(t, script)
		_, err := scan(t, disk)
		require.ErrorContains(t, err, want, script)
	}
}

func TestALyingArchiveEndsTheScan(t *testing.T) {
	disk, dir := minixDisk(t), t.TempDir()
	big := filepath.Join(dir, "big")
	require.NoError(t, os.WriteFile(big, nil, 0o600))
	require.NoError(t, os.Truncate(big, 1<<40))
	head := filepath.Join(dir, "head")
	pipe(t, "", "sh", "-c", "tar -C "+dir+" -cf - big 2>/dev/null | head -c 4096 >"+head)
	fakeGuestfish(t, "cat "+head)
	_, err := scan(t, disk)
	require.ErrorContains(t, err, "its files are longer than it can hold")
}

func TestAnEndedLibguestfsLeavesNothing(t *testing.T) {
	disk := minixDisk(t)
	fakeGuestfish(t, "setsid sleep 1; exit 1")
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := hygiene.Scan(ctx, options(t, disk), &recorder{activity: func(what string) {
		if what == "reading the files with libguestfs" {
			cancel(stop)
		}
	}})
	require.ErrorIs(t, err, stop)
}
