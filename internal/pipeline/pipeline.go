// Package pipeline makes one image: it knows the stages, their order, and what
// each needs of the others; the stages themselves are packages that know nothing
// of one another.
//
// A stage is a value in the list stages. A way is one disk's way through them: a
// whole build walks all of it, in a work directory (Dir) in which every stage's
// output is recorded, so that a build that was stopped goes on; a command of one
// stage walks a part, and what the next has to know stands beside the disk, in
// DISK.json (Sidecar). To add a stage is to add a value to the list, with the
// function that runs it and the type of its result.
package pipeline

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// Build says what is built and how: the settings, and what a command adds.
type Build struct {
	Settings settings.Settings // as they were given, for the report
	Config   settings.Config
	UI       *ui.UI
	Version  string // of diskforge
	// KeepOnError leaves the guest of a failed stage up, to look into.
	KeepOnError bool
	// Full has verify boot further machines.
	Full bool
	// Persistent has verify boot a machine whose disk is kept.
	Persistent bool
	// KeepStages leaves what the stages made where it is, until Clean.
	KeepStages bool
	// NotBefore is when a stage may have ended at the earliest for its output
	// to be used again.
	NotBefore time.Time
	// BaseDir is where the disk of a base that is a containerdisk is kept;
	// empty: with the other images in CACHE_DIR.
	BaseDir string
	// Results are further folders and files that builds write, besides those in
	// OUTPUT_DIR and CACHE_DIR: they are no part of the playbook tree.
	Results []string

	rooms     *rooms    // nil: the real ones
	refreshed refreshed // by Refresh
}

// Result is an image that is complete.
type Result struct {
	Reference string `json:"reference"`        // with digest; of the registry where it was pushed, else of the layout
	Digest    string `json:"digest"`           // of the manifest, "sha256:…"
	Layout    string `json:"layout,omitempty"` // directory of the OCI layout, where it was built here
	// Image is what is known of it, where it was packed or sent here.
	Image *contract.Report `json:"-"`
}

// Run builds, verifies, packs and, where a registry is set, pushes one image.
// What an earlier run that did not come to its end left in OUTPUT_DIR is used
// again as far as its inputs are the same. Nothing is packed or pushed that
// was not verified.
func (b *Build) Run(ctx context.Context) (Result, error) { return b.walk(ctx, "") }

// Capture does what Run does with the disk of a machine that was used: it is
// generalised in place of provisioned.
func (b *Build) Capture(ctx context.Context, source string) (Result, error) {
	wrong := settings.Mistakes{}
	if source == "" {
		wrong.Add("SOURCE", "is empty: name the disk of a machine")
	}
	if b.Config.ImageName == "" {
		wrong.Add("IMAGE_NAME", "is not set: name the image: --image-name course")
	}
	if len(wrong) > 0 {
		return Result{}, wrong
	}
	return b.walk(ctx, source)
}

func (b *Build) walk(ctx context.Context, source string) (Result, error) {
	dir, err := OpenDir(workDir(b.Config.OutputDir))
	if err != nil {
		return Result{}, err
	}
	defer dir.Close()
	w := b.way(dir)
	w.whole, w.Layout, w.source = true, Layout(b.Config.OutputDir, b.Config.ImageName), source
	if err := w.conclude(w.all(ctx)); err != nil {
		return Result{}, err
	}
	return w.Result, nil
}

// all walks the whole way.
func (w *way) all(ctx context.Context) error {
	if err := w.checkRegistry(ctx); err != nil {
		return err
	}
	if err := w.checkScanner(ctx); err != nil {
		return err
	}
	start := w.start
	if w.source != "" {
		start = w.startCapture
	}
	if err := start(ctx, w.Config.OutputDir); err != nil {
		return err
	}
	for _, sideBySide := range stages {
		wanted := slices.DeleteFunc(slices.Clone(sideBySide), func(s stage) bool { return s.when != nil && !s.when(w) })
		if err := w.run(ctx, wanted...); err != nil {
			return err
		}
	}
	if w.KeepStages || w.handsOver() {
		return nil
	}
	return tidy(w.dir)
}

// handsOver says whether another container of the pod has to push the image. It tells
// nobody whether it has, so what the stages made stays: a further pod of the same Job, with
// the same claim, goes on with it. A pod of another Job makes all of it anew; see job.
func (w *way) handsOver() bool { return host.InPod() && w.Config.Reference != "" && !w.Config.Push }

// job is the name of the Job where handsOver holds: a pod is called after it, with a word
// more (Kubernetes' Job controller).
func (w *way) job() string {
	pod, err := os.Hostname()
	if !w.handsOver() || err != nil {
		return ""
	}
	return pod[:max(0, strings.LastIndex(pod, "-"))]
}

// Clean deletes what the stages made and KeepStages kept.
func (b *Build) Clean() error {
	dir, err := OpenDir(workDir(b.Config.OutputDir))
	if err != nil {
		return err
	}
	return errors.Join(tidy(dir), dir.Close())
}

// tidy deletes the disks of a build that came to its end: the layout has all.
// The logs stay.
func tidy(dir *Dir) error {
	var failed []error
	for _, sideBySide := range stages {
		for _, s := range sideBySide {
			failed = append(failed, dir.Forget(s.name))
		}
	}
	return errors.Join(failed...)
}

// Send pushes the image that an earlier run packed in OUTPUT_DIR and did not
// get to the registry.
func (b *Build) Send(ctx context.Context) (Result, error) {
	w := b.way(nil)
	w.Layout = Layout(b.Config.OutputDir, b.Config.ImageName)
	if err := w.pushLayout(ctx, b.Config.Reference, false); err != nil {
		return Result{}, err
	}
	return w.Result, w.sent()
}

// Layout is where a build leaves the OCI layout of an image.
func Layout(outputDir, image string) string {
	return filepath.Join(outputDir, strings.ReplaceAll(image, "/", "_"))
}

func workDir(outputDir string) string { return filepath.Join(outputDir, "work") }

// The stages on their own. Work and logs of DISK are in DISK.work.

// ProvisionTo provisions a disk and writes it to out.
func (b *Build) ProvisionTo(ctx context.Context, out string) error {
	return b.inWorkOf(out, func(w *way) error {
		if err := w.start(ctx, filepath.Dir(out)); err != nil {
			return err
		}
		w.out = out
		return w.handOn(report.Built, w.run(ctx, provisioning))
	})
}

// SparsifyTo writes the disk in, sparsified, to out.
func (b *Build) SparsifyTo(ctx context.Context, in, out string) error {
	w := b.way(nil)
	if err := w.takeUp(ctx, in); err != nil {
		return err
	}
	w.out = out
	return w.handOn(report.Built, w.run(ctx, sparsifying))
}

// VerifyDisk looks into the disk, at rest and in an overlay that it boots, and,
// where all is well, records that beside it.
func (b *Build) VerifyDisk(ctx context.Context, path string) error {
	if _, err := b.way(nil).rooms.disk(ctx, path); err != nil { // before there is work beside it
		return err
	}
	return b.inWorkOf(path, func(w *way) error {
		_, _ = w.ofDisk(path) // what cannot be read is seen when it is booted
		if err := w.checkScanner(ctx); err != nil {
			return err
		}
		if err := w.prepareVerify(ctx); err != nil {
			return err
		}
		if err := w.takeUp(ctx, path); err != nil {
			return err
		}
		if w.known.Verified != "" { // by earlier checks: these may find more
			w.known.Verified = ""
			if err := WriteSidecar(path, w.known); err != nil {
				return err
			}
		}
		return w.handOn(report.Verified, w.run(ctx, scanning, verifying))
	})
}

// PackTo packs the disk into an OCI layout and returns its reference. The
// settings win over what stands beside the disk.
func (b *Build) PackTo(ctx context.Context, path, layout string) (string, error) {
	w := b.way(nil)
	if err := w.takeUp(ctx, path); err != nil {
		return "", err
	}
	w.Layout = layout
	err := w.run(ctx, packing)
	return w.Reference, err
}

// ExportTo writes the disk of an image, which is a disk's file, an OCI layout or a
// registry's reference, into a folder, in the forms of OUTPUTS, and returns the files.
// A disk that was not verified is refused unless that is said; what is in a registry
// was somebody's to publish.
func (b *Build) ExportTo(ctx context.Context, image, folder string, unverified bool) (files []string, err error) {
	w := b.way(nil)
	if b.Config.Outputs == "" {
		wrong := settings.Mistakes{}
		wrong.Add("OUTPUTS", "names no file: give %s", strings.Join(disk.Outputs(), ", "))
		return nil, wrong
	}
	if name := b.Config.ImageName; name != "" && fileName(name) != strings.ReplaceAll(name, "/", "_") {
		wrong := settings.Mistakes{}
		wrong.Add("IMAGE_NAME", "%q cannot be a file's name: give letters, digits, ., _ and -, at most 200, the first a letter or digit", name)
		return nil, wrong
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, failure.Wrap(err, "there can be no folder "+folder, "give another one with --output")
	}
	var from origin
	err = w.show(ctx, "image", func(ctx context.Context, p progress.Reporter) (string, error) {
		from, err = w.diskOf(ctx, image, p)
		return from.Path, err
	})
	if err != nil {
		return nil, err
	}
	verified := true
	if from.Manifest == "" {
		if _, err = w.rooms.disk(ctx, from.Path); err == nil {
			err = w.takeUp(ctx, from.Path)
		}
		verified = w.known.IsVerified()
	} else {
		w.disk, w.known = from.Path, Sidecar{Digest: from.Digest, Title: titleOf(from.Name), Guest: from.distribution()}
		if layout := Locate(image).Layout; layout != "" {
			packed, err := oci.Load(layout)
			if err != nil {
				return nil, err
			}
			verified = packed.Verified
		}
	}
	if err != nil {
		return nil, err
	}
	if !verified && !unverified {
		return nil, failure.New("the disk of "+image+" was not verified", "run diskforge verify on it first, or export it as it is with --unverified")
	}
	w.out = folder
	if err := w.run(ctx, exporting); err != nil {
		return nil, err
	}
	for _, file := range w.journal.report.Files {
		files = append(files, filepath.Join(folder, file.Name))
	}
	return files, nil
}

// notInFileNames is what the names of exported files do not have: they stand in lists of
// sums, in XML and in tars.
var notInFileNames = regexp.MustCompile(`^[^A-Za-z0-9]+|[^A-Za-z0-9._-]`)

// fileName makes a file's name of an image's.
func fileName(image string) string {
	name := notInFileNames.ReplaceAllString(strings.ReplaceAll(image, "/", "_"), "-")
	return name[:min(len(name), 200)]
}

// titleOf is the image's own name in a reference.
func titleOf(reference string) string {
	name, _, _ := strings.Cut(reference[strings.LastIndex(reference, "/")+1:], "@")
	name, _, _ = strings.Cut(name, ":")
	return name
}

// PushLayout pushes the layout to the reference, or to the address of the
// settings, or to the one that it was packed for. The cause of the error is
// registry.ErrReference where that is none.
func (b *Build) PushLayout(ctx context.Context, layout, reference string, unverified bool) (string, error) {
	w := b.way(nil)
	w.Layout = layout
	err := w.pushLayout(ctx, cmp.Or(reference, b.Config.Reference), unverified)
	return w.Reference, err
}

func (w *way) pushLayout(ctx context.Context, reference string, unverified bool) error {
	if reference != "" {
		if err := registry.CheckTarget(reference); err != nil {
			return err
		}
	}
	loaded, err := oci.Load(w.Layout)
	if err != nil {
		return err
	}
	w.Digest = loaded.Digest
	if w.address = cmp.Or(reference, loaded.Reference); w.address == "" {
		return &failure.Error{
			What: "there is no address to push to", Try: "name one: diskforge push " + w.Layout + " REGISTRY/NAME:TAG",
			Err: registry.ErrReference,
		}
	}
	if !unverified {
		if !loaded.Verified {
			return failure.New("the image in "+w.Layout+" was not verified",
				"run diskforge verify on its disk and pack it again, or push it as it is with --unverified")
		}
		if err := w.inspect(ctx, w.Layout); err != nil {
			return err
		}
	}
	if err := w.checkSigning(ctx); err != nil {
		return err
	}
	if err := w.run(ctx, pushing); err != nil || !w.signs() {
		return err
	}
	return w.run(ctx, signing)
}

// Base makes or fetches the base image, from packages where nothing else is
// named, and returns its path.
func (b *Build) Base(ctx context.Context) (path string, err error) {
	w := b.way(nil)
	if !b.Config.BaseImage.IsSet() && b.Config.ISOURL == "" {
		b.Config.BaseFromPackages = true
	}
	if b.Config.BaseFromPackages && b.Config.Suite == "" {
		if w.controller, err = w.rooms.controller(ctx); err != nil {
			return "", err
		}
	}
	err = w.show(ctx, "base", w.getBase)
	return w.base.Path, err
}

// Tools compiles Packer, its plugins and goss, or finds them in the cache, and
// returns their folder.
func (b *Build) Tools(ctx context.Context) (string, error) {
	w := b.way(nil)
	if err := w.show(ctx, "tools", w.compile); err != nil {
		return "", err
	}
	return filepath.Dir(w.tools.Packer), nil
}

// inWorkOf runs work with the work directory of a disk.
func (b *Build) inWorkOf(path string, work func(*way) error) error {
	dir, err := OpenDir(path + ".work")
	if err != nil {
		return err
	}
	w := b.way(dir)
	w.results = append(w.results, path, path+".work", path+".json")
	return errors.Join(work(w), dir.Close())
}

// takeUp begins with a disk that an earlier stage left, and what is known of it.
func (w *way) takeUp(ctx context.Context, path string) (err error) {
	w.disk = path
	if w.known, err = ReadSidecar(ctx, path, w.UI.Warn); err == nil {
		w.journal.takeUp(w.known.Report)
	}
	return err
}

// handOn writes what is known of the disk beside it, where its stage ended well.
func (w *way) handOn(outcome string, err error) error {
	if err != nil {
		return err
	}
	if w.known.Report, err = json.Marshal(w.outcome(outcome)); err != nil {
		return err
	}
	return WriteSidecar(w.disk, w.known)
}
