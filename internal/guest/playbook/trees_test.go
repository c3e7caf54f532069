package playbook_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/ansible"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

func TestATreeFromGitIsFetchedOnceForEachCommit(t *testing.T) {
	t.Parallel()
	url, first, second := repository(t)
	dir := filepath.Join(t.TempDir(), "trees")
	open := func(ref string) (*playbook.Tree, string) {
		var w activities
		var trees playbook.Trees
		t.Cleanup(func() { assert.NoError(t, trees.Close()) })
		one, err := trees.Open(t.Context(), playbook.Options{GitURL: url, GitBranch: ref, Cache: dir}, &w)
		require.NoError(t, err)
		two, err := trees.Open(t.Context(), playbook.Options{GitURL: url, GitBranch: ref, Cache: dir}, &w)
		require.NoError(t, err)
		assert.Same(t, one, two)
		return one, strings.Join(w, "\n")
	}
	tree, said := open("master")
	assert.Equal(t, first, tree.Revision)
	assert.Equal(t, url, tree.URL)
	assert.Equal(t, 1, strings.Count(said, "fetching"))
	_, err := tree.Inputs(t.Context(), "base", nil)
	require.NoError(t, err)

	for ref, commit := range map[string]string{"v1.0": first, first: first, "master": first} {
		tree, said := open(ref)
		assert.Equal(t, commit, tree.Revision, ref)
		assert.Empty(t, said, "%s is the same commit", ref)
	}
	tree, said = open("feature/x")
	assert.Equal(t, second, tree.Revision)
	assert.Contains(t, said, "fetching")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, left, 2, "a tree a commit, and nothing temporary")
}

func TestTreesAreReadWhereTheyLie(t *testing.T) {
	t.Parallel()
	cache := filepath.Join(t.TempDir(), "none")
	var trees playbook.Trees
	defer trees.Close()
	own, err := trees.Open(t.Context(), playbook.Options{Embedded: ansible.FS, Cache: cache}, progress.Discard)
	require.NoError(t, err)
	_, err = own.Find("debian-base")
	require.NoError(t, err)
	_, err = own.Find("../debian-base")
	actionable(t, err, "outside")
	require.ErrorIs(t, err, playbook.ErrUnknown)
	_, err = own.Find("debian-bse")
	actionable(t, err, "ubuntu-base")
	require.ErrorIs(t, err, playbook.ErrUnknown)

	users := tree(t, lab())
	theirs, err := trees.Open(t.Context(), playbook.Options{AnsibleDir: users, Cache: cache}, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, users, theirs.URL)
	assert.NoDirExists(t, cache)

	url, _, _ := repository(t)
	_, err = trees.Open(t.Context(), playbook.Options{GitURL: url, GitBranch: "gone", Cache: cache}, progress.Discard)
	actionable(t, err, `"gone"`)
	assert.NotErrorIs(t, err, playbook.ErrUnknown)
	require.NoError(t, os.RemoveAll(url))
	_, again := trees.Open(t.Context(), playbook.Options{GitURL: url, GitBranch: "gone", Cache: cache}, progress.Discard)
	assert.Equal(t, err, again, "nobody is asked twice")
}

// activities are what a Reporter is told.
type activities []string

func (*activities) Bytes(int64, int64)     {}
func (a *activities) Activity(what string) { *a = append(*a, what) }
func (*activities) Warn(string)            {}

func TestANameThatIsNotUTF8IsNamed(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"base.yml": play, "\xdcbung\n.txt": "x"})
	_, err := resolve(t, playbook.Options{AnsibleDir: dir, Playbook: "base"})
	actionable(t, err, `"\xdcbung\n.txt"`, "rename it")
	var trees playbook.Trees
	defer trees.Close()
	_, err = trees.Open(t.Context(), playbook.Options{AnsibleDir: dir}, progress.Discard)
	actionable(t, err, "not UTF-8")
}

// OUTPUT_DIR and ANSIBLE_DIR at their defaults in a checkout of playbooks: the
// tree was copied into itself until names were too long, and each image made
// another tree of it.
func TestResultsAreNoPartOfTheTree(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{
		"playbooks/base.yml": play, "out/report.json": "{}", "out/lab/lab/oci-layout": "{}", "out/lab/lab/blobs/sha256/x": "x",
		"elsewhere/image/oci-layout": "{}", "elsewhere/image/index.json": "{}", "disk.qcow2": "QFI", ".git/config": "x", "outside": "x",
	})
	options := playbook.Options{AnsibleDir: dir, Playbook: "base", Dir: filepath.Join(dir, "out/work/playbooks"), Results: []string{filepath.Join(dir, "out"), filepath.Join(dir, "disk.qcow2")}}
	s, err := resolve(t, options)
	require.NoError(t, err)
	want := []string{"outside", "playbooks/base.yml"}
	in, err := s.Inputs(t.Context(), nil)
	require.NoError(t, err)
	assert.Equal(t, want, in.Files)
	assert.NoDirExists(t, filepath.Join(s.Root, "out"))

	var trees playbook.Trees
	defer trees.Close()
	planned, err := trees.Open(t.Context(), options, progress.Discard)
	require.NoError(t, err)
	same, err := planned.Inputs(t.Context(), "base", nil)
	require.NoError(t, err)
	assert.Equal(t, in, same, "a plan sees the tree that a build sees")

	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(dir, link))
	options.AnsibleDir = link
	s, err = resolve(t, options)
	require.NoError(t, err)
	assert.NoDirExists(t, filepath.Join(s.Root, "out"), "by another name")
}
