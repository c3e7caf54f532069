package catalogue

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

// maxName bounds a name, in bytes: it becomes a part of a repository's name and
// the name of a folder.
const maxName = 128

// component is what a registry takes as a part of a repository's name (OCI
// distribution specification, "Pulling manifests").
var component = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*$`)

// order puts parents before their children, and leaves the rest as in the
// file. It tells of names that are taken, parents that are missing and cycles.
func (l *loader) order() {
	byName := l.byName()
	names := sortedKeys(byName)
	var ordered []Image
	state := make([]int, len(l.images)) // 0 not seen, 1 on the way, 2 done
	var visit func(i int, way []int)
	visit = func(i int, way []int) {
		if state[i] == 2 {
			return
		}
		if state[i] == 1 {
			l.cycle(way[slices.Index(way, i):])
			return
		}
		state[i] = 1
		if from := l.images[i].From; from != "" {
			if parent, ok := byName[from]; ok {
				visit(parent, append(way, i))
				l.inherit(i, parent)
			} else {
				l.add(l.images[i].Line, "%s is from %q, which is no image of this catalogue%s", l.images[i].Name, from, meant(nearest(from, names, 3)))
			}
		}
		state[i] = 2
		ordered = append(ordered, l.images[i])
	}
	for i := range l.images {
		visit(i, nil)
	}
	l.images = ordered
}

// inherited are the keys of what lies on the parent's disk already: that is
// nearer to a child than the defaults.
var inherited = []string{"desktop", "size"}

// inherit gives a child what it has from its parent, unless it says otherwise
// itself.
func (l *loader) inherit(child, parent int) {
	for _, key := range inherited {
		name := variables[key]
		if value, ok := l.images[parent].Settings[name]; ok && !l.own[child].has(key) {
			l.images[child].Settings[name] = value
		}
	}
}

func meant(words []string) string {
	if len(words) == 0 {
		return ": correct from, or add the image"
	}
	return ": did you mean " + strings.Join(words, ", ") + "?"
}

// byName finds images by their names, and tells of names that are taken.
func (l *loader) byName() map[string]int {
	byName := make(map[string]int, len(l.images))
	for i, image := range l.images {
		first, taken := byName[image.Name]
		switch {
		case !taken:
			byName[image.Name] = i
		case l.images[first].Line == image.Line:
			l.add(image.Line, "the matrix makes several images with the name %s: put every axis into the name, as {axis}", image.Name)
		default:
			l.add(image.Line, "the name %s is taken by the image in line %d: give another", image.Name, l.images[first].Line)
		}
	}
	return byName
}

func (l *loader) cycle(way []int) {
	var parts []string
	for _, i := range way {
		parts = append(parts, fmt.Sprintf("%s (line %d)", l.images[i].Name, l.images[i].Line))
	}
	if len(way) == 1 {
		l.add(l.images[way[0]].Line, "%s is from itself: give it a base, or another from", l.images[way[0]].Name)
		return
	}
	l.add(l.images[way[0]].Line, "these images start from each other: %s is from %s: give one of them a base",
		strings.Join(parts, " is from "), l.images[way[0]].Name)
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
	for _, image := range slices.Backward(c.Images) { // children come before their parents here
		if wanted[image.Name] || needed[image.Name] {
			needed[image.Name] = true
			needed[image.From] = true
		}
	}
	var chosen []Image
	for _, image := range c.Images {
		if needed[image.Name] {
			image.Wanted = wanted[image.Name]
			chosen = append(chosen, image)
		}
	}
	return chosen, nil
}

// match adds the images that the glob means.
func (c *Catalogue) match(glob string, wanted map[string]bool) error {
	before, names := false, make([]string, len(c.Images))
	for i, image := range c.Images {
		names[i] = image.Name
		ok, err := path.Match(glob, image.Name)
		if err != nil {
			return failure.New(fmt.Sprintf("%q is no pattern of names", glob), "give e.g. ubuntu-*")
		}
		if ok {
			before, wanted[image.Name] = true, true
		}
	}
	if before {
		return nil
	}
	near := nearest(glob, names, 3)
	if len(near) == 0 {
		near = names[:min(len(names), 5)]
	}
	return failure.New(fmt.Sprintf("no image of the catalogue matches %q", glob), "there are e.g. "+strings.Join(near, ", "))
}
