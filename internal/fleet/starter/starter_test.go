package starter_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/fleet/starter"
)

var all = []string{".github/workflows/images.yml", ".gitignore", "README.md", "ansible/playbooks/course.yml", "ansible/tests/course.yaml", "catalogue.yaml"}

func TestTheCatalogueHasABaseAndAnImageThatStartsFromIt(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "Numerical Methods (2026)")
	w, err := starter.Write(dir, starter.Options{Release: "bookworm"})
	require.NoError(t, err)
	assert.Equal(t, &starter.Written{New: all}, w)
	c, err := catalogue.Load(filepath.Join(dir, "catalogue.yaml"))
	require.NoError(t, err)
	require.Len(t, c.Images, 2)
	assert.Equal(t, "debian-bookworm-desktop", c.Images[0].Name)
	own := c.Images[1]
	assert.Equal(t, "numerical-methods-2026", own.Name)
	assert.Equal(t, c.Images[0].Name, own.From)
	assert.FileExists(t, filepath.Join(own.Settings["ANSIBLE_DIR"], "playbooks", own.Settings["ANSIBLE_PLAYBOOK"]+".yml"))
	workflow, err := os.ReadFile(filepath.Join(dir, ".github/workflows/images.yml"))
	require.NoError(t, err)
	assert.Contains(t, string(workflow), "tag: ${{ inputs.tag || github.run_id }}\n")
	assert.Contains(t, string(workflow), "images: numerical-methods-2026\n")
}

func TestACourseOfOursIsBetweenTheDesktopAndTheImage(t *testing.T) {
	t.Parallel()
	courses := starter.Courses()
	assert.Contains(t, courses, "docker")
	assert.NotContains(t, courses, "debian-base")
	for _, course := range courses {
		dir := filepath.Join(t.TempDir(), course)
		_, err := starter.Write(dir, starter.Options{Release: "trixie", Course: course})
		require.NoError(t, err)
		c, err := catalogue.Load(filepath.Join(dir, "catalogue.yaml"))
		require.NoError(t, err)
		require.Len(t, c.Images, 3)
		assert.Equal(t, "debian-trixie-"+course, c.Images[1].Name)
		assert.Equal(t, course, c.Images[1].Settings["ANSIBLE_PLAYBOOK"])
		assert.Empty(t, c.Images[1].Settings["ANSIBLE_DIR"])
		assert.Equal(t, c.Images[1].Name, c.Images[2].From)
	}
}

func TestWhatIsThereIsLeft(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "README.md"), []byte("mine"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "catalogue.yaml"), []byte("images: []"), 0o600))
	w, err := starter.Write(dir, starter.Options{Release: "bookworm"})
	require.NoError(t, err)
	assert.Equal(t, []string{"README.md", "catalogue.yaml"}, w.Left)
	mine, err := os.ReadFile(filepath.Join(dir, "README.md"))
	require.NoError(t, err)
	assert.Equal(t, "mine", string(mine))

	w, err = starter.Write(dir, starter.Options{Release: "bookworm"})
	require.NoError(t, err)
	assert.Equal(t, &starter.Written{Left: all}, w)
}

func TestAFolderThatCannotBeWrittenIsOneLine(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(dir, nil, 0o600))
	_, err := starter.Write(dir, starter.Options{Release: "bookworm"})
	require.ErrorContains(t, err, "the folder cannot be made")
	for what, put := range map[string]func(path string) error{
		"ansible":        func(path string) error { return os.Symlink(t.TempDir(), path) },
		"catalogue.yaml": func(path string) error { return os.Symlink("/not/there", path) },
		"README.md":      func(path string) error { return os.Mkdir(path, 0o700) },
		".github":        func(path string) error { return os.WriteFile(path, nil, 0o600) },
	} {
		dir := t.TempDir()
		require.NoError(t, put(filepath.Join(dir, what)))
		_, err := starter.Write(dir, starter.Options{Release: "bookworm"})
		require.ErrorContains(t, err, "nothing is written: "+what+" is in the way")
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		assert.Len(t, entries, 1)
	}
}

func TestAnImageIsNamedAfterItsFolder(t *testing.T) {
	t.Parallel()
	for folder, name := range map[string]string{"java": "java", "Übung_1": "bung-1", "--": "course", "a..b": "a-b", "null": "null", "010": "010"} {
		dir := filepath.Join(t.TempDir(), folder)
		_, err := starter.Write(dir, starter.Options{Release: "bookworm"})
		require.NoError(t, err)
		c, err := catalogue.Load(filepath.Join(dir, "catalogue.yaml"))
		require.NoError(t, err, folder)
		assert.Equal(t, name, c.Images[1].Name)
	}
}

func TestNothingIsWrittenForANameThatIsNone(t *testing.T) {
	t.Parallel()
	for _, o := range []starter.Options{{Name: "My Course", Release: "bookworm"}, {Name: "java", Release: "jammy"}, {Name: "x\"\n- {name: y", Release: "bookworm"}} {
		dir := filepath.Join(t.TempDir(), "course")
		_, err := starter.Write(dir, o)
		require.ErrorAs(t, err, new(catalogue.Mistakes), o)
		assert.NoDirExists(t, dir)
	}
}
