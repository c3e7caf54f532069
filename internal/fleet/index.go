package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/registry"
)

// Index is an index of the images of an entry of the catalogue that is built for several
// architectures, in their repository.
type Index struct {
	Name string `json:"name"`
	// Action is Build, Tag or Skip.
	Action    State    `json:"action"`
	Reference string   `json:"reference"` // REGISTRY/REPOSITORY:TAG
	Tags      []string `json:"tags"`      // the first is that of Reference
	Images    []string `json:"images"`    // their names

	Parts []*Entry `json:"-"`
	known string   // digest of the index that there is, for Tag and Skip
}

// addIndexes gives their indexes to entries that are part of one. Of an index whose images are
// not all in the plan, and of images that go to no registry, there is none.
func addIndexes(entries []*Entry) {
	parts := map[string][]*Entry{}
	for _, e := range entries {
		name := e.image.Index
		if name == "" || e.Reference == "" {
			continue
		}
		if parts[name] = append(parts[name], e); len(parts[name]) < len(e.image.Architectures) {
			continue
		}
		x := &Index{Name: name, Action: Build, Parts: parts[name]}
		for _, part := range x.Parts {
			part.Index, x.Images = x, append(x.Images, part.Name)
		}
		x.address()
	}
}

// decideIndexes says what is to be done for each.
func (a *All) decideIndexes(ctx context.Context, entries []*Entry) error {
	all := Indexes(entries)
	if all == nil {
		return nil
	}
	session, err := pipeline.NewSession(a.Config, a.Version)
	if err != nil {
		return err
	}
	defer session.Close()
	for _, x := range all {
		if err := x.decide(ctx, session); err != nil {
			return err
		}
	}
	return nil
}

// Indexes are those of the images of a plan.
func Indexes(entries []*Entry) (all []*Index) {
	for _, e := range entries {
		if e.Index != nil && !slices.Contains(all, e.Index) {
			all = append(all, e.Index)
		}
	}
	return all
}

// ToMake are those that are to be made, or lack a tag.
func ToMake(entries []*Entry) []*Index {
	return slices.DeleteFunc(Indexes(entries), func(x *Index) bool { return x.Action != Build && x.Action != Tag })
}

// address names the index as its images are named, without their architectures.
func (x *Index) address() {
	inputs := map[string]string{}
	for _, e := range x.Parts {
		inputs[e.image.Settings["ARCHITECTURE"]] = e.Inputs
	}
	for _, tag := range x.Parts[0].Tags {
		plain, suffixed := strings.CutSuffix(tag, x.Parts[0].suffix())
		if !suffixed { // nobody named one
			plain = shortened(oci.IndexInputs(inputs))
		}
		x.Tags = append(x.Tags, plain)
	}
	x.Reference = strings.TrimSuffix(x.Parts[0].Reference, x.Parts[0].Tags[0]) + x.Tags[0]
}

// suffix ends the tags of an image that an index is of.
func (e *Entry) suffix() string {
	if e.image.Index == "" {
		return ""
	}
	return "-" + e.image.Settings["ARCHITECTURE"]
}

// Push are the arguments of diskforge push that give a tag to the index, when its images are
// in the registry.
func (x *Index) Push(tag string) (args []string) {
	for _, e := range x.Parts {
		args = append(args, e.Reference, "--inputs="+e.Inputs)
	}
	return append(args, strings.TrimSuffix(x.Reference, x.Tags[0])+tag)
}

// decide says what is to be done for an index, by what is for its images.
func (x *Index) decide(ctx context.Context, session *registry.Session) error {
	var digests []string
	for _, e := range x.Parts {
		if e.Action == Blocked {
			x.Action = Blocked
		}
		if e.Found == nil || e.Action == Build || e.Action == Blocked {
			return nil
		}
		digests = append(digests, e.Found.Digest)
	}
	slices.Sort(digests)
	for i, tag := range x.Tags {
		there, ok, err := session.Entry(ctx, x.Parts[0].repository()+":"+tag)
		slices.Sort(there.Parts)
		switch {
		case err != nil:
			return err
		case i == 0 && (!ok || !slices.Equal(there.Parts, digests)):
			return nil
		case i == 0:
			x.Action, x.known = Skip, there.Digest
		case there.Digest != x.known:
			x.Action = Tag
		}
	}
	return nil
}

// indexes makes the indexes of the images that a run left, and adds them to its summary.
func (a *All) indexes(ctx context.Context, all []*Index, s *Summary, b *builder) error {
	results := map[string]*Result{}
	for _, i := range s.Images {
		results[i.Name] = i.Result
	}
	var failed []error
	for _, x := range all {
		began := time.Now()
		b.table.Set(x.Name, string(Running), "")
		made := Ended{Name: x.Name, Action: x.Action, State: Done}
		result, err := b.index(ctx, x, results)
		switch {
		case errors.Is(err, errNoImage):
			made.State, made.Why = Blocked, oneLine(err)
		case err != nil:
			made.State, made.Why = Failed, oneLine(err)
			failed = append(failed, fmt.Errorf("%s: %w", x.Name, err))
		case result.Digest == x.known && x.Action == Skip:
			made.State, made.Why, made.Result = Skipped, "unchanged", &result
		default:
			made.Result = &result
		}
		made.Seconds = seconds(time.Since(began))
		b.table.Set(x.Name, string(made.State), cmp.Or(made.Why, result.Reference))
		s.Counts[made.State]++
		s.Images = append(s.Images, made)
	}
	if all != nil {
		failed = append(failed, s.write(a.Config.OutputDir))
	}
	return errors.Join(failed...)
}

var errNoImage = errors.New("an image of the index is missing")

// index makes an index of images by their results.
func (b *builder) index(ctx context.Context, x *Index, results map[string]*Result) (Result, error) {
	var parts []registry.Part
	repository := x.Parts[0].repository()
	for _, e := range x.Parts {
		if results[e.Name] == nil {
			return Result{}, fmt.Errorf("%w: %s", errNoImage, e.Name)
		}
		parts = append(parts, registry.Part{Reference: repository + "@" + results[e.Name].Digest})
	}
	one := pipeline.Build{Settings: x.Parts[0].settings, Config: x.Parts[0].config, UI: b.table.Image(x.Name), Version: b.Version}
	reference, err := one.Index(ctx, x.Reference, parts)
	_, digest, _ := strings.Cut(reference, "@")
	if err == nil && len(x.Tags) > 1 {
		err = b.session.Tag(ctx, repository+"@"+digest, x.Tags[1:]...)
	}
	return Result{Reference: reference, Digest: digest}, err
}
