package catalogue

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// entry is a mapping of settings, each checked where it stands.
type entry struct {
	keys  map[string]int  // the lines of all that are set, if only wrongly: what is wrong is not missing, too
	texts map[string]text // by the whole name: size, base.url, git.branch
	tags  []text
	archs []text
	vars  []*yaml.Node          // layers, the strongest last
	nodes map[string]*yaml.Node // images, defaults, matrix and exclude, which are read later
}

// text is a scalar.
type text struct {
	line  int
	value string
}

// has says whether the key is set, if only wrongly.
func (e entry) has(key string) bool { return e.keys[key] > 0 }

// instead are keys that choose the same thing: who says one takes back the
// other, and whatever else was said of it. A git adds to a git.
var instead = map[string][]string{
	"base": {"base", "from"}, "from": {"base"}, "git": {"ansible-dir"}, "ansible-dir": {"git"},
	"architecture": {"architectures"}, "architectures": {"architecture"},
}

// over lays the stronger entry over e: its vars and git join those of e, all
// else replaces.
func (e entry) over(stronger entry) entry {
	out := entry{keys: map[string]int{}, texts: map[string]text{}, tags: e.tags, archs: e.archs, vars: e.vars}
	maps.Copy(out.keys, e.keys)
	maps.Copy(out.texts, e.texts)
	for key := range stronger.keys {
		for _, weaker := range instead[key] {
			delete(out.keys, weaker)
			maps.DeleteFunc(out.texts, func(name string, _ text) bool { return name == weaker || strings.HasPrefix(name, weaker+".") })
		}
	}
	maps.Copy(out.keys, stronger.keys)
	maps.Copy(out.texts, stronger.texts)
	if stronger.has("tags") {
		out.tags = stronger.tags
	}
	if stronger.has("architecture") || stronger.has("architectures") {
		out.archs = stronger.archs
	}
	switch {
	case len(stronger.vars) == 0:
	case stronger.vars[0].Kind == yaml.MappingNode:
		out.vars = slices.Concat(e.vars, stronger.vars)
	default:
		out.vars = stronger.vars // a file
	}
	return out
}

// entry reads a mapping of settings, unless it is none.
func (l *loader) entry(n *yaml.Node, where place) (e entry, ok bool) {
	pairs, ok := l.mapping(n, where.name)
	if !ok {
		return entry{}, false
	}
	e = entry{keys: map[string]int{}, texts: map[string]text{}, nodes: map[string]*yaml.Node{}}
	for _, p := range pairs {
		if _, known := where.keys()[p.key]; known {
			e.keys[p.key] = p.value.Line
			l.read(&e, p.key, p.value)
		} else {
			l.unknown(p, where)
		}
	}
	if e.has("exclude") && !e.has("matrix") {
		l.add(e.keys["exclude"], "exclude leaves out combinations of a matrix, and there is none: add matrix, or remove exclude")
	}
	if where == placeImage && !e.has("name") {
		l.add(n.Line, "the image has no name: add name")
	}
	l.one(e, "base", "from", "base and from both say what the image starts from: choose one")
	l.one(e, "architecture", "architectures", "architecture and architectures both say what the image is for: choose one")
	l.one(e, "git", "ansible-dir", "git and ansible-dir both say where the playbooks are: choose one")
	return e, true
}

func (l *loader) one(e entry, first, second, otherwise string) {
	if e.has(first) && e.has(second) {
		l.add(e.keys[second], "%s", otherwise)
	}
}

// read checks the value of a key and keeps it where it is of use.
func (l *loader) read(e *entry, key string, n *yaml.Node) {
	before := l.found
	switch key {
	case "images", "defaults", "matrix", "exclude":
		e.nodes[key] = n
	case "base":
		l.group(e, n, key, "url", "checksum", "packages")
		if l.found == before {
			l.base(*e, n.Line)
		}
	case "git":
		l.group(e, n, key, "url", "branch", "path")
	case "vars":
		if n.Kind == yaml.MappingNode {
			l.value(n, nil, 0)
		} else {
			l.scalar(n, key, "vars-file")
		}
		if l.found == before {
			e.vars = []*yaml.Node{n}
		}
	case "packages", "groups", "outputs":
		var names []string
		for _, name := range l.texts(n, key) {
			names = append(names, name.value)
		}
		e.texts[key] = text{n.Line, strings.Join(names, ",")}
	case "tags":
		e.tags = l.texts(n, key)
	case "architectures":
		e.archs = l.architectures(n)
	default:
		l.text(e, key, n)
	}
}

// texts reads a list of scalars, or one; the schema defines one by the key's
// singular.
func (l *loader) texts(n *yaml.Node, key string) (all []text) {
	items := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		items = l.items(n, key)
	}
	for _, item := range items {
		if l.scalar(item, key, strings.TrimSuffix(key, "s")) {
			all = append(all, text{item.Line, item.Value})
		}
	}
	return all
}

func (l *loader) text(e *entry, key string, n *yaml.Node) {
	if l.scalar(n, key, definition(key)) {
		e.texts[key] = text{n.Line, n.Value}
	}
}

// definition is the schema's name of a key: that of git.url is git-url, that of
// base.url is url.
func definition(key string) string {
	if key == "packages" || key == "groups" || key == "outputs" {
		return strings.TrimSuffix(key, "s") + "-list"
	}
	return strings.TrimPrefix(strings.ReplaceAll(key, "git.", "git-"), "base.")
}

// group reads a mapping of a few scalars.
func (l *loader) group(e *entry, n *yaml.Node, name string, keys ...string) {
	pairs, _ := l.mapping(n, name)
	for _, p := range pairs {
		if slices.Contains(keys, p.key) {
			l.text(e, name+"."+p.key, p.value)
		} else {
			l.add(p.line, "%q is no key of %s: it has %s%s", p.key, name, strings.Join(keys, ", "), secretHint(p.key))
		}
	}
}

// pinned is a containerdisk that is named by its digest, which is a checksum.
var pinned = regexp.MustCompile(`^oci:.*@sha256:[0-9a-f]{64}$`)

func (l *loader) base(e entry, line int) {
	url, hasURL := e.texts["base.url"]
	_, hasChecksum := e.texts["base.checksum"]
	_, packages := e.texts["base.packages"]
	switch {
	case packages && (hasURL || hasChecksum):
		l.add(line, "base has packages and a url: choose one")
	case packages:
	case !hasURL:
		l.add(line, "base has no url: give url and checksum, or packages: bookworm")
	case !hasChecksum && !pinned.MatchString(url.value):
		l.add(line, "base has no checksum: add checksum, e.g. file: with the URL of a SHA256SUMS file")
	}
}

// kinds are JSON's names for what YAML makes of a text without quotes.
var kinds = map[string]string{"!!bool": "boolean", "!!int": "integer", "!!float": "number"}

// scalar checks a text against its definition, unless the matrix has yet to
// fill it in.
func (l *loader) scalar(n *yaml.Node, name, def string) bool {
	r := schema().Definitions[def]
	kind := kinds[n.Tag]
	switch {
	case n.Kind != yaml.ScalarNode:
		l.add(n.Line, "%s is no text: %s", name, r.advice())
	case n.Tag == "!!null" || n.Value == "":
		l.add(n.Line, "%s is empty: %s, or remove it", name, r.advice())
	case kind != "" && !r.takes(kind):
		try := fmt.Sprintf("write %q", n.Value)
		if !r.accepts(n.Value) {
			try = r.advice()
		}
		l.add(n.Line, "%s must be text, and YAML makes another kind (%s) of it: %s", name, kind, try)
	case placeholder.MatchString(n.Value) && r.Pattern == nil:
		return true
	default:
		return l.fits(text{n.Line, n.Value}, name, def)
	}
	return false
}

// password is the user part of a URL with a password in it.
var password = regexp.MustCompile(`://[^/@\s]*:[^/@\s]*@`)

// fits checks a text against its definition.
func (l *loader) fits(t text, name, def string) bool {
	switch r := schema().Definitions[def]; {
	case !r.accepts(t.value):
		l.add(t.line, "%s cannot be %q: %s", name, t.value, r.advice())
	case password.MatchString(t.value):
		l.add(t.line, "%s holds a password, and a catalogue is for everyone to read: remove it; "+
			"git's and the registry's logins are found where they are kept", name)
	default:
		return true
	}
	return false
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

// unknown reports a key that does not belong there.
func (l *loader) unknown(p pair, where place) {
	known := sortedKeys(where.keys())
	hint := secretHint(p.key)
	if other, ok := elsewhere[strings.ReplaceAll(strings.ToLower(p.key), "_", "-")]; ok {
		hint = ": it is " + other + " here"
	} else if _, ok := placeImage.keys()[p.key]; ok {
		hint = ": it belongs to an image"
	} else if _, ok := placeTop.keys()[p.key]; ok {
		hint = ": it stands beside images, not in one"
	} else if near := nearest(p.key, known, 1); hint == "" && len(near) > 0 {
		hint = ": did you mean " + near[0] + "?"
	} else if hint == "" {
		hint = ": there are " + strings.Join(known, ", ")
	}
	l.add(p.line, "%q is no key of %s%s", p.key, where.name, hint)
}

// elsewhere are the names of flags for what has a shorter name here.
var elsewhere = map[string]string{
	"iso-url": "base: {url: …, checksum: …}", "iso-checksum": "base: {url: …, checksum: …}", "url": "base: {url: …, checksum: …}",
	"base-from-packages": "base: {packages: bookworm}", "suite": "base: {packages: bookworm}",
	"ansible-playbook": "playbook", "git-ansible-url": "git: {url: …}", "git-ansible-branch": "git: {branch: …}", "git-ansible-path": "git: {path: …}",
	"install-desktop-environment": "desktop", "extra-vars": "vars", "disk-size": "size", "qcow2-compression": "compression",
	"image-name": "name", "image-tag": "tags", "tag": "tags", "target-registry": "registry", "registry-prefix": "prefix", "parent": "from",
}
