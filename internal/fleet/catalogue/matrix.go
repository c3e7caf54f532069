package catalogue

import (
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// placeholder is {axis}. Double braces are Ansible's, and matched first to be
// left alone.
var (
	placeholder  = regexp.MustCompile(`\{[a-z][a-z0-9_-]*\}`)
	placeholders = regexp.MustCompile(`\{\{|\}\}|` + placeholder.String())
	axisName     = regexp.MustCompile(`^[a-z][a-z0-9_-]*$`)
)

// fill puts the axes' values into a text.
func fill(s string, axes map[string]string) string {
	if len(axes) == 0 || !strings.Contains(s, "{") {
		return s
	}
	return placeholders.ReplaceAllStringFunc(s, func(p string) string {
		if value, ok := axes[strings.Trim(p, "{}")]; ok {
			return value
		}
		return p
	})
}

// axis is one dimension of a matrix.
type axis struct {
	name   string
	values []variant
}

// variant is a value of an axis and the settings that come with it.
type variant struct {
	label string
	entry entry
}

// multiply makes the images of one entry: one, or one for each combination of
// its matrix.
func (l *loader) multiply(line int, defaults, e entry) {
	axes, first := l.matrix(e.nodes["matrix"]), len(l.images)
	archs := defaults.over(e).archs
	if len(archs) > 0 {
		axes = append(axes, l.perArchitecture(axes, archs))
	}
	excluded := l.exclusions(e.nodes["exclude"], axes)
	count := 1
	for _, a := range axes {
		if count *= len(a.values); len(l.images)+count > maxImages {
			l.add(line, "the catalogue has more than %d images: make the matrix smaller", maxImages)
			return
		}
	}
	for i := range count {
		chosen, own := combination(axes, i, count, e)
		left := false
		for _, x := range excluded {
			if x.match(chosen) {
				x.used, left = true, true
			}
		}
		if !left && l.spend(1) {
			l.image(line, defaults, own, chosen, len(archs) > 0)
		}
	}
	l.complete(l.images[first:])
	for _, x := range excluded {
		if !x.used {
			l.add(x.line, "exclude names no combination of the matrix: correct it, or remove it")
		}
	}
}

// combination is the i-th of all: the last axis changes fastest, as one reads.
func combination(axes []axis, i, count int, e entry) (chosen map[string]string, _ entry) {
	chosen = make(map[string]string, len(axes))
	for _, a := range axes {
		count /= len(a.values)
		v := a.values[i/count%len(a.values)]
		chosen[a.name] = v.label
		e = e.over(v.entry)
	}
	return chosen, e
}

// matrix reads the axes in the order of the file.
func (l *loader) matrix(n *yaml.Node) (axes []axis) {
	if n == nil {
		return nil
	}
	pairs, ok := l.mapping(n, "matrix")
	if ok && len(pairs) == 0 {
		l.add(n.Line, "matrix has no axis: add one, e.g. release: [bookworm, trixie], or remove it")
	}
	for _, p := range pairs {
		if !axisName.MatchString(p.key) {
			l.add(p.line, "%q cannot name an axis: give a lower-case letter, then letters, digits, - and _", p.key)
		}
		if values := l.axis(p); len(values) > 0 {
			axes = append(axes, axis{p.key, values})
		}
	}
	return axes
}

// axis reads the values of an axis: a list, or a mapping to settings.
func (l *loader) axis(p pair) (values []variant) {
	if p.value.Kind != yaml.MappingNode {
		seen := map[string]bool{}
		for _, n := range l.items(p.value, p.key) {
			if !l.scalar(n, p.key, "label") {
				continue
			}
			if seen[n.Value] {
				l.add(p.value.Line, "%s has the value %s twice: remove one", p.key, n.Value)
			}
			seen[n.Value] = true
			values = append(values, variant{label: n.Value})
		}
		return values
	}
	pairs, ok := l.mapping(p.value, p.key)
	if ok && len(pairs) == 0 {
		l.add(p.line, "%s has no values: add some", p.key)
	}
	for _, v := range pairs {
		l.fits(text{v.line, v.key}, p.key, "label")
		one := variant{label: v.key}
		if v.value.Tag != "!!null" {
			one.entry, _ = l.entry(v.value, placeVariant)
		}
		values = append(values, one)
	}
	return values
}

// architectures reads a list of them.
func (l *loader) architectures(n *yaml.Node) []text {
	all := l.texts(n, "architectures")
	if n.Kind != yaml.SequenceNode || len(n.Content) < 2 {
		l.add(n.Line, "architectures is a list of two or more: for one, write architecture")
	}
	seen := map[string]bool{}
	return slices.DeleteFunc(all, func(t text) bool {
		if seen[t.value] {
			l.add(t.line, "architectures has %s twice: remove one", t.value)
		}
		again := seen[t.value]
		seen[t.value] = true
		return again
	})
}

// architectureAxis is the axis of an image's architectures.
const architectureAxis = "architecture"

// complete tells the images of each index of all its architectures.
func (l *loader) complete(images []image) {
	all := map[string][]string{}
	for _, i := range images {
		all[i.Index] = append(all[i.Index], i.Settings["ARCHITECTURE"])
	}
	for n := range images {
		if name := images[n].Index; name != "" {
			images[n].Architectures = all[name]
		}
	}
}

// perArchitecture is the axis along which an image is written out for each architecture.
func (l *loader) perArchitecture(axes []axis, archs []text) axis {
	a := axis{name: architectureAxis}
	for _, t := range archs {
		if slices.ContainsFunc(axes, func(a axis) bool { return a.name == architectureAxis }) {
			l.add(t.line, "architectures is an axis of the matrix, which has one of that name, architecture: rename or remove that")
		}
		own := entry{keys: map[string]int{"architecture": t.line}, texts: map[string]text{"architecture": t}}
		a.values = append(a.values, variant{t.value, own})
	}
	return a
}

// exclusion is a combination that is left out, or a part of several.
type exclusion struct {
	line int
	axes map[string]string
	used bool
}

func (x *exclusion) match(chosen map[string]string) bool {
	for name, label := range x.axes {
		if chosen[name] != label {
			return false
		}
	}
	return true
}

func (l *loader) exclusions(n *yaml.Node, axes []axis) (out []*exclusion) {
	if n == nil || len(axes) == 0 { // without axes it is reported already
		return nil
	}
	names := make([]string, len(axes))
	for i, a := range axes {
		names[i] = a.name
	}
	for _, item := range l.items(n, "exclude") {
		pairs, ok := l.mapping(item, "exclude")
		if ok && len(pairs) == 0 {
			l.add(item.Line, "this would leave out everything: name values of axes, e.g. {release: trixie}")
			continue
		}
		x := &exclusion{line: item.Line, axes: map[string]string{}}
		for _, p := range pairs {
			if !slices.Contains(names, p.key) {
				l.add(p.line, "%q is no axis of the matrix: give %s", p.key, strings.Join(names, ", "))
				x.used = true // one message is enough
			}
			if l.scalar(p.value, "exclude", "label") {
				x.axes[p.key] = p.value.Value
			}
		}
		out = append(out, x)
	}
	return out
}
