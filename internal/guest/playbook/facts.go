package playbook

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// facts are all that is read out of the text of one file.
type facts struct {
	text      []byte              // empty where it is none, or says nothing: what lies in files is copied, not run
	roles     []string            // that it names
	whole     string              // why it may mean any file
	plays     []play              // where it is a playbook
	encrypted bool                // by ansible-vault, as a whole or a value in it
	removed   map[string][]string // see forms: where it uses them, FILE:LINE
}

// play is what counts here of an item of a playbook.
type play struct {
	Hosts      yaml.Node
	Import     yaml.Node `yaml:"import_playbook"`
	FullImport yaml.Node `yaml:"ansible.builtin.import_playbook"`
	Connection yaml.Node
	Vars       yaml.Node
}

// factsIn looks into the text of a file.
func factsIn(name string, b []byte) facts {
	f := facts{encrypted: bytes.HasPrefix(b, []byte("$ANSIBLE_VAULT;")), removed: map[string][]string{}}
	if f.encrypted || len(b) > maxScan || bytes.IndexByte(b, 0) >= 0 || slices.Contains(strings.Split(path.Dir(name), "/"), "files") {
		return f
	}
	f.text = b
	switch ext := path.Ext(name); {
	case ext == ".py", path.Base(name) == "ansible.cfg": // runs on the guest, or is Ansible's own part
	case ext == ".yml", ext == ".yaml", ext == ".json", ext == "":
		f.documents(name)
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

// unreadable is why a file may mean any other that is not as YAML is.
const unreadable = "is no YAML that can be read"

// documents reads YAML, which a file without an extension need not be.
func (f *facts) documents(name string) {
	d := yaml.NewDecoder(bytes.NewReader(f.text))
	for first := true; ; first = false {
		var n yaml.Node
		switch err := d.Decode(&n); {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			f.mayBeAny("%s: %v", unreadable, err)
			return
		}
		if first {
			f.plays = playsIn(&n)
		}
		w := walk{facts: f, file: name, seen: map[*yaml.Node]bool{}}
		w.node(&n)
	}
}

// playsIn are the items of a playbook; none where the document is none.
func playsIn(document *yaml.Node) []play {
	var plays []play
	none := func(p play) bool { return p.Hosts.IsZero() && p.Import.IsZero() && p.FullImport.IsZero() }
	if document.Decode(&plays) != nil || len(plays) == 0 || slices.ContainsFunc(plays, none) {
		return nil
	}
	return plays
}

// walk finds in a document, in plays, blocks, tasks and dependencies, the roles
// that it names, what may lead to any file, and forms that Ansible removed.
type walk struct {
	*facts
	file string
	seen map[*yaml.Node]bool
}

func (w *walk) node(n *yaml.Node) {
	if n == nil || w.seen[n] {
		return
	}
	w.seen[n] = true
	w.encrypted = w.encrypted || n.Tag == "!vault"
	if n.Kind == yaml.ScalarNode {
		w.reach(n.Value)
	}
	w.node(n.Alias)
	for i, c := range n.Content {
		switch {
		case n.Kind == yaml.SequenceNode:
			w.task(c)
		case n.Kind == yaml.MappingNode && i%2 == 0:
			w.pair(c.Value, resolve(n.Content[i+1]))
		}
		w.node(c)
	}
}

// resolve is the node that an alias stands for.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// pairs are the keys of a mapping with their values; none of what is no mapping.
func pairs(n *yaml.Node) iter.Seq2[*yaml.Node, *yaml.Node] {
	return func(yield func(key, value *yaml.Node) bool) {
		for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content) && yield(n.Content[i], resolve(n.Content[i+1])); i += 2 {
		}
	}
}

// task notes the removed forms that an item of a list uses, if it is a task.
func (w *walk) task(n *yaml.Node) {
	command, warn := false, []*yaml.Node(nil)
	for key, value := range pairs(n) {
		switch module := strings.TrimPrefix(key.Value, "ansible.builtin."); module {
		case "include":
			w.note("include", key)
		case "command", "shell", "args":
			command = command || module != "args"
			for argument := range pairs(value) {
				if argument.Value == "warn" {
					warn = append(warn, argument)
				}
			}
		}
	}
	if command {
		w.note("warn", warn...)
	}
}

func (w *walk) note(form string, keys ...*yaml.Node) {
	for _, key := range keys {
		w.removed[form] = append(w.removed[form], fmt.Sprintf("%s:%d", w.file, key.Line))
	}
}

// pair looks at a key and its value. Where a key only looks like Ansible's, a
// role too many counts.
func (w *walk) pair(key string, v *yaml.Node) {
	switch key[strings.LastIndexByte(key, '.')+1:] {
	case "roles", "dependencies":
		if v.Kind == yaml.ScalarNode && v.Tag != "!!null" {
			w.role(v)
		}
		if v.Kind == yaml.SequenceNode {
			for _, c := range v.Content {
				w.role(resolve(c))
			}
		}
	case "include_role", "import_role":
		w.role(v)
	case "action", "args":
		if strings.Contains(v.Value, "_role") {
			w.mayBeAny("uses a role in the form %s: %s", key, v.Value)
		}
	case "import_playbook":
		if strings.Contains(v.Value, "{{") {
			w.mayBeAny("imports the playbook %s", v.Value)
		}
	case "local_action", "delegate_to", "connection", "with_pipe", "with_lines": // programs on the controller
		w.mayBeAny("says %q, which may lead to any file", key)
	}
}

var (
	// roleName is a role by its name, or by its path, which CrownLabs' playbooks write.
	roleName = regexp.MustCompile(`^(?:(?:\.\.?/)*roles/)?([^./{%$][^/{%$]*)$`)
	// nameEquals is the old form of a task's arguments.
	nameEquals = regexp.MustCompile(`(?:^|\s)name=['"]?([^\s'"]+)`)
)

// role uses the role that a value names: by itself, or by its role or name.
func (w *walk) role(v *yaml.Node) {
	name := v
	for key, value := range pairs(v) {
		switch key.Value {
		case "role", "name":
			name = value
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
		w.mayBeAny("uses the role %s, whose folder only a run knows", value)
		return
	}
	w.roles = append(w.roles, m[1])
	w.seen[name] = true // its path reaches nothing else
}
