package testkit

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// BootDisk is a raw disk of 16 MiB that UEFI starts by the loaders, such as BOOTX64.EFI.
func BootDisk(t testing.TB, loaders ...string) string {
	t.Helper()
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	require.NoError(t, os.Truncate(disk, 16<<20))
	steps := [][]string{
		{"sfdisk", "-q", disk}, {"mkfs.fat", "-F", "12", "--offset", "2048", disk, "8192"}, {"mmd", "-i", disk + "@@1M", "::EFI", "::EFI/BOOT"},
	}
	for _, name := range loaders {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("a loader"), 0o600))
		steps = append(steps, []string{"mcopy", "-i", disk + "@@1M", filepath.Join(dir, name), "::EFI/BOOT"})
	}
	for _, step := range steps {
		run := exec.Command(step[0], step[1:]...)
		run.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
		if path, err := exec.LookPath("/usr/sbin/" + step[0]); err == nil {
			run.Path, run.Err = path, nil
		}
		run.Stdin = strings.NewReader("label: gpt\nstart=2048, size=8M, type=uefi\n")
		out, err := run.CombinedOutput()
		require.NoError(t, err, "%v: %s", step, out)
	}
	return disk
}
