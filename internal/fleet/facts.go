package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/text"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// learn fills in the facts of all images: first their input digests, parents
// before children, then what there is already, side by side.
func (a *All) learn(ctx context.Context, entries []*Entry) error {
	s := a.UI.Stage("plan")
	err := a.learnInputs(ctx, entries, s)
	if err == nil {
		err = common(entries)
	}
	if err == nil {
		s.Activity("looking for what there is already")
		err = a.find(ctx, entries)
	}
	s.End(text.Count(len(entries), "image"), err)
	return err
}

// common is the error that keeps every image from being planned, where it is
// one and the same.
func common(entries []*Entry) error {
	var first *Entry
	for _, e := range entries {
		switch {
		case e.Inputs != "":
			return nil
		case e.Err == nil: // it is its parent's
		case first == nil:
			first = e
		case e.Err.Error() != first.Err.Error():
			return nil
		}
	}
	if first == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", first.Name, first.Err)
}

func (a *All) learnInputs(ctx context.Context, entries []*Entry, s *ui.Stage) error {
	planner, err := pipeline.NewPlanner(ctx, a.Config.CacheDir, s)
	if err != nil {
		return err
	}
	defer planner.Close()
	var mistakes catalogue.Mistakes
	for _, e := range entries {
		e.Err = e.learn(ctx, planner)
		if f, ok := failure.In(e.Err); ok { // the catalogue's author knows its keys
			f.What, f.Try = keyed(f.What), keyed(f.Try)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(e.Err, pipeline.ErrNoPlaybook) || errors.Is(e.Err, pipeline.ErrNoPackage) {
			mistakes = append(mistakes, a.mistakes(e, several(e.Err), nil)...)
		}
	}
	return mistakes.Sorted()
}

// learn fills in what is known of an image before anything is built. The name
// of its playbook is checked in any case.
func (e *Entry) learn(ctx context.Context, planner *pipeline.Planner) error {
	from := ""
	if e.Parent != nil {
		from = e.Parent.Inputs
	}
	pin, err := planner.Pin(ctx, e.config, from)
	if e.Parent != nil && from == "" && !errors.Is(err, pipeline.ErrNoPlaybook) && !errors.Is(err, pipeline.ErrNoPackage) {
		return nil // nobody can say: the plan blocks it with its parent
	}
	if err != nil {
		return err
	}
	if pin.Whole != "" {
		e.Notes = append(e.Notes, "depends on "+pin.Whole)
	}
	e.config, e.settings = pin.Config, e.settings.With(pin.Settings)
	e.Settings = maps.Clone(e.image.Settings)
	maps.Copy(e.Settings, pin.Settings)
	e.Inputs, e.MemoryMiB, e.DiskSize = pin.Config.ImageInputs, pin.Config.MemoryMiB, pin.Config.DiskSize
	e.address()
	return nil
}

// address names the image in the registry. Without a tag of anybody's it is
// that of its inputs: another image never takes its place.
func (e *Entry) address() {
	tag := e.config.ImageTag
	switch {
	case e.config.Reference == "":
		if len(e.Tags) == 0 {
			tag = ""
		}
		e.Tags = nil
	case len(e.Tags) == 0:
		tag = shortened(e.Inputs)
		e.config.Reference = strings.TrimSuffix(e.config.Reference, untagged) + tag
		e.Tags = []string{tag}
	}
	e.config.ImageTag, e.settings = tag, e.settings.With(map[string]string{"IMAGE_TAG": tag})
	e.Reference = e.config.Reference
}

// shortened is a digest as a tag.
func shortened(digest string) string { return strings.TrimPrefix(digest, "sha256:")[:12] }

// questions bounds how many images are asked for at once.
const questions = 16

// find asks the registry, or looks into OUTPUT_DIR, for images of the same
// inputs. It is an error where that fails for all images: then it is for the
// same reason. The first show that, so that a registry which is away or
// refuses a login is not bothered with the rest.
func (a *All) find(ctx context.Context, entries []*Entry) error {
	session, err := pipeline.NewSession(a.Config, a.Version)
	if err != nil {
		return err
	}
	defer session.Close()
	asked := slices.DeleteFunc(slices.Clone(entries), func(e *Entry) bool { return e.Inputs == "" })
	first := asked[:min(len(asked), questions)]
	a.ask(ctx, session, first)
	if ctx.Err() == nil && len(first) > 0 && !slices.ContainsFunc(first, func(e *Entry) bool { return e.Err == nil }) {
		return first[0].Err
	}
	a.ask(ctx, session, asked[len(first):])
	return context.Cause(ctx)
}

// ask finds the images, side by side.
func (a *All) ask(ctx context.Context, session *registry.Session, entries []*Entry) {
	g := new(errgroup.Group)
	g.SetLimit(questions)
	for _, e := range entries {
		g.Go(func() error {
			switch {
			case ctx.Err() != nil:
			case e.Reference == "":
				e.Found, e.Absent = e.made(a.Config.OutputDir)
			default:
				e.Found, e.Absent, e.Err = e.published(ctx, session)
			}
			if base := e.config.BaseImage.Reference; base != "" && e.Err == nil {
				e.Err = session.RevokedAt(ctx, base, nil)
			}
			return nil //nolint:nilerr // the entry has its error
		})
	}
	_ = g.Wait()
}

// changed is why an image is built of which there is another.
const changed = "its inputs have changed"

// published is the image of these inputs in the registry with those of its tags
// that it has there, or why there is none.
func (e *Entry) published(ctx context.Context, session *registry.Session) (found *Found, absent string, err error) {
	for i, tag := range e.Tags {
		r, ok, err := session.Find(ctx, e.repository()+":"+tag, e.Inputs)
		switch {
		case err != nil:
			return nil, "", err
		case i == 0 && ok:
			found = &Found{Digest: r.Digest, Tags: []string{r.Tag}, Built: r.Built}
		case i == 0 && r.Revoked != "":
			return &Found{Digest: r.Digest, Tags: []string{r.Tag}, Built: r.Built, Revoked: r.Revoked}, "", nil
		case i == 0 && r.Lost != "":
			return nil, "the registry has lost " + r.Lost, nil
		case i == 0 && r.Other:
			return nil, changed, nil
		case i == 0:
			return nil, "", nil
		case ok && r.Tag == tag && r.Digest == found.Digest && !slices.Contains(found.Tags, tag):
			found.Tags = append(found.Tags, tag)
		}
	}
	return found, "", nil
}

// repository is where the image goes, without its tag.
func (e *Entry) repository() string {
	return strings.TrimSuffix(e.config.Reference, ":"+e.config.ImageTag)
}

// made is the image of these inputs in OUTPUT_DIR, or why there is none. What
// else may be wrong there, the build will say.
func (e *Entry) made(outputDir string) (found *Found, absent string) {
	packed, err := e.packed(outputDir)
	switch {
	case errors.Is(err, errOther):
		return nil, changed
	case err != nil:
		return nil, ""
	}
	built, _ := time.Parse(time.RFC3339, packed.Annotations[oci.AnnotationBuilt]) // zero where that is not known
	return &Found{Digest: packed.Digest, Built: built}, ""
}

var errOther = errors.New("holds another image, or one that was not verified")

// packed is the image in OUTPUT_DIR, if it is of these inputs and was verified.
func (e *Entry) packed(outputDir string) (*oci.Layout, error) {
	dir := e.layout(outputDir)
	packed, err := oci.Load(dir)
	if err == nil && (packed.Annotations[oci.AnnotationInputs] != e.Inputs || !packed.Verified) {
		err = fmt.Errorf("%s %w", dir, errOther)
	}
	return packed, err
}

// layout is the directory of the image's OCI layout.
func (e *Entry) layout(outputDir string) string {
	return pipeline.Layout(Dir(outputDir, e.Name), e.config.ImageName)
}
