package fleet_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/deploy"
	"github.com/netgroup-polito/diskforge/internal/fleet/render"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// listed is a family whose base stands in a list of checksums.
const listed = `
defaults: {ansible-dir: playbooks, size: 1G, memory: 256, cpus: 1, tags: v1}
images:
  - {name: debian, base: {url: "https://example.org/debian.qcow2", checksum: "file:SHA256SUMS"}, playbook: base}
  - {name: lab, from: debian, playbook: course, vars: {course: lab, n: 1}}
  - {name: plain, base: {packages: bookworm}, playbook: course}
`

var ones, twos = strings.Repeat("1", 64), strings.Repeat("2", 64)

func newListed(t testing.TB) *site {
	s := newSite(t, listed)
	s.write("SHA256SUMS", ones+"  debian.qcow2\n"+twos+"  ubuntu.img\n")
	s.write("playbooks/roles/course/templates/motd.j2", "welcome\n")
	return s
}

// inputs are the images' input digests.
func (s *site) inputs() map[string]string {
	s.t.Helper()
	inputs := map[string]string{}
	for name, e := range s.planned() {
		require.NotEmpty(s.t, e.Inputs, "%s: %s", name, e.Why)
		inputs[name] = e.Inputs
	}
	return inputs
}

func TestWhatChangesAnImageChangesItsInputsAndThoseOfItsDescendants(t *testing.T) {
	catalogued := func(old, replacement string) func(*site) {
		return func(s *site) { s.edit("catalogue.yaml", old, replacement) }
	}
	const ofAll, ofLab = "size: 1G", "vars: {course: lab, n: 1}"
	all := []string{"debian", "lab", "plain"}
	for name, c := range map[string]struct {
		change func(*site)
		images []string
	}{
		"the base's checksum":     {func(s *site) { s.edit("SHA256SUMS", ones, strings.Repeat("3", 64)) }, []string{"debian", "lab"}},
		"the base":                {catalogued("debian.qcow2", "ubuntu.img"), []string{"debian", "lab"}},
		"the release":             {catalogued("packages: bookworm", "packages: trixie"), []string{"plain"}},
		"the parent's role":       {func(s *site) { s.edit("playbooks/roles/common/tasks/main.yml", "vim", "nano") }, []string{"debian", "lab"}},
		"the parent's playbook":   {func(s *site) { s.edit("playbooks/base.yml", "roles", "become: true\n  roles") }, []string{"debian", "lab"}},
		"another parent":          {catalogued("from: debian", "from: plain"), []string{"lab"}},
		"another playbook":        {catalogued("from: debian, playbook: course", "from: debian, playbook: base"), []string{"lab"}},
		"a role":                  {func(s *site) { s.edit("playbooks/roles/course/tasks/main.yml", "msg", "verbosity: 1, msg") }, []string{"lab", "plain"}},
		"a file of a role":        {func(s *site) { s.edit("playbooks/roles/course/templates/motd.j2", "welcome", "hello") }, []string{"lab", "plain"}},
		"a new file of a role":    {func(s *site) { s.write("playbooks/roles/course/files/new", "x") }, []string{"lab", "plain"}},
		"a file that may be run":  {func(s *site) { s.executable("playbooks/roles/course/templates/motd.j2") }, []string{"lab", "plain"}},
		"Ansible's configuration": {func(s *site) { s.write("playbooks/ansible.cfg", "[defaults]\nforks = 2\n") }, all},
		"a variable":              {catalogued("n: 1", "n: 2"), []string{"lab"}},
		"a variable's kind":       {catalogued("n: 1", `n: "1"`), []string{"lab"}},
		"the disk's size":         {catalogued(ofAll, "size: 2G"), all},
		"the desktop":             {catalogued(ofLab, ofLab+", desktop: true"), []string{"lab"}},
		"the build user":          {catalogued(ofLab, ofLab+", build-user: maker"), []string{"lab"}},
		"the login user":          {catalogued(ofLab, ofLab+", vm-user: student"), []string{"lab"}},
		"the baked user":          {catalogued(ofLab, ofLab+", bake-user: true"), []string{"lab"}},
		"the way to sparsify":     {catalogued(ofLab, ofLab+", sparsify: none"), []string{"lab"}},
		"the compression":         {catalogued(ofLab, ofLab+", compression: zlib"), []string{"lab"}},
		"the mirror":              {func(s *site) { s.env["APT_MIRROR"] = "http://mirror.example.org/debian" }, all},
		"Ansible":                 {func(s *site) { s.ansible("2.19.4") }, all},
	} {
		t.Run(name, func(t *testing.T) {
			if name != "Ansible" {
				t.Parallel()
			}
			s := newListed(t)
			before := s.inputs()
			c.change(s)
			after := s.inputs()
			var changed []string
			for name := range after {
				if before[name] != after[name] {
					changed = append(changed, name)
				}
			}
			assert.ElementsMatch(t, c.images, changed)
		})
	}
}

func (s *site) executable(name string) {
	require.NoError(s.t, os.Chmod(filepath.Join(s.dir, name), 0o755))
}

func TestWhatChangesNoImageChangesNoInputs(t *testing.T) {
	for name, change := range map[string]func(*site){
		"touch": func(s *site) {
			require.NoError(s.t, filepath.Walk(s.dir, func(path string, _ os.FileInfo, err error) error {
				require.NoError(s.t, err)
				return os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0))
			}))
		},
		"the order of the catalogue's keys": func(s *site) {
			s.edit("catalogue.yaml", "name: lab, from: debian, playbook: course, vars: {course: lab, n: 1}", "vars: {n: 1, course: lab}, playbook: course, from: debian, name: lab")
			s.edit("catalogue.yaml", "size: 1G, memory: 256", "memory: 256, size: 1024M")
		},
		"the order of the images": func(s *site) {
			lines := strings.SplitAfter(listed, "\n")
			slices.Reverse(lines[3:6])
			s.write("catalogue.yaml", strings.Join(lines, ""))
		},
		"comments in the catalogue": func(s *site) { s.edit("catalogue.yaml", "images:", "# ours\nimages: # all of them") },
		"comments in an unrelated role": func(s *site) {
			s.edit("playbooks/roles/unrelated/tasks/main.yml", "- ", "# greets\n- ")
		},
		"a new role and playbook": func(s *site) {
			s.write("playbooks/roles/new/tasks/main.yml", "- ansible.builtin.debug: {msg: new}\n")
			s.write("playbooks/new.yml", "- hosts: all\n  roles: [new]\n")
		},
		"checks and documents": func(s *site) {
			s.write("playbooks/tests/course.yaml", "{}\n")
			s.write("playbooks/README.md", "# ours\n")
		},
		"further lines of a list": func(s *site) { s.write("SHA256SUMS", "# new\n"+twos+"  other.img\n"+ones+" *debian.qcow2\n") },
		"what the guest gets to build": func(s *site) {
			s.edit("catalogue.yaml", "memory: 256, cpus: 1", "memory: 512, cpus: 2, boot-timeout: 1h")
		},
		"tags": func(s *site) { s.edit("catalogue.yaml", "tags: v1", "tags: [v2, latest]") },
		"another checkout": func(s *site) {
			dir := filepath.Join(s.t.TempDir(), "elsewhere", "checkout")
			require.NoError(s.t, os.CopyFS(dir, os.DirFS(s.dir)))
			s.dir = dir
		},
		"other directories": func(s *site) { s.env["OUTPUT_DIR"], s.env["CACHE_DIR"] = s.t.TempDir(), s.t.TempDir() },
		"another machine": func(s *site) {
			defer syscall.Umask(syscall.Umask(0o077))
			dir := s.t.TempDir()
			require.NoError(s.t, filepath.Walk(s.dir, func(path string, info os.FileInfo, err error) error {
				require.NoError(s.t, err)
				if info.IsDir() {
					return nil
				}
				text, err := os.ReadFile(path)
				require.NoError(s.t, err)
				name, err := filepath.Rel(s.dir, path)
				require.NoError(s.t, err)
				to := filepath.Join(dir, name)
				require.NoError(s.t, os.MkdirAll(filepath.Dir(to), 0o777))
				return os.WriteFile(to, text, 0o666)
			}))
			s.dir = dir
			for variable, value := range map[string]string{"HOME": s.t.TempDir(), "HOSTNAME": "another", "USER": "somebody", "LANG": "de_DE.UTF-8", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "1"} {
				s.t.Setenv(variable, value)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			if name != "another machine" {
				t.Parallel()
			}
			s := newListed(t)
			before := s.inputs()
			change(s)
			assert.Equal(t, before, s.inputs())
		})
	}
}

// repository makes a git repository of the playbooks and returns its URL.
func (s *site) repository() string {
	s.git("init", "-q", "-b", "main")
	s.commit("first")
	return "file://" + s.dir
}

func (s *site) commit(message string) {
	s.git("add", "-A")
	s.git("commit", "-q", "--allow-empty", "-m", message)
}

func (s *site) git(args ...string) string {
	s.t.Helper()
	c := exec.Command("git", append([]string{"-C", s.dir, "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"}, args...)...)
	out, err := c.CombinedOutput()
	require.NoError(s.t, err, string(out))
	return strings.TrimSpace(string(out))
}

// newTracked is a family whose playbooks are in git.
func newTracked(t testing.TB) (s *site, url string) {
	s = newListed(t)
	url = s.repository()
	s.write("catalogue.yaml", strings.NewReplacer("ansible-dir: playbooks", "git: {url: "+url+", branch: main, path: playbooks}").Replace(listed))
	return s, url
}

func TestACommitThatChangesNothingOfAnImageDoesNotRebuildIt(t *testing.T) {
	t.Parallel()
	s, _ := newTracked(t)
	before := s.inputs()
	s.edit("playbooks/roles/unrelated/tasks/main.yml", "hello", "good morning")
	s.commit("unrelated")
	assert.Equal(t, before, s.inputs())
	s.edit("playbooks/roles/course/tasks/main.yml", "msg", "verbosity: 1, msg")
	s.commit("related")
	after := s.inputs()
	assert.Equal(t, before["debian"], after["debian"])
	assert.NotEqual(t, before["lab"], after["lab"])
}

func TestAPlanNamesWhatItWasMadeFromAndNotWhatMayMove(t *testing.T) {
	t.Parallel()
	s, url := newTracked(t)
	s.env["APT_MIRROR"] = "http://mirror.example.org/debian"
	commit := s.git("rev-parse", "HEAD")
	planned := s.planned()
	s.commit("later")
	for name, e := range planned {
		assert.Equal(t, e.Inputs, e.Settings["IMAGE_INPUTS"], name)
		assert.Equal(t, url, e.Settings["GIT_ANSIBLE_URL"])
		assert.Equal(t, commit, e.Settings["GIT_ANSIBLE_BRANCH"])
		assert.Equal(t, "http://mirror.example.org/debian", e.Settings["APT_MIRROR"])
		for _, argument := range []string{"--git-ansible-branch=" + commit, "--image-inputs=" + e.Inputs, "--apt-mirror=http://mirror.example.org/debian"} {
			assert.Contains(t, e.Stages["provision"], argument, name)
		}
		assert.NotContains(t, e.Stages["base"], "--image-inputs="+e.Inputs, "only provision checks them")
	}
	assert.Equal(t, "sha256:"+ones, planned["debian"].Settings["ISO_CHECKSUM"])
	assert.Contains(t, planned["debian"].Stages["base"], "--iso-checksum=sha256:"+ones)
	assert.NotContains(t, planned["plain"].Settings, "ISO_CHECKSUM")

	s.write("catalogue.yaml", listed)
	assert.NotContains(t, s.planned()["lab"].Settings, "GIT_ANSIBLE_URL", "a folder has no commit: IMAGE_INPUTS tells when it changes")
}

func TestJobsAndMatricesBuildExactlyWhatWasPlanned(t *testing.T) {
	t.Parallel()
	s, _ := newTracked(t)
	s.env["APT_MIRROR"] = "http://mirror.example.org/debian"
	s.env["TARGET_REGISTRY"], _ = testkit.StartRegistry(t, testkit.RegistryOptions{})
	s.only = []string{"lab"}
	entries, err := s.all(nil).Plan(t.Context())
	require.NoError(t, err)
	for _, e := range entries { // as if the repository were on a server
		e.Settings["GIT_ANSIBLE_URL"] = "https://example.org/playbooks.git"
	}
	to := render.Target{Registry: s.env["TARGET_REGISTRY"], Prefix: "labs"}
	want := []map[string]string{}
	for _, e := range entries {
		want = append(want, map[string]string{"IMAGE_INPUTS": e.Inputs, "APT_MIRROR": s.env["APT_MIRROR"], "GIT_ANSIBLE_BRANCH": s.git("rev-parse", "HEAD")})
	}

	var out bytes.Buffer
	require.NoError(t, render.GitHubMatrix(&out, entries, to, s.dir))
	var m struct {
		Levels []struct {
			Include []struct {
				Branch   string `json:"git-ansible-branch"`
				Checksum string `json:"iso-checksum"`
				Settings map[string]string
			}
		}
	}
	require.NoError(t, json.Unmarshal(out.Bytes(), &m))
	require.Len(t, m.Levels, 2)
	for i, level := range m.Levels {
		got := level.Include[0]
		assert.Equal(t, want[i], map[string]string{"IMAGE_INPUTS": got.Settings["IMAGE_INPUTS"], "APT_MIRROR": got.Settings["APT_MIRROR"], "GIT_ANSIBLE_BRANCH": got.Branch})
	}
	assert.Equal(t, "sha256:"+ones, m.Levels[0].Include[0].Checksum)
	assert.Equal(t, "inputs:"+entries[0].Inputs, m.Levels[1].Include[0].Checksum)

	out.Reset()
	require.NoError(t, render.Kubernetes(&out, deploy.Job, entries, to, ""))
	d := yaml.NewDecoder(&out)
	for i := range entries {
		var job struct {
			Spec struct {
				Template struct {
					Spec struct {
						InitContainers []struct {
							Name string
							Env  []struct{ Name, Value string }
						} `yaml:"initContainers"`
					}
				}
			}
		}
		require.NoError(t, d.Decode(&job))
		env := map[string]string{}
		for _, c := range job.Spec.Template.Spec.InitContainers {
			if c.Name != "build" {
				continue
			}
			for _, v := range c.Env {
				if _, asked := want[i][v.Name]; asked {
					env[v.Name] = v.Value
				}
			}
		}
		assert.Equal(t, want[i], env)
	}
}
