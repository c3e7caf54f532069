package catalogue

import (
	"cmp"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// variables are the settings that a key with one text stands for.
var variables = map[string]string{
	"playbook": "ANSIBLE_PLAYBOOK", "ansible-dir": "ANSIBLE_DIR", "desktop": "INSTALL_DESKTOP_ENVIRONMENT",
	"memory": "MEMORY", "cpus": "CPUS", "size": "DISK_SIZE", "architecture": "ARCHITECTURE", "boot-timeout": "BOOT_TIMEOUT",
	"build-user": "BUILD_USER", "vm-user": "VM_USER", "bake-user": "BAKE_USER", "sparsify": "SPARSIFY", "compression": "QCOW2_COMPRESSION",
}

// image makes one image of what it says itself and of the defaults.
func (l *loader) image(line int, defaults, own entry, axes map[string]string) {
	e := defaults.over(own)
	x := expander{l: l, axes: axes, image: "this image"}
	name := e.last("name")
	if name == nil {
		return // told where the entry was read
	}
	i := Image{Name: x.text(name, "name", "name"), Line: line, Wanted: true, Settings: map[string]string{}}
	x.image = i.Name
	l.wholeName(name.Line, i.Name)
	if n := e.last("from"); n != nil {
		i.From = x.text(n, "from", "name")
	}
	if n := e.last("tags"); n != nil {
		for _, tag := range l.tags(n) {
			if tag := x.text(tag, "tags", "tag"); !slices.Contains(i.Tags, tag) {
				i.Tags = append(i.Tags, tag)
			}
		}
	}
	l.settings(i, e, x)
	l.complete(line, e)
	l.images, l.own = append(l.images, i), append(l.own, own)
}

func (l *loader) wholeName(line int, name string) {
	if !placeholder.MatchString(name) && (len(name) > maxName || !component.MatchString(name)) {
		l.add(line, "name cannot be %q: give at most %d lower-case letters and digits, with . _ or - between them", name, maxName)
	}
}

// settings fills in the image's settings by their variables.
func (l *loader) settings(i Image, e entry, x expander) {
	for _, key := range sortedKeys(e) {
		if variable, n := variables[key], e.last(key); variable != "" && n != nil {
			i.Settings[variable] = x.text(n, key, key)
		}
	}
	if dir, ok := i.Settings["ANSIBLE_DIR"]; ok {
		i.Settings["ANSIBLE_DIR"] = l.path(dir)
	}
	if n := e.last("base"); n != nil {
		l.baseSettings(i, n, x)
	}
	for _, n := range e["git"] {
		for key, value := range l.group(n, "git", "url", "branch", "path") {
			i.Settings["GIT_ANSIBLE_"+strings.ToUpper(key)] = x.text(value, "git."+key, "git-"+key)
		}
	}
	if layers := e["vars"]; len(layers) > 0 {
		i.Settings["EXTRA_VARS"] = l.variables(layers, x)
	}
}

func (l *loader) baseSettings(i Image, n *yaml.Node, x expander) {
	base := l.group(n, "base", "url", "checksum", "packages")
	if packages := base["packages"]; packages != nil {
		i.Settings["BASE_FROM_PACKAGES"] = "true"
		i.Settings["SUITE"] = x.text(packages, "base.packages", "packages")
		return
	}
	i.Settings["ISO_URL"] = l.location(x.text(base["url"], "base.url", "url"))
	if base["checksum"] == nil {
		return
	}
	sum := x.text(base["checksum"], "base.checksum", "checksum")
	if list, ok := strings.CutPrefix(sum, "file:"); ok {
		sum = "file:" + l.location(list)
	}
	i.Settings["ISO_CHECKSUM"] = sum
}

// complete checks that nothing is missing which an image cannot do without.
func (l *loader) complete(line int, e entry) {
	if !e.has("from") && !e.has("base") {
		l.add(line, "the image starts from nothing: add base, or from with the name of another image")
	}
	if !e.has("playbook") {
		l.add(line, "the image has no playbook: add playbook, e.g. debian-base")
	}
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

// grouped are the variables of keys with several texts.
var grouped = map[string]string{
	"ISO_URL": "base.url", "ISO_CHECKSUM": "base.checksum", "SUITE": "base.packages", "BASE_FROM_PACKAGES": "base.packages",
	"GIT_ANSIBLE_URL": "git.url", "GIT_ANSIBLE_BRANCH": "git.branch", "GIT_ANSIBLE_PATH": "git.path", "EXTRA_VARS": "vars",
}

// Key is the catalogue's name of an image's setting, "ansible-dir" for
// ANSIBLE_DIR, or the variable itself where the catalogue has none.
func Key(variable string) string {
	for key, of := range variables {
		if of == variable {
			return key
		}
	}
	return cmp.Or(grouped[variable], variable)
}

// Variables are the names of all settings that an image can have, sorted.
func Variables() []string {
	all := slices.Collect(maps.Keys(grouped))
	for _, variable := range variables {
		all = append(all, variable)
	}
	slices.Sort(all)
	return all
}
