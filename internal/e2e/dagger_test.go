//go:build e2e

package e2e

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// These tests drive a real Dagger engine. The first build takes minutes there;
// all others re-use its stages. DISKFORGE_BASE_IMAGE and DISKFORGE_GO_IMAGE
// name the toolbox's images where the pinned ones cannot be pulled.

// longest is what a call of the engine may take.
const longest = time.Hour

// daggerCLI is the dagger program that belongs to the engine under test. The
// test is skipped where there is no engine.
func daggerCLI(t *testing.T) string {
	t.Helper()
	if os.Getenv("_EXPERIMENTAL_DAGGER_RUNNER_HOST") == "" {
		t.Skip("SKIPPED, nothing was tested: no Dagger engine here; name one in _EXPERIMENTAL_DAGGER_RUNNER_HOST")
	}
	if cli := os.Getenv("_EXPERIMENTAL_DAGGER_CLI_BIN"); cli != "" {
		return cli
	}
	cli, err := exec.LookPath("dagger")
	require.NoError(t, err, "an engine is named, but there is no dagger program")
	return cli
}

// call starts a call of the module in this checkout.
func call(t *testing.T, env map[string]string, args ...string) *run {
	t.Helper()
	all := []string{"call", "--progress=plain"}
	for variable, flag := range map[string]string{"DISKFORGE_BASE_IMAGE": "--base-image", "DISKFORGE_GO_IMAGE": "--go-image", "DISKFORGE_APT_MIRROR": "--apt-mirror"} {
		if v := os.Getenv(variable); v != "" {
			all = append(all, flag+"="+v)
		}
	}
	return start(t, env, daggerCLI(t), append(all, args...)...)
}

// succeed waits for the call's end and returns what it printed.
func succeed(t *testing.T, r *run) string {
	t.Helper()
	require.Zero(t, r.wait(longest), r.errors())
	assert.NotContains(t, r.errors(), secret)
	return strings.TrimSpace(r.stdout.String())
}

// refuse waits for the call's end, which must be a failure, and returns the
// line that says why.
func refuse(t *testing.T, r *run) string {
	t.Helper()
	require.NotZero(t, r.wait(longest), r.stdout.String())
	assert.NotContains(t, r.errors(), secret)
	for line := range strings.Lines(r.errors()) {
		if why, ok := strings.CutPrefix(strings.TrimSpace(line), "Error: "); ok {
			return why
		}
	}
	t.Fatalf("no line says why:\n%s", r.errors())
	return ""
}

// demo is the build whose stages the tests share.
func demo(then ...string) []string {
	return append([]string{"build", "--base-from-packages", "--ansible-playbook=debian-base"}, then...)
}

func TestDaggerBuildsOnceAndPublishesWhatPackGives(t *testing.T) {
	dir := t.TempDir()
	began := time.Now()
	log := succeed(t, call(t, nil, demo("log")...))
	t.Logf("first build: %s", time.Since(began).Round(time.Second))
	for _, stage := range []string{"base", "provision", "sparsify", "verify"} {
		assert.Contains(t, log, "done stage="+stage)
	}
	began = time.Now()
	assert.Equal(t, log, succeed(t, call(t, nil, demo("log")...)), "the second build ran a stage again")
	t.Logf("second build: %s", time.Since(began).Round(time.Second))

	address := registry(t)
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	publish := func(tag, password string) *run {
		return call(t, map[string]string{"E2E_PASSWORD": password}, append(login(address), demo("publish", "--image=labs/dagger:"+tag)...)...)
	}
	assert.Contains(t, refuse(t, publish("one", "wrong")), "push: ")
	me := &authn.Basic{Username: "me", Password: secret}
	at := func(tag string) name.Reference {
		ref, err := name.ParseReference(address + "/labs/dagger:" + tag)
		require.NoError(t, err)
		return ref
	}
	_, err = remote.Head(at("one"), remote.WithAuth(me))
	assert.Error(t, err, "a wrong password published something")

	disk := filepath.Join(dir, "disk.qcow2")
	succeed(t, call(t, nil, demo("disk", "export", "--path="+disk)...))
	succeed(t, call(t, nil, demo("record", "export", "--path="+disk+".json")...))
	succeed(t, call(t, nil, demo("report", "export", "--path="+dir)...))
	reports(t, dir)
	for _, tag := range []string{"one", "two"} {
		began = time.Now()
		reference := succeed(t, publish(tag, secret))
		t.Logf("publish %s: %s", tag, time.Since(began).Round(time.Second))
		packed := start(t, nil, diskforge(t), "pack", disk, "-o", filepath.Join(dir, tag),
			"--target-registry=registry:"+port, "--registry-prefix=labs", "--image-name=dagger", "--image-tag="+tag)
		require.Zero(t, packed.wait(5*time.Minute), packed.errors())
		_, digest, _ := strings.Cut(packed.lastLine(), "@")
		assert.Equal(t, "registry:"+port+"/labs/dagger:"+tag+"@"+digest, reference)

		image, err := remote.Image(at(tag), remote.WithAuth(me))
		require.NoError(t, err)
		got, err := image.Digest()
		require.NoError(t, err)
		assert.Equal(t, digest, got.String())
		checkContract(t, image)
		inspected := succeed(t, call(t, map[string]string{"E2E_PASSWORD": secret}, append(login(address), "inspect", "--ref=registry:"+port+"/labs/dagger:"+tag)...))
		assert.Contains(t, inspected, digest)
		assert.Empty(t, holdsSecret(t, filepath.Join(dir, tag)), "the published image is the packed one")
	}
	assert.Equal(t, log, succeed(t, call(t, nil, demo("log")...)), "a new tag ran a stage again")
}

// login are the arguments with which the module reaches the registry on this
// host's loopback as registry:PORT; E2E_PASSWORD has the password.
func login(address string) []string {
	_, port, _ := strings.Cut(address, ":")
	return []string{"with-registry", "--host=registry:" + port, "--user=me", "--pass=env://E2E_PASSWORD", "--insecure", "--service=tcp://" + address}
}

// reports checks the report in a directory: that every stage and every gate
// is told of, and that there is a picture.
func reports(t *testing.T, dir string) {
	t.Helper()
	r := readReport(t, dir)
	assert.NotEmpty(t, r.Pictures)
	assert.Empty(t, failed(r))
	for _, ran := range []string{"base", "provision", "sparsify", "verify", "hygiene"} {
		assert.NotEmpty(t, stage(t, r, ran).Result, ran)
	}
	assert.Subset(t, groups(r), []string{"hygiene", "boot", "playbook"})
}

// fleet is a catalogue of a base and of what starts from it: a course, and one
// that leaves a private key on its disk. No playbook may see the registry's
// password.
var fleet = map[string]string{
	"catalogue.yaml": `images:
  - name: base
    base: {packages: trixie}
    playbook: debian-base
    tags: [v1]
  - name: "{playbook}"
    matrix: {playbook: [course, leaky]}
    from: base
    ansible-dir: lab
    playbook: "{playbook}.yml"
    tags: [v1]
`,
	"lab/course.yml": withoutPassword + `
    - name: Leave a mark
      ansible.builtin.copy: {dest: /etc/course, content: "course\n", mode: "0644"}
`,
	"lab/leaky.yml": withoutPassword + `
    - name: Leave a private key
      ansible.builtin.command: {cmd: ssh-keygen -q -t ed25519 -N "" -f /etc/leaked.pem, creates: /etc/leaked.pem}
`,
}

const withoutPassword = `- hosts: all
  become: true
  gather_facts: false
  tasks:
    - name: Look for the password of the registry
      ansible.builtin.command: sh -c '! test -e /run/diskforge/registry-password && ! env | grep -i registry'
      delegate_to: localhost
      become: false
      changed_when: false
`

func TestDaggerBuildsACatalogueOnceAndPublishesWhatIsClean(t *testing.T) {
	daggerCLI(t)
	source := t.TempDir()
	for file, text := range fleet {
		path := filepath.Join(source, file)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	address := registry(t)
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	at := "registry:" + port + "/fleet/"
	all := func(args ...string) *run {
		args = append(args[:1:1], append([]string{"--catalogue=" + source, "--set=REGISTRY_PREFIX=fleet"}, args[1:]...)...)
		return call(t, map[string]string{"E2E_PASSWORD": secret}, append(login(address), args...)...)
	}
	// summary is the state and the reference of each image.
	summary := func(r *run) map[string][]string {
		found := map[string][]string{}
		for line := range strings.Lines(succeed(t, r)) {
			words := strings.Fields(line)
			require.Len(t, words, 3, line)
			found[words[1]] = []string{words[0], words[2]}
		}
		return found
	}
	assert.Contains(t, succeed(t, all("plan", "text")), "3 images: 3 to build")

	built := summary(all("build-all", "--only=base", "--only=course", "summary"))
	for _, image := range []string{"base", "course"} {
		require.Len(t, built[image], 2)
		assert.Equal(t, "built", built[image][0])
		assert.True(t, strings.HasPrefix(built[image][1], at+image+":v1@sha256:"), built[image][1])
		inspect := append(login(address), "inspect", "--ref="+at+image+":v1")
		assert.Contains(t, succeed(t, call(t, map[string]string{"E2E_PASSWORD": secret}, inspect...)), "sha256:")
	}
	began := time.Now()
	for image, line := range summary(all("build-all", "--only=base", "--only=course", "summary")) {
		assert.Equal(t, "unchanged", line[0], image)
	}
	t.Logf("unchanged: %s", time.Since(began).Round(time.Second))
	for image, line := range summary(all("build-all", "--only=base", "--only=course", "--set=IMAGE_TAG=v2", "summary")) {
		assert.Equal(t, "tagged", line[0], image)
	}

	leaky := all("build-all", "--only=leaky", "summary") // its parent comes from the registry
	assert.Equal(t, "1 of 2 images failed", refuse(t, leaky))
	assert.Contains(t, leaky.errors(), "leaky: ")
	assert.Contains(t, leaky.errors(), "/etc/leaked.pem")
}

func TestDaggerEngineGivesTheProgramTheSameImage(t *testing.T) {
	cli := daggerCLI(t)
	dir := t.TempDir()
	archive := filepath.Join(dir, "image.tar")
	succeed(t, call(t, nil, demo("--set=IMAGE_NAME=same", "--set=IMAGE_TAG=1", "oci", "export", "--path="+archive)...))
	index, err := exec.Command("tar", "-xOf", archive, "./index.json").Output()
	require.NoError(t, err)
	var layout struct{ Manifests []struct{ Digest string } }
	require.NoError(t, json.Unmarshal(index, &layout))
	require.Len(t, layout.Manifests, 1)

	built := start(t, map[string]string{"OUTPUT_DIR": dir, "_EXPERIMENTAL_DAGGER_CLI_BIN": cli, "IMAGE_NAME": "same", "IMAGE_TAG": "1"},
		diskforge(t), "build", "--engine=dagger", "--base-from-packages", "--ansible-playbook=debian-base")
	require.Zero(t, built.wait(longest), built.errors())
	assert.Equal(t, "oci:"+dir+"/same@"+layout.Manifests[0].Digest, built.lastLine())
	assert.FileExists(t, filepath.Join(dir, "same", "index.json"))
	reports(t, dir)
}

// probe is a playbook that fails and tells who ran it.
const probe = `- hosts: all
  gather_facts: false
  tasks:
    - name: Look at the controller
      ansible.builtin.command: sh -c 'id -u; grep -E "^(CapEff|CapBnd|NoNewPrivs)" /proc/self/status; env; ls /run/diskforge'
      delegate_to: localhost
      become: false
      register: controller
    - name: Tell what it is
      ansible.builtin.fail:
        msg: "controller {{ controller.stdout_lines | join('|') }}"
`

func TestDaggerShowsTheFailedTaskOfAControllerWithoutRoot(t *testing.T) {
	daggerCLI(t)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "probe.yml"), []byte(probe), 0o600))
	r := call(t, map[string]string{"REGISTRY_PASS": secret}, "build", "--base-from-packages", "--ansible="+dir, "--ansible-playbook=probe.yml", "summary")
	why := refuse(t, r)
	assert.Contains(t, why, "provision: ")
	assert.Contains(t, why, "Tell what it is")
	assert.Contains(t, r.errors(), "controller 1000|")
	// Its bounding set is that of a user namespace of its own, and without new
	// privileges there is no way to any of it.
	assert.Regexp(t, `CapEff:(\\t|\s)+0000000000000000`, r.errors())
	assert.Regexp(t, `NoNewPrivs:(\\t|\s)+1`, r.errors())
	assert.NotContains(t, r.errors(), "REGISTRY_PASS")
	assert.NotContains(t, r.errors(), "--keep-on-error", "there is no guest to look into")
	assert.NotContains(t, r.errors(), "  log: /", "there is no log to look into")
}

func TestDaggerRefusesBadInputInOneLine(t *testing.T) {
	daggerCLI(t)
	dir := t.TempDir()
	noDisk := filepath.Join(dir, "base.qcow2")
	require.NoError(t, os.WriteFile(noDisk, []byte(strings.Repeat("no disk\n", 1000)), 0o600))
	for says, args := range map[string][]string{
		"choose one base image":                    {"build", "--ansible-playbook=debian-base", "--base=" + noDisk, "--iso-url=https://example.org/a.qcow2"},
		"ISO_URL: is not set":                      {"build", "--ansible-playbook=debian-base"},
		"base: ":                                   {"build", "--ansible-playbook=debian-base", "--base=" + noDisk, "log"},
		"KVM does not work here":                   demo("--set=ACCELERATOR=kvm", "log"),
		"--apt-mirror is no http or https address": {"--apt-mirror=ftp://a", "toolbox"},
	} {
		if says == "KVM does not work here" && kvmWorks(t) {
			continue
		}
		assert.Contains(t, refuse(t, call(t, nil, args...)), says)
	}
}

func TestDaggerTellsWhatTheArgumentsTellBeforeItMakesAnything(t *testing.T) {
	daggerCLI(t)
	publish := func(args ...string) []string { return append(args, demo("publish", "--image=a:1")...) }
	fresh := "--refresh=" + time.Now().Format(time.RFC3339Nano) // nothing of such a toolbox is in the engine
	for says, args := range map[string][]string{
		`MEMORY: "lots" is no amount of memory`:                 demo("--set=MEMORY=lots", "log"),
		`DISK_SIZE: "10X"`:                                      demo("--set=DISK_SIZE=10X", "log"),
		`there is no playbook "nonexistent"`:                    {"build", "--base-from-packages", "--ansible-playbook=nonexistent", "log"},
		"there is no registry to publish to":                    demo("publish", "--image=labs/a:1"),
		"ISO_CHECKSUM":                                          {"build", "--ansible-playbook=debian-base", "--iso-url=https://example.org/a.qcow2", "log"},
		`ACCELERATOR: "hvf" is not known`:                       {"build-all", "--catalogue=" + catalogueOf(t), "--set=ACCELERATOR=hvf", "summary"},
		"the catalogue's folder has no such file":               {"plan", "--catalogue=" + t.TempDir(), "text"},
		"SHA256SUMS":                                            {"build", "--ansible-playbook=debian-base", "--iso-url=https://localhost:1/a", "--iso-checksum=file:https://localhost:1/SHA256SUMS", "log"},
		"--pass is not given":                                   publish("with-registry", "--host=registry:5000", "--user=me"),
		"set the variable that env:// names":                    publish("with-registry", "--host=registry:5000", "--user=me", "--pass=env://E2E_NOT_SET"),
		"IMAGE_TAG":                                             demo("--set=IMAGE_NAME=a", "--set=IMAGE_TAG=a b", "layout"),
		"give PREFIX/NAME:TAG":                                  {"with-registry", "--host=registry:5000", "build", "--base-from-packages", "--ansible-playbook=debian-base", "publish", "--image=labs/a"},
		"cannot be virt-sparsify":                               demo("--set=SPARSIFY=virt-sparsify", "log"),
		"MEMORI is no setting of build":                         demo("--set=MEMORI=1", "log"),
		"REGISTRY_USER is the registry's business":              demo("--set=REGISTRY_USER=me", "log"),
		"ANSIBLE_DIR names what is on your host, which an engi": demo("--set=ANSIBLE_DIR=.", "log"),
	} {
		r := call(t, nil, append([]string{fresh}, args...)...)
		assert.Contains(t, refuse(t, r), says)
		assert.NotContains(t, r.errors(), "mmdebstrap", "%s: a base was made first", says)
		assert.NotContains(t, r.errors(), "qemu-system-x86", "%s: the toolbox was made first", says)
	}
}

// catalogueOf is a folder with a catalogue.
func catalogueOf(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "catalogue.yaml"), []byte(fleet["catalogue.yaml"]), 0o644))
	return dir
}

func TestDaggerEngineThatDoesNotAnswerIsNamed(t *testing.T) {
	cli := daggerCLI(t)
	r := start(t, map[string]string{"OUTPUT_DIR": t.TempDir(), "_EXPERIMENTAL_DAGGER_CLI_BIN": cli, "_EXPERIMENTAL_DAGGER_RUNNER_HOST": "unix:///nowhere/engine.sock"},
		diskforge(t), "build", "--engine=dagger", "--base-from-packages", "--ansible-playbook=debian-base")
	assert.Equal(t, 1, r.wait(5*time.Minute))
	assert.Contains(t, r.errors(), "diskforge: no Dagger engine answers at unix:///nowhere/engine.sock: ")
}
