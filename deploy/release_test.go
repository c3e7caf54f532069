package deploy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"
)

// TestAReleaseKnowsItsVersion builds the program as .goreleaser.yaml does; what
// GoReleaser itself makes of the file, .ci/task release:check says.
func TestAReleaseKnowsItsVersion(t *testing.T) {
	if testing.Short() {
		t.Skip("it links the program")
	}
	text, err := os.ReadFile("../.goreleaser.yaml")
	require.NoError(t, err)
	var recipe struct {
		Builds []struct {
			Main                string
			Env, Flags, LDFlags []string
		}
		Archives []struct{ Files []string }
		Release  struct {
			Extra []struct{ Glob string } `yaml:"extra_files"`
		}
	}
	require.NoError(t, yaml.Unmarshal(text, &recipe))
	require.Len(t, recipe.Builds, 1)
	b := recipe.Builds[0]
	program := filepath.Join(t.TempDir(), "diskforge")
	ldflags := strings.ReplaceAll(strings.Join(b.LDFlags, " "), "{{ .Version }}", "1.2.3")
	require.NotContains(t, ldflags, "{{")
	c := exec.Command("go", append(append([]string{"build", "-o", program, "-ldflags", ldflags}, b.Flags...), b.Main)...)
	c.Dir, c.Env = "..", append(os.Environ(), b.Env...)
	out, err := c.CombinedOutput()
	require.NoError(t, err, string(out))
	version, err := exec.Command(program, "version").Output()
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(string(version), "diskforge v1.2.3\n"), string(version))

	for _, glob := range append(recipe.Archives[0].Files, recipe.Release.Extra[0].Glob) {
		found, err := filepath.Glob("../" + glob)
		require.NoError(t, err)
		assert.NotEmpty(t, found, glob)
	}
}
