package fleet

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// prepare fills in what carrying out the plan takes.
func (a *All) prepare(e *Entry) {
	dir := a.Config.OutputDir
	if e.Action == Build {
		c := e.config
		c.OutputDir = Dir(dir, e.Name)
		e.Needs = pipeline.Estimate(c)
	}
	switch {
	case !e.Anew: // what is built for its parent's sake is known by that one's digest
	case a.Policy.Force || e.Found != nil && e.Found.Revoked != "":
		e.NotBefore = time.Now()
	case a.Policy.MaxAge > 0:
		e.NotBefore = time.Now().Add(-a.Policy.MaxAge)
	}
	if e.Found == nil {
		return
	}
	e.Known.Digest = e.Found.Digest
	if e.config.Reference == "" {
		e.Known.Layout = e.layout(dir)
		e.Known.Reference = "oci:" + e.Known.Layout + "@" + e.Found.Digest
		return
	}
	e.Known.Reference = e.config.Reference + "@" + e.Found.Digest
	if e.Fetch { // not where OUTPUT_DIR has it
		if here, err := e.packed(dir); err == nil && here.Digest == e.Found.Digest {
			e.Known.Layout = e.layout(dir)
		}
	}
}

// builder is the Builder of real images.
type builder struct {
	*All
	session *registry.Session
	table   *ui.Table
}

// Build makes one image, or sends what an earlier run made and did not get to
// the registry.
func (b *builder) Build(ctx context.Context, e *Entry, dir string, parent Result) (Result, error) {
	one := b.single(e, dir, parent)
	result, sent, err := b.send(ctx, one, e, parent)
	if err == nil && !sent {
		if b.run != nil {
			result, err = b.run(ctx, one)
		} else {
			result, err = one.Run(ctx)
		}
	}
	if err == nil && len(e.Tags) > 1 {
		err = b.session.Tag(ctx, e.repository()+"@"+result.Digest, e.Tags[1:]...)
	}
	if err == nil {
		b.manifests(e, dir, result)
	}
	return result, err
}

// manifests writes the Kubernetes objects of an image that was pushed. The image
// is complete without them.
func (b *builder) manifests(e *Entry, dir string, r Result) {
	c := e.config
	if r.Image == nil || c.Reference == "" {
		return
	}
	m := contract.Manifests{
		Image: c.Reference, MemoryMiB: c.MemoryMiB, CPUs: c.CPUs, Desktop: c.Desktop && c.CrownLabsMode,
	}
	if slices.Contains(e.Tags, contract.MovingTag) {
		m.Tag = contract.MovingTag
	}
	all, err := r.Image.Manifests(m)
	if err == nil {
		err = contract.SaveManifests(filepath.Join(dir, manifestsName), all, true)
	}
	if err != nil {
		b.table.Warn(e.Name, "its manifests were not written: "+oneLine(err))
	}
}

// send pushes the image that is complete in OUTPUT_DIR, if there is one.
func (b *builder) send(ctx context.Context, one *pipeline.Build, e *Entry, parent Result) (result Result, sent bool, err error) {
	if e.config.Reference == "" || !e.NotBefore.IsZero() {
		return result, false, nil
	}
	packed, err := e.packed(b.Config.OutputDir)
	if err != nil || e.Parent != nil && packed.Annotations[oci.AnnotationBaseDigest] != parent.Digest {
		return result, false, nil //nolint:nilerr // it is built
	}
	result, err = one.Send(ctx)
	if errors.Is(err, oci.ErrDamaged) {
		b.table.Warn(e.Name, "what was made earlier is damaged: it is built again")
		return Result{}, false, nil
	}
	return result, true, err
}

// single is the build of one image, in dir, from its parent's result.
func (b *builder) single(e *Entry, dir string, parent Result) *pipeline.Build {
	one := &pipeline.Build{
		Settings: e.settings, Config: e.config, UI: b.table.Image(e.Name), Version: b.Version,
		KeepStages: true, NotBefore: e.NotBefore, Results: []string{b.Config.OutputDir},
	}
	one.Config.OutputDir = dir
	if e.Parent == nil {
		return one
	}
	one.Config.BaseImage = settings.BaseImage{Reference: parent.Reference, Digest: parent.Digest, Inputs: e.Parent.Inputs}
	if parent.Layout != "" {
		one.Config.BaseImage.Reference, one.Config.BaseImage.Layout = "", parent.Layout
		one.Config.BaseKey = "" // it was made here
		one.BaseDir = diskDir(Dir(b.Config.OutputDir, e.Parent.Name))
	}
	return one
}

// diskDir is where the disk of a parent lies that its children start from.
func diskDir(dir string) string { return filepath.Join(dir, "work", "disk") }

// Tag gives the image in the registry the tags that it lacks.
func (b *builder) Tag(ctx context.Context, e *Entry) (Result, error) {
	return e.Known, b.session.Tag(ctx, e.Known.Reference, e.MissingTags()...)
}

// Clean deletes everything but the image and its report.
func (b *builder) Clean(e *Entry, dir string) error {
	return errors.Join(b.single(e, dir, Result{}).Clean(), os.RemoveAll(diskDir(dir)))
}
