package playbook_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/playbook"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// check resolves the playbook "a" of the files and checks it.
func check(t *testing.T, files map[string]string, vars map[string]any) (playbook.Source, error) {
	t.Helper()
	s, err := resolve(t, playbook.Options{AnsibleDir: tree(t, files), Playbook: "a"})
	require.NoError(t, err)
	return s, s.Check(t.Context(), vars, progress.Discard)
}

func TestAPlaybookWithItsRolesBesideIsAccepted(t *testing.T) {
	s, err := check(t, map[string]string{
		"playbooks/a.yml":          "- hosts: \"{{ where }}\"\n  roles: [one]\n",
		"roles/one/tasks/main.yml": "- ansible.builtin.ping:\n",
	}, map[string]any{"where": "all"})
	require.NoError(t, err)
	// No copy of the variables, which may be secret, stays.
	entries, err := os.ReadDir(filepath.Dir(s.Root))
	require.NoError(t, err)
	for _, e := range entries {
		assert.NotContains(t, e.Name(), "vars")
	}
}

func TestAPlaybookThatThisAnsibleRefusesIsNamedWithTheReason(t *testing.T) {
	for name, content := range map[string]string{
		"no such module": "- hosts: all\n  tasks:\n    - no_such_module_here: {}\n",
		"no such role":   "- hosts: all\n  roles: [missing_role]\n",
		"bad YAML":       "- hosts: all\n  tasks:\n    - ping: {\n",
		"bad keyword":    "- hosts: all\n  no_such_keyword: 1\n",
		"not a list":     "hosts: all\n",
	} {
		s, err := check(t, map[string]string{"a.yml": content}, nil)
		actionable(t, err, "refuses the playbook a.yml: ")
		assert.NotContains(t, err.Error(), s.Root, name)
	}
}

func TestAModuleOfACollectionThatIsNotThereIsExplained(t *testing.T) {
	_, err := check(t, map[string]string{"a.yml": "- hosts: all\n  tasks:\n    - no_such_module_here: {}\n"}, nil)
	actionable(t, err, "apt-get install ansible", "requirements.yml")
}

func TestTheUsersOwnAnsibleConfigurationDoesNotMatter(t *testing.T) {
	home := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(home, ".ansible.cfg"), []byte("[defaults]\nstdout_callback = no_such_callback\nroles_path = /nowhere\nno_log = \n"), 0o600))
	t.Setenv("HOME", home)
	t.Setenv("ANSIBLE_CONFIG", filepath.Join(home, ".ansible.cfg"))
	_, err := check(t, map[string]string{"a.yml": play}, nil)
	require.NoError(t, err)
	assert.NoDirExists(t, filepath.Join(home, ".ansible"))
}

func TestRequirementsMustBePinned(t *testing.T) {
	for name, content := range map[string]string{
		"no version":           "roles:\n  - name: geerlingguy.docker\n",
		"short form":           "collections:\n  - community.general\n",
		"range":                "collections:\n  - name: community.general\n    version: '>=1.0.0'\n",
		"latest":               "collections:\n  - {name: community.general, version: latest}\n",
		"any":                  "collections:\n  - {name: community.general, version: '*'}\n",
		"branch":               "roles:\n  - {src: 'https://example.org/r.git', scm: git, version: main}\n",
		"old form unpinned":    "- src: geerlingguy.docker\n",
		"include":              "- include: other.yml\n",
		"a protocol that runs": "roles:\n  - {src: 'ext::sh -c x', scm: git, version: 1.0.0}\n",
		"no list":              "roles: 7\n",
	} {
		_, err := check(t, map[string]string{"a.yml": play, "requirements.yml": content}, nil)
		actionable(t, err, "requirements.yml")
		t.Log(name, err)
	}
}

func TestARolePinnedToACommitIsInstalledAndUsed(t *testing.T) {
	role := tree(t, map[string]string{"tasks/main.yml": "- ansible.builtin.ping:\n", "meta/main.yml": "galaxy_info: {author: t, description: t, license: MIT, min_ansible_version: '2.14'}\n"})
	git(t, role, "init", "-q")
	git(t, role, "add", ".")
	git(t, role, "commit", "-qm", "role")
	commit := git(t, role, "rev-parse", "HEAD")
	s, err := check(t, map[string]string{
		"playbooks/a.yml":            "- hosts: all\n  roles: [pinned_role]\n",
		"playbooks/requirements.yml": "roles:\n  - {name: pinned_role, src: 'file://" + role + "', scm: git, version: " + commit + "}\n",
	}, nil)
	require.NoError(t, err)
	assert.Contains(t, strings.Join(s.Env(), "\n"), "galaxy/roles")
}

func TestGuestsAreKnownByTheirImagesNames(t *testing.T) {
	for name, want := range map[string]string{
		"https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-generic-amd64.qcow2":           "Debian 12",
		"https://cloud.debian.org/images/cloud/trixie/latest/debian-13-genericcloud-amd64.qcow2":        "Debian 13",
		"https://cloud-images.ubuntu.com/noble/current/noble-server-cloudimg-amd64.img":                 "Ubuntu 24.04",
		"https://cloud-images.ubuntu.com/releases/22.04/release/ubuntu-22.04-server-cloudimg-amd64.img": "Ubuntu 22.04",
		"https://cloud-images.ubuntu.com/jammy/current/image.img":                                       "Ubuntu 22.04",
		"/cache/bookworm.qcow2": "Debian 12",
	} {
		g, ok := playbook.GuessGuest(name)
		assert.True(t, ok, name)
		assert.Equal(t, want, g.Name)
	}
	g, ok := playbook.GuessGuest("", "Debian 12", "https://example.org/noble.img")
	assert.True(t, ok)
	assert.Equal(t, "Debian 12", g.Name, "the first that says anything")
	for _, name := range []string{"", "disk.qcow2", "bookworm-noble.qcow2", "https://example.org/notrixie/x.img"} {
		_, ok := playbook.GuessGuest(name)
		assert.False(t, ok, name)
	}
}

func TestAnAnsibleThatCannotManageTheGuestIsNamedBeforeTheBoot(t *testing.T) {
	noble := playbook.Guest{Name: "Ubuntu 24.04", Python: "3.12"}
	trixie := playbook.Guest{Name: "Debian 13", Python: "3.13"}
	bookworm := playbook.Guest{Name: "Debian 12", Python: "3.11"}
	bionic := playbook.Guest{Name: "Ubuntu 18.04", Python: "3.6"}
	for _, good := range []struct {
		core  string
		guest playbook.Guest
	}{{"2.14.18", bookworm}, {"2.16.3", noble}, {"2.19.0", trixie}, {"2.19.0", bookworm}, {"2.14.18", bionic}, {"2.16.0", bionic}, {"3.0.0", trixie}} {
		assert.NoError(t, playbook.CheckVersions(good.core, good.guest), good)
	}
	actionable(t, playbook.CheckVersions("2.14.18", noble), "2.14.18", "Ubuntu 24.04", "2.16 or newer")
	actionable(t, playbook.CheckVersions("2.15.9", trixie), "Debian 13")
	actionable(t, playbook.CheckVersions("2.17.0", bionic), "Python 3.7 or newer")
	assert.Error(t, playbook.CheckVersions("next", noble))
}

func TestTheVersionOfThisHostsAnsibleIsRead(t *testing.T) {
	v, err := playbook.ControllerVersion(t.Context())
	require.NoError(t, err)
	assert.Regexp(t, `^2\.\d+\.\d+$`, v)

	own, err := exec.LookPath("ansible-playbook")
	require.NoError(t, err)
	wrapper := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(wrapper, "ansible-playbook"), []byte("#!/bin/sh\nexec "+own+" \"$@\"\n"), 0o700))
	t.Setenv("PATH", wrapper+":"+os.Getenv("PATH"))
	same, err := playbook.ControllerVersion(t.Context())
	require.NoError(t, err)
	assert.Equal(t, v, same, "asked of a wrapper")

	t.Setenv("PATH", t.TempDir())
	_, err = playbook.ControllerVersion(t.Context())
	actionable(t, err, "not installed")
}

func TestExtraVariablesAreForOurEyesOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v.json")
	require.NoError(t, os.WriteFile(path, []byte("old, and readable by all"), 0o644))
	_, err := playbook.WriteExtraVars(path, map[string]any{"k": "v"})
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.JSONEq(t, `{"k":"v"}`, string(b))
}
