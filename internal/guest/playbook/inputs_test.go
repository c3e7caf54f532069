package playbook_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/ansible"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// lab is a tree with one of every kind of file.
func lab() map[string]string {
	return map[string]string{
		"ansible.cfg":                        "[defaults]\nroles_path = roles\nlibrary = ./modules\n",
		"modules/special.py":                 "print()",
		"library/own.py":                     "print()",
		"filter_plugins/own.py":              "def f(): pass",
		"requirements.yml":                   "roles:\n  - {name: far, src: https://example.org/far.git, version: 1.2.3}\n",
		"playbooks/group_vars/all.yml":       "a: 1\n",
		"playbooks/host_vars/default":        "a: 2\n",
		"playbooks/base.yml":                 basePlay,
		"playbooks/more.yml":                 "- hosts: all\n  roles: [shorthand]\n",
		"playbooks/other.yml":                "- hosts: all\n  roles: [unused]\n",
		"playbooks/tasks/deep.yml":           "- import_tasks: deeper.yml\n- copy: src=dot.conf dest=/etc\n",
		"playbooks/tasks/deeper.yml":         "- debug: {}\n",
		"playbooks/tasks/alien.yaml":         "- debug: {}\n",
		"playbooks/vars/common.yml":          "x: {file: named-by-a-variable.txt}\n",
		"playbooks/vars/loaded.yml":          "y: 1\n",
		"playbooks/vars/more/one.yml":        "z: 1\n",
		"playbooks/files/dot.conf":           "dot",
		"playbooks/files/tool.sh":            "#!/bin/sh\n",
		"playbooks/files/folder/one":         "1",
		"playbooks/files/folder/two":         "2",
		"playbooks/files/debian.list":        "x",
		"playbooks/files/looked-up.pub":      "key",
		"playbooks/files/alien.conf":         "x",
		"playbooks/files/of-more/x":          "x",
		"playbooks/templates/motd.j2":        "{% include 'part.j2' %}",
		"playbooks/templates/part.j2":        "hello",
		"playbooks/named-by-a-variable.txt":  "x",
		"roles/plain/tasks/main.yml":         "- include_tasks: '{{ ansible_facts.distribution }}.yml'\n",
		"roles/plain/tasks/Debian.yml":       "- template: {src: '{{ item }}.j2'}\n  loop: [a]\n- copy: {src: '{{ role_path }}/files/x'}\n",
		"roles/plain/files/x":                "x",
		"roles/plain/templates/a.j2":         "{{ lookup('file', 'x') }}",
		"roles/plain/defaults/main.yml":      "d: 1\n",
		"roles/plain/vars/main.yml":          "v: 1\n",
		"roles/plain/handlers/main.yml":      "- import_role:\n    name: notified\n    tasks_from: reload\n",
		"roles/plain/library/mine.py":        "print()",
		"roles/plain/meta/main.yml":          "dependencies:\n  - {role: needed}\n  - far\n",
		"roles/plain/README.md":              "about",
		"roles/plain/molecule/default/a.yml": "- hosts: all\n",
		"roles/plain/tests/test.yml":         "- hosts: all\n",
		"roles/unused/files/theirs":          "x",
		"roles/needed/tasks/main.yml":        "[]",
		"roles/notified/tasks/reload.yml":    "[]",
		"roles/shorthand/tasks/main.yml":     "- copy: {src: CHANGELOG.md}\n",
		"roles/shorthand/CHANGELOG.md":       "copied",
		"roles/included/tasks/main.yml":      "[]",
		"roles/rescued/tasks/main.yml":       "[]",
		"roles/unused/tasks/main.yml":        "- include_role: {name: '{{ anything }}'}\n",
		"roles/unused/README.md":             "about",
		"tests/base.yaml":                    "file: {}\n",
		"tests/copied.yaml":                  "file: {}\n",
		"README.md":                          "roles/unused is another",
		".yamllint":                          "---\n",
	}
}

const basePlay = `
- import_playbook: more.yml
- name: Base
  hosts: all
  vars_files: [vars/common.yml, [vars/missing.yml]]
  roles:
    - role: plain
      when: x
  pre_tasks:
    - include_vars: loaded.yml
    - include_vars: {dir: vars/more}
    - block:
        - ansible.builtin.include_tasks: {file: tasks/deep.yml}
      rescue:
        - ansible.builtin.include_role: {name: rescued}
      always:
        - include_role: name=included tasks_from=main
  tasks:
    - template: {src: motd.j2, dest: /etc/motd}
    - copy: {src: "{{ x.file }}", dest: /etc/x}
    - copy: {src: files/folder/, dest: /etc/x}
    - copy: {src: tests/copied.yaml, dest: /etc/x}
    - copy: {src: "{{ distribution | lower }}.list", dest: /etc/x}
    - script: {cmd: tool.sh --now}
    - iptables: {action: insert, chain: INPUT}
    - authorized_key: {user: root, key: "{{ lookup('file', 'looked-up.pub') }}"}
    - shell: ls ..5
`

// unused are the files of the lab that a build of base.yml leaves out.
var unused = []string{
	".yamllint", "README.md", "playbooks/other.yml", "roles/plain/README.md", "roles/plain/molecule/default/a.yml",
	"roles/unused/README.md", "roles/unused/files/theirs", "roles/unused/tasks/main.yml", "tests/base.yaml",
}

func inputsOf(t *testing.T, dir string) playbook.Inputs {
	t.Helper()
	tree, err := playbook.OpenTree(t.Context(), dir)
	require.NoError(t, err)
	defer tree.Close()
	in, err := tree.Inputs(t.Context(), "base", nil)
	require.NoError(t, err)
	return in
}

func TestRolesPlaybooksDocumentsAndChecksThatNothingNamesAreLeftOut(t *testing.T) {
	t.Parallel()
	in := inputsOf(t, tree(t, lab()))
	require.Empty(t, in.Whole)
	left := slices.DeleteFunc(slices.Sorted(maps.Keys(lab())), func(name string) bool { return slices.Contains(in.Files, name) })
	assert.Equal(t, unused, left)
}

func TestEveryUsedFileChangesTheDigestAndNoOther(t *testing.T) {
	t.Parallel()
	dir := tree(t, lab())
	before := inputsOf(t, dir)
	for name, content := range lab() {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, []byte(content+"\n# a comment\n"), 0o600))
		after := inputsOf(t, dir)
		if slices.Contains(unused, name) {
			assert.Equal(t, before, after, name)
		} else {
			assert.NotEqual(t, before.Digest, after.Digest, name)
		}
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	}
	assert.Equal(t, before, inputsOf(t, dir))
}

func TestAnAddedARemovedAndARenamedFileOfARoleChangeTheDigest(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(dir string) error{
		"added":      func(dir string) error { return os.WriteFile(dir+"/roles/plain/files/new", nil, 0o600) },
		"removed":    func(dir string) error { return os.Remove(dir + "/roles/plain/files/x") },
		"renamed":    func(dir string) error { return os.Rename(dir+"/roles/plain/files/x", dir+"/roles/plain/files/y") },
		"executable": func(dir string) error { return os.Chmod(dir+"/playbooks/files/tool.sh", 0o700) },
		"a link": func(dir string) error {
			os.Remove(dir + "/roles/plain/files/x")
			return os.Symlink("../defaults/main.yml", dir+"/roles/plain/files/x")
		},
	} {
		dir := tree(t, lab())
		before := inputsOf(t, dir)
		require.NoError(t, change(dir))
		assert.NotEqual(t, before.Digest, inputsOf(t, dir).Digest, what)
	}
}

func TestTimePlaceOrderAndOwnersDoNotMatter(t *testing.T) {
	t.Parallel()
	dir := tree(t, lab())
	before := inputsOf(t, dir)
	for name := range lab() {
		require.NoError(t, os.Chtimes(filepath.Join(dir, name), time.Unix(1, 0), time.Unix(1, 0)))
	}
	assert.Equal(t, before, inputsOf(t, dir), "touched")

	other := t.TempDir()
	names := slices.Sorted(maps.Keys(lab()))
	slices.Reverse(names) // another order in the directories
	for _, name := range names {
		file := filepath.Join(other, "deep/er", name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(lab()[name]), 0o644))
	}
	require.NoError(t, os.MkdirAll(filepath.Join(other, "deep/er/.git/refs"), 0o755))
	assert.Equal(t, before, inputsOf(t, filepath.Join(other, "deep/er")), "another checkout, another umask")

	source, err := playbook.Resolve(t.Context(), playbook.Options{AnsibleDir: dir, Playbook: "base", Dir: t.TempDir()}, progress.Discard)
	require.NoError(t, err)
	copied, err := source.Inputs(t.Context(), nil)
	require.NoError(t, err)
	assert.Equal(t, before, copied, "the copy that a build runs")
}

func TestWhatIsNamedAsItRunsTakesTheWholeTreeAndSaysWhy(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ file, content, why string }{
		{"roles/plain/tasks/main.yml", "- include_role: {name: '{{ y }}'}", "roles/plain/tasks/main.yml uses the role {{ y }}"},
		{"roles/plain/tasks/main.yml", "- block:\n  - import_role: {tasks_from: x}", "uses the role"},
		{"roles/plain/tasks/main.yml", "- action: include_role name=x", "in the form action: include_role"},
		{"roles/plain/tasks/main.yml", "- copy: {src: '{{ playbook_dir | dirname }}/x'}", `says "playbook_dir"`},
		{"roles/plain/tasks/main.yml", "- copy: {src: '{{ y }}/../other/x'}", `says "/.."`},
		{"roles/plain/tasks/main.yml", "- copy: {src: ../../unused/x}", `says "../"`},
		{"roles/plain/tasks/main.yml", "- copy: {src: '{{ role_path | dirname }}/..'}", `says`},
		{"roles/plain/tasks/main.yml", "- copy: {src: 'roles/{{ y }}'}", `says "roles/"`},
		{"roles/plain/tasks/main.yml", "- debug: {msg: \"{{ lookup('pipe', 'date') }}\"}", "says \"'pipe'\""},
		{"roles/plain/tasks/main.yml", "- debug: {}\n  with_lines: ls", `says "with_lines"`},
		{"roles/plain/tasks/main.yml", "- command: ls\n  delegate_to: localhost", `says "delegate_to"`},
		{"roles/plain/tasks/main.yml", "- local_action: command ls", `says "local_action"`},
		{"roles/plain/tasks/main.yml", "- [", "no YAML"},
		{"roles/plain/templates/a.j2", "{{ lookup('template', '../' ~ x ~ '.j2') }}", "roles/plain/templates/a.j2 says"},
		{"roles/plain/templates/a.j2", "{% include '../' ~ x %}", "roles/plain/templates/a.j2 says"},
		{"roles/plain/meta/main.yml", "dependencies: [{role: '{{ y }}'}]", "uses the role {{ y }}"},
		{"playbooks/base.yml", "- import_playbook: '{{ y }}'", "imports the playbook {{ y }}"},
		{"playbooks/base.yml", "- hosts: all\n  roles: '{{ y }}'", "uses the role {{ y }}"},
		{"playbooks/base.yml", "- hosts: all\n  connection: ansible.builtin.local", `says "connection"`},
		{"playbooks/group_vars/all.yml", "x: \"{{ lookup('ansible.builtin.pipe', y) }}\"", "says"},
	} {
		t.Run(c.why, func(t *testing.T) {
			files := map[string]string{
				"playbooks/base.yml": "- hosts: all\n  roles: [plain]\n", "roles/plain/tasks/main.yml": "[]",
				"roles/unused/README.md": "about", "tests/base.yaml": "file: {}",
			}
			files[c.file] = c.content
			in := inMemory(t, files)
			assert.Contains(t, in.Whole, c.why)
			assert.Contains(t, in.String(), "the whole tree: ")
			assert.NotContains(t, in.Whole, "\x01")
			files["tests/base.yaml"] = "other"
			assert.Equal(t, in.Digest, inMemory(t, files).Digest, "checks change no disk")
			files["roles/unused/README.md"] = "other"
			assert.NotEqual(t, in.Digest, inMemory(t, files).Digest)
		})
	}
}

// inMemory is inputsOf for files that are on no disk.
func inMemory(t *testing.T, files map[string]string) playbook.Inputs {
	t.Helper()
	fsys := fstest.MapFS{}
	for name, content := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(content), Mode: 0o644}
	}
	tree, err := playbook.NewTree(t.Context(), fsys)
	require.NoError(t, err)
	in, err := tree.Inputs(t.Context(), "base", nil)
	require.NoError(t, err)
	return in
}

// What a distribution's name decides was taken for no file at all: two trees
// with different files had one digest.
func TestFilesThatFactsNameCount(t *testing.T) {
	t.Parallel()
	files := map[string]string{
		"base.yml":          "- hosts: all\n  tasks:\n    - copy: {src: '{{ ansible_distribution_release }}', dest: /etc/x}\n",
		"bookworm":          "one",
		"files/bookworm":    "one",
		"vars/Debian.yml":   "x: 1",
		"group_vars/x.yml":  "x: 1",
		"nested/deep/trees": "x",
	}
	before := inMemory(t, files)
	for name, content := range files {
		files[name] = content + "\n#"
		assert.NotEqual(t, before.Digest, inMemory(t, files).Digest, name)
		files[name] = content
	}
}

// What a build reads is what counts: its copy of the tree holds nothing else,
// so that a stale image cannot come of a file that was overlooked.
func TestEveryByteThatABuildReadsIsInTheDigest(t *testing.T) {
	t.Parallel()
	for what, edit := range map[string]func(map[string]string){
		"a tree of which parts are left out": func(map[string]string) {},
		"a tree that counts whole":           func(f map[string]string) { f["roles/plain/tasks/more.yml"] = "- include_role: {name: '{{ x }}'}" },
		"a tree with a link": func(f map[string]string) {
			delete(f, "roles/plain/files/x")
			f["roles/plain/files/y"] = "y"
		},
	} {
		t.Run(what, func(t *testing.T) {
			files := lab()
			edit(files)
			dir := tree(t, files)
			require.NoError(t, os.MkdirAll(filepath.Join(dir, "roles/plain/files/empty/folder"), 0o700))
			if _, there := files["roles/plain/files/x"]; !there {
				require.NoError(t, os.Symlink("../../unused/files/theirs", dir+"/roles/plain/files/x"))
			}
			source, err := playbook.Resolve(t.Context(), playbook.Options{AnsibleDir: dir, Playbook: "base", Dir: t.TempDir()}, progress.Discard)
			require.NoError(t, err)
			in, err := source.Inputs(t.Context(), nil)
			require.NoError(t, err)
			require.NoError(t, source.Keep(in))
			again, err := source.Inputs(t.Context(), nil)
			require.NoError(t, err)
			require.Equal(t, in.Digest, again.Digest, "what is left has the digest of all")
			read := 0
			require.NoError(t, filepath.WalkDir(source.Root, func(file string, d os.DirEntry, err error) error {
				if err != nil || !d.Type().IsRegular() {
					return err
				}
				read++
				name, err := filepath.Rel(source.Root, file)
				require.NoError(t, err)
				original := filepath.Join(dir, name)
				content, err := os.ReadFile(original)
				require.NoError(t, err)
				at := []int{len(content) / 2, 0, len(content) - 1}
				if testing.Short() {
					at = at[:1]
				}
				for _, i := range at {
					if len(content) == 0 {
						break
					}
					changed := slices.Clone(content)
					changed[i] ^= 1
					require.NoError(t, os.WriteFile(original, changed, 0o600))
					assert.NotEqual(t, in.Digest, inputsOf(t, dir).Digest, "byte %d of %s", i, name)
				}
				return os.WriteFile(original, content, 0o600)
			}))
			assert.Greater(t, read, 20)
			assert.NoError(t, filepath.WalkDir(source.Root, func(file string, d os.DirEntry, err error) error {
				if err != nil || !d.IsDir() {
					return err
				}
				entries, err := os.ReadDir(file)
				assert.NotEmpty(t, entries, "%s: no digest covers an empty folder", file)
				return err
			}))
			assert.FileExists(t, source.Checks, "what verify reads stays, out of the tree")
			assert.NotContains(t, source.Checks, source.Root+"/")
		})
	}
}

func TestWhatExtraVariablesNameCountsFromTheFirstCallOn(t *testing.T) {
	t.Parallel()
	dir := tree(t, lab())
	vars := map[string]any{"about": "README.md"}
	open := func() *playbook.Tree {
		tree, err := playbook.OpenTree(t.Context(), dir)
		require.NoError(t, err)
		t.Cleanup(func() { tree.Close() })
		return tree
	}
	first, err := open().Inputs(t.Context(), "base", vars) // as a build asks
	require.NoError(t, err)
	assert.Contains(t, first.Files, "README.md")
	planned := open() // as a plan asks, for many images
	_, err = planned.Inputs(t.Context(), "base", nil)
	require.NoError(t, err)
	again, err := planned.Inputs(t.Context(), "base", vars)
	require.NoError(t, err)
	assert.Equal(t, first.Digest, again.Digest)
}

func TestLinksCountWithWhatTheyLeadTo(t *testing.T) {
	t.Parallel()
	dir := tree(t, lab())
	require.NoError(t, os.Symlink("../../unused/README.md", filepath.Join(dir, "roles/plain/files/theirs")))
	assert.Contains(t, inputsOf(t, dir).Files, "roles/unused/README.md")

	dir = tree(t, lab())
	require.NoError(t, os.Rename(filepath.Join(dir, "roles/shorthand"), filepath.Join(dir, "roles/real")))
	require.NoError(t, os.Symlink("real", filepath.Join(dir, "roles/shorthand")))
	in := inputsOf(t, dir)
	assert.Contains(t, in.Files, "roles/shorthand")
	assert.Contains(t, in.Files, "roles/real/tasks/main.yml", "a role that is a link: %s", in)
}

func TestOurOwnPlaybooksAreStatic(t *testing.T) {
	t.Parallel()
	tree, err := playbook.NewTree(t.Context(), ansible.FS)
	require.NoError(t, err)
	for _, name := range []string{"debian-base", "packages", "ubuntu-base"} {
		in, err := tree.Inputs(t.Context(), name, map[string]any{"install_desktop_environment": true})
		require.NoError(t, err)
		assert.Empty(t, in.Whole)
		assert.Contains(t, in.Files, "roles/desktop/files/kioskrc")
	}
}

// manyRoles is a tree of a hundred roles and fifty playbooks.
func manyRoles(t testing.TB) string {
	dir := t.TempDir()
	write := func(name, content string) {
		file := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(content), 0o644))
	}
	for i := range 100 {
		write(fmt.Sprintf("roles/r%d/tasks/main.yml", i), strings.Repeat("- copy: {src: '{{ item }}.conf', dest: /etc}\n  loop: [a, b]\n", 20))
		write(fmt.Sprintf("roles/r%d/files/a.conf", i), "x")
	}
	for i := range 50 {
		write(fmt.Sprintf("playbooks/p%d.yml", i), fmt.Sprintf("- hosts: all\n  roles: [r%d, r%d, r%d]\n", i, i+1, i+50))
	}
	return dir
}

// BenchmarkAThousandImagesOfOneTree is what planning asks of playbooks.
func BenchmarkAThousandImagesOfOneTree(b *testing.B) {
	dir := manyRoles(b)
	b.ReportAllocs()
	for b.Loop() {
		tree, err := playbook.OpenTree(b.Context(), dir)
		require.NoError(b, err)
		for i := range 1000 {
			in, err := tree.Inputs(b.Context(), fmt.Sprintf("p%d", i%50), map[string]any{"course": fmt.Sprintf("course %d", i)})
			require.NoError(b, err)
			require.Empty(b, in.Whole)
		}
		require.NoError(b, tree.Close())
	}
}

func FuzzInputs(f *testing.F) {
	f.Add(basePlay, "{% include 'x' %}{{ lookup('file', y) }}")
	f.Add("- hosts: &a [*a]\n  roles: *a\n", "")
	f.Add("- hosts: all\n  tasks: [{copy: 'src=../../../* dest=[a'}, {include_tasks: {file: [{}]}}]", "{{")
	f.Add("- import_playbook: base.yml\n- hosts: all\n  roles: [., .., ../playbooks, a.b.c.d, {role: {}}]", "\x01/..")
	f.Fuzz(func(t *testing.T, play, template string) {
		in := inMemory(t, map[string]string{"playbooks/base.yml": play, "playbooks/templates/t.j2": template, "roles/r/tasks/main.yml": play, "roles/r/templates/t": template})
		require.Contains(t, in.Files, "playbooks/base.yml")
		require.Len(t, in.Digest, 71)
	})
}
