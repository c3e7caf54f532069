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
	Type        types
	Pattern     string
	Enum        []string
	AnyOf       []rule
	Properties  map[string]rule
	Definitions map[string]rule

	pattern *regexp.Regexp
}

// types are the names of one type or several.
type types []string

// UnmarshalJSON reads both forms that a schema has.
func (t *types) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*t = types{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(t))
}

// schema is the schema as the loader uses it: what may stand where has one
// source.
var schema = sync.OnceValue(func() rule {
	var r rule
	if err := json.Unmarshal(schemaJSON, &r); err != nil {
		panic(fmt.Sprintf("schema.json is broken: %v", err)) // a test reads it
	}
	for name, d := range r.Definitions {
		d.compile()
		r.Definitions[name] = d
	}
	return r
})

func (r *rule) compile() {
	if r.Pattern != "" {
		r.pattern = regexp.MustCompile(r.Pattern)
	}
	for i := range r.AnyOf {
		r.AnyOf[i].compile()
	}
}

// accepts says whether the text has a form that the rule allows. References
// are to placeholders, which are no form but stand for one.
func (r *rule) accepts(text string) bool {
	if len(r.AnyOf) > 0 {
		return slices.ContainsFunc(r.AnyOf, func(a rule) bool { return a.Ref == "" && a.accepts(text) })
	}
	if len(r.Enum) > 0 {
		return slices.Contains(r.Enum, text)
	}
	return r.pattern == nil || r.pattern.MatchString(text)
}

// takes says whether the rule is for JSON's kind of scalar, too.
func (r *rule) takes(kind string) bool {
	return slices.Contains(r.Type, kind) ||
		kind == "integer" && slices.Contains(r.Type, "number") ||
		slices.ContainsFunc(r.AnyOf, func(a rule) bool { return a.takes(kind) })
}

// advice says what to give instead.
func (r *rule) advice() string {
	for _, a := range r.AnyOf {
		if len(a.Enum) > 0 {
			return "give " + strings.Join(a.Enum, ", ")
		}
		if strings.HasPrefix(a.Pattern, "^(true|false)") {
			return "give true or false"
		}
	}
	if len(r.Examples) > 0 {
		return fmt.Sprintf("give e.g. %v", r.Examples[0])
	}
	return "it takes a " + r.Description
}

// place is where a mapping of settings stands.
type place string

const (
	placeTop      place = "a catalogue"
	placeDefaults place = "defaults"
	placeImage    place = "an image"
	placeVariant  place = "a value of an axis"
)

// keys are what may stand in the place.
func (p place) keys() map[string]rule {
	s := schema()
	switch p {
	case placeTop:
		return s.Properties
	case placeDefaults:
		return s.Definitions["defaults"].Properties
	case placeVariant:
		return s.Definitions["variant"].Properties
	}
	return s.Definitions["image"].Properties
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
