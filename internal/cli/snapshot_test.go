package cli_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

func TestTheContainersOfAnInstanceSnapshotHandOverTheDiskAndCaptureIt(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	dir := t.TempDir()
	volume := filepath.Join(t.TempDir(), "disk.img")
	dockerfile := "--dockerfile=" + filepath.Join(dir, "Dockerfile") // as kaniko is given it
	destination := "--destination=" + host + "/tea/course:20261130t101010"
	copied := filepath.Join(dir, "vm-snapshot.qcow2")

	code, _, stderr := run(t, "snapshot", dockerfile, "--source", volume)
	require.Equal(t, 1, code)
	assert.Contains(t, stderr, volume+": no such file")
	code, _, stderr = run(t, "snapshot", dockerfile, destination)
	require.Equal(t, 1, code)
	assert.Contains(t, stderr, "accepts pushes to "+host+"/tea/course:20261130t101010")
	assert.Contains(t, stderr, copied+": no such file")

	require.NoError(t, os.WriteFile(volume, append(make([]byte, 510), 0x55, 0xAA), 0o600))
	code, stdout, stderr := run(t, "snapshot", dockerfile, "--source", volume)
	require.Zero(t, code, stderr)
	assert.Equal(t, copied+"\n", stdout)
	info, err := disk.Inspect(t.Context(), copied)
	require.NoError(t, err)
	assert.Equal(t, disk.FormatQCOW2, info.Format)
	assert.EqualValues(t, 512, info.VirtualSize)
}
