//go:build nightly

package hygiene_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// libguestfs without KVM works on every host.
var forceTCG = []string{"LIBGUESTFS_BACKEND=direct", "LIBGUESTFS_BACKEND_SETTINGS=force_tcg"}

// guestfish runs one session of the real guestfish.
func guestfish(t *testing.T, args ...string) {
	t.Helper()
	c := exec.Command("guestfish", args...)
	c.Env = append(os.Environ(), forceTCG...)
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func TestARealDiskIsCleanUntilDefectsArePlantedInIt(t *testing.T) {
	base := os.Getenv("DISKFORGE_TEST_BASE")
	require.NotEmpty(t, base, "set DISKFORGE_TEST_BASE to a Debian cloud image")
	r, err := scan(t, base)
	require.NoError(t, err)
	assert.Equal(t, hygiene.Debugfs, r.Method)
	assert.Empty(t, r.Findings)
	assert.Greater(t, r.Files, 10000)

	more := map[string]file{}
	for _, d := range defects {
		more[d.path] = d.file
	}
	overlay := filepath.Join(t.TempDir(), "overlay")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay)
	guestfish(t, "--format=qcow2", "--add", overlay, "--inspector", "tar-in", archive(t, more), "/")
	flat := filepath.Join(t.TempDir(), "flat.qcow2")
	tool(t, "qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", "-c", "-o", "compression_type=zstd", overlay, flat)
	r, err = scan(t, flat)
	assertDefects(t, r, err)
	assert.Equal(t, hygiene.Debugfs, r.Method)
}

// What no two machines may have is gone when libguestfs has changed the files; what
// somebody has to decide about is there, and nothing else came.
func TestARealMachineThatWasUsedIsGeneralised(t *testing.T) {
	base := os.Getenv("DISKFORGE_TEST_BASE")
	require.NotEmpty(t, base, "set DISKFORGE_TEST_BASE to a Debian cloud image")
	more := map[string]file{}
	for _, d := range defects {
		more[d.path] = d.file
	}
	machine := filepath.Join(t.TempDir(), "machine.qcow2")
	tool(t, "qemu-img", "convert", "-O", "qcow2", base, machine)
	guestfish(t, "--format=qcow2", "--add", machine, "--inspector", "tar-in", archive(t, more), "/")
	o := hygiene.GeneraliseOptions{Options: options(t, machine), VMUser: "crownlabs"}
	o.LibguestfsEnv = forceTCG
	g, err := hygiene.Generalise(t.Context(), o, progress.Discard)
	require.NoError(t, err)
	assert.Regexp(t, `^debian-1\d$`, g.System)
	r, err := scan(t, machine)
	require.Error(t, err)
	left := map[string]bool{}
	for _, f := range r.Findings {
		left[f.Rule] = true
	}
	for _, rule := range []string{"password-hash", "authorized-keys", "ssh-host-keys", "machine-id", "random-seed", "cloud-init-state", "package-caches", "logs", "shell-history", "temporary-files"} {
		assert.False(t, left[rule], "%s: %v", rule, found(r))
	}
	for _, rule := range []string{"credentials", "private-keys", "nopasswd", "world-writable"} {
		assert.True(t, left[rule], rule)
	}
	assert.Subset(t, expected(), found(r))
}

func TestAnXFSDiskIsReadThroughLibguestfs(t *testing.T) {
	raw := filepath.Join(t.TempDir(), "disk.raw")
	guestfish(t, "disk-create", raw, "raw", "512M", ":", "add", raw, "format:raw", ":", "run",
		":", "part-disk", "/dev/sda", "mbr", ":", "mkfs", "xfs", "/dev/sda1", "label:root",
		":", "mount", "/dev/sda1", "/", ":", "tar-in", archive(t, planted()), "/")
	o := options(t, qcow2(t, raw))
	o.LibguestfsEnv = forceTCG
	r, err := hygiene.Scan(t.Context(), o, progress.Discard)
	assertDefects(t, r, err)
	assert.Equal(t, hygiene.Libguestfs, r.Method)
	assert.Equal(t, []hygiene.FileSystem{{Type: "xfs", Mount: "partition 1", Partition: 1}}, r.FileSystems)
}
