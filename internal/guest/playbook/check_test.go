package playbook_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// check resolves the playbook "a" of the files and checks it.
func check(t *testing.T, files map[string]string, vars map[string]any) (playbook.Source, error) {
	t.Helper()
	s, err := resolve(t, playbook.Options{AnsibleDir: tree(t, files), Playbook: "a"})
	require.NoError(t, err)
	in, err := s.Inputs(t.Context(), vars)
	require.NoError(t, err)
	return s, s.Check(t.Context(), in, vars, progress.Discard)
}

// needsAnsible skips, in short, a test that starts ansible-playbook often: each
// start takes a second.
func needsAnsible(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts ansible-playbook often")
	}
}

func TestAPlaybookWithItsRolesBesideIsAccepted(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
	needsAnsible(t)
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
	t.Parallel()
	needsAnsible(t)
	_, err := check(t, map[string]string{"a.yml": "- hosts: all\n  tasks:\n    - no_such_module_here: {}\n"}, nil)
	actionable(t, err, "apt-get install ansible", "requirements.yml")
	if _, err := os.Stat("/usr/lib/python3/dist-packages/ansible_collections/community/general"); err == nil {
		t.Log("this host has Debian's ansible package: its collections are not missing")
		return
	}
	for module, collection := range map[string]string{"docker_image": "community.docker", "some.where.thing": "some.where"} {
		_, err := check(t, map[string]string{"a.yml": "- hosts: all\n  tasks:\n    - " + module + ": {}\n"}, nil)
		actionable(t, err, "the collection "+collection+", which is not installed", "apt-get install ansible", "requirements.yml")
	}
}

func TestAPlaybookThatWouldNotTouchTheGuestIsRefused(t *testing.T) {
	t.Parallel()
	const lines = "\n  tasks: [{ping: }]\n"
	for i, c := range []struct{ playbook, why string }{
		{"- import_playbook: local.yml\n", "no play of a.yml is for the guest"},
		{"- hosts: localhost" + lines, "no play of a.yml is for the guest"},
		{"- name: Lab\n  hosts: lab" + lines, `the play "lab" of a.yml matches no host`},
		{"- hosts: all\n  tasks: [{group_by: {key: x}}]\n- hosts: x" + lines, ""},
		{"- hosts: all\n  connection: local" + lines, "no play of a.yml is for the guest"},
		{"- hosts: all\n  vars: {ansible_connection: local}" + lines, "no play of a.yml is for the guest"},
		{"- hosts: all" + lines + "- {name: More, hosts: 'lab:&kvm'}", `the play "lab:&kvm" of a.yml matches no host`},
		{"- hosts: '{{ where }}'" + lines, `matches no host`},
		{"- hosts: all" + lines, ""},
		{"- hosts: default" + lines, ""},
		{"- hosts: localhost" + lines + "- hosts: all" + lines, ""},
		{"- hosts: all\n  connection: ssh" + lines, ""},
	} {
		if i == 2 && testing.Short() {
			break // each starts ansible-playbook
		}
		_, err := check(t, map[string]string{"a.yml": c.playbook, "local.yml": "- hosts: all\n  connection: ansible.builtin.local" + lines}, map[string]any{"where": "nowhere"})
		if c.why == "" {
			assert.NoError(t, err, c.playbook)
		} else {
			actionable(t, err, c.why, "hosts: all")
		}
	}
}

// The tree's own configuration was overruled, without a word.
func TestTheTreesOwnFoldersOfRolesAndCollectionsCount(t *testing.T) {
	t.Parallel()
	s, err := check(t, map[string]string{
		"ansible.cfg":                      "[privilege_escalation]\nroles_path = /nowhere\n[defaults]\nroles_path = ./shared/roles:/usr/share/ansible/roles ; ours\ncollections_paths: shared/collections\n",
		"shared/roles/tool/tasks/main.yml": "- lab.own.thing: {}\n",
		"playbooks/a.yml":                  "- hosts: all\n  roles: [tool]\n",
		"shared/collections/ansible_collections/lab/own/plugins/modules/thing.py": "#!/usr/bin/python\n",
	}, nil)
	require.NoError(t, err)
	assert.Contains(t, s.Env(), "ANSIBLE_ROLES_PATH="+s.Root+"/shared/roles:/usr/share/ansible/roles:"+s.Root+"/roles:"+filepath.Dir(s.Root)+"/galaxy/roles")
}

// In a terminal the check stood there for ever: Ansible was stopped as it asked.
func TestNobodyIsAskedForAPassword(t *testing.T) {
	t.Parallel()
	const config = "[defaults]\nask_vault_pass = True\nask_pass = True\n[privilege_escalation]\nbecome_ask_pass = True\n"
	s, err := check(t, map[string]string{"ansible.cfg": config, "a.yml": play}, nil)
	require.NoError(t, err)
	assert.Contains(t, s.Env(), "ANSIBLE_ASK_VAULT_PASS=0")
}

const encrypted = `$ANSIBLE_VAULT;1.1;AES256
33363965326261303234
`

func TestAnEncryptedFileWithoutAPasswordIsFoundBeforeTheBoot(t *testing.T) {
	t.Parallel()
	password := filepath.Join(t.TempDir(), "pw")
	require.NoError(t, os.WriteFile(password, []byte("pw\n"), 0o600))
	for name, files := range map[string]map[string]string{
		"group_vars/all/vault.yml": {"group_vars/all/vault.yml": encrypted},
		"files/key":                {"files/key": encrypted},
		"roles/r/vars/main.yml":    {"roles/r/vars/main.yml": "x: !vault |\n  " + strings.ReplaceAll(encrypted, "\n", "\n  "), "a.yml": "- hosts: all\n  roles: [r]\n"},
	} {
		if files["a.yml"] == "" {
			files["a.yml"] = play
		}
		inputs := func(v playbook.Vault) error {
			s, err := resolve(t, playbook.Options{AnsibleDir: tree(t, files), Playbook: "a", Vault: v})
			require.NoError(t, err)
			_, err = s.Inputs(t.Context(), nil)
			return err
		}
		actionable(t, inputs(playbook.Vault{}), name, "ANSIBLE_VAULT_PASSWORD_FILE")
		assert.NoError(t, inputs(playbook.Vault{PasswordFile: password}))
		assert.NoError(t, inputs(playbook.Vault{Identities: "lab@" + password}))
		files["ansible.cfg"] = "[defaults]\nvault_password_file = .vault\n"
		assert.NoError(t, inputs(playbook.Vault{}), "the tree's own configuration names a password")
		delete(files, "ansible.cfg")
		files["roles/unused/vars/main.yml"] = encrypted
	}
	files := map[string]string{"a.yml": play, "roles/unused/vars/main.yml": encrypted, "README.md": encrypted}
	s, err := resolve(t, playbook.Options{AnsibleDir: tree(t, files), Playbook: "a"})
	require.NoError(t, err)
	_, err = s.Inputs(t.Context(), nil)
	require.NoError(t, err, "what a build does not read")
}

// A real vault, the real ansible-playbook: it reads its variables for the hosts.
func TestTheVaultsPasswordReachesAnsible(t *testing.T) {
	t.Parallel()
	needsAnsible(t)
	password := filepath.Join(t.TempDir(), "pw")
	require.NoError(t, os.WriteFile(password, []byte("pw\n"), 0o600))
	vars := filepath.Join(t.TempDir(), "vault.yml")
	require.NoError(t, os.WriteFile(vars, []byte("where: all\n"), 0o600))
	out, err := exec.Command("ansible-vault", "encrypt", "--vault-password-file", password, vars).CombinedOutput()
	require.NoError(t, err, "%s", out)
	b, err := os.ReadFile(vars)
	require.NoError(t, err)
	dir := tree(t, map[string]string{"group_vars/all/vault.yml": string(b), "a.yml": "- hosts: all\n  vars_files: [group_vars/all/vault.yml]\n  tasks: [{debug: {msg: '{{ where }}'}}]\n"})
	for _, v := range []playbook.Vault{{PasswordFile: password}, {Identities: "lab@" + password}} {
		s, err := resolve(t, playbook.Options{AnsibleDir: dir, Playbook: "a", Vault: v})
		require.NoError(t, err)
		require.NoError(t, s.Check(t.Context(), playbook.Inputs{}, nil, progress.Discard))
	}
	s, err := resolve(t, playbook.Options{AnsibleDir: dir, Playbook: "a"})
	require.NoError(t, err)
	actionable(t, s.Check(t.Context(), playbook.Inputs{}, nil, progress.Discard), "vault")
}

// What ansible-core removed is refused by it only as it runs, for what is
// included: after the boot.
func TestWhatAnsibleRemovedIsNamedBeforeTheBoot(t *testing.T) {
	t.Parallel()
	files := map[string]string{
		"a.yml":                    "- hosts: all\n  roles: [r]\n",
		"roles/r/tasks/main.yml":   "- include_tasks: '{{ x }}.yml'\n",
		"roles/r/tasks/Debian.yml": "- debug: {}\n\n- name: More\n  include: more.yml\n",
		"roles/r/tasks/more.yml":   "- command: {cmd: ls, warn: false}\n- shell: ls\n  args:\n    warn: no\n- my_module: {include: x}\n",
	}
	in := func() playbook.Inputs {
		s, err := resolve(t, playbook.Options{AnsibleDir: tree(t, files), Playbook: "a"})
		require.NoError(t, err)
		in, err := s.Inputs(t.Context(), nil)
		require.NoError(t, err)
		return in
	}
	actionable(t, playbook.CheckForms("2.19.0", in()), "include", "roles/r/tasks/Debian.yml:4", "include_tasks", "ansible-core 2.15 or older")
	actionable(t, playbook.CheckForms("2.14.18", in()), "warn", "roles/r/tasks/more.yml:1", "leave it out")
	delete(files, "roles/r/tasks/more.yml")
	assert.NoError(t, playbook.CheckForms("2.14.18", in()))
	files["roles/r/tasks/Debian.yml"] = "- include_tasks: more.yml\n- debug: {msg: {include: 1, warn: 2}}\n"
	assert.NoError(t, playbook.CheckForms("2.19.0", in()))
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
	t.Parallel()
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
		"a folder outside":     "roles:\n  - {src: 'https://example.org/r.git', name: ../../x, version: 1.0.0}\n",
	} {
		_, err := check(t, map[string]string{"a.yml": play, "requirements.yml": content}, nil)
		actionable(t, err, "requirements.yml")
		t.Log(name, err)
	}
}

func TestARolePinnedToACommitIsInstalledAndUsed(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
	path := filepath.Join(t.TempDir(), "v.json")
	require.NoError(t, os.WriteFile(path, []byte("old, and readable by all"), 0o644))
	require.NoError(t, playbook.WriteExtraVars(path, map[string]any{"k": "v"}))
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.JSONEq(t, `{"k":"v"}`, string(b))
}

func TestAPlaybookIsForTheReleasesThatItNames(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{
		"narrow.yml": "- hosts: all\n  vars: {lab_releases: [Debian 13]}\n  tasks: []\n",
		"any.yml":    play,
		"later.yml":  "- hosts: all\n  vars: {lab_releases: '{{ some }}'}\n  tasks: []\n",
	})
	bookworm, _ := playbook.GuessGuest("bookworm")
	trixie, _ := playbook.GuessGuest("trixie")
	for name, refused := range map[string]bool{"narrow": true, "any": false, "later": false} {
		s, err := resolve(t, playbook.Options{AnsibleDir: dir, Playbook: name})
		require.NoError(t, err)
		in, err := s.Inputs(t.Context(), nil)
		require.NoError(t, err)
		require.NoError(t, in.CheckRelease(trixie))
		if err = in.CheckRelease(bookworm); refused {
			actionable(t, err, "is for Debian 13, and the base is Debian 12")
		} else {
			require.NoError(t, err)
		}
	}
}
