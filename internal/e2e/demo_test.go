//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/report"
)

// The tests of this package share two cores, so they run one after another;
// they boot five guests in all. This one is the README's first command, from
// a clean checkout to a registry, killed in the middle and started again.
func TestTheDemoSurvivesKillAndPublishesWhatItBooted(t *testing.T) {
	address := registry(t)
	out := t.TempDir()
	env := map[string]string{
		"OUTPUT_DIR": out, "TARGET_REGISTRY": address, "REGISTRY_PREFIX": "labs", "IMAGE_TAG": "e2e",
		"REGISTRY_USER": "me", "REGISTRY_PASS": secret, "EXTRA_VARS": demoVariables, "OUTPUTS": "containerdisk,raw.zst",
	}
	demo := filepath.Join(root(t), ".ci", "task")

	first := start(t, env, demo, "demo")
	first.await(30*time.Minute, "starting Ansible")
	listening := listeners(t, out)
	assert.NotEmpty(t, listening, "the guest's ssh is forwarded from this host")
	for _, address := range listening {
		assert.True(t, onLoopback(address), "a build listens on %s", address)
	}
	second := start(t, env, diskforge(t), "build", "--base-from-packages", "--ansible-playbook", "debian-base", "--image-name", "other")
	assert.Equal(t, 1, second.wait(time.Minute), "two builds in one OUTPUT_DIR")
	assert.Contains(t, second.errors(), "another")

	first.await(20*time.Minute, "started", "stage=sparsify")
	killed := running(diskforge(t), out)
	require.NotEmpty(t, killed)
	for _, p := range killed {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
	assert.NotZero(t, first.wait(time.Minute))
	ended(t, out)
	aFindingStops(t, env)

	again := start(t, env, demo, "demo")
	require.Zero(t, again.wait(20*time.Minute), again.errors())
	assert.Contains(t, again.errors(), "done before", "the finished stage is not run again")
	ended(t, out)

	checkContract(t, pull(t, address, again.lastLine()))
	told := readReport(t, out)
	tellsAll(t, told, again.lastLine())
	for ran, reused := range map[string]bool{"provision": true, "verify": true, "hygiene": false, "push": false} {
		assert.Equal(t, reused, stage(t, told, ran).Reused, ran)
	}
	assert.Empty(t, holdsSecret(t, out))
	assert.NotContains(t, first.errors()+again.errors()+again.stdout.String(), planted)
	debug, err := os.ReadFile(filepath.Join(out, "work", "logs", "provision", "packer-debug.log"))
	require.NoError(t, err)
	assert.NotEmpty(t, debug)
	for _, file := range files(t, out) {
		assert.NotContains(t, file, ".qcow2", "the layout has the disk: no other copy stays")
	}
	sums := exec.Command("sha256sum", "--check", "--strict", "diskforge-demo.SHA256SUMS")
	sums.Dir = out
	checked, err := sums.CombinedOutput()
	require.NoError(t, err, "%s", checked)
	require.Len(t, told.Files, 1)
	assert.Equal(t, "diskforge-demo.raw.zst", told.Files[0].Name)
	othersFindIt(t, address, again.lastLine(), filepath.Join(out, "diskforge-demo"), told.Base.Guest)
}

// demoVariables are given to the demo's playbook, which reads none of them.
const demoVariables = `{"course": "databases", "course_password": "` + secretVariable + `"}`

// aFindingStops goes on with the demo as a user whose password stands on the
// disk: that is found, and nothing is published.
func aFindingStops(t *testing.T, env map[string]string) {
	t.Helper()
	env = with(maps.Clone(env), "REGISTRY_USER", careless, "REGISTRY_PASS", carelessSecret)
	r := start(t, env, diskforge(t), "build", "--base-from-packages", "--ansible-playbook", "debian-base", "--image-name", "diskforge-demo")
	assert.Equal(t, 1, r.wait(20*time.Minute), r.errors())
	assert.Empty(t, r.stdout.String())
	assert.Contains(t, errorLines(r), "hygiene: ")
	assert.Contains(t, r.errors(), "/usr/lib/os-release")
	assert.NotContains(t, r.errors(), carelessSecret)
	ended(t, env["OUTPUT_DIR"])

	told := readReport(t, env["OUTPUT_DIR"])
	assert.Equal(t, report.Failed, told.Outcome)
	assert.NotEmpty(t, told.Failure)
	require.NotEmpty(t, failed(told))
	for _, line := range failed(told) {
		assert.Contains(t, line, "hygiene build-secrets: ")
	}
	assert.NoDirExists(t, filepath.Join(env["OUTPUT_DIR"], "diskforge-demo"))
	notPublished(t, env["TARGET_REGISTRY"], "diskforge-demo")
}

// othersFindIt looks at the published image with the other commands: push,
// inspect, images list, and build-all, for which it is not to be built again.
func othersFindIt(t *testing.T, address, reference, layout, guest string) {
	t.Helper()
	login := map[string]string{"REGISTRY_USER": "me", "REGISTRY_PASS": secret}
	succeeds := func(args ...string) *run {
		r := start(t, login, diskforge(t), args...)
		require.Zero(t, r.wait(time.Minute), r.errors())
		return r
	}
	pushed := succeeds("push", layout) // where it was packed for
	assert.Equal(t, reference, pushed.lastLine(), "a second push changes nothing")

	_, digest, _ := strings.Cut(reference, "@")
	assert.Equal(t, digest, inspected(t, nil, layout).Digest)
	published := inspected(t, login, reference)
	assert.Equal(t, &disk.Firmware{BIOS: true, UEFI: true, SecureBoot: true}, published.Disk.Firmware)
	assert.Equal(t, digest, published.Digest)
	assert.Positive(t, published.BytesRead)
	assert.LessOrEqual(t, published.BytesRead, int64(2<<20))

	var entry struct {
		Repository, Digest string
		Tags               []string
	}
	require.NoError(t, json.Unmarshal(succeeds("images", "list", "--json", address+"/labs").stdout.Bytes(), &entry))
	assert.Equal(t, []any{address + "/labs/diskforge-demo", digest, []string{"e2e"}}, []any{entry.Repository, entry.Digest, entry.Tags})

	suite := map[string]string{"Debian 12": "bookworm", "Debian 13": "trixie"}[guest]
	dir := t.TempDir()
	catalogue, variables := filepath.Join(dir, "catalogue.yaml"), filepath.Join(dir, "variables.json")
	require.NoError(t, os.WriteFile(variables, []byte(demoVariables), 0o600))
	require.NoError(t, os.WriteFile(catalogue, fmt.Appendf(nil, `
registry: %s
prefix: labs
images:
  - {name: diskforge-demo, tags: [e2e], base: {packages: %s}, playbook: debian-base, vars: variables.json}
`, address, suite), 0o600))
	all := succeeds("build-all", "--catalogue", catalogue, "--output-dir", filepath.Join(dir, "out"))
	assert.Equal(t, reference, all.lastLine())
	assert.Equal(t, map[string]int{"skipped": 1}, counts(t, filepath.Join(dir, "out")))

	require.NoError(t, os.WriteFile(variables, []byte(`{"course": "networks"}`), 0o600))
	var plan struct{ Images []struct{ Action string } }
	require.NoError(t, json.Unmarshal(succeeds("plan", "--catalogue", catalogue, "--format", "json").stdout.Bytes(), &plan))
	require.Len(t, plan.Images, 1)
	assert.Equal(t, "build", plan.Images[0].Action, "a variable has changed")
}

// pull fetches the published image by the digest that the program printed.
func pull(t *testing.T, address, reference string) v1.Image {
	t.Helper()
	require.True(t, strings.HasPrefix(reference, address+"/labs/diskforge-demo:e2e@sha256:"), reference)
	_, digest, _ := strings.Cut(reference, "@")
	ref, err := name.NewDigest(address + "/labs/diskforge-demo@" + digest)
	require.NoError(t, err)
	image, err := remote.Image(ref, remote.WithAuth(&authn.Basic{Username: "me", Password: secret}))
	require.NoError(t, err)
	return image
}

// contract checks what KubeVirt and CDI ask of a containerdisk.
func checkContract(t *testing.T, image v1.Image) {
	t.Helper()
	// Fast: the whole check knows no layers but gzip; pulling compares digests.
	require.NoError(t, validate.Image(image, validate.Fast))
	config, err := image.ConfigFile()
	require.NoError(t, err)
	assert.Equal(t, "linux", config.OS)
	assert.Equal(t, "amd64", config.Architecture)
	assert.Contains(t, config.Config.Env, "INSTANCETYPE_KUBEVIRT_IO_DEFAULT_PREFERENCE=debian", "it means UEFI, by which this disk starts, too")
	manifest, err := image.Manifest()
	require.NoError(t, err)
	require.Len(t, manifest.Layers, 1)
	assert.Equal(t, "application/vnd.oci.image.layer.v1.tar", string(manifest.Layers[0].MediaType))
	for _, key := range []string{"created", "title", "version", "revision", "base.digest"} {
		assert.NotEmpty(t, manifest.Annotations["org.opencontainers.image."+key], key)
	}
	assert.NotEmpty(t, oci.BaseName(manifest.Annotations))
	layers, err := image.Layers()
	require.NoError(t, err)
	layer, err := layers[0].Uncompressed()
	require.NoError(t, err)
	defer layer.Close()
	archive := tar.NewReader(layer)
	folder, err := archive.Next()
	require.NoError(t, err)
	assert.Equal(t, []any{"disk/", 107, 107, int64(0o555)}, []any{folder.Name, folder.Uid, folder.Gid, folder.Mode & 0o777})
	file, err := archive.Next()
	require.NoError(t, err)
	assert.Equal(t, []any{"disk/disk.qcow2", 107, 107, int64(0o444)}, []any{file.Name, file.Uid, file.Gid, file.Mode & 0o777})
	hash := sha256.New()
	_, err = io.Copy(hash, archive)
	require.NoError(t, err)
	assert.Equal(t, "sha256:"+hex.EncodeToString(hash.Sum(nil)), manifest.Annotations["io.github.netgroup-polito.diskforge.disk.digest"])
	_, err = archive.Next()
	assert.Equal(t, io.EOF, err, "one disk, nothing else")
}

func TestAFailedTaskIsNamedAndNothingIsPublished(t *testing.T) {
	address := registry(t)
	out := t.TempDir()
	env := fromPackages(out, tree(t, `
- hosts: all
  gather_facts: false
  become: true
  tasks:
    - name: The original's variables are the text that its playbooks compare with
      ansible.builtin.assert:
        that: ["crownlabs_mode == 'true'", "install_desktop_environment == 'false'"]
    - name: The processor has what is built for x86-64-v2
      ansible.builtin.command: grep -qw sse4_2 /proc/cpuinfo
    - name: An ordinary user can be become, which takes acl
      ansible.builtin.setup: {gather_subset: ["!all", "!min", user]}
      become_user: daemon
    - name: Install the course's database
      ansible.builtin.command: sh -c "echo no such database >&2; exit 7"
`))
	for k, v := range map[string]string{"TARGET_REGISTRY": address, "REGISTRY_PREFIX": "labs", "IMAGE_NAME": "course", "IMAGE_TAG": "e2e", "REGISTRY_USER": "me", "REGISTRY_PASS": secret} {
		env[k] = v
	}
	r := start(t, env, diskforge(t), "build", "--json")
	require.Equal(t, 1, r.wait(20*time.Minute), r.errors())
	for line := range strings.Lines(r.errors()) {
		assert.True(t, json.Valid([]byte(line)), line)
	}
	assert.Contains(t, r.errors(), "Install the course's database")
	assert.Contains(t, r.errors(), "no such database")
	assert.Empty(t, r.stdout.String())
	ended(t, out)
	onlyLogsIn(t, out)
	assert.Equal(t, report.Failed, readReport(t, out).Outcome)
	notPublished(t, address, "course")
}

// onlyLogsIn checks that an unfinished build left its logs and nothing else.
func onlyLogsIn(t *testing.T, out string) {
	t.Helper()
	for _, f := range files(t, out) {
		assert.True(t, strings.HasPrefix(f, "work/logs/") || strings.HasPrefix(f, "work/playbooks/") || !strings.Contains(strings.TrimPrefix(f, "work/"), "/"), "left over: %s", f)
		assert.NotContains(t, f, ".qcow2", "left over")
	}
}

func TestSIGTERMDuringTheBootLeavesNothing(t *testing.T) {
	out := t.TempDir()
	r := start(t, fromPackages(out, tree(t, "- hosts: all\n")), diskforge(t), "build")
	r.await(20*time.Minute, "stage=provision", "kernel")
	require.NotEmpty(t, processes(out))
	require.NoError(t, r.cmd.Process.Signal(syscall.SIGTERM))
	assert.Equal(t, 143, r.wait(time.Minute))
	assert.Contains(t, r.errors(), "stopped by SIGTERM")
	ended(t, out)
	onlyLogsIn(t, out)
}

func TestAGuestWhoseSSHNeverComesShowsItsConsole(t *testing.T) {
	disk := bytes.Repeat([]byte{0}, 64<<20)
	copy(disk[446:], []byte{0x80, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0xe8, 1, 0}) // a partition, but no boot loader
	copy(disk[510:], []byte{0x55, 0xaa})
	path := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, disk, 0o644))
	sum := sha256.Sum256(disk)
	out := t.TempDir()
	env := fromPackages(out, tree(t, "- hosts: all\n"))
	delete(env, "BASE_FROM_PACKAGES")
	env["ISO_URL"], env["ISO_CHECKSUM"], env["BOOT_TIMEOUT"] = path, hex.EncodeToString(sum[:]), "40s"
	r := start(t, env, diskforge(t), "build")
	assert.Equal(t, 1, r.wait(5*time.Minute))
	assert.Contains(t, r.errors(), "provision:")
	assert.Contains(t, r.errors(), "console")
	ended(t, out)
	onlyLogsIn(t, out)
}
