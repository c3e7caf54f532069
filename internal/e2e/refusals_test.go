//go:build e2e

package e2e

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// blank writes a disk image with qemu-img and returns its settings.
func blank(t *testing.T, args ...string) map[string]string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	out, err := exec.Command("qemu-img", append(append([]string{"create", "-q"}, args...), path, "1G")...).CombinedOutput()
	require.NoError(t, err, string(out))
	return local(t, path)
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	return path
}

func TestBadInputIsRefusedWithOneClearLine(t *testing.T) {
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	other := filepath.Join(t.TempDir(), "other.raw")
	require.NoError(t, os.WriteFile(other, make([]byte, 1<<20), 0o644))
	playbooks := tree(t, "- hosts: all\n")
	zeros := strings.Repeat("0", 64)
	truncated := blank(t, "-f", "qcow2", "-o", "preallocation=full")
	require.NoError(t, os.Truncate(truncated["ISO_URL"], 300<<10))
	truncated = local(t, truncated["ISO_URL"])

	for name, c := range map[string]struct {
		env  map[string]string
		says []string // all of them, in the error's lines
	}{
		"no base":            {map[string]string{}, []string{"ISO_URL", "--base-from-packages"}},
		"no checksum":        {map[string]string{"ISO_URL": "https://127.0.0.1/x"}, []string{"ISO_CHECKSUM"}},
		"a forbidden one":    {map[string]string{"ISO_URL": "https://127.0.0.1/x", "ISO_CHECKSUM": "md5:" + zeros[:32]}, []string{"ISO_CHECKSUM", "md5"}},
		"a wrong checksum":   {with(blank(t, "-f", "qcow2"), "ISO_CHECKSUM", zeros), []string{"base:", zeros}},
		"404":                {map[string]string{"ISO_URL": web.URL + "/x.qcow2", "ISO_CHECKSUM": zeros}, []string{"base:", "404", "/x.qcow2"}},
		"no disk image":      {local(t, write(t, "page.html", "<html>log in first</html>")), []string{"base:"}},
		"a truncated qcow2":  {truncated, []string{"base:", "truncated"}},
		"a backing file":     {blank(t, "-f", "qcow2", "-b", other, "-F", "raw"), []string{"base:", "backing file"}},
		"a data file":        {blank(t, "-f", "qcow2", "-o", "data_file="+other+".data"), []string{"base:", "data file"}},
		"VMDK":               {blank(t, "-f", "vmdk"), []string{"base:", "VMDK"}},
		"no package":         {map[string]string{"BASE_FROM_PACKAGES": "true", "SUITE": "bookworm", "PACKAGES": "octave,kind", "ANSIBLE_DIR": "", "ANSIBLE_PLAYBOOK": ""}, []string{"packages: Debian's bookworm (main) has no package kind", "trixie has kind"}},
		"no output":          {map[string]string{"OUTPUTS": "ova,vhd"}, []string{"OUTPUTS", "vhd", "containerdisk, qcow2, raw.zst, ova"}},
		"no memory":          {map[string]string{"MEMORY": "lots"}, []string{"MEMORY", "lots"}},
		"unknown playbook":   {map[string]string{"BASE_FROM_PACKAGES": "1", "ANSIBLE_PLAYBOOK": "curse"}, []string{"playbook:", "curse", "course"}},
		"outside the tree":   {map[string]string{"BASE_FROM_PACKAGES": "1", "ANSIBLE_PLAYBOOK": "../course.yml"}, []string{"playbook:", "../course.yml"}},
		"unreachable git":    {map[string]string{"BASE_FROM_PACKAGES": "1", "ANSIBLE_DIR": "", "GIT_ANSIBLE_URL": "file:///no/such/repository"}, []string{"playbook:", "/no/such/repository"}},
		"unknown branch":     {map[string]string{"BASE_FROM_PACKAGES": "1", "ANSIBLE_DIR": "", "GIT_ANSIBLE_URL": "file://" + root(t), "GIT_ANSIBLE_BRANCH": "no-such-branch"}, []string{"playbook:", "no-such-branch"}},
		"refused syntax":     {map[string]string{"BASE_FROM_PACKAGES": "1", "ANSIBLE_DIR": tree(t, "- hosts: all\n  tasks:\n    - ansible.builtin.debug:\n      ansible.builtin.command: id\n")}, []string{"playbook:", "course.yml"}},
		"a bad IMAGE_NAME":   {map[string]string{"BASE_FROM_PACKAGES": "1", "IMAGE_NAME": "Course Image"}, []string{"IMAGE_NAME"}},
		"KVM that is broken": {map[string]string{"BASE_FROM_PACKAGES": "1", "ACCELERATOR": "kvm"}, []string{"accel:", "KVM"}},
		"no such registry":   {map[string]string{"BASE_FROM_PACKAGES": "1", "TARGET_REGISTRY": "127.0.0.1:9", "IMAGE_NAME": "x", "IMAGE_TAG": "1"}, []string{"registry:", "127.0.0.1:9"}},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "KVM that is broken" && kvmWorks(t) {
				t.Skip("KVM works on this host")
			}
			out := t.TempDir()
			env := with(map[string]string{"OUTPUT_DIR": out, "ANSIBLE_DIR": playbooks, "ANSIBLE_PLAYBOOK": "course"})
			for k, v := range c.env {
				env[k] = v
			}
			r := start(t, env, diskforge(t), "build")
			assert.NotZero(t, r.wait(2*time.Minute))
			for _, words := range c.says {
				assert.Contains(t, errorLines(r), words)
			}
			assert.Empty(t, r.stdout.String())
			ended(t, out)
			onlyLogsIn(t, out)
		})
	}
}

func TestABadCatalogueIsRefusedWithOneClearLine(t *testing.T) {
	const (
		base  = `base: {url: "https://example.org/debian.qcow2", checksum: "sha256:` + "0000000000000000000000000000000000000000000000000000000000000000" + `"}`
		good  = "images:\n  - {name: one, " + base + ", playbook: debian-base}\n"
		usage = 2
	)
	nowhere := filepath.Join(write(t, "file", ""), "out")
	for name, c := range map[string]struct {
		catalogue string
		env       map[string]string
		args      []string
		code      int
		says      []string
		buildOnly bool
	}{
		"no YAML":                     {"images: [", nil, nil, usage, []string{"catalogue.yaml:1: "}, false},
		"an unknown key":              {"images:\n  - {naem: one, name: two, " + base + ", playbook: p}\n", nil, nil, usage, []string{`catalogue.yaml:2: "naem"`, "did you mean name?"}, false},
		"a cycle":                     {"images:\n  - {name: one, from: two, playbook: p}\n  - {name: two, from: one, playbook: p}\n", nil, nil, usage, []string{"catalogue.yaml:2: ", "one (line 2) is from two (line 3) is from one"}, false},
		"a bad setting":               {strings.Replace(good, "}\n", ", memory: 99999999}\n", 1), nil, nil, usage, []string{"catalogue.yaml:2: image one: memory: 99999999"}, false},
		"no such playbook":            {strings.Replace(good, "debian-base", "curse", 1), nil, nil, usage, []string{`catalogue.yaml:2: image one: there is no playbook "curse"`, "debian-base"}, false},
		"no password":                 {good, map[string]string{"REGISTRY_USER": "me"}, nil, usage, []string{"REGISTRY_PASS: is not set"}, false},
		"no such registry":            {good, map[string]string{"TARGET_REGISTRY": "127.0.0.1:9"}, nil, 1, []string{"registry 127.0.0.1:9 cannot be reached"}, false},
		"an age that is none":         {good, nil, []string{"--max-age", "soon"}, usage, []string{`--max-age: "soon" is no age`}, false},
		"a glob that matches nothing": {good, nil, []string{"--only", "two*"}, usage, []string{`no image of the catalogue matches "two*"`, "one"}, false},
		"no jobs":                     {good, nil, []string{"--jobs", "0"}, usage, []string{`--jobs "0"`}, true},
		"no place for results":        {good, map[string]string{"OUTPUT_DIR": nowhere}, nil, 1, []string{"not a directory", "OUTPUT_DIR"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			file, out := write(t, "catalogue.yaml", c.catalogue), t.TempDir()
			for _, command := range []string{"plan", "build-all"} {
				if c.buildOnly && command == "plan" {
					continue
				}
				env := map[string]string{"OUTPUT_DIR": out, "CACHE_DIR": t.TempDir(), "DOCKER_CONFIG": t.TempDir()}
				for k, v := range c.env {
					env[k] = v
				}
				r := start(t, env, diskforge(t), append([]string{command, "--catalogue", file}, c.args...)...)
				assert.Equal(t, c.code, r.wait(2*time.Minute), r.errors())
				said := errorLines(r)
				assert.Equal(t, 1, strings.Count(said, "diskforge: "), said)
				for _, words := range c.says {
					assert.Contains(t, said, words)
				}
				assert.Empty(t, r.stdout.String())
				left, err := os.ReadDir(out)
				require.NoError(t, err)
				assert.Empty(t, left, "nothing was started")
			}
		})
	}
}

func TestAPlaybookThatIsNoYAMLIsToldByThePlan(t *testing.T) {
	file := write(t, "catalogue.yaml", "images:\n  - {name: one, base: {packages: bookworm}, playbook: course, ansible-dir: "+tree(t, "- hosts: all\n  tasks: [\n")+"}\n")
	env := map[string]string{"OUTPUT_DIR": t.TempDir(), "CACHE_DIR": t.TempDir(), "TMPDIR": t.TempDir()}
	r := start(t, env, diskforge(t), "plan", "--catalogue", file)
	assert.Equal(t, 1, r.wait(2*time.Minute), r.errors())
	assert.Contains(t, errorLines(r)+r.errors(), "course.yml is no YAML that can be read: yaml: line 2: ")
	assert.Contains(t, r.errors(), "Ansible refuses the playbook")
	assert.Empty(t, files(t, env["TMPDIR"]))
}

// kvmWorks says what doctor found.
func kvmWorks(t *testing.T) bool {
	t.Helper()
	r := start(t, nil, diskforge(t), "doctor")
	r.wait(time.Minute)
	return strings.Contains(r.stdout.String(), "kvm: it booted")
}

func TestADiskSmallerThanItsBaseIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", path, "3G").CombinedOutput()
	require.NoError(t, err, string(out))
	r := start(t, with(local(t, path), "OUTPUT_DIR", t.TempDir(), "ANSIBLE_PLAYBOOK", "debian-base", "DISK_SIZE", "2G"), diskforge(t), "build")
	assert.Equal(t, 1, r.wait(2*time.Minute))
	assert.Contains(t, errorLines(r), "DISK_SIZE")
	assert.Contains(t, errorLines(r), "3.0 GiB")
}

func TestAPasswordOnTheCommandLineIsRefusedAndNotRepeated(t *testing.T) {
	r := start(t, nil, diskforge(t), "push", "layout", "--registry-pass", secret)
	assert.Equal(t, 2, r.wait(time.Minute))
	assert.Contains(t, r.errors(), "REGISTRY_PASS")
	assert.NotContains(t, r.errors(), secret)
}

func TestAWorkDirectoryThatOthersMayWriteIsRefused(t *testing.T) {
	out := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(out, "work"), 0o777))
	require.NoError(t, os.Chmod(filepath.Join(out, "work"), 0o777))
	r := start(t, fromPackages(out, tree(t, "- hosts: all\n")), diskforge(t), "build")
	assert.Equal(t, 1, r.wait(time.Minute))
	assert.Contains(t, errorLines(r), filepath.Join(out, "work"))
}

func TestAFullDiskIsToldBeforeTheBuildStarts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount a small file system")
	}
	out := t.TempDir()
	mounted, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", out).CombinedOutput()
	require.NoError(t, err, string(mounted))
	defer exec.Command("umount", out).Run()
	r := start(t, fromPackages(out, tree(t, "- hosts: all\n")), diskforge(t), "build")
	assert.Equal(t, 1, r.wait(5*time.Minute))
	assert.Contains(t, errorLines(r), "free")
	assert.Contains(t, errorLines(r), "OUTPUT_DIR")
}
