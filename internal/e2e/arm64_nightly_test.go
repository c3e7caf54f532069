//go:build nightly

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/report"
)

// On amd64 this image's packages are installed by qemu-user, and its guests emulated.
func TestAnImageOfTheOtherArchitectureIsMadeBootedAndPacked(t *testing.T) {
	architecture := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	require.NotEmpty(t, architecture)
	out := t.TempDir()
	playbooks := tree(t, fmt.Sprintf(marking, "lab"))
	require.NoError(t, os.Mkdir(filepath.Join(playbooks, "tests"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(playbooks, "tests", "course.yaml"), []byte("file: {/etc/lab: {exists: true}}\n"), 0o644))
	r := start(t, with(fromPackages(out, playbooks), "ARCHITECTURE", architecture, "BOOT_TIMEOUT", "40m"), diskforge(t), "build")
	require.Zero(t, r.wait(4*time.Hour), r.errors())
	assert.Equal(t, report.Packed, readReport(t, out).Outcome)
	made := inspected(t, nil, filepath.Join(out, "course"))
	assert.Equal(t, architecture, made.Config.Architecture)
	assert.Equal(t, &disk.Firmware{BIOS: arch.Of(architecture).BIOS, UEFI: true, SecureBoot: true}, made.Disk.Firmware)
}
