package catalogue_test

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

func TestTheExamplesAreGoodCatalogues(t *testing.T) {
	t.Parallel()
	s := compiled(t)
	for _, file := range []string{"../../../deploy/catalogue.yaml"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.True(t, strings.HasPrefix(string(text), "# yaml-language-server: $schema="), "editors find the schema")
		assert.NoError(t, valid(t, s, string(text)))
		_, err = catalogue.Load(file)
		assert.NoError(t, err)
	}
}

func TestEveryKeyOfTheSchemaIsExplained(t *testing.T) {
	t.Parallel()
	var s struct {
		Definitions map[string]struct{ Description string }
	}
	require.NoError(t, json.Unmarshal(catalogue.Schema(), &s))
	assert.Greater(t, len(s.Definitions), 30)
	for name, d := range s.Definitions {
		assert.NotEmpty(t, d.Description, name)
	}
}

func TestEverySettingOfAnImageIsASettingAndCanStandInACatalogue(t *testing.T) {
	t.Parallel()
	set := map[string]bool{"BASE_FROM_PACKAGES": true, "SUITE": true} // not beside ISO_URL
	for _, i := range must(t, accepted["everything"]) {
		for name := range i.Settings {
			set[name] = true
		}
	}
	var keyed []string
	for _, f := range settings.Fields() {
		if f.Key != "" {
			keyed = append(keyed, f.Env)
		}
	}
	assert.ElementsMatch(t, keyed, slices.Collect(maps.Keys(set)))
}

func TestGoodSettingsInACatalogueAreGoodSettings(t *testing.T) {
	t.Parallel()
	for name, text := range accepted {
		for _, i := range must(t, text) {
			for _, path := range []string{"ANSIBLE_DIR", "EXTRA_VARS"} {
				if strings.HasPrefix(strings.TrimPrefix(i.Settings[path], "@"), dir) {
					delete(i.Settings, path) // no such file here
				}
			}
			if strings.HasPrefix(i.Settings["ISO_CHECKSUM"], "sha256:") {
				i.Settings["ISO_CHECKSUM"] = "sha256:" + strings.Repeat("0", 64)
			}
			s, err := settings.Read(i.Settings, func(string) (string, bool) { return "", false })
			require.NoError(t, err)
			_, err = pipeline.Parse(s, pipeline.NeedPlaybook)
			assert.NoError(t, err, name+": "+i.Name)
		}
	}
}
