package playbook

import (
	"bytes"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"gopkg.in/yaml.v3"
)

// facts are what one file says of other files.
type facts struct {
	playbooks []string  // imported
	roles     []string  // used
	paths     []mention // names that may be those of files
	whole     string    // why the names are not all in the file

	meta bool // it is a role's meta/main.yml
	seen map[*yaml.Node]bool
}

// mention is a name that may be one of a file.
type mention struct {
	path   string // slashes; a templated part is anything, and *, ? and [ are a glob's
	folder bool   // it may be a folder's, too: it is no mere word
}

// anything stands for a templated part of a name.
const anything = "\x01"

// wildcards are what makes a pattern of a name.
const wildcards = anything + "*?["

// maxScan bounds the size of the files that are looked into, in bytes: no
// playbook or template is larger.
const maxScan = 4 << 20

// factsOf looks into a file, once.
func (t *Tree) factsOf(name, role string) *facts {
	if f := t.facts[name]; f != nil {
		return f
	}
	f := t.look(name, role)
	f.seen = nil
	f.paths = slices.DeleteFunc(f.paths, func(m mention) bool { return !t.mayBe(m.path) })
	t.facts[name] = f
	return f
}

func (t *Tree) look(name, role string) *facts {
	f := newFacts()
	b, err := t.read(name)
	switch {
	case err != nil:
		f.dynamic("cannot be read")
	case len(b) > maxScan || bytes.IndexByte(b, 0) >= 0: // a binary
	case opaque.MatchString(name):
	case path.Base(name) == "ansible.cfg":
		f.config(string(b))
	case isCode(name, role):
		f.meta = role != "" && strings.HasPrefix(name, role+"/meta/")
		f.documents(b)
	default:
		for _, block := range jinja.FindAllString(string(b), -1) {
			f.expression(block)
		}
	}
	return f
}

// opaque is code that Ansible itself runs: it counts, and is not looked into.
var opaque = regexp.MustCompile(`(^|/)(library|module_utils|collections|[a-z]+_plugins)/`)

// folders are the settings of ansible.cfg that name folders or files which
// Env does not override.
var folders = regexp.MustCompile(`(?m)^[ \t]*(?:library|module_utils|[a-z_]+_plugins|[a-z_]*vault[a-z_]*)[ \t]*=(.*)$`)

// config looks at an ansible.cfg.
func (f *facts) config(s string) {
	for _, m := range folders.FindAllStringSubmatch(s, -1) {
		f.text("=" + m[1])
	}
}

func newFacts() *facts { return &facts{seen: map[*yaml.Node]bool{}} }

// varFacts are what extra variables say of files.
func varFacts(vars map[string]any) *facts {
	f := newFacts()
	var n yaml.Node
	if len(vars) == 0 {
		return f
	}
	if err := n.Encode(vars); err != nil {
		f.dynamic("cannot be read")
		return f
	}
	f.walk(&n)
	return f
}

// read returns a file's content, of at most a little more than maxScan.
func (t *Tree) read(name string) ([]byte, error) {
	f, err := t.fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxScan+1))
}

// isCode says whether Ansible reads the file as YAML of its own: playbooks,
// tasks, variables. Everything else may be a template.
func isCode(name, role string) bool {
	ext := path.Ext(name)
	if ext != "" && ext != ".yml" && ext != ".yaml" && ext != ".json" {
		return false
	}
	if role != "" {
		folder, _, _ := strings.Cut(strings.TrimPrefix(name, role+"/"), "/")
		return slices.Contains([]string{"tasks", "handlers", "meta", "vars", "defaults"}, folder)
	}
	folders := strings.Split(path.Dir(name), "/")
	if slices.Contains(folders, "files") || slices.Contains(folders, "templates") {
		return false
	}
	return ext != "" || slices.ContainsFunc(folders, func(s string) bool { return strings.HasSuffix(s, "vars") })
}

// mayBe says whether the tree has anything of that last name.
func (t *Tree) mayBe(name string) bool {
	if strings.ContainsAny(name, wildcards) || strings.Contains(name, "..") || name == "." {
		return true
	}
	return t.baseNames()[path.Base(name)]
}

// baseNames are the last names of all files and directories.
func (t *Tree) baseNames() map[string]bool {
	if t.bases == nil {
		t.bases = map[string]bool{}
		for name := range t.files {
			t.bases[path.Base(name)] = true
		}
		for name := range t.dirs {
			t.bases[path.Base(name)] = true
		}
	}
	return t.bases
}

// isPlaybook says whether a file holds plays.
func (t *Tree) isPlaybook(name string) bool {
	if ext := path.Ext(name); ext != ".yml" && ext != ".yaml" {
		return false
	}
	b, err := t.read(name)
	return err == nil && isPlaybook(b)
}

// requires says whether a requirements file brings the role.
func (t *Tree) requires(file, role string) bool {
	b, err := t.read(file)
	if err != nil {
		return false
	}
	req, err := parseRequirements(b)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(req.Roles, func(r requirement) bool {
		return r.Name == role || r.Name == "" && strings.TrimSuffix(path.Base(r.Src), ".git") == role
	}) || galaxyName.MatchString(role) && slices.ContainsFunc(req.Collections, func(r requirement) bool {
		return strings.HasPrefix(role, r.Name+".")
	})
}

// dynamic notes why the names are not all in the file.
func (f *facts) dynamic(format string, args ...any) {
	if f.whole == "" {
		f.whole = fmt.Sprintf(format, args...)
	}
}

// documents reads YAML.
func (f *facts) documents(b []byte) {
	d := yaml.NewDecoder(bytes.NewReader(b))
	for {
		var n yaml.Node
		err := d.Decode(&n)
		if err == io.EOF {
			return
		}
		if err != nil {
			f.dynamic("is no YAML that can be read")
			return
		}
		f.walk(&n)
	}
}

// walk looks into a node and all below, be it a play, a block, a task or a
// variable: what names roles and files has keys of its own.
func (f *facts) walk(n *yaml.Node) {
	if n == nil || f.seen[n] {
		return
	}
	f.seen[n] = true
	switch n.Kind {
	case yaml.ScalarNode:
		f.text(n.Value)
	case yaml.AliasNode:
		f.walk(n.Alias)
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			f.pair(n, n.Content[i].Value, n.Content[i+1])
		}
	default:
		for _, c := range n.Content {
			f.walk(c)
		}
	}
}

// pair looks at a key and its value.
func (f *facts) pair(in *yaml.Node, key string, v *yaml.Node) {
	if v.Kind == yaml.AliasNode && v.Alias != nil {
		v = v.Alias
	}
	switch k := shortName(key); k {
	case "import_playbook":
		f.imports(v)
	case "include_role", "import_role":
		f.includes(in, v)
	case "roles":
		if child(in, "hosts") != nil {
			f.list(v)
		}
	case "dependencies":
		if f.meta {
			f.list(v)
		}
	case "include_tasks", "import_tasks", "include", "include_vars", "vars_files":
		f.code(k, in, v)
	case "hosts", "delegate_to", "connection":
		f.place(k, v)
	case "local_action":
		f.dynamic("runs something on this host (local_action)")
	case "action": // also a parameter of many modules
		if name, _, _ := strings.Cut(strings.TrimSpace(v.Value), " "); templated(name) || inclusions.MatchString(shortName(name)) {
			f.dynamic("has a task in the form action: %s", name)
		}
	case "shell", "command", "raw", "dest", "chdir", "creates", "removes", "msg", "fail_msg", "success_msg":
		// Words for people, and names in the guest: only what is looked up counts.
		f.guest(v)
		return
	default:
		if plugin, ok := strings.CutPrefix(key, "with_"); ok && v.Tag != "!!bool" { // a switch of a role's
			f.plugin(plugin, true)
		}
	}
	f.walk(v)
}

// inclusions are the modules that bring other tasks, roles and variables.
var inclusions = regexp.MustCompile(`^(include|import)(_|$)`)

// shortName takes the name of Ansible's own collection away.
func shortName(key string) string {
	return strings.TrimPrefix(strings.TrimPrefix(key, "ansible.builtin."), "ansible.legacy.")
}

// child returns a mapping's value, or nil.
func child(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func (f *facts) imports(v *yaml.Node) {
	switch {
	case v.Kind != yaml.ScalarNode || templated(v.Value):
		f.dynamic("imports the playbook %s", v.Value)
	case path.IsAbs(v.Value):
		f.dynamic("imports a playbook elsewhere: %s", v.Value)
	default:
		f.playbooks = append(f.playbooks, strings.TrimSpace(v.Value))
	}
}

// list reads the roles of a play, or the dependencies of a role.
func (f *facts) list(v *yaml.Node) {
	for _, c := range v.Content {
		if c.Kind == yaml.AliasNode {
			c = c.Alias
		}
		if c.Kind == yaml.MappingNode {
			c = firstOf(child(c, "role"), child(c, "name"), child(c, "src"))
		}
		f.useRole(c)
	}
	if v.Kind == yaml.ScalarNode && v.Value != "" {
		f.dynamic("takes its roles from %s", v.Value)
	}
}

func firstOf(nodes ...*yaml.Node) *yaml.Node {
	for _, n := range nodes {
		if n != nil {
			return n
		}
	}
	return nil
}

// includes reads include_role and import_role: a mapping, "name=x", or with
// args beside it.
func (f *facts) includes(task, v *yaml.Node) {
	name := firstOf(child(v, "name"), child(v, "role"), child(child(task, "args"), "name"))
	if name == nil && v.Kind == yaml.ScalarNode {
		for _, word := range strings.Fields(v.Value) {
			for _, key := range []string{"name=", "role="} {
				if value, ok := strings.CutPrefix(word, key); ok {
					name = &yaml.Node{Kind: yaml.ScalarNode, Value: strings.Trim(value, `'"`)}
				}
			}
		}
	}
	f.useRole(name)
}

func (f *facts) useRole(name *yaml.Node) {
	switch {
	case name == nil || name.Kind != yaml.ScalarNode || name.Value == "":
		f.dynamic("uses a role that it does not name plainly")
	case templated(name.Value):
		f.dynamic("uses the role %s", name.Value)
	case path.IsAbs(name.Value):
		f.dynamic("uses a role elsewhere: %s", name.Value)
	default:
		f.roles = append(f.roles, name.Value)
	}
}

// code looks at what names tasks and variables: a name of which no part is
// plain may be that of any file.
func (f *facts) code(key string, task, v *yaml.Node) {
	if bare.MatchString(v.Value) && !(loopItem.MatchString(v.Value) && loopsOverNames(task)) {
		f.dynamic("%s %s", verbs[key], v.Value)
	}
	for _, n := range v.Content { // a list, or a mapping with file or dir
		f.code(key, task, n)
	}
}

var verbs = map[string]string{
	"include_tasks": "includes", "import_tasks": "imports", "include": "includes", "include_vars": "includes the variables of", "vars_files": "takes variables from",
}

var (
	bare     = regexp.MustCompile(`(?s)^\s*(file=)?['"]?(\{\{.*?\}\}/?)+['"]?\s*$`)
	loopItem = regexp.MustCompile(`^\s*\{\{\s*item\s*\}\}\s*$`)
)

// loopsOverNames says whether a task's loop has its items in the file.
func loopsOverNames(task *yaml.Node) bool {
	for i := 0; task.Kind == yaml.MappingNode && i+1 < len(task.Content); i += 2 {
		key, v := task.Content[i].Value, task.Content[i+1]
		if key != "loop" && !strings.HasPrefix(key, "with_") || v.Kind != yaml.SequenceNode {
			continue
		}
		return !slices.ContainsFunc(v.Content, func(n *yaml.Node) bool { return bare.MatchString(n.Value) })
	}
	return false
}

// place notes what runs on this host, where it may read any file.
func (f *facts) place(key string, v *yaml.Node) {
	for _, n := range append([]*yaml.Node{v}, v.Content...) {
		delegated := key == "delegate_to" && templated(n.Value)
		if delegated || thisHost.MatchString(n.Value) || key == "connection" && strings.HasSuffix(n.Value, "local") {
			f.dynamic("runs something on this host (%s: %s)", key, n.Value)
		}
	}
}

var thisHost = regexp.MustCompile(`\blocalhost\b|\b127\.0\.0\.1\b|::1`)

// guest looks only at what is looked up on this host.
func (f *facts) guest(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		for _, block := range jinja.FindAllString(n.Value, -1) {
			f.expression(block)
		}
	}
	if f.seen[n] {
		return
	}
	f.seen[n] = true
	for _, c := range n.Content {
		f.guest(c)
	}
	if n.Alias != nil {
		f.guest(n.Alias)
	}
}

var (
	jinja  = regexp.MustCompile(`(?s)\{\{.*?\}\}|\{%.*?%\}`)
	quoted = regexp.MustCompile(`'[^']*'|"[^"]*"`)
	// here is a folder of the tree in its plain form; the rest of the path says which file.
	here = regexp.MustCompile(`\{\{\s*(?:role_path|playbook_dir)\s*\}\}`)
	// magic are variables that lead anywhere in the tree.
	magic = regexp.MustCompile(`\b(?:role_path|playbook_dir|inventory_dir|inventory_file|ansible_config_file|ansible_search_path|ansible_parent_role_paths|ansible_inventory_sources)\b`)
	// inclusion is Jinja's own, of a name that is no literal.
	inclusion = regexp.MustCompile(`\{%[-+]?\s*(?:include|import|extends|from)\s+[^'"\s]`)
)

func templated(s string) bool { return strings.Contains(s, "{{") || strings.Contains(s, "{%") }

// text looks at a string.
func (f *facts) text(s string) {
	s = here.ReplaceAllString(s, ".")
	f.lookups(s)
	for _, block := range jinja.FindAllString(s, -1) {
		f.expression(block)
	}
	f.names(jinja.ReplaceAllString(s, anything))
}

// expression looks at Jinja in braces.
func (f *facts) expression(block string) {
	if here.MatchString(block) {
		return
	}
	f.lookups(block)
	if inclusion.MatchString(block) {
		f.dynamic("has %s", strings.Join(strings.Fields(block), " "))
	}
	for _, literal := range quoted.FindAllString(block, -1) {
		f.names(literal)
	}
}

// names collects the words that may be names of files.
func (f *facts) names(s string) {
	words := strings.FieldsFunc(s, func(r rune) bool {
		return unicode.IsSpace(r) || strings.ContainsRune(`'"=,()[]{}|<>;&:`, r) && r != '['
	})
	for _, word := range words {
		word = strings.TrimPrefix(word, "@")
		if strings.Trim(word, anything+"/") == "" || path.IsAbs(word) || len(word) > 255 {
			continue
		}
		parts := strings.Split(word, "/")
		if up := slices.Index(parts, ".."); up > 0 && strings.Contains(strings.Join(parts[:up], "/"), anything) {
			f.dynamic("names %s", strings.ReplaceAll(word, anything, "{{…}}"))
			continue
		}
		m := mention{path.Clean(word), len(words) == 1 || len(parts) > 1 || strings.Contains(s, "=")}
		if m.path == "." && len(words) > 1 || slices.Contains(f.paths, m) {
			continue
		}
		f.paths = append(f.paths, m)
	}
}

// Lookup plugins (ansible.builtin) that read no file of the tree, and those
// that read the files that they are given by name.
var (
	harmless = []string{
		"config", "dict", "env", "indexed_items", "inventory_hostnames", "items", "flattened", "list", "nested", "cartesian", "random_choice",
		"sequence", "subelements", "together", "undefined", "url", "vars", "varnames",
	}
	readers = []string{"csvfile", "file", "fileglob", "first_found", "ini", "template", "unvault", "filetree", "community.general.filetree", "community.general.flattened", "community.general.cartesian"}
)

var (
	lookup     = regexp.MustCompile(`\b(?:lookup|query|q)\s*\(\s*`)
	lookupName = regexp.MustCompile(`^(?:'([\w.]+)'|"([\w.]+)")\s*(,|\))`)
	plainName  = regexp.MustCompile(`^\s*(?:'[^']*'|"[^"]*")\s*[,)]`)
)

// lookups notes what is looked up on this host by a name that is not plain.
func (f *facts) lookups(s string) {
	if m := magic.FindString(s); m != "" {
		f.dynamic("uses %s", m)
	}
	for _, at := range lookup.FindAllStringIndex(s, -1) {
		rest := s[at[1]:]
		m := lookupName.FindStringSubmatch(rest)
		if m == nil {
			f.dynamic("looks up %s", excerpt(rest))
			continue
		}
		f.plugin(m[1]+m[2], m[3] == ")" || plainName.MatchString(rest[len(m[0]):]))
	}
}

// plugin looks at the use of a lookup plugin.
func (f *facts) plugin(name string, plain bool) {
	name = shortName(name)
	switch {
	case slices.Contains(harmless, name):
	case !slices.Contains(readers, name):
		f.dynamic("looks something up with %q", name)
	case !plain:
		f.dynamic("looks up a %s by a name that is made as it runs", name)
	}
}

func excerpt(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	return strings.ToValidUTF8(s[:min(len(s), 40)], "")
}

// compilePattern makes an expression of a name with wildcards: it fits a file of
// that name, and all below a directory of that name.
func compilePattern(pattern string) *regexp.Regexp {
	var b strings.Builder
	b.WriteString("^")
	for _, r := range pattern {
		switch {
		case r == '[': // what follows is a set, of which names keeps no end
			return regexp.MustCompile(b.String())
		case string(r) == anything || r == '*':
			b.WriteString(".*")
		case r == '?':
			b.WriteString(".")
		default:
			b.WriteString(regexp.QuoteMeta(string(r)))
		}
	}
	b.WriteString("(/.*)?$")
	return regexp.MustCompile(b.String())
}
