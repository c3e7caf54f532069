package catalogue

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/settings"
)

// fromPackages goes with SUITE: the key base.packages sets both.
const fromPackages = "BASE_FROM_PACKAGES"

// variables are the settings that the keys stand for.
var variables = sync.OnceValue(func() map[string]string {
	all := map[string]string{}
	for _, f := range settings.Fields() {
		if f.Key != "" && f.Env != fromPackages {
			all[f.Key] = f.Env
		}
	}
	return all
})

// maxName bounds a name, in bytes: it becomes a part of a repository's name and
// the name of a folder.
const maxName = 128

// component is what a registry takes as a part of a repository's name (OCI
// distribution specification, "Pulling manifests").
var component = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*$`)

// Named says whether an image can have the name.
func Named(name string) bool { return len(name) <= maxName && component.MatchString(name) }

// image makes one image of what it says itself and of the defaults, and makes it a part of an
// index.
func (l *loader) image(line int, defaults, own entry, axes map[string]string, part bool) {
	e := defaults.over(own)
	name, ok := e.texts["name"]
	if !ok {
		return // reported where the entry was read
	}
	x := expander{l: l, axes: axes, image: "this image"}
	i := Image{Name: x.text(name, "name", "name"), Line: line, Wanted: true, Settings: map[string]string{}}
	if part {
		if strings.Contains(name.value, "{"+architectureAxis+"}") {
			l.add(name.line, "name is that of the index: leave {%s} out, which is added for each image", architectureAxis)
		}
		i.Index, i.Name = i.Name, i.Name+"-"+axes[architectureAxis]
	}
	x.image = i.Name
	if !placeholder.MatchString(i.Name) && !Named(i.Name) {
		l.add(name.line, "name cannot be %q: give at most %d lower-case letters and digits, with . _ or - between them", i.Name, maxName)
	}
	for _, t := range e.tags {
		if tag := x.text(t, "tags", "tag"); !slices.Contains(i.Tags, tag) {
			i.Tags = append(i.Tags, tag)
		}
	}
	for _, key := range sortedKeys(e.texts) {
		if key == "name" {
			continue
		}
		value := x.text(e.texts[key], key, definition(key))
		switch key {
		case "from":
			i.From = value
			continue
		case "ansible-dir":
			value = l.path(value)
		case "base.url":
			value = l.location(value)
		case "base.checksum":
			if list, ok := strings.CutPrefix(value, "file:"); ok {
				value = "file:" + l.location(list)
			}
		case "base.packages":
			i.Settings[fromPackages] = "true"
		}
		i.Settings[variables()[key]] = value
	}
	if len(e.vars) > 0 {
		i.Settings["EXTRA_VARS"] = x.variables(e.vars)
	}
	if !e.has("from") && !e.has("base") {
		l.add(line, "the image starts from nothing: add base, or from with the name of another image")
	}
	if !e.has("playbook") && (!e.has("packages") || e.has("git") || e.has("ansible-dir")) {
		l.add(line, "the image has no playbook: add playbook, e.g. debian-base, or packages")
	}
	l.images = append(l.images, image{i, own})
}

// location makes a path of the catalogue absolute, that of a layout (oci:DIR)
// too, and leaves a URL as it is.
func (l *loader) location(s string) string {
	if strings.Contains(s, "://") {
		return s
	}
	if layout, ok := strings.CutPrefix(s, "oci:"); ok {
		return "oci:" + l.path(layout)
	}
	return l.path(s)
}

func (l *loader) path(s string) string {
	if filepath.IsAbs(s) {
		return s
	}
	return filepath.Join(l.dir, s)
}

// expander fills in the axes of one image.
type expander struct {
	l     *loader
	axes  map[string]string
	image string // for messages
}

// text is a scalar with the axes filled in, checked again where that changed it.
func (x expander) text(t text, name, def string) string {
	filled := fill(t.value, x.axes)
	if !x.l.spend(16 + len(filled)) {
		return filled
	}
	for _, p := range placeholders.FindAllString(filled, -1) {
		if strings.HasPrefix(p, "{{") || strings.HasPrefix(p, "}}") {
			continue
		}
		known := "it has no matrix"
		if len(x.axes) > 0 {
			known = "it has " + strings.Join(sortedKeys(x.axes), ", ")
		}
		x.l.add(t.line, "%s is no axis of the matrix of %s: %s", p, x.image, known)
		return filled
	}
	if filled != t.value {
		x.l.fits(text{t.line, filled}, fmt.Sprintf("%s of %s", name, x.image), def)
	}
	return filled
}

// variables puts the layers of vars together, the strongest last, to
// EXTRA_VARS.
func (x expander) variables(layers []*yaml.Node) string {
	all := map[string]any{}
	for _, n := range layers {
		if n.Kind == yaml.ScalarNode { // only the first can be: a file replaces
			return "@" + x.l.path(x.text(text{n.Line, n.Value}, "vars", "vars-file"))
		}
		if m, ok := x.l.value(n, x.axes, 0).(map[string]any); ok {
			maps.Copy(all, m)
		}
	}
	made, err := json.Marshal(all)
	if err != nil {
		x.l.add(layers[0].Line, "vars cannot be given to Ansible: %v", err)
	}
	return string(made)
}
