package hygiene

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Excuse lets findings pass.
type Excuse struct {
	Rule   string // a rule's name
	Path   string // a glob: * and ? within a name, ** over directories
	Reason string // why that is right; reports show it
}

// Policy is what a site says about its images: which findings may pass, and
// what else nobody may leave in them.
type Policy struct {
	Excuses []Excuse
	rules   []rule
}

// Reason is why a finding of the rule may pass, or empty.
func (p Policy) Reason(rule, path string) string {
	for _, e := range p.Excuses {
		if e.Rule == rule && glob(e.Path).match(path) {
			return e.Reason
		}
	}
	return ""
}

// maxAllowList bounds an allow-list in bytes; it is written by hand.
const maxAllowList = 1 << 20

// ReadAllowList reads a YAML list of excuses, each with the keys rule, path
// and reason, and of rules of one's own, as rules.yaml has them: rule, demands
// and find. What is wrong with it is a *failure.Error that names the line.
func ReadAllowList(path string) (Policy, error) {
	text, err := host.ReadFile(path, maxAllowList)
	if err != nil {
		return Policy{}, failure.Wrap(err, "the allow-list cannot be read", "check the path and its permissions")
	}
	p, err := parsePolicy(text, rules)
	if err != nil {
		return Policy{}, failure.Wrap(err, "the allow-list "+path, "give a YAML list of rule, path and reason")
	}
	return p, nil
}

// parsePolicy reads a list of excuses and rules besides those that there are.
func parsePolicy(text []byte, there []rule) (Policy, error) {
	var p Policy
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return p, err
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return p, nil
	}
	list := doc.Content[0]
	if list.Kind != yaml.SequenceNode {
		return p, fmt.Errorf("line %d: this is no list", list.Line)
	}
	names, lines := ruleNames(there), []int(nil)
	for _, item := range list.Content {
		if there != nil && !has(item, "find") {
			e, err := parseExcuse(item)
			if err != nil {
				return p, err
			}
			p.Excuses, lines = append(p.Excuses, e), append(lines, item.Line)
			continue
		}
		r, err := parseRule(item)
		if err != nil {
			return p, err
		}
		if slices.Contains(names, r.Name) {
			return p, fmt.Errorf("line %d: there is a rule called %q already", item.Line, r.Name)
		}
		p.rules, names = append(p.rules, r), append(names, r.Name)
	}
	for i, e := range p.Excuses {
		if !slices.Contains(names, e.Rule) {
			return p, fmt.Errorf("line %d: no rule is called %q: there are %s", lines[i], e.Rule, strings.Join(names, ", "))
		}
	}
	return p, nil
}

func has(item *yaml.Node, key string) bool {
	for i := 0; item.Kind == yaml.MappingNode && i+1 < len(item.Content); i += 2 {
		if item.Content[i].Value == key {
			return true
		}
	}
	return false
}

func parseExcuse(item *yaml.Node) (Excuse, error) {
	var e Excuse
	err := texts(item, "an excuse", "rule, path and reason", map[string]*string{"rule": &e.Rule, "path": &e.Path, "reason": &e.Reason})
	return e, err
}

// ruleName is what a rule may be called.
var ruleName = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)

// parseRule reads a rule; one that is built in may have no looks, but code.
func parseRule(item *yaml.Node) (rule, error) {
	var r rule
	var looks *yaml.Node
	rest := &yaml.Node{Kind: item.Kind, Line: item.Line}
	for i := 0; i+1 < len(item.Content); i += 2 {
		if item.Content[i].Value == "find" {
			looks = item.Content[i+1]
			continue
		}
		rest.Content = append(rest.Content, item.Content[i], item.Content[i+1])
	}
	if err := texts(rest, "a rule", "rule, demands and find", map[string]*string{"rule": &r.Name, "demands": &r.Demands}); err != nil {
		return r, err
	}
	if !ruleName.MatchString(r.Name) {
		return r, fmt.Errorf("line %d: a rule cannot be called %q: give lower-case letters, digits and -", item.Line, r.Name)
	}
	r.code = codes[r.Name]
	if looks == nil {
		return r, nil
	}
	if looks.Kind != yaml.SequenceNode || len(looks.Content) == 0 {
		return r, fmt.Errorf("line %d: find needs a list of looks, each with what and paths", looks.Line)
	}
	for _, l := range looks.Content {
		found, err := parseLook(l)
		if err != nil {
			return r, fmt.Errorf("line %d: %w", l.Line, err)
		}
		r.looks = append(r.looks, found)
	}
	return r, nil
}

func parseLook(item *yaml.Node) (look, error) {
	var given struct {
		What    string
		Paths   []string
		Content bool
		Holds   string
	}
	for i := 0; item.Kind == yaml.MappingNode && i+1 < len(item.Content); i += 2 {
		if key := item.Content[i].Value; !slices.Contains([]string{"what", "paths", "content", "holds"}, key) {
			return look{}, fmt.Errorf("the key %q is unknown: a look has what, paths, content and holds", key)
		}
	}
	if item.Decode(&given) != nil || given.What == "" || len(given.Paths) == 0 || given.Content && given.Holds != "" {
		return look{}, errors.New("a look has what (a text), paths (a list), and content (true) or holds (a regular expression) or neither")
	}
	for _, p := range given.Paths {
		if !strings.HasPrefix(p, "/") {
			return look{}, fmt.Errorf("the path %q does not begin with /", p)
		}
	}
	l := look{what: given.What, paths: globs(given.Paths...), content: given.Content}
	if given.Holds != "" {
		var err error
		if l.holds, err = regexp.Compile(given.Holds); err != nil {
			return look{}, fmt.Errorf("holds: %w", err)
		}
	}
	return l, nil
}

// texts reads a mapping of texts, all of which it must have.
func texts(item *yaml.Node, what, keys string, fields map[string]*string) error {
	if item.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: %s has the keys %s", item.Line, what, keys)
	}
	wanted := slices.Sorted(maps.Keys(fields))
	for i := 0; i+1 < len(item.Content); i += 2 {
		key, value := item.Content[i], item.Content[i+1]
		field, ok := fields[key.Value]
		switch {
		case !ok:
			return fmt.Errorf("line %d: the key %q is unknown or given twice: %s has %s", key.Line, key.Value, what, keys)
		case value.Kind != yaml.ScalarNode || strings.TrimSpace(value.Value) == "":
			return fmt.Errorf("line %d: %s needs a text", key.Line, key.Value)
		}
		*field = strings.TrimSpace(value.Value)
		delete(fields, key.Value)
	}
	for _, name := range wanted {
		if _, missing := fields[name]; missing {
			return fmt.Errorf("line %d: %s has no %s", item.Line, what, name)
		}
	}
	return nil
}

func ruleNames(all []rule) []string {
	var names []string
	for _, r := range all {
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
