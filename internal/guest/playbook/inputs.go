package playbook

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

// Inputs is what of a tree a build of one playbook reads: Source.Keep takes
// the rest out of the build's copy, so that nothing else can change the disk.
type Inputs struct {
	// Digest, "sha256:…", is the same wherever and whenever the files have the
	// same names below the tree, the same bytes and the same executable bits.
	Digest string
	// Files are those that the digest is of, in order, relative to the tree.
	Files []string
	// Whole says why that is the whole tree, or is empty where other playbooks
	// and the roles that they alone use are left out.
	Whole string

	removed []removed // see CheckForms
	groups  bool      // whether groups of hosts are made as the playbook runs
	local   []bool    // for each play, whether it connects to this host
}

// String says in a few words what the digest is of.
func (i Inputs) String() string {
	if i.Whole != "" {
		return "the whole tree: " + i.Whole
	}
	return fmt.Sprintf("%d files", len(i.Files))
}

// Inputs returns what of the tree a build of the playbook called name reads
// with these extra variables.
//
// That is the whole tree without what nothing in the rest names: roles, other
// playbooks, documents and checks. Roles are used by literal names, in plays,
// tasks and dependencies. Where a role's name is made as the playbook runs, or
// a path may lead out of a role, nothing is left out.
//
// The digest is sound whatever this overlooks, for what is left out is not
// there when the playbook runs: the worst is a build that misses a file.
func (t *Tree) Inputs(ctx context.Context, name string, extraVars map[string]any) (Inputs, error) {
	playbook, err := t.Find(name)
	if err != nil {
		return Inputs{}, err
	}
	vars, err := json.Marshal(extraVars)
	if err != nil {
		return Inputs{}, fmt.Errorf("encoding the extra variables: %w", err)
	}
	if err := t.split(); err != nil {
		return Inputs{}, err
	}
	u := usage{tree: t, used: map[string]bool{playbook: true}, looked: map[string]bool{}}
	u.apply("the extra variables", factsIn("vars.json", vars))
	key := fmt.Sprintf("%q %q %q", playbook, slices.Sorted(maps.Keys(u.used)), u.in.Whole)
	if in, known := t.inputs[key]; known {
		return in, nil
	}
	if err := u.collect(ctx); err != nil {
		return Inputs{}, err
	}
	if u.encrypted != "" && !t.unlocked() {
		return Inputs{}, failure.New(u.encrypted+" is encrypted by ansible-vault, and there is no password for it",
			"set ANSIBLE_VAULT_PASSWORD_FILE, or ANSIBLE_VAULT_IDENTITY_LIST")
	}
	in := u.in
	in.Files = slices.DeleteFunc(slices.Clone(t.names), u.leavesOut)
	in.Digest = t.digest(playbook, in.Files)
	in.local = t.local(playbook, map[string]bool{})
	t.inputs[key] = in
	return in, nil
}

// digest is the digest of files that were read: of their names, kinds and contents.
func (t *Tree) digest(playbook string, files []string) string {
	h := sha256.New()
	fmt.Fprintf(h, "playbook %q\n", playbook)
	for _, name := range files {
		f, kind := t.files[name], "file"
		switch {
		case f.link != "":
			kind = "link"
		case f.exec:
			kind = "program"
		}
		fmt.Fprintf(h, "%s %q %s\n", kind, name, f.digest)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// unlocked says whether Ansible gets a vault's password.
func (t *Tree) unlocked() bool {
	config, err := t.read("ansible.cfg")
	return t.Vault != Vault{} || err == nil && configValue(config.facts.text, "vault_password_file", "vault_identity_list") != ""
}

// part is something that a build may leave out: a role, another playbook, a
// document, a check. All other files always count.
type part struct {
	path  string // of the folder or the file
	named string // what names it: "role NAME", or the last part of its path
	check bool   // it changes no disk, even where all else may
}

// documents are what people and their tools read, at the top of a tree and of
// a role; Ansible reads none of them.
var documents = regexp.MustCompile(`(?i)^((readme|license|changelog|contributing|authors)(\.[^/]*)?` +
	`|docs|molecule|tests|examples|catalogue\.ya?ml|makefile|taskfile\.ya?ml|jenkinsfile|\.[^/]+)$`)

// split finds the parts of all files, and the words that name them, once.
func (t *Tree) split() error {
	if t.words != nil {
		return nil
	}
	words := []string{}
	for _, name := range t.names {
		parts, err := t.partsOf(name)
		if err != nil {
			return err
		}
		t.files[name].parts = parts
		for _, p := range parts {
			if !strings.HasPrefix(p.named, "role ") {
				words = append(words, p.named)
			}
		}
	}
	slices.Sort(words)
	t.words = slices.Compact(words)
	return nil
}

// partsOf are the parts that a file is in; it counts if all of them do.
func (t *Tree) partsOf(name string) ([]part, error) {
	elem := strings.Split(name, "/")
	rest := elem
	var parts []part
	// A plain file beside the roles, such as roles/requirements.yml, is none.
	if i := slices.Index(elem, "roles"); i >= 0 && elem[0] != "collections" && (len(elem) > i+2 || len(elem) == i+2 && t.files[name].link != "") {
		parts = append(parts, part{path: path.Join(elem[:i+2]...), named: "role " + elem[i+1]})
		rest = elem[i+2:]
	}
	switch ext := path.Ext(name); {
	case len(rest) > 0 && documents.MatchString(rest[0]):
		top := path.Join(elem[:len(elem)-len(rest)+1]...)
		if top == "tests" { // the tree's checks are named one by one
			top = name
		}
		parts = append(parts, part{path: top, named: path.Base(top), check: path.Dir(name) == "tests" && ext == ".yaml"})
	case len(parts) == 0 && (ext == ".yml" || ext == ".yaml"):
		f, err := t.read(name)
		if err != nil {
			return nil, err
		}
		if f.facts.plays != nil {
			parts = append(parts, part{path: name, named: path.Base(name)})
		}
	}
	return parts, nil
}

// usage is what a playbook uses.
type usage struct {
	tree      *Tree
	used      map[string]bool // what names parts, and paths of parts
	looked    map[string]bool // files that were looked into
	encrypted string          // the first file that ansible-vault encrypted
	in        Inputs
}

// leavesOut says whether a file does not count.
func (u *usage) leavesOut(name string) bool {
	return !u.used[name] && slices.ContainsFunc(u.tree.files[name].parts, func(p part) bool {
		return !u.used[p.path] && !u.used[p.named] && (u.in.Whole == "" || p.check)
	})
}

// collect looks into all files that count, until no further one does.
func (u *usage) collect(ctx context.Context) error {
	for more := true; more; {
		more = false
		for _, name := range u.tree.names {
			if u.looked[name] || u.leavesOut(name) {
				continue
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			f, err := u.tree.read(name)
			if err != nil {
				return err
			}
			u.looked[name], more = true, true
			u.apply(name, f.facts)
			u.follow(name, f)
		}
	}
	return nil
}

// apply uses what a file names.
func (u *usage) apply(name string, f facts) {
	if f.whole != "" {
		u.whole(name + " " + f.whole)
	}
	for _, role := range f.roles {
		u.used["role "+role] = true
	}
	for _, word := range u.tree.words {
		if !u.used[word] && bytes.Contains(f.text, []byte(word)) {
			u.used[word] = true
		}
	}
	if f.encrypted && u.encrypted == "" {
		u.encrypted = name
	}
	u.in.groups = u.in.groups || bytes.Contains(f.text, []byte("group_by")) || bytes.Contains(f.text, []byte("add_host"))
	for _, r := range f.removed {
		u.in.removed = append(u.in.removed, removed{form: r.form, line: r.line, file: name})
	}
}

// whole notes the first reason why nothing is left out.
func (u *usage) whole(why string) {
	if u.in.Whole == "" {
		u.in.Whole = why
	}
}

// follow uses what a link leads to.
func (u *usage) follow(name string, f *file) {
	if f.link == "" {
		return
	}
	if f.leads == "" {
		u.whole(fmt.Sprintf("the link %s leads to another link", name))
	}
	for _, target := range u.tree.names {
		if target == f.leads || strings.HasPrefix(target, f.leads+"/") {
			for _, p := range u.tree.files[target].parts {
				u.used[p.path] = true
			}
		}
	}
}

// facts are what the text of one file says of parts.
type facts struct {
	text      []byte   // empty where it is none, or says nothing: what lies in files is copied, not run
	roles     []string // that it names
	whole     string   // why it may mean any file
	plays     []play   // where it is a playbook
	encrypted bool     // by ansible-vault, as a whole or a value in it
	removed   []removed
}

// factsIn looks into the text of a file.
func factsIn(name string, b []byte) facts {
	f := facts{encrypted: bytes.HasPrefix(b, []byte("$ANSIBLE_VAULT;"))}
	if f.encrypted || len(b) > maxScan || bytes.IndexByte(b, 0) >= 0 || slices.Contains(strings.Split(path.Dir(name), "/"), "files") {
		return f
	}
	f.text = b
	switch ext := path.Ext(name); {
	case ext == ".py", path.Base(name) == "ansible.cfg": // runs on the guest, or is Ansible's own part
	case ext == ".yml", ext == ".yaml", ext == ".json", ext == "":
		f.documents()
	case bytes.Contains(b, []byte("{{")), bytes.Contains(b, []byte("{%")):
		f.reach(string(b))
	}
	return f
}

// reaching is what a path needs to get at files that it does not name: out of
// its role, or by a program on the controller.
var reaching = regexp.MustCompile(`\.\.(?:[/'"\s}]|$)|/\.\.|\broles/` +
	`|\b(?:playbook_dir|inventory_dir|inventory_file|ansible_config_file)\b` +
	`|\b(?:ansible_(?:play_)?role_names|ansible_parent_role_(?:names|paths))\b` +
	`|['"](?:ansible\.builtin\.)?(?:pipe|lines)['"]`)

func (f *facts) reach(text string) {
	if m := reaching.FindString(text); m != "" {
		f.mayBeAny("says %q, which may lead to any file", strings.TrimSpace(m))
	}
}

// mayBeAny notes the first reason why the file may mean any other.
func (f *facts) mayBeAny(format string, a ...any) {
	if f.whole == "" {
		f.whole = fmt.Sprintf(format, a...)
	}
}

// documents reads YAML, which a file without an extension need not be.
func (f *facts) documents() {
	d := yaml.NewDecoder(bytes.NewReader(f.text))
	for first := true; ; first = false {
		var n yaml.Node
		switch err := d.Decode(&n); {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			f.mayBeAny("is no YAML that can be read")
			return
		}
		if first {
			f.plays = playsIn(&n)
		}
		f.walk(&n, map[*yaml.Node]bool{})
	}
}

// walk finds the roles that a document names, in plays, blocks, tasks and
// dependencies, and what may lead to any file.
func (f *facts) walk(n *yaml.Node, seen map[*yaml.Node]bool) {
	if n == nil || seen[n] {
		return
	}
	seen[n] = true
	f.encrypted = f.encrypted || n.Tag == "!vault"
	if n.Kind == yaml.ScalarNode {
		f.reach(n.Value)
	}
	f.walk(n.Alias, seen)
	for i, c := range n.Content {
		if n.Kind == yaml.SequenceNode {
			f.task(c)
		}
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			f.pair(c.Value, resolve(n.Content[i+1]), seen)
		}
		f.walk(c, seen)
	}
}

// resolve is the node that an alias stands for.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// pair looks at a key and its value. Where a key only looks like Ansible's, a
// role too many counts.
func (f *facts) pair(key string, v *yaml.Node, seen map[*yaml.Node]bool) {
	switch key[strings.LastIndexByte(key, '.')+1:] {
	case "roles", "dependencies":
		if v.Kind == yaml.ScalarNode && v.Tag != "!!null" {
			f.role(v, seen)
		}
		if v.Kind == yaml.SequenceNode {
			for _, c := range v.Content {
				f.role(resolve(c), seen)
			}
		}
	case "include_role", "import_role":
		f.role(v, seen)
	case "action", "args":
		if strings.Contains(v.Value, "_role") {
			f.mayBeAny("uses a role in the form %s: %s", key, v.Value)
		}
	case "import_playbook":
		if strings.Contains(v.Value, "{{") {
			f.mayBeAny("imports the playbook %s", v.Value)
		}
	case "local_action", "delegate_to", "connection", "with_pipe", "with_lines": // programs on the controller
		f.mayBeAny("says %q, which may lead to any file", key)
	}
}

var (
	// roleName is a role by its name, or by its path, which CrownLabs' playbooks write.
	roleName = regexp.MustCompile(`^(?:(?:\.\.?/)*roles/)?([^./{%$][^/{%$]*)$`)
	// nameEquals is the old form of a task's arguments.
	nameEquals = regexp.MustCompile(`(?:^|\s)name=['"]?([^\s'"]+)`)
)

// role uses the role that a value names: by itself, or by its role or name.
func (f *facts) role(v *yaml.Node, seen map[*yaml.Node]bool) {
	name := v
	for i := 0; v.Kind == yaml.MappingNode && i+1 < len(v.Content); i += 2 {
		switch v.Content[i].Value {
		case "role", "name":
			name = resolve(v.Content[i+1])
		case "src": // a role of requirements.yml
			return
		}
	}
	value := name.Value
	if m := nameEquals.FindStringSubmatch(value); m != nil {
		value = m[1]
	}
	m := roleName.FindStringSubmatch(value)
	if m == nil {
		f.mayBeAny("uses the role %s, whose folder only a run knows", value)
		return
	}
	f.roles = append(f.roles, m[1])
	seen[name] = true // its path reaches nothing else
}
