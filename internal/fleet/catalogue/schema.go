package catalogue

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
)

//go:embed schema.json
var schemaJSON []byte

// Schema returns the JSON schema of a catalogue (draft 7, which the editors'
// YAML language server knows best).
func Schema() []byte { return slices.Clone(schemaJSON) }

// rule is what the loader reads of a definition in the schema: the forms of a
// scalar, and the keys of a mapping.
type rule struct {
	Description string
	Examples    []any
	Ref         string `json:"$ref"`
	Type        any    // the name of one, or a list of them
	Pattern     *regexp.Regexp
	Enum        []string
	AnyOf       []rule
	Properties  map[string]rule
	Definitions map[string]rule
}

// schema is the schema as the loader uses it: what may stand where has one
// source.
var schema = sync.OnceValue(func() (r rule) {
	if err := json.Unmarshal(schemaJSON, &r); err != nil {
		panic(fmt.Sprintf("schema.json is broken: %v", err)) // a test reads it
	}
	return r
})

// accepts says whether the text has a form that the rule allows. References
// are to placeholders, which are no form but stand for one.
func (r rule) accepts(s string) bool {
	switch {
	case len(r.AnyOf) > 0:
		return slices.ContainsFunc(r.AnyOf, func(a rule) bool { return a.Ref == "" && a.accepts(s) })
	case len(r.Enum) > 0:
		return slices.Contains(r.Enum, s)
	}
	return r.Pattern == nil || r.Pattern.MatchString(s)
}

// takes says whether the rule is for JSON's kind of scalar, too.
func (r rule) takes(kind string) bool {
	return r.is(kind) || kind == "integer" && r.is("number") ||
		slices.ContainsFunc(r.AnyOf, func(a rule) bool { return a.takes(kind) })
}

// is says whether the rule names the type. No type's name is a part of another's.
func (r rule) is(kind string) bool { return strings.Contains(fmt.Sprint(r.Type), kind) }

// advice says what to give instead.
func (r rule) advice() string {
	for _, a := range r.AnyOf {
		if len(a.Enum) > 0 {
			return "give " + strings.Join(a.Enum, ", ")
		}
		if a.is("boolean") {
			return "give true or false"
		}
	}
	if len(r.Examples) > 0 {
		return fmt.Sprintf("give e.g. %v", r.Examples[0])
	}
	return "it takes a " + r.Description
}

// place is where a mapping of settings stands: its name in messages, and in the
// schema.
type place struct{ name, definition string }

var (
	placeTop      = place{"a catalogue", ""}
	placeDefaults = place{"defaults", "defaults"}
	placeImage    = place{"an image", "image"}
	placeVariant  = place{"a value of an axis", "variant"}
)

// keys are what may stand in the place.
func (p place) keys() map[string]rule {
	if p == placeTop {
		return schema().Properties
	}
	return schema().Definitions[p.definition].Properties
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
