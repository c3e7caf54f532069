package cli_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// catalogued writes a catalogue of a parent and its child with their playbooks,
// changes to the folder and puts an Ansible into the way.
func catalogued(t *testing.T) {
	t.Helper()
	dir, bin := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{
		"catalogue.yaml": `
defaults: {ansible-dir: playbooks, playbook: base}
images:
  - {name: lab, from: debian}
  - {name: debian, base: {packages: bookworm}}
`,
		"playbooks/base.yml": "- hosts: all\n  tasks: []\n",
	} {
		file := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	}
	require.NoError(t, os.WriteFile(filepath.Join(bin, "ansible-playbook"), []byte("#!/bin/sh\necho 'ansible-playbook [core 2.14.18]'\n"), 0o755))
	t.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	t.Setenv("CACHE_DIR", t.TempDir())
	t.Setenv("OUTPUT_DIR", t.TempDir())
	t.Chdir(dir)
}

func TestThePlanIsJSONWhereJSONIsAskedFor(t *testing.T) {
	catalogued(t)
	for _, args := range [][]string{{"plan", "--json"}, {"plan", "--format", "json"}} {
		code, stdout, stderr := run(t, args...)
		require.Zero(t, code, stderr)
		var p struct{ Images []struct{ Name string } }
		require.NoError(t, json.Unmarshal([]byte(stdout), &p), stdout)
		require.Len(t, p.Images, 2)
		assert.Equal(t, "debian", p.Images[0].Name)
	}
	for _, args := range [][]string{{"plan"}, {"plan", "--json", "--format", "text"}} {
		code, stdout, stderr := run(t, args...)
		require.Zero(t, code, stderr)
		assert.Contains(t, stdout, "LEVEL  ACTION   IMAGE   FROM                WHY\n0      build    debian  packages: bookworm  not built yet\n1      build    lab     debian ")
	}
}

func TestWhatIsWrongWithACataloguesCommandIsUsageAndOneLine(t *testing.T) {
	catalogued(t)
	for want, args := range map[string][]string{
		`--only: no image of the catalogue matches "nosuch*": there are e.g. `:                                       {"plan", "--only", "nosuch*"},
		`--only: "[x" is no pattern of names: give e.g. ubuntu-*`:                                                    {"build-all", "--only", "[x"},
		"--format kubernetes: there is no registry to push to: set TARGET_REGISTRY, or registry in the catalogue":    {"plan", "--format", "kubernetes"},
		"--format github-matrix: there is no registry to push to: set TARGET_REGISTRY, or registry in the catalogue": {"plan", "--format", "github-matrix"},
		`IMAGE_TAG cannot be "a b": `: {"plan", "--image-tag", "a b"},
	} {
		code, stdout, stderr := run(t, args...)
		assert.Equal(t, 2, code, args)
		assert.Empty(t, stdout)
		assert.Contains(t, stderr, want)
		assert.Equal(t, 1, strings.Count(stderr, "diskforge: "), stderr)
	}
}

func TestAnUnknownPlaybookIsAMistakeOfTheCatalogue(t *testing.T) {
	catalogued(t)
	require.NoError(t, os.Remove("playbooks/base.yml"))
	require.NoError(t, os.WriteFile("playbooks/other.yml", []byte("- hosts: all\n  tasks: []\n"), 0o644))
	for _, command := range []string{"plan", "build-all"} {
		code, stdout, stderr := run(t, command)
		assert.Equal(t, 2, code)
		assert.Empty(t, stdout)
		assert.Contains(t, stderr, "diskforge: catalogue.yaml:4: image lab: there is no playbook \"base\": there are other\n"+
			"diskforge: catalogue.yaml:5: image debian: there is no playbook \"base\": there are other\n")
	}
}
