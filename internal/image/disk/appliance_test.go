package disk_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// fakeVirtSparsify puts a script in the place of virt-sparsify, whose real
// run boots a virtual machine (see the nightly tests).
func fakeVirtSparsify(t *testing.T, script string) (bin string) {
	bin = onlyPrograms(t, "qemu-img", "qemu-io", "prlimit", "sh", "sleep", "setsid")
	require.NoError(t, os.WriteFile(filepath.Join(bin, "virt-sparsify"), []byte("#!/bin/sh\n"+script), 0o700))
	return bin
}

func virtSparsify(method disk.Method) disk.SparsifyOptions {
	return disk.SparsifyOptions{Method: method, Compression: disk.Zstd, LibguestfsEnv: []string{"LIBGUESTFS_BACKEND=direct"}}
}

func TestVirtSparsifyWorksOnAPlainCopyWhichIsThenCompressedOnce(t *testing.T) {
	in, dir, said := qcow2Disk(t, "-c"), t.TempDir(), filepath.Join(t.TempDir(), "said")
	fakeVirtSparsify(t, `echo "$1 $2 $3 $LIBGUESTFS_BACKEND" >`+said+`
qemu-io -f qcow2 -d unmap -c "discard 3M 1M" "$4" # the noise of the test's disk
echo "[  12.3] Trimming /dev/sda1"`)
	for _, method := range []disk.Method{disk.Auto, disk.VirtSparsify} {
		r, err := disk.Sparsify(t.Context(), in, filepath.Join(dir, "out"), virtSparsify(method), progress.Discard)
		require.NoError(t, err)
		assert.Equal(t, disk.VirtSparsify, r.Method)
		assert.Equal(t, disk.Zstd, r.After.Compression)
		assert.Less(t, r.After.FileSize, int64(mib), "what was discarded is gone")
		assert.Equal(t, []string{"out"}, names(t, dir))
	}
	b, err := os.ReadFile(said)
	require.NoError(t, err)
	assert.Equal(t, "--in-place --format qcow2 direct\n", string(b))
}

func TestAVirtSparsifyThatFailsIsNamedAndLeavesNothing(t *testing.T) {
	in, dir := qcow2Disk(t), t.TempDir()
	fakeVirtSparsify(t, "echo 'supermin: no kernel found' >&2; exit 1")
	_, err := disk.Sparsify(t.Context(), in, filepath.Join(dir, "out"), virtSparsify(disk.VirtSparsify), progress.Discard)
	require.ErrorContains(t, err, "supermin: no kernel found")
	assert.Contains(t, err.Error(), "SPARSIFY=none")
	assert.Empty(t, names(t, dir))
}

func TestAFullDiskForVirtSparsifysCopyIsNamed(t *testing.T) {
	in, dir := qcow2Disk(t), testkit.MountTmpfs(t, "1m")
	fakeVirtSparsify(t, "exit 0")
	_, err := disk.Sparsify(t.Context(), in, filepath.Join(dir, "out"), virtSparsify(disk.VirtSparsify), progress.Discard)
	require.ErrorContains(t, err, "no space left in "+dir)
	assert.Empty(t, names(t, dir))
}

// virt-sparsify looks at SIGTERM only when its virtual machine has booted, and
// starts that in a process group of its own.
func TestACancelledVirtSparsifyIsEndedThroughItsVirtualMachine(t *testing.T) {
	in, dir := qcow2Disk(t), t.TempDir()
	mark := filepath.Join(t.TempDir(), "mark")
	bin := fakeVirtSparsify(t, "trap '' TERM\nsetsid qemu-fake "+mark+"\nexit 1")
	machine := "#!/bin/sh\ntrap '' TERM; echo $1; while :; do sleep 0.1; done"
	require.NoError(t, os.WriteFile(filepath.Join(bin, "qemu-fake"), []byte(machine), 0o700))
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	seen := &activities{on: func(what string) {
		if what == "virt-sparsify: "+mark {
			cancel(stop)
		}
	}}
	_, err := disk.Sparsify(ctx, in, filepath.Join(dir, "out"), virtSparsify(disk.VirtSparsify), seen)
	require.ErrorIs(t, err, stop)
	assert.Empty(t, running(t, mark))
	assert.Empty(t, names(t, dir))
}

// activities calls on with every activity.
type activities struct {
	recorder
	on func(string)
}

func (a *activities) Activity(what string) { a.on(what) }
