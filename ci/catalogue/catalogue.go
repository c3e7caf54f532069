// Package catalogue runs the plan that `diskforge plan --format json` makes of
// a catalogue: parents before children, so many images at once.
package catalogue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
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
	return []string{"--iso-url=" + url, "--iso-checksum=inputs:" + from.Inputs}
}

// Graph runs the images of a plan, each once, and keeps what came of them.
type Graph[Result any] struct {
	nodes map[string]*node[Result]
	room  chan struct{}
}

type node[Result any] struct {
	image  Image
	ended  chan struct{}
	result Result
	err    error
}

// NewGraph returns the graph of the images, of which jobs run at once.
func NewGraph[Result any](images []Image, jobs int) *Graph[Result] {
	g := &Graph[Result]{nodes: map[string]*node[Result]{}, room: make(chan struct{}, jobs)}
	for _, i := range images {
		g.nodes[i.Name] = &node[Result]{image: i, ended: make(chan struct{})}
	}
	return g
}

// Image is the image of that name, or none.
func (g *Graph[Result]) Image(name string) Image {
	if n := g.nodes[name]; n != nil {
		return n.image
	}
	return Image{}
}

// Result is what came of an image that Run made.
func (g *Graph[Result]) Result(name string) (Result, error) {
	return g.nodes[name].result, g.nodes[name].err
}

// Run makes the image once its parent is made and there is room.
func (g *Graph[Result]) Run(ctx context.Context, i Image, build func(parent Result) (Result, error)) {
	n := g.nodes[i.Name]
	defer close(n.ended)
	var parent Result
	if p := g.nodes[i.From]; p != nil {
		<-p.ended
		if p.err != nil {
			n.err = errBlocked
			return
		}
		parent = p.result
	}
	g.room <- struct{}{}
	defer func() { <-g.room }()
	if n.err = ctx.Err(); n.err == nil {
		n.result, n.err = build(parent)
	}
}

var errBlocked = errors.New("what it starts from was not made")
