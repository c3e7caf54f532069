package hygiene

import (
	"cmp"
	"fmt"
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

// excuse marks the findings that may pass, and warns of excuses that cover
// none: they are out of date, or mistyped.
func (p Policy) excuse(findings []Finding, to progress.Reporter) {
	for _, e := range p.Excuses {
		used, g := false, glob(e.Path)
		for i := range findings {
			if f := &findings[i]; f.Rule == e.Rule && g.match(f.Path) {
				used, f.Excused = true, cmp.Or(f.Excused, e.Reason)
			}
		}
		if !used {
			to.Warn(fmt.Sprintf("the allow-list excuses %s for %s, but there is no such finding", e.Path, e.Rule))
		}
	}
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

// parsePolicy reads a list of excuses and rules besides those that there are;
// where there are none, it reads the built-in rules.
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
	var names []string
	for _, r := range there {
		names = append(names, r.Name)
	}
	var excuses []*yaml.Node // an excuse may stand before its rule
	for _, item := range list.Content {
		isRule := there == nil
		for i := 0; i < len(item.Content); i += 2 {
			isRule = isRule || item.Content[i].Value == "find"
		}
		if !isRule {
			excuses = append(excuses, item)
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
	for _, item := range excuses {
		values, err := mapping(item, "an excuse", 3, "rule", "path", "reason")
		if err != nil {
			return p, err
		}
		e := Excuse{values["rule"].Value, values["path"].Value, values["reason"].Value}
		if !slices.Contains(names, e.Rule) {
			return p, fmt.Errorf("line %d: no rule is called %q: there are %s", item.Line, e.Rule, strings.Join(names, ", "))
		}
		p.Excuses = append(p.Excuses, e)
	}
	return p, nil
}

// ruleName is what a rule may be called.
var ruleName = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)

// parseRule reads a rule; one that is built in may have no looks, but code.
func parseRule(item *yaml.Node) (rule, error) {
	values, err := mapping(item, "a rule", 2, "rule", "demands", "find")
	if err != nil {
		return rule{}, err
	}
	r := rule{Rule: Rule{values["rule"].Value, values["demands"].Value}}
	if !ruleName.MatchString(r.Name) {
		return r, fmt.Errorf("line %d: a rule cannot be called %q: give lower-case letters, digits and -", item.Line, r.Name)
	}
	r.code = codes[r.Name]
	looks := values["find"]
	if looks == nil {
		return r, nil
	}
	if looks.Kind != yaml.SequenceNode || len(looks.Content) == 0 {
		return r, fmt.Errorf("line %d: find needs a list of looks, each with what and paths", looks.Line)
	}
	for _, l := range looks.Content {
		found, err := parseLook(l)
		if err != nil {
			return r, err
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
		Repair  string
	}
	if _, err := mapping(item, "a look", 0, "what", "paths", "content", "holds", "repair"); err != nil {
		return look{}, err
	}
	if item.Decode(&given) != nil || given.What == "" || len(given.Paths) == 0 || given.Content && given.Holds != "" {
		return look{}, fmt.Errorf("line %d: a look has what (a text), paths (a list), and content (true) or holds (a regular expression) or neither", item.Line)
	}
	if !slices.Contains([]string{"", repairDelete, repairEmpty}, given.Repair) {
		return look{}, fmt.Errorf("line %d: repair is %s or %s", item.Line, repairDelete, repairEmpty)
	}
	for _, p := range given.Paths {
		if !strings.HasPrefix(p, "/") {
			return look{}, fmt.Errorf("line %d: the path %q does not begin with /", item.Line, p)
		}
	}
	l := look{what: given.What, paths: globs(given.Paths...), content: given.Content, repair: given.Repair}
	if given.Holds != "" {
		var err error
		if l.holds, err = regexp.Compile(given.Holds); err != nil {
			return look{}, fmt.Errorf("line %d: holds: %w", item.Line, err)
		}
	}
	return l, nil
}

// mapping reads a YAML mapping that may have certain keys, each once. The first of
// them, so many, it must have, each with a text.
func mapping(n *yaml.Node, what string, texts int, keys ...string) (map[string]*yaml.Node, error) {
	last := len(keys) - 1
	has := strings.Join(keys[:last], ", ") + " and " + keys[last]
	if n.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: %s has the keys %s", n.Line, what, has)
	}
	values := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if !slices.Contains(keys, key.Value) || values[key.Value] != nil {
			return nil, fmt.Errorf("line %d: the key %q is unknown or given twice: %s has %s", key.Line, key.Value, what, has)
		}
		values[key.Value] = n.Content[i+1]
	}
	for _, key := range keys[:texts] {
		v := values[key]
		if v == nil {
			return nil, fmt.Errorf("line %d: %s has no %s", n.Line, what, key)
		}
		if v.Value = strings.TrimSpace(v.Value); v.Kind != yaml.ScalarNode || v.Value == "" {
			return nil, fmt.Errorf("line %d: %s needs a text", v.Line, key)
		}
	}
	return values, nil
}

// pattern is a glob for paths in the guest: * and ? stay within one name, **
// reaches over any number of directories.
type pattern struct {
	prefix, suffix string // literal text at its ends, compared first: it is fast
	re             *regexp.Regexp
}

func glob(text string) pattern {
	first, last := strings.IndexAny(text, "*?"), strings.LastIndexAny(text, "*?")
	if first < 0 {
		first, last = len(text), -1
	}
	quoted := strings.NewReplacer(`/\*\*/`, `/(?:.*/)?`, `\*\*`, `.*`, `\*`, `[^/]*`, `\?`, `[^/]`).Replace(regexp.QuoteMeta(text))
	return pattern{text[:first], text[last+1:], regexp.MustCompile(`(?s)^` + quoted + `$`)}
}

func globs(texts ...string) []pattern {
	var all []pattern
	for _, t := range texts {
		all = append(all, glob(t))
	}
	return all
}

func (p pattern) match(path string) bool {
	return strings.HasPrefix(path, p.prefix) && strings.HasSuffix(path, p.suffix) && p.re.MatchString(path)
}

func matchAny(all []pattern, path string) bool {
	return slices.ContainsFunc(all, func(p pattern) bool { return p.match(path) })
}
