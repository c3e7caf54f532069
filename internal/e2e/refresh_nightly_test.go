//go:build nightly

package e2e

import (
	"encoding/json"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/fleet/outdated"
)

// stale is a playbook whose image lacks a security update: of two packages that Debian
// 12's security archive keeps newer than its main one, it installs the older versions.
const stale = `
- hosts: all
  become: true
  gather_facts: false
  tasks:
    - name: Install what has been superseded
      ansible.builtin.shell: |
        apt-get update -qq
        for package in xz-utils libexpat1; do
          version=$(apt-cache madison $package | tail -n 1 | cut -d'|' -f2 | tr -d ' ')
          DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --allow-downgrades $package=$version
        done
        echo stale > /etc/made-by
`

// TestARefreshInstallsWhatIsPending is an image's life: it is published with updates
// pending, which a build with FAIL_ON_UPDATES refuses; they are told, refreshed, gone; what
// the playbook made is still there, and its catalogue takes the refresh for its image.
func TestARefreshInstallsWhatIsPending(t *testing.T) {
	server := httptest.NewServer(ggcr.New(ggcr.WithReferrersSupport(true), ggcr.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	said, err := exec.Command("openssl", "genpkey", "-algorithm", "ed25519", "-out", key).CombinedOutput()
	require.NoError(t, err, string(said))
	for name, text := range map[string]string{
		"tree/stale.yml":        stale,
		"tree/tests/stale.yaml": "file:\n  /etc/made-by: {exists: true, contents: [stale]}\n",
		"catalogue.yaml": "registry: " + address + "\nprefix: labs\nimages:\n" +
			"  - {name: course, base: {packages: bookworm}, playbook: stale, ansible-dir: tree, bake-user: true, tags: [latest]}\n",
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	out := filepath.Join(dir, "out")
	env := map[string]string{"OUTPUT_DIR": out, "SIGNING_KEY": key}
	catalogue := []string{"--catalogue", filepath.Join(dir, "catalogue.yaml")}

	refused := start(t, with(map[string]string{"FAIL_ON_UPDATES": "security"}, "OUTPUT_DIR", out), diskforge(t), append([]string{"build-all"}, catalogue...)...)
	require.Equal(t, 1, refused.wait(time.Hour), refused.errors())
	assert.Regexp(t, `[2-9] updates? pending: expat, xz-utils`, refused.errors())
	assert.Regexp(t, `libexpat1 2\.5\.0\S+, and there is 2\.5\.0`, refused.errors())

	built := start(t, env, diskforge(t), append([]string{"build-all"}, catalogue...)...) // goes on from its disk
	require.Zero(t, built.wait(time.Hour), built.errors())
	course := readReport(t, filepath.Join(out, "course"))
	t.Logf("provisioned in %s", stage(t, course, "provision").Took.Round(time.Second))
	look := func() (i outdated.Image) {
		r := start(t, nil, diskforge(t), "outdated", address+"/labs", "--json")
		require.Zero(t, r.wait(5*time.Minute), r.errors())
		require.NoError(t, json.Unmarshal(r.stdout.Bytes(), &i), r.stdout.String())
		return i
	}
	before := look()
	assert.Contains(t, base.Sources(before.Security), "expat")
	assert.Contains(t, base.Sources(before.Security), "xz-utils")

	began := time.Now()
	refreshed := start(t, with(env, "OUTPUT_DIR", filepath.Join(dir, "refreshed")), diskforge(t), "refresh", address+"/labs", "--security")
	require.Zero(t, refreshed.wait(2*time.Hour), refreshed.errors())
	t.Logf("refreshed in %s", time.Since(began).Round(time.Second))
	after := look()
	assert.Empty(t, after.Security)
	assert.Equal(t, 1, after.Refreshes)
	assert.ElementsMatch(t, []string{"latest", time.Now().UTC().Format("20060102")}, after.Tags)
	assert.Equal(t, address+"/labs/course@"+after.Digest, address+"/labs/course@"+refreshed.lastLine()[strings.Index(refreshed.lastLine(), "@")+1:])
	assert.Equal(t, before.Digest, inspected(t, nil, address+"/labs/course@"+after.Digest).Annotations["org.opencontainers.image.base.digest"])
	var changed []string
	for _, change := range readReport(t, filepath.Join(dir, "refreshed", "labs_course")).Changes {
		changed = append(changed, change.Name)
	}
	assert.Subset(t, changed, []string{"libexpat1", "xz-utils"})

	nothing := start(t, env, diskforge(t), "refresh", address+"/labs")
	require.Zero(t, nothing.wait(5*time.Minute), nothing.errors())
	assert.Contains(t, nothing.errors(), "no update is pending")
	planned := start(t, map[string]string{"OUTPUT_DIR": t.TempDir()}, diskforge(t), append([]string{"plan"}, catalogue...)...)
	require.Zero(t, planned.wait(5*time.Minute), planned.errors())
	assert.Regexp(t, `skip\s+course`, planned.stdout.String(), "the refresh is the catalogue's image")

	// What the playbook made is still there.
	disk := filepath.Join(dir, "disk.qcow2")
	exported := start(t, map[string]string{"OUTPUTS": "qcow2"}, diskforge(t), "export", address+"/labs/course:latest", "-o", dir)
	require.Zero(t, exported.wait(10*time.Minute), exported.errors())
	require.NoError(t, os.Rename(filepath.Join(dir, "course.qcow2"), disk))
	checked := start(t, map[string]string{"ANSIBLE_DIR": filepath.Join(dir, "tree"), "ANSIBLE_PLAYBOOK": "stale", "BAKE_USER": "true"}, diskforge(t), "verify", disk)
	require.Zero(t, checked.wait(time.Hour), checked.errors())
	ended(t, dir)
}
