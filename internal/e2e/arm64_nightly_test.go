//go:build nightly

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// On amd64 the packages of arm64 are installed by qemu-user, and its guests emulated.
func TestAnImageForEachArchitectureIsMadeBootedAndPublishedUnderOneReference(t *testing.T) {
	out := t.TempDir()
	playbooks := tree(t, fmt.Sprintf(marking, "lab"))
	require.NoError(t, os.Mkdir(filepath.Join(playbooks, "tests"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(playbooks, "tests", "course.yaml"), []byte("file: {/etc/lab: {exists: true}}\n"), 0o644))
	catalogue := filepath.Join(playbooks, "catalogue.yaml")
	require.NoError(t, os.WriteFile(catalogue, []byte(`
images: [{name: course, architectures: [amd64, arm64], base: {packages: bookworm}, ansible-dir: ., playbook: course, tags: [v1, latest]}]
`), 0o644))
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	env := map[string]string{"OUTPUT_DIR": out, "TARGET_REGISTRY": host, "REGISTRY_PREFIX": "labs", "BOOT_TIMEOUT": "40m"}
	r := start(t, env, diskforge(t), "build-all", "--catalogue", catalogue)
	require.Zero(t, r.wait(4*time.Hour), r.errors())
	index := host + "/labs/course:v1"
	assert.Contains(t, r.stdout.String(), index+"@sha256:")
	for _, a := range arch.All {
		at := filepath.Join(out, "course-"+a.Name)
		assert.Equal(t, report.Published, readReport(t, at).Outcome)
		made := inspected(t, nil, filepath.Join(at, "course"))
		assert.Equal(t, a.Name, made.Config.Architecture)
		assert.Equal(t, &disk.Firmware{BIOS: a.BIOS, UEFI: true, SecureBoot: true}, made.Disk.Firmware)
		for _, tag := range []string{"v1", "latest"} {
			taken, err := exec.CommandContext(t.Context(), "skopeo", "--override-arch", a.Name, "--override-os", "linux", "inspect", "--tls-verify=false",
				"--format", "{{index .Layers 0}}", "docker://"+host+"/labs/course:"+tag).CombinedOutput()
			require.NoError(t, err, string(taken))
			assert.Equal(t, made.Layers[0].Digest, strings.TrimSpace(string(taken)))
		}
	}
	again := start(t, with(env, "OUTPUT_DIR", t.TempDir()), diskforge(t), "build-all", "--catalogue", catalogue)
	require.Zero(t, again.wait(5*time.Minute), again.errors())
	assert.Equal(t, r.stdout.String(), again.stdout.String(), "nothing is built again")
}
