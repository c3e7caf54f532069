package settings_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/settings"
)

// The ways on which settings get to the program besides its flags, which are
// made from the table. A setting that one of them names and the program does not
// know would have no effect there, and nobody would say so.

func read(t *testing.T, files ...string) string {
	t.Helper()
	var all strings.Builder
	for _, pattern := range files {
		found, err := filepath.Glob("../../" + pattern)
		require.NoError(t, err)
		require.NotEmpty(t, found, pattern)
		for _, file := range found {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			all.Write(text)
		}
	}
	return all.String()
}

func known(t *testing.T, env, where string) {
	t.Helper()
	_, ok := settings.By(env)
	assert.True(t, ok, "%s names the setting %s, which there is not", where, env)
}

// Of a Job's containers and a workflow's steps, which have variables of their
// own as well.
func TestTheJobAndTheWorkflowsNameKnownSettings(t *testing.T) {
	others := []string{"HOME", "TMPDIR"}
	for _, name := range regexp.MustCompile(`(?m)^ +- name: ([A-Z][A-Z_]+)\b`).FindAllStringSubmatch(read(t, "deploy/job.yaml"), -1) {
		if !slices.Contains(others, name[1]) {
			known(t, name[1], "deploy/job.yaml")
		}
	}
	for _, flag := range regexp.MustCompile(`bin/diskforge [a-z-]+[^\n]*`).FindAllString(read(t, ".github/workflows/*.yml"), -1) {
		for _, name := range regexp.MustCompile(`--([a-z-]+)`).FindAllStringSubmatch(flag, -1) {
			env := strings.ToUpper(strings.ReplaceAll(name[1], "-", "_"))
			if !slices.Contains([]string{"JSON", "FORMAT", "CATALOGUE", "ONLY", "FORCE", "MAX_AGE", "PULL_SECRET", "UNVERIFIED", "HELP", "PROVENANCE", "SECURITY"}, env) {
				known(t, env, "a workflow")
			}
		}
	}
}

// The module hands settings on as it is given them, and adds few of its own.
func TestTheDaggerModuleNamesKnownSettings(t *testing.T) {
	others := []string{"reuid", "regid", "inh-caps", "bounding-set", "only", "for", "settings"} // setpriv's, and the commands' own
	for _, flag := range regexp.MustCompile(`"--([a-z-]+)=`).FindAllStringSubmatch(read(t, "ci/*.go"), -1) {
		if !slices.Contains(others, flag[1]) {
			known(t, strings.ToUpper(strings.ReplaceAll(flag[1], "-", "_")), "ci")
		}
	}
}

// An input of build.yml is a setting by its flag's or its catalogue key's name,
// or one of those that only the workflow has.
func TestTheWorkflowsInputsAreSettings(t *testing.T) {
	var workflow struct {
		On struct {
			Call struct {
				Inputs map[string]any
			} `yaml:"workflow_call"`
		}
	}
	require.NoError(t, yaml.Unmarshal([]byte(read(t, ".github/workflows/build.yml")), &workflow))
	require.NotEmpty(t, workflow.On.Call.Inputs)
	its := []string{"name", "tag", "registry", "prefix", "further-tags", "runner", "settings", "keyless"}
	for input := range workflow.On.Call.Inputs {
		isSetting := slices.ContainsFunc(settings.Fields(), func(f settings.Field) bool {
			return f.In("build") && (f.Flag == input || f.Key == input)
		})
		assert.True(t, isSetting || slices.Contains(its, input), "build.yml: the input %s is no setting", input)
	}
	assert.Contains(t, workflow.On.Call.Inputs, "settings", "all others get there by that one")
}

func TestTheCataloguesSchemaHasTheKeysOfTheTableAndNoOther(t *testing.T) {
	var schema struct {
		Definitions map[string]struct {
			Properties map[string]json.RawMessage
			OneOf      []struct{ Properties map[string]json.RawMessage }
		}
	}
	require.NoError(t, json.Unmarshal([]byte(read(t, "internal/fleet/catalogue/schema.json")), &schema))
	its := []string{"name", "from", "tags", "matrix", "exclude", "architectures"} // what is no setting
	there := map[string]bool{}
	for key := range schema.Definitions["image"].Properties {
		group := schema.Definitions[key]
		members := group.Properties
		for _, one := range group.OneOf {
			if members == nil {
				members = map[string]json.RawMessage{}
			}
			for member := range one.Properties {
				members[member] = nil
			}
		}
		switch {
		case slices.Contains(its, key):
		case key != "base" && key != "git":
			there[key] = true
		default:
			for member := range members {
				there[key+"."+member] = true
			}
		}
	}
	want := map[string]bool{}
	for _, f := range settings.Fields() {
		if f.Key != "" {
			want[f.Key] = true
		}
	}
	assert.Equal(t, want, there)
}
