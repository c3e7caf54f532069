package catalogue

import (
	"fmt"
	"maps"
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
func fill(text string, axes map[string]string) string {
	if len(axes) == 0 || !strings.Contains(text, "{") {
		return text
	}
	return placeholders.ReplaceAllStringFunc(text, func(p string) string {
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
	axes := l.matrix(e.last("matrix"))
	excluded := l.exclusions(e.last("exclude"), axes)
	count := 1
	for _, a := range axes {
		if count *= len(a.values); len(l.images)+count > maxImages {
			l.add(line, "the catalogue has more than %d images: make the matrix smaller", maxImages)
			return
		}
	}
	delete(e, "matrix")
	delete(e, "exclude")
	for i := range count {
		chosen, own := combination(axes, i, count, e)
		if !excluded.match(chosen) && l.spend(1) {
			l.image(line, defaults, own, chosen)
		}
	}
	excluded.unused(l)
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
func (l *loader) matrix(n *yaml.Node) []axis {
	if n == nil {
		return nil
	}
	pairs, ok := l.mapping(n, "matrix")
	if ok && len(pairs) == 0 {
		l.add(n.Line, "matrix has no axis: add one, e.g. release: [bookworm, trixie], or remove it")
	}
	var axes []axis
	for _, p := range pairs {
		a := axis{name: p.key, values: l.axis(p)}
		if !axisName.MatchString(p.key) {
			l.add(p.line, "%q cannot name an axis: give a lower-case letter, then letters, digits, - and _", p.key)
		}
		if len(a.values) > 0 {
			axes = append(axes, a)
		}
	}
	return axes
}

// axis reads the values of an axis: a list, or a mapping to settings.
func (l *loader) axis(p pair) (values []variant) {
	if p.value.Kind != yaml.MappingNode {
		for _, n := range l.items(p.value, p.key) {
			if l.scalar(n, p.key, "label") {
				values = append(values, variant{label: n.Value})
			}
		}
		return l.distinct(p, values)
	}
	pairs, ok := l.mapping(p.value, p.key)
	if ok && len(pairs) == 0 {
		l.add(p.line, "%s has no values: add some", p.key)
	}
	for _, v := range pairs {
		l.fits(v.line, p.key, "label", v.key)
		one := variant{label: v.key, entry: entry{}}
		if v.value.Tag != "!!null" {
			one.entry = l.entry(v.value, placeVariant)
		}
		values = append(values, one)
	}
	return values
}

func (l *loader) distinct(p pair, values []variant) []variant {
	seen := map[string]bool{}
	for _, v := range values {
		if seen[v.label] {
			l.add(p.value.Line, "%s has the value %s twice: remove one", p.key, v.label)
		}
		seen[v.label] = true
	}
	return values
}

// exclusion is a combination that is left out, or a part of several.
type exclusion struct {
	line int
	axes map[string]string
	used bool
}

type exclusions []*exclusion

func (l *loader) exclusions(n *yaml.Node, axes []axis) (out exclusions) {
	if n == nil || len(axes) == 0 { // without axes it is told already
		return nil
	}
	for _, item := range l.items(n, "exclude") {
		pairs, ok := l.mapping(item, "exclude")
		if ok && len(pairs) == 0 {
			l.add(item.Line, "this would leave out everything: name values of axes, e.g. {release: trixie}")
			continue
		}
		x := &exclusion{line: item.Line, axes: map[string]string{}}
		for _, p := range pairs {
			if !slices.ContainsFunc(axes, func(a axis) bool { return a.name == p.key }) {
				l.add(p.line, "%q is no axis of the matrix: give %s", p.key, axisNames(axes))
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

func axisNames(axes []axis) string {
	names := make([]string, len(axes))
	for i, a := range axes {
		names[i] = a.name
	}
	return strings.Join(names, ", ")
}

func (x exclusions) match(chosen map[string]string) (left bool) {
	for _, e := range x {
		matches := true
		for name, label := range e.axes {
			matches = matches && chosen[name] == label
		}
		e.used = e.used || matches
		left = left || matches
	}
	return left
}

func (x exclusions) unused(l *loader) {
	for _, e := range x {
		if !e.used {
			l.add(e.line, "exclude names no combination of the matrix: correct it, or remove it")
		}
	}
}

// expander fills in the axes of one image.
type expander struct {
	l     *loader
	axes  map[string]string
	image string // for messages
}

// text is a scalar with the axes filled in, checked again where that changed it.
func (x expander) text(n *yaml.Node, name, def string) string {
	text := fill(n.Value, x.axes)
	if !x.l.spend(16 + len(text)) {
		return text
	}
	for _, p := range placeholders.FindAllString(text, -1) {
		if strings.HasPrefix(p, "{{") || strings.HasPrefix(p, "}}") {
			continue
		}
		known := "it has no matrix"
		if len(x.axes) > 0 {
			known = "it has " + strings.Join(slices.Sorted(maps.Keys(x.axes)), ", ")
		}
		x.l.add(n.Line, "%s is no axis of the matrix of %s: %s", p, x.image, known)
		return text
	}
	if text != n.Value {
		x.l.fits(n.Line, fmt.Sprintf("%s of %s", name, x.image), def, text)
	}
	return text
}
