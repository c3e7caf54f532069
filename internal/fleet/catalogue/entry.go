package catalogue

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// entry is a mapping of settings: the nodes by their keys. vars and git come
// in layers, the strongest last; everything else has one, or none where it is
// wrong.
type entry map[string][]*yaml.Node

// last is the strongest node of a key, or nil.
func (e entry) last(key string) *yaml.Node {
	if n := e[key]; len(n) > 0 {
		return n[len(n)-1]
	}
	return nil
}

// instead are keys that choose the same thing: who says one takes back the other.
var instead = map[string]string{"base": "from", "from": "base", "git": "ansible-dir", "ansible-dir": "git"}

// over lays the stronger entry over e: its vars and git join those of e, all
// else replaces.
func (e entry) over(stronger entry) entry {
	out := make(entry, len(e)+len(stronger))
	for key, nodes := range e {
		if _, replaced := stronger[instead[key]]; !replaced {
			out[key] = nodes
		}
	}
	for key, nodes := range stronger {
		if n := stronger.last(key); n != nil && n.Kind == yaml.MappingNode && (key == "vars" || key == "git") {
			nodes = slices.Concat(out[key], nodes)
		}
		out[key] = nodes
	}
	return out
}

// has says whether the key is set, if only wrongly.
func (e entry) has(key string) bool {
	_, ok := e[key]
	return ok
}

// entry reads a mapping of settings and checks each where it stands.
func (l *loader) entry(n *yaml.Node, where place) entry {
	pairs, ok := l.mapping(n, string(where))
	if !ok {
		return nil
	}
	e := entry{}
	known := where.keys()
	for _, p := range pairs {
		if _, ok := known[p.key]; !ok {
			l.unknown(p, where, known)
			continue
		}
		e[p.key] = nil // what is wrong is not missing, too
		if l.check(p.key, p.value) {
			e[p.key] = []*yaml.Node{p.value}
		}
	}
	l.together(e, n.Line, where)
	return e
}

// together checks what cannot be told of one key alone.
func (l *loader) together(e entry, line int, where place) {
	if e.last("base") != nil && e.last("from") != nil {
		l.add(e.last("from").Line, "base and from both say what the image starts from: choose one")
	}
	if e.last("git") != nil && e.last("ansible-dir") != nil {
		l.add(e.last("ansible-dir").Line, "git and ansible-dir both say where the playbooks are: choose one")
	}
	if e.last("exclude") != nil && !e.has("matrix") {
		l.add(e.last("exclude").Line, "exclude leaves out combinations of a matrix, and there is none: add matrix, or remove exclude")
	}
	if where == placeImage && !e.has("name") {
		l.add(line, "the image has no name: add name")
	}
}

// check checks the value of a key where it stands and says whether it is of use.
func (l *loader) check(key string, n *yaml.Node) bool {
	before := l.found
	switch key {
	case "images", "defaults", "matrix", "exclude": // read with what they belong to
	case "base":
		l.base(n)
	case "git":
		l.group(n, key, "url", "branch", "path")
	case "vars":
		l.checkVars(n)
	case "tags":
		l.tags(n)
	default:
		l.scalar(n, key, key)
	}
	return l.found == before
}

func (l *loader) base(n *yaml.Node) {
	e := l.group(n, "base", "url", "checksum", "packages")
	switch {
	case e == nil:
	case e["packages"] != nil && (e["url"] != nil || e["checksum"] != nil):
		l.add(n.Line, "base has packages and a url: choose one")
	case e["packages"] != nil:
	case e["url"] == nil:
		l.add(n.Line, "base has no url: give url and checksum, or packages: bookworm")
	case e["checksum"] == nil && !pinned.MatchString(e["url"].Value):
		l.add(n.Line, "base has no checksum: add checksum, e.g. file: with the URL of a SHA256SUMS file")
	}
}

// pinned is a containerdisk that is named by its digest, which is a checksum.
var pinned = regexp.MustCompile(`^oci:.*@sha256:[0-9a-f]{64}$`)

// group reads a mapping of a few scalars, or nil where it cannot.
func (l *loader) group(n *yaml.Node, name string, keys ...string) map[string]*yaml.Node {
	pairs, ok := l.mapping(n, name)
	if !ok {
		return nil
	}
	out := map[string]*yaml.Node{}
	for _, p := range pairs {
		if !slices.Contains(keys, p.key) {
			l.add(p.line, "%q is no key of %s: it has %s%s", p.key, name, strings.Join(keys, ", "), secretHint(p.key))
			return nil
		}
		if l.scalar(p.value, name+"."+p.key, definition(name, p.key)) {
			out[p.key] = p.value
		}
	}
	if len(out) < len(pairs) {
		return nil
	}
	return out
}

// definition is the schema's name of a key in a group.
func definition(group, key string) string {
	if group == "git" {
		return "git-" + key
	}
	return key
}

// tags reads a tag or a list of tags.
func (l *loader) tags(n *yaml.Node) []*yaml.Node {
	items := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		items = l.items(n, "tags")
	}
	for _, item := range items {
		l.scalar(item, "tags", "tag")
	}
	return items
}

// scalar checks a text against its definition, unless the matrix has yet to
// fill it in.
func (l *loader) scalar(n *yaml.Node, name, def string) bool {
	if n.Kind != yaml.ScalarNode {
		l.add(n.Line, "%s is no text: %s", name, l.rule(def).advice())
		return false
	}
	if n.Tag == "!!null" || n.Value == "" {
		l.add(n.Line, "%s is empty: %s, or remove it", name, l.rule(def).advice())
		return false
	}
	if kind, ok := kinds[n.Tag]; ok && !l.rule(def).takes(kind) {
		try := fmt.Sprintf("write %q", n.Value)
		if !l.rule(def).accepts(n.Value) {
			try = l.rule(def).advice()
		}
		l.add(n.Line, "%s must be text, and YAML makes another kind (%s) of it: %s", name, kind, try)
		return false
	}
	if placeholder.MatchString(n.Value) && l.rule(def).pattern == nil {
		return true
	}
	return l.fits(n.Line, name, def, n.Value)
}

// kinds are JSON's names for what YAML makes of a text without quotes.
var kinds = map[string]string{"!!bool": "boolean", "!!int": "integer", "!!float": "number"}

// fits checks a text against its definition.
func (l *loader) fits(line int, name, def, text string) bool {
	switch {
	case !l.rule(def).accepts(text):
		l.add(line, "%s cannot be %q: %s", name, text, l.rule(def).advice())
	case password.MatchString(text):
		l.add(line, "%s holds a password, and a catalogue is for everyone to read: remove it; git's and the registry's logins are found where they are kept", name)
	default:
		return true
	}
	return false
}

// password is the user part of a URL with a password in it.
var password = regexp.MustCompile(`://[^/@\s]*:[^/@\s]*@`)

func (l *loader) rule(name string) *rule {
	r := schema().Definitions[name]
	return &r
}

// secretHint is for keys that would hold a secret.
func secretHint(key string) string {
	k := strings.ToLower(strings.ReplaceAll(key, "_", "-"))
	for _, word := range []string{"pass", "secret", "token", "credential", "registry-user"} {
		if strings.Contains(k, word) {
			return "; a catalogue holds no secrets: set REGISTRY_USER and REGISTRY_PASS in the environment"
		}
	}
	return ""
}

// unknown tells of a key that does not belong there.
func (l *loader) unknown(p pair, where place, known map[string]rule) {
	var hint string
	if other, ok := elsewhere[strings.ReplaceAll(strings.ToLower(p.key), "_", "-")]; ok {
		hint = ": it is " + other + " here"
	} else if _, image := placeImage.keys()[p.key]; image {
		hint = ": it belongs to an image"
	} else if _, top := placeTop.keys()[p.key]; top {
		hint = ": it stands beside images, not in one"
	} else if hint = secretHint(p.key); hint == "" {
		hint = suggestion(p.key, sortedKeys(known))
	}
	l.add(p.line, "%q is no key of %s%s", p.key, where, hint)
}

// elsewhere are the names of flags for what has a shorter name here.
var elsewhere = map[string]string{
	"iso-url": "base: {url: …, checksum: …}", "iso-checksum": "base: {url: …, checksum: …}", "url": "base: {url: …, checksum: …}",
	"base-from-packages": "base: {packages: bookworm}", "suite": "base: {packages: bookworm}",
	"ansible-playbook": "playbook", "git-ansible-url": "git: {url: …}", "git-ansible-branch": "git: {branch: …}", "git-ansible-path": "git: {path: …}",
	"install-desktop-environment": "desktop", "extra-vars": "vars", "disk-size": "size", "qcow2-compression": "compression",
	"image-name": "name", "image-tag": "tags", "tag": "tags", "target-registry": "registry", "registry-prefix": "prefix", "parent": "from",
}

func suggestion(word string, known []string) string {
	if near := nearest(word, known, 1); len(near) > 0 {
		return fmt.Sprintf(": did you mean %s?", near[0])
	}
	return ": there are " + strings.Join(known, ", ")
}
