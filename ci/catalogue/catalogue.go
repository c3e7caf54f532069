// Package catalogue runs the plan that `diskforge plan --format json` makes of
// a catalogue: parents before children, so many images at once.
package catalogue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"dagger/diskforge/flags"
)

// Image is one image of the plan, as far as it is read here.
type Image struct {
	Name      string              `json:"name"`
	From      string              `json:"from"`
	Action    string              `json:"action"`
	Why       string              `json:"why"`
	Inputs    string              `json:"inputs"`
	Anew      bool                `json:"anew"`
	Reference string              `json:"reference"`
	Tags      []string            `json:"tags"`
	Found     string              `json:"found"`
	Stages    map[string][]string `json:"stages"`
}

// The actions of a plan.
const (
	Build   = "build"
	Tag     = "tag"
	Skip    = "skip"
	Blocked = "blocked"
)

// Known is the reference of the image that the registry has, or "".
func (i Image) Known() string {
	if i.Found == "" {
		return ""
	}
	repository := i.Reference
	if at := strings.LastIndexByte(repository, ':'); at > strings.LastIndexByte(repository, '/') {
		repository = repository[:at]
	}
	return repository + "@" + i.Found
}

// Parse reads a plan of images that go to a registry. Parents stand before
// their children.
func Parse(text []byte) ([]Image, error) {
	var p struct {
		Images []Image `json:"images"`
	}
	if err := json.Unmarshal(text, &p); err != nil {
		return nil, fmt.Errorf("the plan cannot be read: %w", err)
	}
	seen := map[string]bool{}
	for _, i := range p.Images {
		if i.Name == "" || seen[i.Name] || i.From != "" && !seen[i.From] {
			return nil, fmt.Errorf("the plan cannot be carried out: %q stands in the wrong place", i.Name)
		}
		if i.Reference == "" && i.Action != Blocked {
			return nil, errors.New("there is no registry to publish to: give --target-registry, or registry in the catalogue")
		}
		seen[i.Name] = true
	}
	return p.Images, nil
}

// Base are the arguments that name a child's base: its parent's layout at the
// path, or what the registry has. An image without a parent has its own.
func Base(i, from Image, reference string, layout bool, path string) []string {
	if i.From == "" {
		return nil
	}
	url := "oci://" + reference
	if layout {
		_, digest, _ := strings.Cut(reference, "@")
		url = "oci:" + path + "@" + digest
	}
	return flags.Of("iso-url", url, "iso-checksum", "inputs:"+from.Inputs)
}

// Mentions says whether one of the arguments has the text in it.
func Mentions(args []string, text string) bool {
	return slices.ContainsFunc(args, func(arg string) bool { return strings.Contains(arg, text) })
}

// Made is what came of an image: where it is, and its layout where it was
// built now.
type Made[Layout any] struct {
	Reference string
	Layout    Layout
}

// Graph runs the images of a plan, each once.
type Graph[Layout any] struct {
	images []Image
	nodes  map[string]*node[Layout]
	room   chan struct{}
}

type node[Layout any] struct {
	image Image
	ended chan struct{}
	made  Made[Layout]
	err   error
}

// NewGraph returns the graph of the images, of which jobs run at once.
func NewGraph[Layout any](images []Image, jobs int) *Graph[Layout] {
	g := &Graph[Layout]{images: images, nodes: map[string]*node[Layout]{}, room: make(chan struct{}, jobs)}
	for _, i := range images {
		g.nodes[i.Name] = &node[Layout]{image: i, ended: make(chan struct{})}
	}
	return g
}

// Image is the image of that name, or none.
func (g *Graph[Layout]) Image(name string) Image {
	if n := g.nodes[name]; n != nil {
		return n.image
	}
	return Image{}
}

// Run makes the image once its parent is made and there is room.
func (g *Graph[Layout]) Run(ctx context.Context, i Image, build func(parent Made[Layout]) (Made[Layout], error)) {
	n := g.nodes[i.Name]
	defer close(n.ended)
	var parent Made[Layout]
	if p := g.nodes[i.From]; p != nil {
		<-p.ended
		if p.err != nil {
			n.err = errBlocked
			return
		}
		parent = p.made
	}
	g.room <- struct{}{}
	defer func() { <-g.room }()
	if n.err = ctx.Err(); n.err == nil {
		n.made, n.err = build(parent)
	}
}

var errBlocked = errors.New("what it starts from was not made")

// Summary is a line for each image, in the plan's order; an error where one
// failed.
func (g *Graph[Layout]) Summary() (string, error) {
	var lines strings.Builder
	var failed []string
	for _, i := range g.images {
		n := g.nodes[i.Name]
		state := map[string]string{Skip: i.Why, Tag: "tagged", Build: "built"}[i.Action]
		if n.err != nil {
			state = "failed"
			failed = append(failed, i.Name+": "+strings.TrimPrefix(n.err.Error(), "input: ")) // gqlerror's word for where it was
		}
		fmt.Fprintf(&lines, "%s\t%s\t%s\n", i.Name, state, n.made.Reference)
	}
	if failed == nil {
		return lines.String(), nil
	}
	return "", fmt.Errorf("%d of %d images failed\n%s\nall images:\n%s", len(failed), len(g.images), strings.Join(failed, "\n"), strings.TrimSpace(lines.String()))
}
