// Package catalogue reads catalogue.yaml: many images, what each starts from
// and how it is provisioned. A mistake is reported with its file and line and
// what to write instead, and all mistakes at once. What may stand where is said
// by schema.json alone, which editors read, too.
//
// A mapping of settings is read into an entry, in which all is checked that one
// can see there. An image is the defaults, what it says itself and what the
// values of its matrix say, each over the one before, with {axis} filled in.
//
// A catalogue says what an image is. Where it goes is for the one who builds:
// the registry and the prefix of a catalogue give way to those of flags and of
// the environment, and the tag of those comes before the catalogue's, which
// stay. The settings of an image win over the environment. A catalogue never
// holds a secret.
package catalogue

import (
	"fmt"
	"path/filepath"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// What bounds a catalogue. Beyond it there is a slip or an attack.
const (
	maxFile   = 1 << 20  // bytes of the file
	maxImages = 10_000   // images, matrices written out
	maxDepth  = 32       // of mappings and lists in each other, aliases followed
	maxWork   = 32 << 20 // bytes of text, with anchors and matrices written out
)

// Catalogue is a file's images.
type Catalogue struct {
	// File is the catalogue's name, for messages.
	File string
	// Registry and Prefix are the catalogue's own, or empty.
	Registry, Prefix string
	// Images are in the order to build them: parents first, else as in the file.
	Images []Image
}

// Image is one image, its matrix and the defaults written out.
type Image struct {
	Name string
	// From is the name of the image whose disk this one starts from, or empty.
	From string
	// Index is the name of the entry that was written out for several Architectures, or
	// empty: the image is one of an index of that name.
	Index         string
	Architectures []string
	// Tags are the catalogue's, or none.
	Tags []string
	// Settings are by the names of their variables: ISO_URL, ANSIBLE_PLAYBOOK,
	// EXTRA_VARS (a JSON mapping, or @FILE) and so on. What the catalogue does
	// not say is not in there. Paths are absolute.
	Settings map[string]string
	// Line is where the image stands in the file.
	Line int
	// Wanted says that the image is asked for, and not only needed by one that is.
	Wanted bool
}

// Load reads the catalogue in a file. What is wrong with it comes as Mistakes.
func Load(path string) (*Catalogue, error) {
	text, err := host.ReadFile(path, maxFile)
	if err != nil {
		return nil, failure.Wrap(err, "the catalogue cannot be read",
			"go to the folder of a catalogue.yaml, name one with --catalogue, or begin one with diskforge init")
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	return Parse(path, dir, text)
}

// Parse reads a catalogue. The name of the file is for messages; paths in the
// catalogue are relative to dir.
func Parse(file, dir string, text []byte) (*Catalogue, error) {
	l := &loader{file: file, dir: dir, seen: map[Mistake]bool{}}
	c := &Catalogue{File: file}
	if root := l.document(text); root != nil {
		l.catalogue(c, root)
	}
	if err := l.mistakes.Sorted(); err != nil {
		return nil, err
	}
	return c, nil
}

// loader reads one catalogue and collects its mistakes.
type loader struct {
	file, dir string
	mistakes  Mistakes
	seen      map[Mistake]bool
	found     int // mistakes, repeated ones among them
	work      int // of maxWork
	images    []image
}

// image is one with what it says itself, without the defaults.
type image struct {
	Image
	own entry
}

// catalogue reads the whole.
func (l *loader) catalogue(c *Catalogue, root *yaml.Node) {
	top, ok := l.entry(root, placeTop)
	if !ok {
		return
	}
	c.Registry, c.Prefix = top.texts["registry"].value, top.texts["prefix"].value
	var defaults entry
	if n := top.nodes["defaults"]; n != nil {
		defaults, _ = l.entry(n, placeDefaults)
	}
	list := top.nodes["images"]
	if list == nil {
		l.add(root.Line, "there are no images: add images, a list")
		return
	}
	for _, n := range l.items(list, "images") {
		if e, ok := l.entry(n, placeImage); ok {
			l.multiply(n.Line, defaults, e)
		}
	}
	c.Images = l.order()
}

// spend counts work against its bound and says whether there is some left.
func (l *loader) spend(bytes int) bool {
	if l.work > maxWork {
		return false
	}
	if l.work += bytes; l.work > maxWork {
		l.add(1, "with its anchors and matrices written out, the catalogue is larger than %d MiB: use fewer", maxWork>>20)
	}
	return l.work <= maxWork
}

func (l *loader) add(line int, format string, args ...any) {
	m := Mistake{File: l.file, Line: line, What: fmt.Sprintf(format, args...)}
	l.found++
	if !l.seen[m] { // a matrix repeats what is wrong with its image
		l.seen[m] = true
		l.mistakes = append(l.mistakes, m)
	}
}
