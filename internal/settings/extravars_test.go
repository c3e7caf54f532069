package settings_test

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/settings"
)

func variables(text string) (vars settings.Vars, err error) {
	err = vars.UnmarshalText([]byte(text))
	return vars, err
}

// words are plain scalars on which YAML's versions differ, and some on which
// they do not.
var words = []string{
	"no", "No", "NO", "off", "yes", "Yes", "on", "ON", "true", "False", "y", "n", "nO", "~", "null", "Null", "",
	"0", "7", "-7", "+7", "1_000", "0777", "0o17", "0x1F", "0b101", "08", "1:30", "12:30:45", "-1:30", "1:75",
	"1.5", ".5", "1e3", "1.0e+3", "1.5e3", "5.", "1.2.3", "+", "_", "12345678901234567890123",
	"2001-12-14", "text", "a: b c",
}

// PyYAML is what Ansible reads variables with: what it makes of each word, as
// JSON, is what a playbook must see.
func TestVariablesMeanWhatTheyMeanToAnsible(t *testing.T) {
	t.Parallel()
	texts := make([]string, len(words))
	for i, word := range words {
		texts[i] = "v: " + word
		if strings.Contains(word, ": ") {
			texts[i] = `v: "` + word + `"`
		}
	}
	out, err := exec.Command("/usr/bin/python3", append([]string{"-c",
		"import sys, yaml, json\nfor text in sys.argv[1:]: print(json.dumps(yaml.safe_load(text), default=str))"}, texts...)...).Output()
	require.NoError(t, err, "Debian's python3 with PyYAML, which Ansible brings")
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	require.Len(t, lines, len(texts))
	for i, text := range texts {
		vars, err := variables(text)
		require.NoError(t, err, text)
		got, err := json.Marshal(vars)
		require.NoError(t, err)
		assert.JSONEq(t, lines[i], string(got), text)
	}
}

func TestVariablesAreAJSONOrYAMLMapping(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"a": 1e3, "b": "no", "c": [no]}`:        `{"a": "1e3", "b": "no", "c": [false]}`,
		`{install_docs: no, n: [1, {x: on}]}`:     `{"install_docs": false, "n": [1, {"x": true}]}`,
		"a: !!str yes\nb: 'no'\nc: |\n  no\n":     `{"a": "yes", "b": "no", "c": "no\n"}`,
		"x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\n": `{"x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 3}}`,
		"yes: 1\n":   `{"yes": 1}`,
		`{"a": 1e3}`: `{"a": 1000}`,
	} {
		vars, err := variables(text)
		require.NoError(t, err, text)
		got, err := json.Marshal(vars)
		require.NoError(t, err)
		assert.JSONEq(t, want, string(got))
	}
	for _, text := range []string{"x", "[1]", "null", "{", "a: !vault x", "{[a]: 1}", "a: &a [*a]", "a: .inf", "a: all\n---\nb: nix", "a: !!float .inf", "80: 1"} {
		_, err := variables(text)
		assert.Error(t, err, text)
	}
}

func FuzzVars(f *testing.F) {
	f.Add("a: &a {b: [*a, 1:30], <<: *a}")
	f.Fuzz(func(t *testing.T, text string) {
		if vars, err := variables(text); err == nil {
			_, err := json.Marshal(vars)
			require.NoError(t, err)
		}
	})
}
