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

var all = []string{".github/workflows/images.yml", "README.md", "ansible/playbooks/course.yml", "ansible/tests/course.yaml", "catalogue.yaml"}

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
	assert.Contains(t, string(workflow), "tag: ${{ inputs.tag }}\n")
}

func TestWhatIsThereIsLeft(t *testing.T) {
	t.Parallel()
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "README.md"), []byte("mine"), 0o600))
	require.NoError(t, os.Symlink(outside, filepath.Join(dir, "catalogue.yaml")))
	w, err := starter.Write(dir, starter.Options{Release: "bookworm"})
	require.NoError(t, err)
	assert.Equal(t, []string{"README.md", "catalogue.yaml"}, w.Left)
	assert.NoFileExists(t, outside)
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
	leads := filepath.Join(t.TempDir(), "course")
	require.NoError(t, os.MkdirAll(leads, 0o700))
	require.NoError(t, os.Symlink(t.TempDir(), filepath.Join(leads, "ansible")))
	_, err = starter.Write(leads, starter.Options{Release: "bookworm"})
	require.ErrorContains(t, err, "ansible/")
}

func TestAnImageIsNamedAfterItsFolder(t *testing.T) {
	t.Parallel()
	for folder, name := range map[string]string{"java": "java", "Übung_1": "bung-1", "--": "course", "a..b": "a-b"} {
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
	for _, o := range []starter.Options{{Name: "My Course", Release: "bookworm"}, {Name: "java", Release: "jammy"}, {Name: "x\n- {name: y", Release: "bookworm"}} {
		dir := filepath.Join(t.TempDir(), "course")
		_, err := starter.Write(dir, o)
		require.ErrorAs(t, err, new(catalogue.Mistakes), o)
		assert.NoDirExists(t, dir)
	}
}
