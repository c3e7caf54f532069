package disk_test

import (
	"archive/tar"
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// BenchmarkSparsifyAndPack compares sparsify and pack with what CrownLabs'
// packer-automation does to the same disk, in one run: Packer's
// disk_compression, virt-sparsify --compress, a layer in gzip. The disk is
// that of DISKFORGE_BENCH_DISK, a qcow2 image whose guest trimmed it;
// LIBGUESTFS_* of the environment are passed on.
func BenchmarkSparsifyAndPack(b *testing.B) {
	in := os.Getenv("DISKFORGE_BENCH_DISK")
	if in == "" {
		b.Skip("set DISKFORGE_BENCH_DISK to a qcow2 image of a Debian")
	}
	for b.Loop() {
		original, layer := originalWay(b, in)
		zstd, zstdLayer := ourWay(b, in, disk.Zstd)
		zlib, zlibLayer := ourWay(b, in, disk.Zlib)
		b.ReportMetric(original.Seconds(), "original-s")
		b.ReportMetric(zstd.Seconds(), "zstd-s")
		b.ReportMetric(zlib.Seconds(), "zlib-s")
		b.ReportMetric(original.Seconds()/zstd.Seconds(), "zstd-times-faster")
		b.ReportMetric(original.Seconds()/zlib.Seconds(), "zlib-times-faster")
		b.ReportMetric(100*(float64(zstdLayer)/float64(layer)-1), "zstd-layer-%-larger")
		b.ReportMetric(100*(float64(zlibLayer)/float64(layer)-1), "zlib-layer-%-larger")
	}
}

// ourWay returns the time of sparsify and pack, and the layer's bytes.
func ourWay(b *testing.B, in string, c disk.Compression) (time.Duration, int64) {
	dir := b.TempDir()
	defer os.RemoveAll(dir)
	start := time.Now()
	out := filepath.Join(dir, "disk.qcow2")
	_, err := disk.Sparsify(b.Context(), in, out, trimmed(c), progress.Discard)
	require.NoError(b, err)
	r, err := oci.Pack(b.Context(), out, filepath.Join(dir, "layout"), oci.Metadata{Architecture: "amd64"}, progress.Discard)
	require.NoError(b, err)
	return time.Since(start), r.Layer.Size
}

// originalWay returns the time of the original's steps and its layer's bytes.
func originalWay(b *testing.B, in string) (time.Duration, int64) {
	dir := b.TempDir()
	defer os.RemoveAll(dir)
	start := time.Now()
	compressed, sparse := filepath.Join(dir, "compressed.qcow2"), filepath.Join(dir, "sparse.qcow2")
	qemuImg(b, "convert", "-c", "-f", "qcow2", "-O", "qcow2", in, compressed)
	cmd := exec.CommandContext(b.Context(), "virt-sparsify", "--compress", "--tmp", dir, compressed, sparse)
	out, err := cmd.CombinedOutput()
	require.NoError(b, err, "%s", out)
	size := gzipLayer(b, sparse, filepath.Join(dir, "layer.tar.gz"))
	return time.Since(start), size
}

// gzipLayer writes the layer as a Docker daemon does.
func gzipLayer(b *testing.B, path, to string) int64 {
	in, err := os.Open(path)
	require.NoError(b, err)
	defer in.Close()
	st, err := in.Stat()
	require.NoError(b, err)
	out, err := os.Create(to)
	require.NoError(b, err)
	defer out.Close()
	z := gzip.NewWriter(out)
	t := tar.NewWriter(z)
	require.NoError(b, t.WriteHeader(&tar.Header{Name: "disk/" + strings.ToLower(filepath.Base(path)), Size: st.Size(), Mode: 0o444}))
	_, err = io.Copy(t, in)
	require.NoError(b, err)
	require.NoError(b, t.Close())
	require.NoError(b, z.Close())
	st, err = out.Stat()
	require.NoError(b, err)
	return st.Size()
}
