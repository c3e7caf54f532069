package playbook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// part is something that a build may leave out: a role, another playbook, a
// document, a check. All other files always count.
type part struct {
	path string // of the folder or the file
	role string // the name by which a role is used, or ""
}

// word is what stands wherever somebody means the part, if not as a role.
func (p part) word() string { return path.Base(p.path) }

// documents are what people and their tools read, at the top of a tree and of
// a role; Ansible reads none of them.
var documents = regexp.MustCompile(`(?i)^((readme|license|changelog|contributing|authors)(\.[^/]*)?|docs|molecule|tests|examples|catalogue\.ya?ml|makefile|taskfile\.ya?ml|jenkinsfile|\.[^/]+)$`)

// partsOf are the parts that a file is in; it counts if all of them do.
func (t *Tree) partsOf(name string) []part {
	elem := strings.Split(name, "/")
	rest := elem
	var parts []part
	if i := slices.Index(elem, "roles"); i >= 0 && len(elem) > i+1 && elem[0] != "collections" && !t.plain(name, i+2) {
		parts = append(parts, part{path: path.Join(elem[:i+2]...), role: elem[i+1]})
		rest = elem[i+2:]
	}
	switch {
	case len(rest) == 0:
	case documents.MatchString(rest[0]):
		// Of the tree's checks each is its own part: they are named one by one.
		n := len(elem) - len(rest) + 1
		if n == 1 && rest[0] == "tests" {
			n = len(elem)
		}
		parts = append(parts, part{path: path.Join(elem[:n]...)})
	case len(parts) == 0 && t.isPlaybook(name):
		parts = append(parts, part{path: name})
	}
	return parts
}

// plain says whether a file lies beside the roles, as roles/README.md and
// roles/requirements.yml do: the n elements of its path are all there are.
func (t *Tree) plain(name string, n int) bool {
	return strings.Count(name, "/")+1 == n && t.files[name].link == ""
}

// isPlaybook says whether a file at the top or in a folder of playbooks holds plays.
func (t *Tree) isPlaybook(name string) bool {
	if ext := path.Ext(name); ext != ".yml" && ext != ".yaml" {
		return false
	}
	b, err := t.read(name)
	return err == nil && isPlaybook(b)
}

// split finds the parts of all files, and the words that name them.
func (t *Tree) split() {
	if t.parts != nil {
		return
	}
	t.parts = map[string][]part{}
	for _, name := range t.names {
		t.parts[name] = t.partsOf(name)
		for _, p := range t.parts[name] {
			if p.role == "" && !slices.Contains(t.words, p.word()) {
				t.words = append(t.words, p.word())
			}
		}
	}
}

// usage is what a playbook uses.
type usage struct {
	tree  *Tree
	used  map[string]bool // names of roles, words of other parts, paths of files
	seen  map[string]bool // files that were looked into
	whole string          // why nothing is left out

	encrypted string // the first file that ansible-vault encrypted
	removed   []removed
}

// leavesOut says whether a file does not count.
func (u *usage) leavesOut(name string) bool {
	if u.used[name] {
		return false
	}
	return slices.ContainsFunc(u.tree.parts[name], func(p part) bool {
		switch {
		case u.used[p.path]:
			return false
		case p.role != "":
			return u.whole == "" && !u.used["role "+p.role]
		case u.whole != "": // checks change no disk, even where all else may
			return isCheck(name) && !u.used[p.word()]
		}
		return !u.used[p.word()]
	})
}

// isCheck says whether a file is one of the tree's checks.
func isCheck(name string) bool { return path.Dir(name) == "tests" && strings.HasSuffix(name, ".yaml") }

// collect looks into all files that count, until no further one does.
func (u *usage) collect(ctx context.Context) error {
	u.seen = map[string]bool{}
	for more := true; more; {
		more = false
		for _, name := range u.tree.names {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if !u.seen[name] && !u.leavesOut(name) {
				u.seen[name], more = true, true
				u.apply(name, u.tree.factsOf(name))
				u.follow(name)
			}
		}
	}
	return nil
}

// apply uses what a file names.
func (u *usage) apply(name string, f *facts) {
	if f.whole != "" && u.whole == "" {
		u.whole = name + " " + f.whole
	}
	for _, n := range f.named {
		u.used[n] = true
	}
	if f.encrypted && u.encrypted == "" {
		u.encrypted = name
	}
	for _, r := range f.removed {
		r.where = fmt.Sprintf("%s:%d", name, r.line)
		u.removed = append(u.removed, r)
	}
}

// follow uses what a link leads to.
func (u *usage) follow(name string) {
	e := u.tree.files[name]
	switch {
	case e.link == "":
	case e.leads == "":
		u.whole = fmt.Sprintf("the link %s leads to another link", name)
	default:
		for _, target := range slices.Concat(u.tree.under(e.leads), []string{e.leads}) {
			for _, p := range u.tree.parts[target] {
				u.used[p.path] = true
			}
		}
	}
}

// facts are what one file says of parts.
type facts struct {
	named []string // "role NAME", or the word of another part
	whole string   // why it may mean any

	encrypted bool // by ansible-vault, as a whole or a value in it
	removed   []removed
}

// maxScan bounds the size of the files that are looked into, in bytes: no
// playbook or template is larger.
const maxScan = 4 << 20

// factsOf looks into a file, once.
func (t *Tree) factsOf(name string) *facts {
	f := t.facts[name]
	if f == nil {
		b, err := t.read(name)
		if err != nil {
			f = &facts{whole: "cannot be read"}
		} else {
			f = t.factsIn(name, b)
		}
		t.facts[name] = f
	}
	return f
}

// read returns a file's content, of at most a little more than maxScan.
func (t *Tree) read(name string) ([]byte, error) {
	if e := t.files[name]; e != nil && e.link != "" && t.dirs[e.leads] {
		return nil, nil
	}
	f, err := t.fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxScan+1))
}

var (
	// rolePath is a role by its path, which CrownLabs' playbooks write.
	rolePath = regexp.MustCompile(`(?m)^[\s-]*(?:role:\s*)?['"]?(?:\.\./)*roles/[A-Za-z0-9_-]+['"]?\s*$`)
	// reach is what a path or a task needs to get at files that it does not
	// name: out of its role, or on the controller.
	reach = regexp.MustCompile(`\.\.(?:[/'"\s}]|$)|/\.\.|\broles/|\b(?:playbook_dir|inventory_dir|inventory_file|ansible_config_file|ansible_(?:play_)?role_names|ansible_parent_role_(?:names|paths)|local_action|delegate_to|connection|with_pipe|with_lines)\b|['"](?:ansible\.builtin\.)?(?:pipe|lines)['"]`)
	// templating is what a template needs for that.
	templating = regexp.MustCompile(`\b(?:lookup|query|q)\s*\(|\{%-?\s*(?:include|import|from|extends)\b`)
)

// factsIn looks into the text of a file. What lies in a folder called files is
// copied to the guest, not run by Ansible.
func (t *Tree) factsIn(name string, b []byte) *facts {
	f := &facts{encrypted: bytes.HasPrefix(b, []byte("$ANSIBLE_VAULT;"))}
	if f.encrypted || len(b) > maxScan || bytes.IndexByte(b, 0) >= 0 || slices.Contains(strings.Split(path.Dir(name), "/"), "files") {
		return f
	}
	for _, word := range t.words {
		if bytes.Contains(b, []byte(word)) {
			f.named = append(f.named, word)
		}
	}
	switch ext := path.Ext(name); {
	case strings.HasSuffix(name, ".py"): // runs on the guest, or is Ansible's own part
		return f
	case path.Base(name) == "ansible.cfg":
		return f
	case ext != "" && ext != ".yml" && ext != ".yaml" && ext != ".json" && !templating.Match(b):
		return f
	}
	if m := reach.Find(rolePath.ReplaceAll(b, nil)); m != nil {
		f.whole = fmt.Sprintf("says %q, which may lead to any file", strings.TrimSpace(string(m)))
		return f
	}
	if ext := path.Ext(name); ext == ".yml" || ext == ".yaml" || ext == "" || ext == ".json" {
		f.documents(b)
	}
	return f
}

// documents reads YAML, which a file without an extension need not be.
func (f *facts) documents(b []byte) {
	d := yaml.NewDecoder(bytes.NewReader(b))
	for {
		var n yaml.Node
		switch err := d.Decode(&n); {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			f.whole = "is no YAML that can be read"
			return
		}
		f.walk(&n, map[*yaml.Node]bool{})
	}
}

// walk finds the roles and playbooks that a document names, in plays, blocks,
// tasks and dependencies.
func (f *facts) walk(n *yaml.Node, seen map[*yaml.Node]bool) {
	if n == nil || seen[n] {
		return
	}
	seen[n] = true
	f.encrypted = f.encrypted || n.Tag == "!vault"
	f.walk(n.Alias, seen)
	if n.Kind == yaml.SequenceNode {
		for _, c := range n.Content {
			f.task(c)
		}
	}
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			f.pair(c.Value, n.Content[i+1])
			continue
		}
		f.walk(c, seen)
	}
}

// pair looks at a key and its value. Where a key only looks like Ansible's, a
// role too many counts.
func (f *facts) pair(key string, v *yaml.Node) {
	if v.Kind == yaml.AliasNode {
		v = v.Alias
	}
	switch short := key[strings.LastIndexByte(key, '.')+1:]; short {
	case "roles", "dependencies":
		if v.Kind == yaml.ScalarNode && v.Tag != "!!null" {
			f.role(v)
		}
		if v.Kind == yaml.SequenceNode {
			for _, c := range v.Content {
				f.role(c)
			}
		}
	case "include_role", "import_role":
		f.role(v)
	case "action", "args":
		if strings.Contains(v.Value, "_role") {
			f.whole = fmt.Sprintf("uses a role in the form %s: %s", key, v.Value)
		}
	case "import_playbook":
		if strings.Contains(v.Value, "{{") {
			f.whole = "imports the playbook " + v.Value
		}
	}
}

// nameEquals is the old form of a task's arguments.
var nameEquals = regexp.MustCompile(`(?:^|\s)name=(\S+)`)

// role uses the role that a value names: by itself, or by its role or name.
func (f *facts) role(v *yaml.Node) {
	if v.Kind == yaml.AliasNode {
		v = v.Alias
	}
	name := v.Value
	if m := nameEquals.FindStringSubmatch(name); m != nil {
		name = m[1]
	}
	for i := 0; v.Kind == yaml.MappingNode && i+1 < len(v.Content); i += 2 {
		switch v.Content[i].Value {
		case "role", "name":
			name = v.Content[i+1].Value
		case "src": // a role of requirements.yml
			return
		}
	}
	switch {
	case name == "" || strings.ContainsAny(name, "{%$"):
		f.whole = fmt.Sprintf("uses the role %s, a name that is made as it runs", name)
	default:
		if i := strings.LastIndex(name, "roles/"); i >= 0 {
			name = name[i+len("roles/"):]
		}
		first, _, _ := strings.Cut(strings.TrimPrefix(name, "./"), "/")
		f.named = append(f.named, "role "+strings.Trim(first, `"'`))
	}
}
