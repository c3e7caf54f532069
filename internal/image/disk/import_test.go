package disk_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// as is rawDisk's content in another form.
func as(t *testing.T, name string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	qemuImg(t, append(append([]string{"convert", "-f", "raw"}, args...), rawDisk(t, 8*mib), path)...)
	return path
}

func compressed(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw.gz")
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(content)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.NoError(t, os.WriteFile(path, b.Bytes(), 0o600))
	return path
}

// appliance is an OVA with the disks, as VirtualBox writes it, described before them.
func appliance(t *testing.T, attributes string, disks ...string) string {
	t.Helper()
	var files, described strings.Builder
	for i := range disks {
		fmt.Fprintf(&files, `<File ovf:id="file%d" ovf:href="d%d.vmdk" %s/>`, i, i, attributes)
		fmt.Fprintf(&described, `<Disk ovf:diskId="vmdisk%d" ovf:fileRef="file%d" ovf:capacity="8388608"/>`, i, i)
	}
	path := filepath.Join(t.TempDir(), "machine.ova")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	w := tar.NewWriter(f)
	add := func(name string, content []byte) {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Mode: 0o640}))
		_, err := w.Write(content)
		require.NoError(t, err)
	}
	add("machine.ovf", []byte(`<?xml version="1.0"?><Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">`+
		`<References>`+files.String()+`</References><DiskSection>`+described.String()+`</DiskSection></Envelope>`))
	for i, disk := range disks {
		content, err := os.ReadFile(disk)
		require.NoError(t, err)
		add(fmt.Sprintf("d%d.vmdk", i), content)
	}
	require.NoError(t, w.Close())
	return path
}

// kubevirtExport is the OCI archive that KubeVirt writes of a machine with these raw disks,
// changed before its digests are made.
func kubevirtExport(t *testing.T, change func(*v1.Manifest), disks ...[]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "export.oci.tar")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	w := tar.NewWriter(f)
	add := func(name string, content []byte) {
		require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o644}))
		_, err := w.Write(content)
		require.NoError(t, err)
	}
	blob := func(mediaType types.MediaType, content []byte) v1.Descriptor {
		digest, size, err := v1.SHA256(bytes.NewReader(content))
		require.NoError(t, err)
		add("blobs/sha256/"+digest.Hex, content)
		return v1.Descriptor{MediaType: mediaType, Digest: digest, Size: size}
	}
	text := func(of any) []byte {
		text, err := json.Marshal(of)
		require.NoError(t, err)
		return text
	}
	add("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: "application/vnd.kubevirt.virtualmachine.v1",
		Config: blob("application/vnd.kubevirt.virtualmachine.config.v1+json", []byte(`{"kind":"VirtualMachine"}`)),
	}
	for _, disk := range disks {
		z, err := zstd.NewWriter(nil)
		require.NoError(t, err)
		m.Layers = append(m.Layers, blob("application/vnd.kubevirt.disk.raw+zstd", z.EncodeAll(disk, nil)))
	}
	if change != nil {
		change(&m)
	}
	add("index.json", text(v1.IndexManifest{SchemaVersion: 2, Manifests: []v1.Descriptor{blob(types.OCIManifestSchema1, text(m))}}))
	require.NoError(t, w.Close())
	return path
}

func TestAMachinesDiskIsTakenFromTheFormInWhichItIsKept(t *testing.T) {
	t.Parallel()
	raw := rawDisk(t, 8*mib)
	content, err := os.ReadFile(raw)
	require.NoError(t, err)
	stream := as(t, "d.vmdk", "-O", "vmdk", "-o", "subformat=streamOptimized")
	ours := t.TempDir()
	_, err = disk.Export(t.Context(), as(t, "d.qcow2", "-O", "qcow2"), "sha256:"+strings.Repeat("a", 64), ours, []string{"ova", "raw.zst"}, disk.Machine{Name: "m", MemoryMiB: 512, CPUs: 1}, progress.Discard)
	require.NoError(t, err)
	for what, from := range map[string]string{
		"raw": raw, "qcow2": as(t, "d.qcow2", "-O", "qcow2", "-c"), "VDI": as(t, "d.vdi", "-O", "vdi"), "VHDX": as(t, "d.vhdx", "-O", "vhdx"),
		"VHD": as(t, "d.vhd", "-O", "vpc", "-o", "force_size=on"), "fixed VHD": as(t, "f.vhd", "-O", "vpc", "-o", "subformat=fixed,force_size=on"),
		"VMDK": as(t, "s.vmdk", "-O", "vmdk"), "stream of VMware": stream,
		"gzip": compressed(t, content), "OVA": appliance(t, "", stream), "our OVA": ours + "/m.ova", "our raw.zst": ours + "/m.raw.zst",
		"KubeVirt's export": kubevirtExport(t, nil, content),
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			out := filepath.Join(dir, "out.qcow2")
			require.NoError(t, disk.Import(t.Context(), from, out, progress.Discard))
			assert.Contains(t, qemuImg(t, "compare", "-f", "raw", "-F", "qcow2", raw, out), "Images are identical")
			assert.Equal(t, []string{"out.qcow2"}, names(t, dir))
			_, err := disk.Inspect(t.Context(), out)
			require.NoError(t, err)
		})
	}
}

func TestWhatIsNoWholeDiskOfOneMachineIsRefusedInALine(t *testing.T) {
	t.Parallel()
	base := as(t, "base.vmdk", "-O", "vmdk")
	stream := as(t, "d.vmdk", "-O", "vmdk", "-o", "subformat=streamOptimized")
	file := func(content []byte) string {
		path := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(path, content, 0o600))
		return path
	}
	with := func(disk string, change ...string) string {
		qemuImg(t, append(append([]string{change[0]}, change[1:]...), disk)...)
		return disk
	}
	child := filepath.Join(t.TempDir(), "child.vmdk")
	qemuImg(t, "create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", base, child)
	content, err := os.ReadFile(stream)
	require.NoError(t, err)
	// cut takes the last clusters of guest data away, as a download that stopped.
	cut := func(path string) string {
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.NoError(t, os.Truncate(path, info.Size()-600<<10))
		return path
	}
	qcow2Content, err := os.ReadFile(as(t, "d.qcow2", "-O", "qcow2"))
	require.NoError(t, err)
	archive, err := os.ReadFile(appliance(t, "", stream))
	require.NoError(t, err)
	packed, err := os.ReadFile(compressed(t, noise(mib)))
	require.NoError(t, err)
	raw, err := os.ReadFile(rawDisk(t, 8*mib))
	require.NoError(t, err)
	damaged, err := os.ReadFile(kubevirtExport(t, nil, raw))
	require.NoError(t, err)
	damaged[bytes.Index(damaged, []byte("\x28\xb5\x2f\xfd"))+mib] ^= 1 // in the noise of the disk, behind the beginning of zstd
	for want, from := range map[string]string{
		"the OVA has 2 disks":                                             appliance(t, "", stream, stream),
		"the OVA has 0 disks":                                             appliance(t, ""),
		"compressed with gzip":                                            appliance(t, `ovf:compression="gzip"`, stream),
		"is truncated or damaged":                                         file(archive[:len(archive)/2]),
		"archive is truncated or damaged":                                 file(packed[:len(packed)/2]),
		"is no raw disk, it looks like":                                   compressed(t, content),
		"the difference to another disk":                                  child,
		"has its data in other files":                                     as(t, "flat.vmdk", "-O", "vmdk", "-o", "subformat=monolithicFlat"),
		"holds 1 internal snapshot, ":                                     with(as(t, "s.qcow2", "-O", "qcow2"), "snapshot", "-c", "before"),
		"it looks like a text file":                                       file([]byte("a letter\n")),
		"the disk image is truncated":                                     cut(as(t, "late.qcow2", "-O", "qcow2")),
		"/late.vdi: the disk image is trunc":                              cut(as(t, "late.vdi", "-O", "vdi")),
		"/late.vmdk: the disk image is trunc":                             cut(as(t, "late.vmdk", "-O", "vmdk")),
		"in the gzip archive is no raw disk, it looks like a qcow2 image": compressed(t, qcow2Content),
		"holds no machine: no .ovf":                                       file(plainTar(t)),
		"the export has 2 disks":                                          kubevirtExport(t, nil, []byte("one"), []byte("two")),
		"is no export of a KubeVirt machine":                              kubevirtExport(t, func(m *v1.Manifest) { m.Layers[0].MediaType = types.OCILayer }, raw),
		"the OCI archive lacks the machine's disk":                        kubevirtExport(t, func(m *v1.Manifest) { m.Layers[0].Digest.Hex = strings.Repeat("0", 64) }, raw),
		"zstd archive is truncated or damaged":                            file(damaged),
		"is no file on this host":                                         "https://example.org/lab.ova",
		"neither a file nor a block device":                               t.TempDir(),
		"no such file or directory":                                       "/nowhere/disk.vdi",
		"no space left":                                                   rawDisk(t, 8*mib),
		"QEMU cannot read the disk":                                       file([]byte("vhdxfile and garbage")),
	} {
		t.Run(want, func(t *testing.T) {
			dir := t.TempDir()
			if want == "no space left" {
				dir = testkit.MountTmpfs(t, "1m")
			}
			err := disk.Import(t.Context(), from, filepath.Join(dir, "out"), progress.Discard)
			require.ErrorContains(t, err, want)
			assert.NotContains(t, err.Error(), "\n")
			assert.Empty(t, names(t, dir))
		})
	}
}

// plainTar is an archive that describes no machine.
func plainTar(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "letter", Mode: 0o600}))
	require.NoError(t, w.Close())
	return b.Bytes()
}

func TestAStoppedImportLeavesNothing(t *testing.T) {
	t.Parallel()
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	content, err := os.ReadFile(rawDisk(t, 8*mib))
	require.NoError(t, err)
	for _, from := range []string{compressed(t, content), rawDisk(t, 8*mib)} {
		dir := t.TempDir()
		require.ErrorIs(t, disk.Import(ctx, from, filepath.Join(dir, "out"), progress.Discard), stop)
		assert.Empty(t, names(t, dir))
	}
}
