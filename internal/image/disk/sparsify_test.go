package disk_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// onlyPrograms makes a PATH that has nothing but the named programs.
func onlyPrograms(t *testing.T, programs ...string) string {
	t.Helper()
	bin := t.TempDir()
	for _, p := range programs {
		real, err := exec.LookPath(p)
		require.NoError(t, err)
		require.NoError(t, os.Symlink(real, filepath.Join(bin, p)))
	}
	t.Setenv("PATH", bin)
	return bin
}

func trimmed(c disk.Compression) disk.SparsifyOptions {
	return disk.SparsifyOptions{Method: disk.Auto, Trimmed: true, Compression: c}
}

func TestTheSparsifiedDiskHoldsTheSameDataWithTheCompressionAskedFor(t *testing.T) {
	t.Parallel()
	in := qcow2Disk(t)
	size := map[disk.Compression]int64{}
	for _, c := range []disk.Compression{disk.Zstd, disk.Zlib, disk.NoCompression} {
		out := filepath.Join(t.TempDir(), "out.qcow2")
		r, err := disk.Sparsify(t.Context(), in, out, trimmed(c), progress.Discard)
		require.NoError(t, err)
		assert.Equal(t, disk.Trim, r.Method)
		assert.Equal(t, c, r.After.Compression)
		assert.Equal(t, disk.FormatQCOW2, r.After.Format)
		assert.Equal(t, r.Before.VirtualSize, r.After.VirtualSize)
		qemuImg(t, "compare", "-f", "qcow2", "-F", "qcow2", in, out)
		qemuImg(t, "check", "-f", "qcow2", out)
		assert.Contains(t, qemuImg(t, "info", "-f", "qcow2", out), "compat: 1.1")
		assert.Equal(t, []string{"out.qcow2"}, names(t, filepath.Dir(out)))
		size[c] = r.After.FileSize
	}
	assert.Less(t, size[disk.Zstd], size[disk.NoCompression])
	assert.Less(t, size[disk.Zlib], size[disk.NoCompression])
}

func TestTheSameDataGivesTheSameBytesWhateverHeldIt(t *testing.T) {
	t.Parallel()
	sparse := rawDisk(t, 64*mib)
	full := filepath.Join(t.TempDir(), "full.raw")
	qemuImg(t, "convert", "-f", "raw", "-O", "raw", "-S", "0", sparse, full)
	inputs := []string{sparse, sparse, full, qcow2Disk(t), qcow2Disk(t, "-c"), qcow2Disk(t, "-o", "cluster_size=2M")}
	for _, c := range []disk.Compression{disk.Zstd, disk.Zlib, disk.NoCompression} {
		t.Run(string(c), func(t *testing.T) {
			t.Parallel()
			var first []byte
			for _, in := range inputs {
				out := filepath.Join(t.TempDir(), "out.qcow2")
				_, err := disk.Sparsify(t.Context(), in, out, trimmed(c), progress.Discard)
				require.NoError(t, err)
				b, err := os.ReadFile(out)
				require.NoError(t, err)
				if first == nil {
					first = b
				}
				assert.True(t, slices.Equal(first, b), "%s from %s", c, in)
			}
		})
	}
}

func TestTheMethodFollowsWhatTheGuestDidAndWhatIsInstalled(t *testing.T) {
	in := qcow2Disk(t)
	for name, c := range map[string]struct {
		method  disk.Method
		trimmed bool
		want    disk.Method
		warning string
	}{
		"trimmed":                        {disk.Auto, true, disk.Trim, ""},
		"not trimmed, no virt-sparsify":  {disk.Auto, false, disk.None, "apt-get install guestfs-tools"},
		"trim on request without a trim": {disk.Trim, false, disk.Trim, "SPARSIFY=auto or virt-sparsify would free it"},
		"none":                           {disk.None, false, disk.None, ""},
	} {
		t.Run(name, func(t *testing.T) {
			onlyPrograms(t, "qemu-img", "prlimit")
			seen := &recorder{}
			r, err := disk.Sparsify(t.Context(), in, filepath.Join(t.TempDir(), "out"), disk.SparsifyOptions{Method: c.method, Trimmed: c.trimmed, Compression: disk.Zstd}, seen)
			require.NoError(t, err)
			assert.Equal(t, c.want, r.Method)
			if c.warning == "" {
				assert.Empty(t, seen.warnings)
			} else {
				require.Len(t, seen.warnings, 1)
				assert.Contains(t, seen.warnings[0], c.warning)
			}
		})
	}
}

func TestVirtSparsifyThatIsNotInstalledIsNamedWithItsPackage(t *testing.T) {
	in := qcow2Disk(t)
	onlyPrograms(t, "qemu-img", "prlimit")
	dir := t.TempDir()
	_, err := disk.Sparsify(t.Context(), in, filepath.Join(dir, "out"), disk.SparsifyOptions{Method: disk.VirtSparsify, Compression: disk.Zstd}, progress.Discard)
	require.ErrorContains(t, err, "apt-get install guestfs-tools")
	assert.Empty(t, names(t, dir))
}

func TestProgressRisesToTheWhole(t *testing.T) {
	t.Parallel()
	seen := &recorder{}
	r, err := disk.Sparsify(t.Context(), qcow2Disk(t), filepath.Join(t.TempDir(), "out"), trimmed(disk.Zstd), seen)
	require.NoError(t, err)
	require.NotEmpty(t, seen.done)
	assert.True(t, slices.IsSorted(seen.done))
	assert.Equal(t, r.Before.DataSize, seen.done[len(seen.done)-1])
	assert.Equal(t, r.Before.DataSize, seen.total[0])
}

func TestTheInputIsNeverTheOutput(t *testing.T) {
	t.Parallel()
	in := qcow2Disk(t)
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Link(in, link))
	for _, out := range []string{in, link} {
		_, err := disk.Sparsify(t.Context(), in, out, trimmed(disk.Zstd), progress.Discard)
		require.ErrorContains(t, err, "the output is the input itself")
	}
}

func TestADiskInUseIsNotConverted(t *testing.T) {
	t.Parallel()
	in := qcow2Disk(t)
	user := exec.Command("qemu-io", "-f", "qcow2", in)
	stdin, err := user.StdinPipe()
	require.NoError(t, err)
	stdout, err := user.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, user.Start())
	t.Cleanup(func() { stdin.Close(); _ = user.Wait() })
	_, err = io.WriteString(stdin, "length\n")
	require.NoError(t, err)
	_, err = stdout.Read(make([]byte, 1)) // it has opened the disk
	require.NoError(t, err)
	_, err = disk.Sparsify(t.Context(), in, filepath.Join(t.TempDir(), "out"), trimmed(disk.Zstd), progress.Discard)
	require.ErrorContains(t, err, "in use")
}

func TestAFullDiskIsNamedAndLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := testkit.MountTmpfs(t, "1m")
	for _, c := range []disk.Compression{disk.Zstd, disk.NoCompression} {
		_, err := disk.Sparsify(t.Context(), qcow2Disk(t), filepath.Join(dir, "out"), trimmed(c), progress.Discard)
		require.ErrorContains(t, err, "no space left in "+dir)
		f, ok := failure.In(err)
		require.True(t, ok)
		assert.Contains(t, f.Try, "OUTPUT_DIR")
		assert.Empty(t, names(t, dir))
	}
}

func TestACancelledSparsifyLeavesNeitherFilesNorProcesses(t *testing.T) {
	t.Parallel()
	in := filepath.Join(t.TempDir(), "in.raw")
	content := noise(64 * mib)
	content[510], content[511] = 0x55, 0xaa
	copy(content[446:510], make([]byte, 64))
	require.NoError(t, os.WriteFile(in, content, 0o600))
	dir := t.TempDir()
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	seen := &recorder{onBytes: func() { cancel(stop) }}
	_, err := disk.Sparsify(ctx, in, filepath.Join(dir, "out"), trimmed(disk.Zlib), seen)
	require.ErrorIs(t, err, stop)
	assert.Empty(t, names(t, dir))
	assert.Empty(t, running(t, in))
}

func TestWhatAKilledRunLeftIsTakenOver(t *testing.T) {
	t.Parallel()
	out := filepath.Join(t.TempDir(), "out")
	require.NoError(t, os.WriteFile(out+".part", noise(5*mib), 0o600))
	_, err := disk.Sparsify(t.Context(), qcow2Disk(t), out, trimmed(disk.Zstd), progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, []string{"out"}, names(t, filepath.Dir(out)))
	qemuImg(t, "check", "-f", "qcow2", out)
}

func TestWhatAStrangerLeftIsNotTakenOver(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("giving a file to somebody else needs root")
	}
	out := filepath.Join(t.TempDir(), "out.qcow2")
	theirs, err := os.OpenFile(out+".part", os.O_CREATE|os.O_RDWR, 0o666)
	require.NoError(t, err)
	defer theirs.Close()
	require.NoError(t, theirs.Chown(65534, 65534))
	require.NoError(t, theirs.Chmod(0o666))
	_, err = disk.Sparsify(t.Context(), qcow2Disk(t), out, trimmed(disk.Zstd), progress.Discard)
	require.NoError(t, err)
	info, err := os.Stat(out)
	require.NoError(t, err)
	assert.Equal(t, uint32(0), info.Sys().(*syscall.Stat_t).Uid)
	assert.Zero(t, info.Mode().Perm()&0o022)
	still, err := theirs.Stat()
	require.NoError(t, err)
	assert.Zero(t, still.Size(), "nothing was written to the stranger's file")
}

func TestTwoRunsDoNotWriteOneOutput(t *testing.T) {
	t.Parallel()
	out := filepath.Join(t.TempDir(), "out")
	other, err := os.Create(out + ".part")
	require.NoError(t, err)
	defer other.Close()
	require.NoError(t, syscall.Flock(int(other.Fd()), syscall.LOCK_EX))
	_, err = disk.Sparsify(t.Context(), qcow2Disk(t), out, trimmed(disk.Zstd), progress.Discard)
	require.ErrorContains(t, err, "another process is writing "+out)
	assert.Equal(t, []string{"out.part"}, names(t, filepath.Dir(out)), "the other's file stays")
}

func TestAPlantedLinkIsNotWrittenThrough(t *testing.T) {
	t.Parallel()
	victim := file(t, "precious")
	out := filepath.Join(t.TempDir(), "out")
	require.NoError(t, os.Symlink(victim, out+".part"))
	_, err := disk.Sparsify(t.Context(), qcow2Disk(t), out, trimmed(disk.Zstd), progress.Discard)
	require.ErrorIs(t, err, syscall.ELOOP)
	b, err := os.ReadFile(victim)
	require.NoError(t, err)
	assert.Equal(t, "precious", string(b))
}

func TestAnEarlierOutputStaysWhenTheNewOneFails(t *testing.T) {
	t.Parallel()
	out := filepath.Join(t.TempDir(), "out")
	require.NoError(t, os.WriteFile(out, []byte("earlier"), 0o600))
	_, err := disk.Sparsify(t.Context(), file(t, "no disk"), out, trimmed(disk.Zstd), progress.Discard)
	require.Error(t, err)
	b, err := os.ReadFile(out)
	require.NoError(t, err)
	assert.Equal(t, "earlier", string(b))
}

func TestAnOverlayIsFlattenedOverTheBaseThatWasNamedAndNoOther(t *testing.T) {
	t.Parallel()
	base := qcow2Disk(t, "-c")
	overlay := filepath.Join(t.TempDir(), "overlay.qcow2")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, overlay, "128M")
	qemuImg(t, "bench", "-q", "-w", "-c", "1", "-s", "65536", "-o", "65011712", "--pattern=90", "-f", "qcow2", overlay)
	o := disk.SparsifyOptions{Method: disk.Trim, Compression: disk.Zstd, Trimmed: true, Base: base}
	out := filepath.Join(t.TempDir(), "out.qcow2")
	done, err := disk.Sparsify(t.Context(), overlay, out, o, progress.Discard)
	require.NoError(t, err)
	assert.EqualValues(t, 128*mib, done.After.VirtualSize)
	assert.Contains(t, qemuImg(t, "compare", "-f", "qcow2", "-F", "qcow2", overlay, out), "identical")
	_, err = disk.Inspect(t.Context(), out)
	require.NoError(t, err, "it stands alone")

	o.Base = qcow2Disk(t)
	_, err = disk.Sparsify(t.Context(), overlay, filepath.Join(t.TempDir(), "out.qcow2"), o, progress.Discard)
	require.ErrorContains(t, err, "has a backing file")
}
