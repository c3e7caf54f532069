//go:build nightly

package e2e

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/report"
)

// family writes a catalogue of a parent and two children, one and two.
func family(t *testing.T, address string) (catalogue string) {
	t.Helper()
	dir := t.TempDir()
	put := func(name, text string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	for file, text := range familyTree {
		put(filepath.Join("tree", file), text)
	}
	put("catalogue.yaml", fmt.Sprintf(`
registry: %s
prefix: labs
defaults: {ansible-dir: tree, tags: [nightly]}
images:
  - {name: one, from: parent, playbook: one}
  - {name: two, from: parent, playbook: two}
  - {name: parent, base: {packages: bookworm}, playbook: parent}
`, address))
	return filepath.Join(dir, "catalogue.yaml")
}

// linesOfABuild is about what a whole build of the family says on standard
// error, in lines.
const linesOfABuild = 150

// killAtRandom kills diskforge when it has said so many lines, if it is still
// running then.
func killAtRandom(t *testing.T, r *run, out string) {
	t.Helper()
	after := 1 + mathrand.N(linesOfABuild)
	last := ""
	for range after {
		select {
		case last = <-r.lines:
		case <-r.done:
			require.Zero(t, r.wait(time.Minute), r.errors())
			return
		case <-time.After(30 * time.Minute):
			require.Fail(t, "nothing was said for half an hour", r.errors())
		}
	}
	t.Logf("killed after %d lines, the last: %s", after, last)
	for _, p := range running(diskforge(t), out) {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
	r.wait(time.Minute)
	ended(t, out) // the guests, too
}

func TestManyImagesThatWereKilledThreeTimesAreFinished(t *testing.T) {
	address := registry(t)
	out := t.TempDir()
	catalogue := family(t, address)
	login := map[string]string{"OUTPUT_DIR": out, "REGISTRY_USER": "me", "REGISTRY_PASS": secret}
	for range 3 {
		killAtRandom(t, start(t, login, diskforge(t), "build-all", "--catalogue", catalogue), out)
	}
	r := start(t, login, diskforge(t), "build-all", "--catalogue", catalogue)
	require.Zero(t, r.wait(2*time.Hour), r.errors())
	ended(t, out)
	assert.Empty(t, holdsSecret(t, out))
	for _, name := range files(t, out) {
		assert.NotContains(t, name, ".qcow2", "the layouts have the disks: no other copy stays")
	}

	parent := inspected(t, login, address+"/labs/parent:nightly")
	for _, name := range []string{"one", "two"} {
		child := inspected(t, login, address+"/labs/"+name+":nightly")
		assert.Equal(t, parent.Digest, child.Annotations["org.opencontainers.image.base.digest"])
		told := readReport(t, filepath.Join(out, name))
		tellsAll(t, told, address+"/labs/"+name+":nightly@"+child.Digest)
	}

	began := time.Now()
	again := start(t, login, diskforge(t), "build-all", "--catalogue", catalogue)
	require.Zero(t, again.wait(5*time.Minute), again.errors())
	t.Logf("nothing to do: %s", time.Since(began).Round(10*time.Millisecond))
	assert.Equal(t, map[string]int{"skipped": 3}, counts(t, out))
	assert.Equal(t, 3, strings.Count(again.stdout.String(), ":nightly@sha256:"))
	assert.Equal(t, parent.Digest, inspected(t, login, address+"/labs/parent:nightly").Digest)
}

// cloudImage is the one that the nightly tests are given.
func cloudImage(t *testing.T) string {
	t.Helper()
	base := os.Getenv("DISKFORGE_TEST_BASE")
	require.NotEmpty(t, base, "set DISKFORGE_TEST_BASE to a Debian cloud image")
	return base
}

func TestADeskIsReachedAndLeavesNothing(t *testing.T) { reachesADesk(t, cloudImage(t)) }

// The OVA is read by a program of others, which makes a machine for KVM of it.
func TestAnApplianceIsImportedByVirtV2VAndStarts(t *testing.T) {
	dir := t.TempDir()
	r := start(t, map[string]string{"OUTPUTS": "ova", "IMAGE_NAME": "lab"}, diskforge(t), "export", cloudImage(t), "-o", dir, "--unverified")
	require.Zero(t, r.wait(10*time.Minute), r.errors())
	v2v := exec.Command("virt-v2v", "-i", "ova", "lab.ova", "-o", "local", "-of", "qcow2", "-os", ".")
	v2v.Dir = dir
	out, err := v2v.CombinedOutput()
	require.NoError(t, err, "%s", out)
	machine, err := os.ReadFile(filepath.Join(dir, "lab.xml")) // libvirt's
	require.NoError(t, err)
	assert.Contains(t, string(machine), "<memory unit='KiB'>2097152</memory>")
	assert.Contains(t, string(machine), "debian")
	disk := filepath.Join(dir, "lab.qcow2")
	require.NoError(t, os.Rename(filepath.Join(dir, "lab-sda"), disk))
	reachesADesk(t, disk)
}

func reachesADesk(t *testing.T, disk string) {
	t.Helper()
	tmp := t.TempDir()
	r := start(t, map[string]string{"TMPDIR": tmp}, diskforge(t), "run", disk)
	r.await(20*time.Minute, "stage=boot", "done")
	var ssh string
	require.Eventually(t, func() bool {
		_, rest, _ := strings.Cut(r.stdout.String(), "ssh ")
		ssh, _, _ = strings.Cut(rest, "\n")
		return strings.Contains(r.stdout.String(), "console")
	}, time.Minute, 100*time.Millisecond)
	args := append(strings.Fields(ssh), "id", "-un")
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Equal(t, "crownlabs\n", string(out))
	require.NoError(t, r.cmd.Process.Signal(os.Interrupt))
	assert.Zero(t, r.wait(time.Minute), r.errors())
	assert.Empty(t, files(t, tmp))
	assert.Empty(t, processes(tmp))
}

// counting is a playbook whose runs can be counted, with a check of its own.
const counting = `
- hosts: all
  become: true
  gather_facts: false
  tasks:
    - name: Count
      ansible.builtin.shell: {cmd: echo run >>/etc/runs}
      changed_when: true
    - name: Say which text it is
      ansible.builtin.copy: {content: "%s", dest: /etc/text, mode: "0644"}
`

func TestAnAuthorTriesAPlaybookAgainAndAgain(t *testing.T) {
	base := cloudImage(t)
	tmp, dir, keys := t.TempDir(), tree(t, fmt.Sprintf(counting, "first")), filepath.Join(t.TempDir(), "keys")
	require.NoError(t, os.Mkdir(filepath.Join(dir, "tests"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tests", "course.yaml"), []byte("file: {/etc/text: {exists: true, contents: [second]}}\n"), 0o644))
	require.NoError(t, syscall.Mkfifo(keys, 0o600))
	author, err := os.OpenFile(keys, os.O_RDWR, 0)
	require.NoError(t, err)
	defer author.Close()
	r := start(t, map[string]string{"TMPDIR": tmp, "ANSIBLE_DIR": dir}, "sh", "-c", `exec "$0" run "$1" --playbook course <"$2"`, diskforge(t), base, keys)
	said := 0
	until := func(words string) { // standard output says that once more, and waits for a key
		require.Eventually(t, func() bool {
			_, rest, _ := strings.Cut(r.stdout.String()[said:], words)
			if strings.Contains(rest, "next ") {
				said = len(r.stdout.String())
				return true
			}
			return false
		}, 30*time.Minute, time.Second, words)
	}
	runs := func() string {
		_, rest, _ := strings.Cut(r.stdout.String(), "ssh ")
		ssh, _, _ := strings.Cut(rest, "\n")
		args := append(strings.Fields(ssh), "cat", "/etc/runs")
		out, err := exec.Command(args[0], args[1:]...).Output()
		require.NoError(t, err)
		return string(out)
	}
	press := func(key string) {
		_, err := author.WriteString(key + "\n")
		require.NoError(t, err)
	}
	until("2 checks failed")
	assert.Equal(t, "run\n", runs())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "course.yml"), []byte("- hosts: all\n  tasks:\n    - no.such.module:\n"), 0o644))
	press("")
	until("refuses the playbook")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "course.yml"), fmt.Appendf(nil, counting, "second"), 0o644))
	press("")
	until("all 2 hold")
	assert.Equal(t, "run\nrun\n", runs())
	press("r")
	until("all 2 hold")
	assert.Equal(t, "run\n", runs(), "it went back to the guest before the first run")
	press("q")
	assert.Zero(t, r.wait(time.Minute), r.errors())
	assert.Empty(t, files(t, tmp))
	assert.Empty(t, processes(tmp))
}

// leaving is a playbook that leaves what must not be published.
const leaving = `
- hosts: all
  become: true
  gather_facts: false
  tasks:
    - name: Leave a private key
      ansible.builtin.copy: {content: %q, dest: /opt/deploy.key, mode: "0600"}
    - name: Leave a file that everybody may write
      ansible.builtin.copy: {content: answers, dest: /opt/answers, mode: "0666"}
`

func TestWhatAPlaybookLeftIsNamedAndNotPublished(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})

	address := registry(t)
	out := t.TempDir()
	env := with(fromPackages(out, tree(t, fmt.Sprintf(leaving, text))), "TARGET_REGISTRY", address, "REGISTRY_PREFIX", "labs",
		"IMAGE_NAME", "course", "IMAGE_TAG", "nightly", "REGISTRY_USER", "me", "REGISTRY_PASS", secret)
	r := start(t, env, diskforge(t), "build")
	assert.Equal(t, 1, r.wait(time.Hour), r.errors())
	assert.Contains(t, errorLines(r), "hygiene: ")
	assert.Empty(t, r.stdout.String())
	told := readReport(t, out)
	assert.Equal(t, report.Failed, told.Outcome)
	for _, want := range []string{"hygiene private-keys: /opt/deploy.key", "hygiene world-writable: /opt/answers"} {
		assert.Contains(t, strings.Join(failed(told), "\n"), want)
		_, file, _ := strings.Cut(want, ": ")
		assert.Contains(t, r.errors(), file)
	}
	notPublished(t, address, "course")
}

// ubuntu are the settings of a base from DISKFORGE_TEST_UBUNTU, Ubuntu's cloud
// image.
func ubuntu(t *testing.T) map[string]string {
	t.Helper()
	path := os.Getenv("DISKFORGE_TEST_UBUNTU")
	if path == "" {
		t.Skip("SKIPPED, nothing was tested: DISKFORGE_TEST_UBUNTU names no cloud image")
	}
	return local(t, path)
}

func TestTheShippedBasesMakeImagesThatPassEverything(t *testing.T) {
	for _, c := range []struct{ playbook, desktop, mode string }{
		{"debian-base", "false", "true"}, {"debian-base", "true", "true"}, {"debian-base", "true", "false"},
		{"ubuntu-base", "false", "true"}, {"ubuntu-base", "true", "true"},
	} {
		t.Run(strings.Join([]string{c.playbook, "desktop", c.desktop, "for a lab", c.mode}, " "), func(t *testing.T) {
			base := map[string]string{"BASE_FROM_PACKAGES": "true"}
			if strings.HasPrefix(c.playbook, "ubuntu") {
				base = ubuntu(t)
			}
			stageByStage(t, with(base, "ANSIBLE_PLAYBOOK", c.playbook, "INSTALL_DESKTOP_ENVIRONMENT", c.desktop, "CROWNLABS_MODE", c.mode))
		})
	}
}

// The courses take hours without KVM.
func TestEveryCourseOfTheCatalogueIsBuilt(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(root(t), "deploy", "catalogue.yaml"))
	require.NoError(t, err)
	out, catalogue := t.TempDir(), filepath.Join(t.TempDir(), "catalogue.yaml")
	base := regexp.MustCompile(`base: &cloud-image\n.*\n.*\n`)
	require.Regexp(t, base, string(content))
	of := func(release string, further ...string) {
		text := base.ReplaceAllString(string(content), "base: &cloud-image {packages: "+release+"}\n")
		text = strings.NewReplacer(append(further, "registry: harbor.example.org\nprefix: crownlabs-containerdisks\n", "")...).Replace(text)
		require.NoError(t, os.WriteFile(catalogue, []byte(text), 0o644))
	}
	of("trixie")
	env := map[string]string{"OUTPUT_DIR": out}
	if planned := start(t, env, diskforge(t), "plan", "--catalogue", catalogue); planned.wait(5*time.Minute) != 0 {
		// Debian 12's Ansible cannot manage Debian 13, and Debian 12 has no kind.
		of("bookworm", ", kubernetes-lab", "")
	}
	r := start(t, env, diskforge(t), "build-all", "--catalogue", catalogue)
	require.Zero(t, r.wait(8*time.Hour), r.errors())
}

// stageByStage makes a disk and verifies it with everything that verify can do.
func stageByStage(t *testing.T, env map[string]string) {
	t.Helper()
	dir := t.TempDir()
	with(env, "OUTPUT_DIR", dir)
	provisioned, disk := filepath.Join(dir, "provisioned.qcow2"), filepath.Join(dir, "disk.qcow2")
	for _, args := range [][]string{
		{"provision", "-o", provisioned}, {"sparsify", provisioned, "-o", disk},
		{"verify", "--full", disk}, {"report", disk, "-o", dir},
	} {
		r := start(t, env, diskforge(t), args...)
		require.Zero(t, r.wait(2*time.Hour), r.errors())
	}
	told := readReport(t, dir)
	assert.Equal(t, report.Verified, told.Outcome)
	assert.Empty(t, failed(told))
	assert.Subset(t, groups(told), []string{"hygiene", "boot", "playbook"})
	ended(t, dir)
}
