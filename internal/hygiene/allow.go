package hygiene

import (
	"fmt"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/userfile"
)

// Excuse lets findings pass.
type Excuse struct {
	Rule   string // a rule's name
	Path   string // a glob: * and ? within a name, ** over directories
	Reason string // why that is right; reports show it
}

// maxAllowList bounds an allow-list in bytes; it is written by hand.
const maxAllowList = 1 << 20

// ReadAllowList reads a YAML list of excuses, each with the keys rule, path
// and reason. What is wrong with it is a *failure.Error that names the line.
func ReadAllowList(path string) ([]Excuse, error) {
	text, err := userfile.Read(path, maxAllowList)
	if err != nil {
		return nil, failure.Wrap(err, "the allow-list cannot be read", "check the path and its permissions")
	}
	excuses, err := parseAllowList(text)
	if err != nil {
		return nil, failure.Wrap(err, "the allow-list "+path, "give a YAML list of rule, path and reason")
	}
	return excuses, nil
}

func parseAllowList(text []byte) ([]Excuse, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil, nil
	}
	list := doc.Content[0]
	if list.Kind != yaml.SequenceNode {
		return nil, fmt.Errorf("line %d: this is no list", list.Line)
	}
	var excuses []Excuse
	for _, item := range list.Content {
		e, err := parseExcuse(item)
		if err != nil {
			return nil, err
		}
		excuses = append(excuses, e)
	}
	return excuses, nil
}

func parseExcuse(item *yaml.Node) (Excuse, error) {
	if item.Kind != yaml.MappingNode {
		return Excuse{}, fmt.Errorf("line %d: an excuse has the keys rule, path and reason", item.Line)
	}
	var e Excuse
	fields := map[string]*string{"rule": &e.Rule, "path": &e.Path, "reason": &e.Reason}
	for i := 0; i+1 < len(item.Content); i += 2 {
		key, value := item.Content[i], item.Content[i+1]
		field, ok := fields[key.Value]
		switch {
		case !ok:
			return Excuse{}, fmt.Errorf("line %d: the key %q is unknown or given twice: an excuse has rule, path and reason", key.Line, key.Value)
		case value.Kind != yaml.ScalarNode || strings.TrimSpace(value.Value) == "":
			return Excuse{}, fmt.Errorf("line %d: %s needs a text", key.Line, key.Value)
		}
		*field = strings.TrimSpace(value.Value)
		delete(fields, key.Value)
	}
	for _, name := range []string{"rule", "path", "reason"} {
		if _, missing := fields[name]; missing {
			return Excuse{}, fmt.Errorf("line %d: the excuse has no %s", item.Line, name)
		}
	}
	names := ruleNames()
	if !slices.Contains(names, e.Rule) {
		return Excuse{}, fmt.Errorf("line %d: no rule is called %q: there are %s", item.Line, e.Rule, strings.Join(names, ", "))
	}
	return e, nil
}

func ruleNames() []string {
	var names []string
	for _, r := range rules {
		names = append(names, r.Name)
	}
	return names
}

// excuse marks the findings that an excuse covers, and tells of excuses that
// cover none: they are out of date, or mistyped.
func excuse(findings []Finding, allow []Excuse, p progress.Reporter) {
	for _, e := range allow {
		used, g := false, glob(e.Path)
		for i := range findings {
			if f := &findings[i]; f.Rule == e.Rule && g.match(f.Path) {
				used = true
				if f.Excused == "" {
					f.Excused = e.Reason
				}
			}
		}
		if !used {
			p.Warn(fmt.Sprintf("the allow-list excuses %s for %s, but there is no such finding", e.Path, e.Rule))
		}
	}
}
