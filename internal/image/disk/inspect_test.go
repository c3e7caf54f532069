package disk_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/disk"
)

func TestTheFormatAndTheSizesOfADiskAreTold(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		path, format string
		compression  disk.Compression
		data         int64
	}{
		"raw":          {rawDisk(t, 64*mib), disk.FormatRaw, disk.NoCompression, 4*mib + 4096},
		"qcow2":        {qcow2Disk(t), disk.FormatQCOW2, disk.NoCompression, 3*mib + 64<<10},
		"version 2":    {qcow2Disk(t, "-o", "compat=0.10"), disk.FormatQCOW2, disk.NoCompression, 3*mib + 64<<10},
		"zlib":         {qcow2Disk(t, "-c"), disk.FormatQCOW2, disk.Zlib, 3*mib + 64<<10},
		"zstd":         {qcow2Disk(t, "-c", "-o", "compression_type=zstd"), disk.FormatQCOW2, disk.Zstd, 3*mib + 64<<10},
		"big clusters": {qcow2Disk(t, "-c", "-o", "cluster_size=2M"), disk.FormatQCOW2, disk.Zlib, 4 * mib},
		"extended L2":  {qcow2Disk(t, "-o", "extended_l2=on"), disk.FormatQCOW2, disk.NoCompression, 3*mib + 64<<10},
	} {
		t.Run(name, func(t *testing.T) {
			info, err := disk.Inspect(t.Context(), c.path)
			require.NoError(t, err)
			st, err := os.Stat(c.path)
			require.NoError(t, err)
			assert.Equal(t, c.format, info.Format)
			assert.EqualValues(t, 64*mib, info.VirtualSize)
			assert.Equal(t, st.Size(), info.FileSize)
			assert.Equal(t, c.compression, info.Compression)
			assert.Equal(t, c.compression != disk.NoCompression, info.Compressed())
			assert.InDelta(t, c.data, info.DataSize, mib/4)
		})
	}
}

func TestWhatIsNoDiskImageIsCalledByItsName(t *testing.T) {
	t.Parallel()
	made := func(format string, options ...string) string {
		path := filepath.Join(t.TempDir(), "disk."+format)
		qemuImg(t, append([]string{"create", "-q", "-f", format, path, "8M"}, options...)...)
		return path
	}
	fixedVHD := filepath.Join(t.TempDir(), "fixed.vhd")
	qemuImg(t, "convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed", rawDisk(t, 8*mib), fixedVHD)
	pipe := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	for want, path := range map[string]string{
		"looks like an HTML page":          file(t, "\n<!DOCTYPE html><html><title>404</title></html>"),
		"looks like a gzip archive":        file(t, "\x1f\x8b\x08\x00"),
		"looks like an xz archive":         file(t, "\xfd7zXZ\x00"),
		"looks like a zip archive":         file(t, "PK\x03\x04"),
		"looks like a zstd archive":        file(t, "\x28\xb5\x2f\xfd"),
		"looks like a tar archive":         file(t, strings.Repeat("\x00", 257)+"ustar"),
		"looks like an ISO of a CD":        file(t, strings.Repeat("\x00", 0x8001)+"CD001"),
		"looks like a VMDK image":          made("vmdk"),
		"looks like a VMDK descriptor":     made("vmdk", "-o", "subformat=twoGbMaxExtentFlat"),
		"looks like a VDI image":           made("vdi"),
		"looks like a VHDX image":          made("vhdx"),
		"looks like a VHD image: convert":  made("vpc"),
		"looks like a VHD image":           fixedVHD,
		"looks like a QED image":           made("qed"),
		"looks like a Parallels image":     made("parallels"),
		"looks like a LUKS-encrypted disk": file(t, "LUKS\xba\xbe\x00\x01"),
		"looks like an empty file":         file(t, ""),
		"looks like a text file":           file(t, "version https://git-lfs.github.com/spec/v1\n"),
		"looks like data without a part":   file(t, strings.Repeat("\x00", 4096)),
		"no regular file":                  pipe,
		"no regular file: give":            t.TempDir(),
		"no such file":                     filepath.Join(t.TempDir(), "missing"),
	} {
		t.Run(want, func(t *testing.T) {
			_, err := disk.Inspect(t.Context(), path)
			require.ErrorContains(t, err, want)
			assert.Contains(t, err.Error(), path)
			assert.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestADiskThatIsMoreThanItsOwnFileIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	base, overlay := filepath.Join(dir, "base"), filepath.Join(dir, "overlay")
	qemuImg(t, "create", "-q", "-f", "qcow2", base, "8M")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay)
	external := filepath.Join(dir, "external")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+external+".data", external, "8M")
	encrypted := qcow2Disk(t) // qemu-img cannot make one on a busy host: it wants to measure its key derivation
	patch(t, encrypted, 35, "\x02")
	snapshot := qcow2Disk(t)
	qemuImg(t, "snapshot", "-c", "earlier", snapshot)
	huge := filepath.Join(dir, "huge")
	qemuImg(t, "create", "-q", "-f", "qcow2", huge, "3T")
	corrupt := qcow2Disk(t)
	patch(t, corrupt, 79, "\x02")
	for want, path := range map[string]string{
		"has a backing file":                  overlay,
		"external data file":                  external,
		"is encrypted":                        encrypted,
		"1 internal snapshot":                 snapshot,
		"3298534883328 bytes is out of range": huge,
		"marked as corrupt":                   corrupt,
	} {
		t.Run(want, func(t *testing.T) {
			_, err := disk.Inspect(t.Context(), path)
			require.ErrorContains(t, err, want)
		})
	}
}

func patch(t *testing.T, path string, offset int64, bytes string) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte(bytes), offset)
	require.NoError(t, err)
}

func TestAGuestCannotPassARawDiskOffAsAnOverlayOfAHostFile(t *testing.T) {
	t.Parallel()
	secret := file(t, "the host's secret")
	path := rawDisk(t, 8*mib)
	overlay := filepath.Join(t.TempDir(), "overlay")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-u", "-b", secret, "-F", "raw", overlay, "8M")
	head, err := os.ReadFile(overlay)
	require.NoError(t, err)
	patch(t, path, 0, string(head[:448])) // leaves the boot signature
	_, err = disk.Inspect(t.Context(), path)
	require.ErrorContains(t, err, "backing file")
}

func TestATruncatedDiskIsRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		path string
		cut  int64
	}{
		"qcow2, the last byte":          {qcow2Disk(t), 1},
		"qcow2, half":                   {qcow2Disk(t), 3 * mib / 2},
		"compressed qcow2, last sector": {qcow2Disk(t, "-c"), 512},
		"compressed qcow2, half":        {qcow2Disk(t, "-c"), mib / 2},
		"raw":                           {rawDisk(t, 2*mib), 512},
	} {
		t.Run(name, func(t *testing.T) {
			if c.cut == 512 && strings.HasSuffix(c.path, "raw") {
				require.NoError(t, os.Truncate(c.path, 2*mib)) // the partition's end
			}
			_, err := disk.Inspect(t.Context(), c.path)
			require.NoError(t, err)
			st, err := os.Stat(c.path)
			require.NoError(t, err)
			require.NoError(t, os.Truncate(c.path, st.Size()-c.cut))
			_, err = disk.Inspect(t.Context(), c.path)
			require.ErrorContains(t, err, "truncated or damaged")
		})
	}
}

func TestATruncatedHeaderIsRefused(t *testing.T) {
	t.Parallel()
	whole, err := os.ReadFile(qcow2Disk(t))
	require.NoError(t, err)
	for _, n := range []int{4, 71, 103, 112, 4096, 200_000} {
		_, err := disk.Inspect(t.Context(), file(t, string(whole[:n])))
		require.ErrorContains(t, err, "truncated or damaged", "%d bytes", n)
	}
}

func TestAGPTDiskThatEndsBeforeItsUsableAreaIsRefused(t *testing.T) {
	t.Parallel()
	path := rawDisk(t, 8*mib)
	patch(t, path, 450, "\xee")
	patch(t, path, 512, "EFI PART")
	patch(t, path, 512+48, "\x00\x40\x00\x00\x00\x00\x00\x00") // sector 16384, the first behind 8 MiB
	_, err := disk.Inspect(t.Context(), path)
	require.ErrorContains(t, err, "its partition table covers 8389120 bytes")
	patch(t, path, 512+48, "\xdf\x3f")
	_, err = disk.Inspect(t.Context(), path)
	require.NoError(t, err)
}

func TestANameWithAColonIsAFileAndNoProtocol(t *testing.T) {
	path := qcow2Disk(t)
	t.Chdir(filepath.Dir(path))
	require.NoError(t, os.Rename(path, "nbd:localhost:1"))
	_, err := disk.Inspect(t.Context(), "nbd:localhost:1")
	require.NoError(t, err)
}

func TestQemuImgIsAskedUnderKubeVirtsLimits(t *testing.T) {
	bin := onlyPrograms(t, "prlimit", "sh")
	said := filepath.Join(t.TempDir(), "limits")
	script := "#!/bin/sh\n{ ulimit -t; ulimit -v; echo \"$@\"; } >" + said + "\necho '{\"virtual-size\": 67108864}'\n"
	require.NoError(t, os.WriteFile(filepath.Join(bin, "qemu-img"), []byte(script), 0o700))
	path := rawDisk(t, 64*mib)
	_, err := disk.Inspect(t.Context(), path)
	require.NoError(t, err)
	got, err := os.ReadFile(said)
	require.NoError(t, err)
	assert.Equal(t, "10\n2048000\ninfo --output=json -f raw "+path+"\n", string(got))
}

func TestAMissingQemuImgIsNamedWithItsPackage(t *testing.T) {
	path := rawDisk(t, 8*mib)
	onlyPrograms(t, "prlimit")
	_, err := disk.Inspect(t.Context(), path)
	require.ErrorContains(t, err, "qemu-img is not installed: apt-get install qemu-utils")
}

func TestAnInspectionEndsWithItsContext(t *testing.T) {
	t.Parallel()
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	for _, path := range []string{qcow2Disk(t), rawDisk(t, 8*mib)} {
		_, err := disk.Inspect(ctx, path)
		require.ErrorIs(t, err, stop)
	}
}
