package fleet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/fleet/render"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// builder builds single images for the fleet.
type builder struct {
	all     *All
	images  map[string]*image
	entries map[string]render.Entry
	session *registry.Session
	table   *ui.Table
	run     func(context.Context, *pipeline.Build) (pipeline.Result, error)
}

// Build makes one image, or sends what an earlier run made and did not get to
// the registry.
func (b *builder) Build(ctx context.Context, e Entry, dir string, parent Result) (Result, error) {
	i := b.images[e.Name]
	if entry := b.entries[e.Name]; entry.Action == render.Blocked {
		if i.facts.Err != nil {
			return Result{}, i.facts.Err
		}
		return Result{}, errors.New(entry.Why)
	}
	one := b.single(e, dir, parent)
	result, sent, err := b.send(ctx, one, e, parent)
	if err == nil && !sent {
		result, err = b.run(ctx, one)
	}
	if err != nil {
		return Result{}, err
	}
	digest := result.Reference[strings.LastIndex(result.Reference, "@")+1:] // a path may have that sign, too
	r := Result{Reference: result.Reference, Digest: digest, Layout: result.Layout}
	if len(i.facts.Tags) > 1 {
		err = b.session.Tag(ctx, i.repository()+"@"+digest, i.facts.Tags[1:]...)
	}
	return r, err
}

// send pushes the image that is complete in OUTPUT_DIR, if there is one.
func (b *builder) send(ctx context.Context, one *pipeline.Build, e Entry, parent Result) (result pipeline.Result, sent bool, err error) {
	i := b.images[e.Name]
	if i.config.Reference == "" || !e.NotBefore.IsZero() {
		return result, false, nil
	}
	_, annotations, err := i.load(b.all.Config.OutputDir)
	if err != nil || e.Parent != "" && annotations[baseDigest] != parent.Digest {
		return result, false, nil // it is built
	}
	result, err = one.Send(ctx)
	if errors.Is(err, oci.ErrDamaged) {
		b.table.Warn(e.Name, "what was made earlier is damaged: it is built again")
		return pipeline.Result{}, false, nil
	}
	return result, true, err
}

// baseDigest is the annotation with the digest of the image that one starts
// from (OCI image specification, annotations.md).
const baseDigest = "org.opencontainers.image.base.digest"

// single is the build of one image, in dir, from its parent's result.
func (b *builder) single(e Entry, dir string, parent Result) *pipeline.Build {
	i := b.images[e.Name]
	one := &pipeline.Build{
		Settings: i.settings, Config: i.config, UI: b.table.Image(e.Name), Version: b.all.Version,
		KeepStages: true, NotBefore: e.NotBefore, Results: []string{b.all.Config.OutputDir},
	}
	one.Config.OutputDir = dir
	if e.Parent == "" {
		return one
	}
	one.Config.BaseImage = settings.BaseImage{Reference: parent.Reference, Digest: parent.Digest, Inputs: b.images[e.Parent].facts.Inputs}
	if parent.Layout != "" {
		one.Config.BaseImage.Reference, one.Config.BaseImage.Layout = "", parent.Layout
		one.BaseDir = diskDir(Dir(b.all.Config.OutputDir, e.Parent))
	}
	return one
}

// diskDir is where the disk of a parent lies that its children start from.
func diskDir(dir string) string { return filepath.Join(dir, "work", "disk") }

// Tag gives the image in the registry the tags that it shall have.
func (b *builder) Tag(ctx context.Context, e Entry) (Result, error) {
	i := b.images[e.Name]
	missing := slices.DeleteFunc(slices.Clone(i.facts.Tags), func(tag string) bool { return slices.Contains(i.facts.Found.Tags, tag) })
	return e.Known, b.session.Tag(ctx, e.Known.Reference, missing...)
}

// Check looks at what an earlier run made: in OUTPUT_DIR, and in the registry
// where it was sent there.
func (b *builder) Check(ctx context.Context, e Entry, _ string, r Result) error {
	i := b.images[e.Name]
	layout, _, err := i.load(b.all.Config.OutputDir)
	switch {
	case err != nil:
		return err
	case layout.Digest != r.Digest:
		return fmt.Errorf("%s has the digest %s, not %s", r.Layout, layout.Digest, r.Digest)
	case i.config.Reference != "" && (i.facts.Found == nil || i.facts.Found.Digest != r.Digest):
		return fmt.Errorf("the registry has not got %s", r.Reference)
	}
	return nil
}

// Clean deletes everything but the image and its report.
func (b *builder) Clean(e Entry, dir string) error {
	return errors.Join(b.single(e, dir, Result{}).Clean(), os.RemoveAll(diskDir(dir)))
}
