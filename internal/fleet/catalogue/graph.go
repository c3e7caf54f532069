package catalogue

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

// order puts parents before their children, and leaves the rest as in the
// file. It reports names that are taken, parents that are missing and cycles.
func (l *loader) order() (ordered []Image) {
	byName := l.byName()
	names := sortedKeys(byName)
	const met, done = 1, 2
	state := make([]int, len(l.images))
	var visit func(n int, way []int)
	visit = func(n int, way []int) {
		i := &l.images[n]
		switch state[n] {
		case done:
			return
		case met:
			l.cycle(way[slices.Index(way, n):])
			return
		}
		state[n] = met
		parent, ok := byName[i.From]
		if part, there := byName[i.From+"-"+i.Settings["ARCHITECTURE"]]; !ok && there && l.images[part].Index == i.From {
			parent, ok, i.From = part, true, l.images[part].Name // each from that of its architecture
		}
		if ok {
			visit(parent, append(way, n))
			i.inherit(l.images[parent])
			if a, b := i.Settings["ARCHITECTURE"], l.images[parent].Settings["ARCHITECTURE"]; b != "" && a != b {
				l.add(i.Line, "%s is for %s, and %s, from which it starts, for %s", i.Name, a, i.From, b)
			}
		} else if i.From != "" {
			hint := "correct from, or add the image"
			if near := nearest(i.From, names, 3); len(near) > 0 {
				hint = "did you mean " + strings.Join(near, ", ") + "?"
			}
			if slices.ContainsFunc(l.images, func(of image) bool { return of.Index == i.From }) {
				hint = "it is an index: give architectures here, too, or one of its images as from"
			}
			l.add(i.Line, "%s is from %q, which is no image of this catalogue: %s", i.Name, i.From, hint)
		}
		state[n] = done
		ordered = append(ordered, i.Image)
	}
	for n := range l.images {
		visit(n, nil)
	}
	return ordered
}

// inherit gives a child what lies on its parent's disk already, unless it says
// otherwise itself: that is nearer to it than the defaults.
func (i *image) inherit(parent image) {
	for _, key := range []string{"desktop", "crownlabs-mode", "size", "architecture"} {
		name := variables()[key]
		if value, ok := parent.Settings[name]; ok && !i.own.has(key) {
			i.Settings[name] = value
		}
	}
}

// byName finds images by their names, and reports names that are taken.
func (l *loader) byName() map[string]int {
	byName := make(map[string]int, len(l.images))
	for n, i := range l.images {
		first, taken := byName[i.Name]
		switch {
		case !taken:
			byName[i.Name] = n
		case l.images[first].Line == i.Line:
			l.add(i.Line, "the matrix makes several images with the name %s: put every axis into the name, as {axis}", i.Name)
		default:
			l.add(i.Line, "the name %s is taken by the image in line %d: give another", i.Name, l.images[first].Line)
		}
	}
	for _, i := range l.images {
		if n, taken := byName[i.Index]; taken && i.Index != "" {
			l.add(i.Line, "the name %s, of an index, is taken by the image in line %d: give another", i.Index, l.images[n].Line)
		}
	}
	return byName
}

func (l *loader) cycle(way []int) {
	first := l.images[way[0]]
	if len(way) == 1 {
		l.add(first.Line, "%s is from itself: give it a base, or another from", first.Name)
		return
	}
	var parts []string
	for _, n := range way {
		parts = append(parts, fmt.Sprintf("%s (line %d)", l.images[n].Name, l.images[n].Line))
	}
	l.add(first.Line, "these images start from each other: %s is from %s: give one of them a base", strings.Join(parts, " is from "), first.Name)
}

// Select returns the images that match one of the globs (as path.Match has
// them) as wanted, and those that they start from, in the order to build them.
// Without globs all are wanted. A glob that matches nothing is an error.
func (c *Catalogue) Select(globs ...string) ([]Image, error) {
	if len(globs) == 0 {
		return slices.Clone(c.Images), nil
	}
	wanted := make(map[string]bool)
	for _, glob := range globs {
		if err := c.match(glob, wanted); err != nil {
			return nil, err
		}
	}
	needed := make(map[string]bool)
	var chosen []Image
	for _, i := range slices.Backward(c.Images) { // children come before their parents here
		if i.Wanted = wanted[i.Name]; i.Wanted || needed[i.Name] {
			needed[i.From] = true
			chosen = append(chosen, i)
		}
	}
	slices.Reverse(chosen)
	return chosen, nil
}

// match adds the images that the glob means.
func (c *Catalogue) match(glob string, wanted map[string]bool) error {
	found, names := false, make([]string, len(c.Images))
	for n, i := range c.Images {
		names[n] = i.Name
		ok, err := path.Match(glob, i.Name)
		if err != nil {
			return failure.New(fmt.Sprintf("%q is no pattern of names", glob), "give e.g. ubuntu-*")
		}
		if ok {
			found, wanted[i.Name] = true, true
		}
	}
	if found {
		return nil
	}
	near := nearest(glob, names, 3)
	if len(near) == 0 {
		near = names[:min(len(names), 5)]
	}
	return failure.New(fmt.Sprintf("no image of the catalogue matches %q", glob), "there are e.g. "+strings.Join(near, ", "))
}
