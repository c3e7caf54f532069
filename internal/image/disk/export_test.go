package disk_test

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

var machine = disk.Machine{Name: "lab", MemoryMiB: 4096, CPUs: 2, Distribution: "debian"}

func export(t testing.TB, path, dir string, names ...string) []disk.Exported {
	t.Helper()
	digest, err := host.DigestFile(t.Context(), path, progress.Discard)
	require.NoError(t, err)
	done, err := disk.Export(t.Context(), path, digest, dir, names, machine, progress.Discard)
	require.NoError(t, err)
	return done
}

// Every output holds what the guest sees, has the same bytes each time, and is in the sums.
func TestEveryOutputHoldsTheDiskAndHasTheSameBytesEachTime(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(rawDisk(t, 64*mib))
	require.NoError(t, err)
	for _, args := range [][]string{{"-c", "-o", "compression_type=zstd"}, {"-c"}, nil} {
		path, dir := qcow2Disk(t, args...), t.TempDir()
		done := export(t, path, dir, disk.Outputs()...)
		assert.Equal(t, []string{"lab.SHA256SUMS", "lab.ova", "lab.qcow2", "lab.raw.zst"}, names(t, dir))
		out, err := inDir(dir, "sha256sum", "--check", "--strict", "lab.SHA256SUMS")
		require.NoError(t, err, out)
		again := export(t, path, t.TempDir(), disk.Outputs()...)
		for i, one := range done {
			assert.Equal(t, one.Digest, again[i].Digest, one.Path)
			info, err := os.Stat(one.Path)
			require.NoError(t, err)
			assert.Equal(t, info.Size(), one.Size)
		}

		qemuImg(t, "compare", "-f", "qcow2", "-F", "qcow2", path, filepath.Join(dir, "lab.qcow2"))
		f, err := os.Open(filepath.Join(dir, "lab.raw.zst"))
		require.NoError(t, err)
		defer f.Close()
		z, err := zstd.NewReader(f, zstd.WithDecoderMaxWindow(8<<20)) // the least that every decoder takes (RFC 8878, 3.1.1.1.2)
		require.NoError(t, err)
		unpacked, err := io.ReadAll(z)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(raw, unpacked), "another disk")
		checkAppliance(t, filepath.Join(dir, "lab.ova"), path, raw)
	}
}

func TestTheSumsOfAnEarlierExportStay(t *testing.T) {
	t.Parallel()
	path, dir := qcow2Disk(t, "-c"), t.TempDir()
	first := export(t, path, dir, "qcow2", "raw.zst")
	require.NoError(t, os.Remove(first[1].Path))
	export(t, path, dir, "ova")
	sums, err := os.ReadFile(filepath.Join(dir, "lab.SHA256SUMS"))
	require.NoError(t, err)
	assert.Regexp(t, `^[0-9a-f]{64}  lab.qcow2\n[0-9a-f]{64}  lab.ova\n$`, string(sums))
	out, err := inDir(dir, "sha256sum", "--check", "--strict", "lab.SHA256SUMS")
	require.NoError(t, err, out)
}

// A disk that cannot be read to its end makes no appliance: an error between two grains is
// no end.
func TestADiskThatCannotBeReadIsNoAppliance(t *testing.T) {
	t.Parallel()
	path := qcow2Disk(t, "-c")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	require.NoError(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte{0xff}, int(info.Size())-324<<10), 324<<10) // behind its tables and its first sectors
	require.NoError(t, err)
	digest, err := host.DigestFile(t.Context(), path, progress.Discard)
	require.NoError(t, err)
	for _, name := range []string{"ova", "raw.zst"} {
		dir := t.TempDir()
		_, err = disk.Export(t.Context(), path, digest, dir, []string{name}, machine, progress.Discard)
		require.Error(t, err, name)
		assert.NotContains(t, err.Error(), "\n")
		assert.Empty(t, names(t, dir))
	}
}

func checkAppliance(t testing.TB, appliance, path string, raw []byte) {
	t.Helper()
	at := t.TempDir()
	out, err := inDir(at, "tar", "-xvf", appliance)
	require.NoError(t, err, out)
	assert.Equal(t, "lab.ovf\nlab.mf\nlab-disk1.vmdk\n", out, "the order of a stream (DSP0243, 5.3)")
	qemuImg(t, "compare", "-f", "qcow2", "-F", "vmdk", path, filepath.Join(at, "lab-disk1.vmdk"))
	extract := exec.Command("7z", "x", "-so", "-tVMDK", filepath.Join(at, "lab-disk1.vmdk")) // reads the format as a stream, as VMware does
	unpacked, err := extract.Output()
	require.NoError(t, err, "apt-get install p7zip-full")
	assert.True(t, bytes.Equal(raw, unpacked), "7z reads another disk")
	manifest, err := os.ReadFile(filepath.Join(at, "lab.mf"))
	require.NoError(t, err)
	for _, line := range strings.Split(strings.TrimSpace(string(manifest)), "\n") {
		var name, sum string
		_, err := fmt.Sscanf(strings.NewReplacer("SHA256(", "", ")=", "").Replace(line), "%s %s", &name, &sum)
		require.NoError(t, err, line)
		digest, err := host.DigestFile(t.Context(), filepath.Join(at, name), progress.Discard)
		require.NoError(t, err)
		assert.Equal(t, "sha256:"+sum, digest)
	}
	description, err := os.ReadFile(filepath.Join(at, "lab.ovf"))
	require.NoError(t, err)
	var envelope struct {
		File struct {
			Size int64 `xml:"size,attr"`
		} `xml:"References>File"`
		Disk struct {
			Capacity int64 `xml:"capacity,attr"`
		} `xml:"DiskSection>Disk"`
		OS struct {
			ID int `xml:"id,attr"`
		} `xml:"VirtualSystem>OperatingSystemSection"`
		Items []struct {
			Type     int `xml:"ResourceType"`
			Quantity int `xml:"VirtualQuantity"`
		} `xml:"VirtualSystem>VirtualHardwareSection>Item"`
	}
	require.NoError(t, xml.Unmarshal(description, &envelope))
	info, err := os.Stat(filepath.Join(at, "lab-disk1.vmdk"))
	require.NoError(t, err)
	assert.Equal(t, info.Size(), envelope.File.Size)
	assert.EqualValues(t, 64*mib, envelope.Disk.Capacity)
	assert.Equal(t, 96, envelope.OS.ID, "Debian 64-Bit (CIM_OperatingSystem)")
	quantities := map[int]int{}
	for _, item := range envelope.Items {
		quantities[item.Type] = item.Quantity
	}
	assert.Equal(t, map[int]int{3: 2, 4: 4096, 20: 0, 17: 0, 10: 0}, quantities)
}

func inDir(dir string, program string, args ...string) (string, error) {
	c := exec.Command(program, args...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	return string(out), err
}

func TestAnExportThatFailsLeavesWhatWasThere(t *testing.T) {
	path := qcow2Disk(t, "-c")
	digest, err := host.DigestFile(t.Context(), path, progress.Discard)
	require.NoError(t, err)

	dir := testkit.MountTmpfs(t, "8m")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "lab.qcow2"), []byte("earlier"), 0o644))
	var fill sync.Once
	watcher := &recorder{onBytes: func() {
		fill.Do(func() { _ = os.WriteFile(filepath.Join(dir, "other"), noise(8*mib), 0o644) })
	}}
	_, err = disk.Export(t.Context(), path, digest, dir, disk.Outputs(), machine, watcher)
	require.ErrorContains(t, err, "no space left in "+dir+": ")
	assert.NotContains(t, err.Error(), "\n")
	assert.Equal(t, []string{"lab.qcow2", "other"}, names(t, dir))
	earlier, err := os.ReadFile(filepath.Join(dir, "lab.qcow2"))
	require.NoError(t, err)
	assert.Equal(t, "earlier", string(earlier))

	require.NoError(t, os.Mkdir(filepath.Join(dir, "lab.ova"), 0o755))
	_, err = disk.Export(t.Context(), path, digest, dir, disk.Outputs(), machine, progress.Discard)
	require.ErrorContains(t, err, "lab.ova is no file: move it away", "before anything is written")

	ctx, cancel := context.WithCancel(t.Context())
	empty := t.TempDir()
	_, err = disk.Export(ctx, path, digest, empty, disk.Outputs(), machine, &recorder{onBytes: cancel})
	require.ErrorIs(t, err, context.Canceled)
	assert.Empty(t, names(t, empty))
}
