package catalogue_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
)

// dir is where the catalogues of the tests seem to lie.
const dir = "/catalogues"

func parse(text string) (*catalogue.Catalogue, error) {
	return catalogue.Parse("catalogue.yaml", dir, []byte(text))
}

// must returns the images of a good catalogue.
func must(t testing.TB, text string) []catalogue.Image {
	t.Helper()
	c, err := parse(text)
	require.NoError(t, err)
	return c.Images
}

// compiled is the shipped schema.
func compiled(t testing.TB) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(catalogue.Schema()))
	require.NoError(t, err)
	c := jsonschema.NewCompiler()
	require.NoError(t, c.AddResource("schema.json", doc))
	s, err := c.Compile("schema.json")
	require.NoError(t, err)
	return s
}

// valid says what the schema says of a catalogue, as an editor would.
func valid(t testing.TB, s *jsonschema.Schema, text string) error {
	t.Helper()
	var n yaml.Node
	require.NoError(t, yaml.Unmarshal([]byte(text), &n))
	return s.Validate(instance(&n))
}

// instance makes of YAML what JSON would say: keys are text, dates are text.
func instance(n *yaml.Node) any {
	switch n.Kind {
	case yaml.DocumentNode:
		return instance(n.Content[0])
	case yaml.AliasNode:
		return instance(n.Alias)
	case yaml.SequenceNode:
		list := []any{}
		for _, item := range n.Content {
			list = append(list, instance(item))
		}
		return list
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			if key.Kind == yaml.AliasNode {
				key = key.Alias
			}
			m[key.Value] = instance(n.Content[i+1])
		}
		return m
	}
	switch n.Tag {
	case "!!null":
		return nil
	case "!!bool":
		return strings.EqualFold(n.Value, "true")
	case "!!int", "!!float":
		if number := json.Number(n.Value); json.Valid([]byte(number)) {
			return number
		}
		return json.Number("0.5") // a number in a form that only YAML has
	}
	return n.Value
}

// with is a catalogue of one image with further lines.
func with(lines ...string) string {
	return "images:\n  - name: x\n    base: {packages: bookworm}\n    playbook: debian-base\n    " + strings.Join(lines, "\n    ") + "\n"
}
