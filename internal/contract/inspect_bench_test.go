package contract_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// BenchmarkRemote inspects an image in a registry whose disk is that of
// DISKFORGE_BENCH_DISK, compressed and grown to 10 GiB: at most 2 MiB should
// come over the wire.
func BenchmarkRemote(b *testing.B) {
	base := os.Getenv("DISKFORGE_BENCH_DISK")
	require.NotEmpty(b, base, "DISKFORGE_BENCH_DISK names no disk")
	disk := filepath.Join(b.TempDir(), "disk.qcow2")
	qemuImg(b, "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", base, disk)
	qemuImg(b, "resize", "-f", "qcow2", disk, "10G")
	host, _ := testkit.StartRegistry(b, testkit.RegistryOptions{})
	made := written(b, host, disk, registry.Options{})
	var read int64
	for b.Loop() {
		r, err := inspectRemote(b, host, registry.Options{})
		require.NoError(b, err)
		require.NoError(b, r.Err(contract.Error))
		read = max(read, r.BytesRead)
	}
	b.ReportMetric(float64(read)/mib, "MiB-over-the-wire")
	b.ReportMetric(float64(made.Layer.Size)/mib, "MiB-layer")
}
