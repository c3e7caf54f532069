//go:build nightly

package disk_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// ext4Disk makes a raw disk with a filesystem that holds the file "kept" and
// the blocks of a deleted one of 20 MiB.
func ext4Disk(t *testing.T) string {
	t.Helper()
	files := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(files, "kept"), []byte("kept\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(files, "deleted"), noise(20*mib), 0o644))
	path := rawDisk(t, 64*mib)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{0, 0xf8, 1, 0}, 446+12) // the partition: 63 MiB, the filesystem
	require.NoError(t, err)
	require.NoError(t, f.Close())
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-d", files, "-E", "offset=1048576", path, "64512k")
	tool(t, "debugfs", "-w", "-R", "rm deleted", path+"?offset=1048576")
	return path
}

func tool(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

// libguestfs without KVM works on every host.
var forceTCG = []string{"LIBGUESTFS_BACKEND=direct", "LIBGUESTFS_BACKEND_SETTINGS=force_tcg"}

func TestVirtSparsifyFreesWhatADeletedFileHeld(t *testing.T) {
	in, out := ext4Disk(t), filepath.Join(t.TempDir(), "out")
	kept, err := disk.Sparsify(t.Context(), in, out, disk.SparsifyOptions{Method: disk.None, Compression: disk.Zstd}, progress.Discard)
	require.NoError(t, err)
	assert.Greater(t, kept.After.FileSize, int64(20*mib))
	r, err := disk.Sparsify(t.Context(), in, out, disk.SparsifyOptions{Method: disk.Auto, Compression: disk.Zstd, LibguestfsEnv: forceTCG}, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, disk.VirtSparsify, r.Method)
	assert.Less(t, r.After.FileSize, int64(4*mib))
	assert.Equal(t, []string{"out"}, names(t, filepath.Dir(out)))
	raw := filepath.Join(t.TempDir(), "raw")
	qemuImg(t, "convert", "-f", "qcow2", "-O", "raw", out, raw)
	assert.Contains(t, tool(t, "debugfs", "-R", "cat kept", raw+"?offset=1048576"), "kept\n")
}

func TestACancelledApplianceLeavesNeitherFilesNorProcesses(t *testing.T) {
	for _, after := range []time.Duration{500 * time.Millisecond, 5 * time.Second} { // it is made ready; it boots
		in, dir := ext4Disk(t), t.TempDir()
		before, err := filepath.Glob("/tmp/libguestfs*")
		require.NoError(t, err)
		stop := errors.New("stopped by the test")
		ctx, cancel := context.WithCancelCause(t.Context())
		seen := &activities{on: func(what string) {
			if what == "starting virt-sparsify" {
				time.AfterFunc(after, func() { cancel(stop) })
			}
		}}
		_, err = disk.Sparsify(ctx, in, filepath.Join(dir, "out"), disk.SparsifyOptions{Method: disk.VirtSparsify, Compression: disk.Zstd, LibguestfsEnv: forceTCG}, seen)
		require.ErrorIs(t, err, stop)
		assert.Empty(t, names(t, dir))
		assert.Empty(t, running(t, dir))
		left, err := filepath.Glob("/tmp/libguestfs*")
		require.NoError(t, err)
		assert.Equal(t, before, left)
	}
}
