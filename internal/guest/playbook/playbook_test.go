package playbook_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

const play = "- hosts: all\n  tasks:\n    - ansible.builtin.ping:\n"

// tree writes files, by name, to a new directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o700))
		require.NoError(t, os.WriteFile(p, []byte(content), 0o600))
	}
	return dir
}

func resolve(t *testing.T, opts playbook.Options) (playbook.Source, error) {
	t.Helper()
	if opts.Dir == "" {
		opts.Dir = t.TempDir()
	}
	if opts.Cache == "" {
		opts.Cache = t.TempDir()
	}
	return playbook.Resolve(t.Context(), opts, progress.Discard)
}

// actionable asserts that err tells a person what is wrong, in one line.
func actionable(t *testing.T, err error, words ...string) {
	t.Helper()
	require.Error(t, err)
	_, ok := failure.In(err)
	assert.True(t, ok, "%T: %v", err, err)
	assert.NotContains(t, err.Error(), "\n")
	for _, w := range words {
		assert.Contains(t, err.Error(), w)
	}
}

func TestAPlaybookIsFoundByPathOrNameWithOrWithoutItsEnding(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"top.yml": play, "playbooks/base.yml": play, "playbooks/other.yaml": play, "deep/er/own.yml": play})
	for name, file := range map[string]string{
		"ansible/playbooks/base.yml": "playbooks/base.yml", "ansible/top.yml": "top.yml", "provisioning/virtual-machines/ansible/playbooks/base.yml": "playbooks/base.yml",
		"top": "top.yml", "top.yml": "top.yml", "base": "playbooks/base.yml", "base.yml": "playbooks/base.yml", "playbooks/base": "playbooks/base.yml",
		"playbooks/base.yml": "playbooks/base.yml", "other": "playbooks/other.yaml", "./deep/er/own": "deep/er/own.yml",
	} {
		s, err := resolve(t, playbook.Options{AnsibleDir: dir, Playbook: name})
		require.NoError(t, err, name)
		assert.Equal(t, file, s.File)
		assert.FileExists(t, filepath.Join(s.Root, s.File))
	}
}

func TestAnUnknownPlaybookIsAnsweredWithThoseThatExist(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{
		"playbooks/ubuntu-base.yml": play, "playbooks/import.yml": "- import_playbook: ubuntu-base.yml\n", "playbooks/vars.yml": "a: 1\n", "playbooks/tasks.yml": "- name: x\n  debug:\n",
		"site.yaml": play, "broken.yml": "- hosts: [\n", "empty.yml": "", "roles/x/tasks/main.yml": "- debug:\n",
	})
	_, err := resolve(t, playbook.Options{AnsibleDir: dir, Playbook: "ubuntu-bse"})
	actionable(t, err, `"ubuntu-bse"`, "import, site, ubuntu-base")
	for _, not := range []string{"vars", "tasks", "broken", "empty"} {
		assert.NotContains(t, err.Error(), not)
	}
	_, err = resolve(t, playbook.Options{AnsibleDir: t.TempDir(), Playbook: "x"})
	actionable(t, err, "nor any other")
}

func TestAPlaybookOutsideTheTreeIsRefused(t *testing.T) {
	t.Parallel()
	outside := tree(t, map[string]string{"evil.yml": play})
	dir := tree(t, map[string]string{"good.yml": play, "sub/x": ""})
	require.NoError(t, os.Symlink(filepath.Join(outside, "evil.yml"), filepath.Join(dir, "link.yml")))
	require.NoError(t, os.Symlink(outside, filepath.Join(dir, "folder")))
	require.NoError(t, os.Symlink("../../"+filepath.Base(filepath.Dir(outside)), filepath.Join(dir, "sub", "up")))
	require.NoError(t, os.Symlink("good.yml", filepath.Join(dir, "alias.yml")))
	for _, name := range []string{"../evil.yml", "sub/../../evil", filepath.Join(outside, "evil.yml"), "/etc/passwd", "", "-i", "a\nb", `..\evil`} {
		_, err := resolve(t, playbook.Options{AnsibleDir: dir, Playbook: name})
		actionable(t, err)
	}
	for _, name := range []string{"link.yml", "link", "folder/evil.yml"} {
		_, err := resolve(t, playbook.Options{AnsibleDir: dir, Playbook: name})
		actionable(t, err, "there is no playbook")
	}
	s, err := resolve(t, playbook.Options{AnsibleDir: dir, Playbook: "alias"})
	require.NoError(t, err)
	for _, gone := range []string{"link.yml", "folder", "sub/up"} {
		_, err := os.Lstat(filepath.Join(s.Root, gone))
		assert.ErrorIs(t, err, os.ErrNotExist, gone)
	}
}

// warnings keeps what is warned of.
type warnings struct {
	mu   sync.Mutex
	list []string
}

func (*warnings) Bytes(int64, int64) {}
func (*warnings) Activity(string)    {}
func (w *warnings) Warn(m string)    { w.mu.Lock(); defer w.mu.Unlock(); w.list = append(w.list, m) }

func TestWhatIsNoFileIsLeftOutWithAWarning(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"a.yml": play, ".git/config": "x", ".hidden": "kept"})
	require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	var w warnings
	s, err := playbook.Resolve(t.Context(), playbook.Options{AnsibleDir: dir, Playbook: "a", Dir: t.TempDir()}, &w)
	require.NoError(t, err)
	require.Len(t, w.list, 1)
	assert.Contains(t, w.list[0], "pipe")
	assert.NoFileExists(t, filepath.Join(s.Root, ".git/config"))
	assert.FileExists(t, filepath.Join(s.Root, ".hidden"))
}

func TestChecksTakeInOtherFilesAndWinOverThem(t *testing.T) {
	t.Parallel()
	const base = "package: {curl: {installed: true}, vim: {installed: true}}\n"
	files := map[string]string{
		"a.yml": play, "tests/a.yaml": "gossfile: {more/b.yaml: {}}\npackage: {vim: {installed: false}}\ncommand: {true: {exit-status: 0}}\n",
		"tests/more/b.yaml": "gossfile: {any: {file: ../c.yaml}}\nport: {tcp:22: {listening: true}}\n", "tests/c.yaml": base,
		"plain.yml": play, "tests/plain.yaml": "{{ if true }}\n" + base + "{{ end }}\n",
		"gone.yml": play, "tests/gone.yaml": "gossfile: {../../etc/passwd: {}}\n",
		"loop.yml": play, "tests/loop.yaml": "gossfile: {loop.yaml: {}}\n",
		"broken.yml": play, "tests/broken.yaml": "gossfile: {plain.yaml: {}}\n",
	}
	dir := tree(t, files)
	checks := func(name string) string {
		s, err := resolve(t, playbook.Options{AnsibleDir: dir, Playbook: name})
		require.NoError(t, err)
		b, err := os.ReadFile(s.Checks)
		require.NoError(t, err)
		return string(b)
	}
	assert.YAMLEq(t, "package: {curl: {installed: true}, vim: {installed: false}}\ncommand: {\"true\": {exit-status: 0}}\nport: {tcp:22: {listening: true}}", checks("a"))
	assert.Equal(t, files["tests/plain.yaml"], checks("plain"), "templates stay")
	for name, words := range map[string][]string{
		"gone":   {"tests/gone.yaml takes in ../../etc/passwd, which the playbook tree does not have", "relative to"},
		"loop":   {"tests/loop.yaml takes itself in"},
		"broken": {"tests/plain.yaml is no file of goss", "templates"},
	} {
		_, err := resolve(t, playbook.Options{AnsibleDir: dir, Playbook: name})
		actionable(t, err, words...)
	}
}

func TestChecksAndRequirementsAreFoundBesideThePlaybook(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"playbooks/a.yml": play, "playbooks/b.yml": play, "tests/a.yaml": "file: {}\n", "requirements.yml": "roles: []\n", "playbooks/requirements.yml": "roles: []\n"})
	a, err := resolve(t, playbook.Options{AnsibleDir: dir, Playbook: "a"})
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(filepath.Dir(a.Root), "tests/a.yaml"), a.Checks)
	assert.Equal(t, []string{filepath.Join(a.Root, "playbooks/requirements.yml")}, a.Requirements)
	require.NoError(t, os.Remove(filepath.Join(dir, "playbooks/requirements.yml")))
	b, err := resolve(t, playbook.Options{AnsibleDir: dir, Playbook: "b"})
	require.NoError(t, err)
	assert.Empty(t, b.Checks)
	assert.Equal(t, []string{filepath.Join(b.Root, "requirements.yml")}, b.Requirements)

	// Where AWX and Semaphore look.
	dir = tree(t, map[string]string{"a.yml": play, "roles/requirements.yaml": "[]", "collections/requirements.yml": "[]"})
	c, err := resolve(t, playbook.Options{AnsibleDir: dir, Playbook: "a"})
	require.NoError(t, err)
	assert.Equal(t, []string{filepath.Join(c.Root, "roles/requirements.yaml"), filepath.Join(c.Root, "collections/requirements.yml")}, c.Requirements)
}

func TestTheRevisionIsThatOfTheContentWhereverItLies(t *testing.T) {
	t.Parallel()
	files := map[string]string{"a.yml": play, "roles/r/tasks/main.yml": "[]"}
	embedded := fstest.MapFS{}
	for name, content := range files {
		embedded[name] = &fstest.MapFile{Data: []byte(content), Mode: 0o444}
	}
	one, err := resolve(t, playbook.Options{AnsibleDir: tree(t, files), Playbook: "a"})
	require.NoError(t, err)
	two, err := resolve(t, playbook.Options{Embedded: embedded, Playbook: "a"})
	require.NoError(t, err)
	assert.Equal(t, one.Revision, two.Revision)
	assert.True(t, strings.HasPrefix(one.Revision, "sha256:") && len(one.Revision) == 71, one.Revision)
	assert.Empty(t, two.URL)

	files["roles/r/tasks/main.yml"] = "[1]"
	three, err := resolve(t, playbook.Options{AnsibleDir: tree(t, files), Playbook: "a"})
	require.NoError(t, err)
	assert.NotEqual(t, one.Revision, three.Revision)
}

func TestTheCopyStaysAsItWasWhenTheOriginalChanges(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"a.yml": play})
	into := t.TempDir()
	s, err := resolve(t, playbook.Options{AnsibleDir: dir, Playbook: "a", Dir: into})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a.yml"), []byte("changed"), 0o600))
	b, err := os.ReadFile(filepath.Join(s.Root, "a.yml"))
	require.NoError(t, err)
	assert.Equal(t, play, string(b))
	// A second call replaces the copy, and what was installed for the first:
	// ansible-galaxy keeps a role that is there, whatever its version.
	require.NoError(t, os.MkdirAll(filepath.Join(into, "galaxy/roles/old"), 0o700))
	s, err = resolve(t, playbook.Options{AnsibleDir: dir, Playbook: "a", Dir: into})
	require.NoError(t, err)
	b, err = os.ReadFile(filepath.Join(s.Root, "a.yml"))
	require.NoError(t, err)
	assert.Equal(t, "changed", string(b))
	assert.NoDirExists(t, filepath.Join(into, "galaxy"))
}

func TestADirectoryThatIsNotThereIsNamed(t *testing.T) {
	t.Parallel()
	_, err := resolve(t, playbook.Options{Playbook: "a", AnsibleDir: filepath.Join(t.TempDir(), "no")})
	actionable(t, err, "ANSIBLE_DIR")
}
