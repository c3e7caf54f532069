// Package pipeline runs the stages of a build. It is the only place that knows
// their order, and what each needs of the others; the stages themselves are
// packages that know nothing of one another.
package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/verify"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/text"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// Build runs stages by its settings.
type Build struct {
	Settings settings.Settings // as they were given, for the report
	Config   settings.Config
	UI       *ui.UI
	Version  string // of diskforge
	// KeepOnError leaves the guest of a failed stage up, to look into.
	KeepOnError bool
	// Full has verify boot further machines.
	Full bool
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

	record   record
	passFile passFile
}

// Result says where the image is.
type Result struct {
	Layout    string // directory of the OCI layout
	Reference string // with digest; of the registry where it was pushed, else of the layout
}

// Run builds, verifies, packs and, where a registry is set, pushes one image.
// What an earlier run that did not come to its end left in OUTPUT_DIR is used
// again as far as its inputs are the same. Nothing is packed or pushed that
// was not verified.
func (b *Build) Run(ctx context.Context) (Result, error) {
	dir, err := OpenDir(filepath.Join(b.Config.OutputDir, "work"))
	if err != nil {
		return Result{}, err
	}
	defer dir.Close()
	b.named()
	result, err := b.run(ctx, dir)
	if err = b.conclude(result, err); err != nil {
		return Result{}, err
	}
	return result, nil
}

func (b *Build) run(ctx context.Context, dir *Dir) (Result, error) {
	ready, err := b.prepare(ctx, dir.Path("playbooks"))
	if err != nil {
		return Result{}, err
	}
	b.sources(ctx, ready)
	if err := b.checkPlan(ready); err != nil {
		return Result{}, err
	}
	if err := b.checkBase(ctx, dir, ready, b.Config.OutputDir); err != nil {
		return Result{}, err
	}
	if err := b.checkRegistry(ctx); err != nil {
		return Result{}, err
	}
	image, err := b.disk(ctx, dir, ready)
	if err != nil {
		return Result{}, err
	}
	result, err := b.publish(ctx, image, ready)
	if err != nil || b.KeepStages {
		return result, err
	}
	return result, tidy(dir)
}

// Clean deletes what the stages made and KeepStages kept.
func (b *Build) Clean() error {
	dir, err := OpenDir(filepath.Join(b.Config.OutputDir, "work"))
	if err != nil {
		return err
	}
	return errors.Join(tidy(dir), dir.Close())
}

// finished is a disk that may be packed.
type finished struct {
	path   string
	digest string // "sha256:…"
	built  time.Time
}

// The stages' names, as they are shown and as their records are called.
const (
	stageProvision = "provision"
	stageSparsify  = "sparsify"
	stageHygiene   = "hygiene"
	stageVerify    = "verify"
	stagePack      = "pack"
	stageInspect   = "inspect"
	stagePush      = "push"
)

// The disks in the work directory.
const (
	provisionedFile = "provisioned.qcow2"
	sparsifiedFile  = "disk.qcow2"
)

// disk runs the stages that make a disk and prove that it boots.
func (b *Build) disk(ctx context.Context, dir *Dir, r ready) (finished, error) {
	provisioned, err := resume(ctx, b, dir, step[provisioned]{
		name: stageProvision, inputs: b.provisionInputs(r), output: dir.Path(provisionedFile),
		run: func(ctx context.Context, out string, p progress.Reporter) (provisioned, error) {
			return b.provision(ctx, r, out, dir.Path("logs", stageProvision), true, p)
		},
		say: provisioned.String,
	})
	if err != nil {
		return finished{}, err
	}
	b.provisionedDisk(provisioned.result)
	sparse, err := resume(ctx, b, dir, step[disk.SparsifyResult]{
		name: stageSparsify, inputs: b.sparsifyInputs(provisioned), output: dir.Path(sparsifiedFile),
		run: func(ctx context.Context, out string, p progress.Reporter) (disk.SparsifyResult, error) {
			return b.sparsify(ctx, r.accel, provisioned.result.over(r.base), provisioned.output, out, provisioned.result.Trimmed, p)
		},
		say: sparsified,
	})
	if err != nil {
		return finished{}, err
	}
	b.sparsifiedDisk(sparse.result)
	err = b.examine(ctx, dir, r, sparse.output, func(ctx context.Context) error { return b.verifyStep(ctx, dir, r, sparse) })
	return finished{sparse.output, sparse.digest, provisioned.result.Built}, err
}

// verifyStep boots the disk, where an earlier run has not.
func (b *Build) verifyStep(ctx context.Context, dir *Dir, r ready, sparse made[disk.SparsifyResult]) error {
	verified, err := resume(ctx, b, dir, step[verify.Result]{
		name: stageVerify, inputs: b.verifyInputs(sparse.digest, r.playbook.Checks, r.policy), output: sparse.output,
		run: func(ctx context.Context, disk string, p progress.Reporter) (verify.Result, error) {
			return b.verify(ctx, r, disk, dir.Path("logs", stageVerify), p)
		},
		say: summary,
	})
	if err == nil {
		b.verifiedDisk(verified.result)
	}
	return err
}

// publish packs the disk and, where a registry is set, pushes it.
func (b *Build) publish(ctx context.Context, image finished, r ready) (Result, error) {
	layout := Layout(b.Config.OutputDir, b.Config.ImageName)
	m := b.metadata(r, image.built)
	m.VerifiedDisk = image.digest
	packed, err := b.pack(ctx, image.path, layout, r.base.distribution(), m)
	if err != nil {
		return Result{}, err
	}
	result := Result{Layout: layout, Reference: layoutReference(layout, packed.Digest)}
	if !b.pushes() {
		return result, nil
	}
	if err := b.tellPacked(result.Reference); err != nil {
		return Result{}, err
	}
	result.Reference, err = b.push(ctx, layout, b.Config.Reference)
	return result, err
}

// Send pushes the image that an earlier run packed in OUTPUT_DIR and did not
// get to the registry.
func (b *Build) Send(ctx context.Context) (Result, error) {
	result := Result{Layout: Layout(b.Config.OutputDir, b.Config.ImageName)}
	var err error
	if result.Reference, err = b.PushLayout(ctx, result.Layout, b.Config.Reference, false); err != nil {
		return Result{}, err
	}
	return result, b.tellSent(result.Reference)
}

// Layout is where a build leaves the OCI layout of an image.
func Layout(outputDir, image string) string {
	return filepath.Join(outputDir, strings.ReplaceAll(image, "/", "_"))
}

// pushes says whether the build ends in a registry.
func (b *Build) pushes() bool { return b.Config.Reference != "" && b.Config.Push }

func layoutReference(layout, digest string) string { return "oci:" + layout + "@" + digest }

// tidy deletes the disks of a build that came to its end: the layout has all.
// The logs stay.
func tidy(dir *Dir) error {
	return errors.Join(dir.Forget(stageProvision), dir.Forget(stageSparsify), dir.Forget(stageVerify))
}

// stage runs one step of the work and shows it.
func (b *Build) stage(ctx context.Context, name string, run func(context.Context, progress.Reporter) (string, error)) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	b.UI.Mask(b.mask())
	s, end := b.UI.Stage(name), b.record.begin(name)
	result, err := run(ctx, s)
	stopped := context.Cause(ctx) != nil && err != nil
	if stopped {
		err = context.Cause(ctx) // what a program said when it was stopped is no evidence
	}
	err = b.masked(err)
	s.End(result, err)
	end(result, stopped, err)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// step is a stage that makes a file and can be skipped where an earlier run
// made it from the same inputs.
type step[T any] struct {
	name   string
	inputs string // digest of all that the stage reads
	output string
	run    func(ctx context.Context, output string, p progress.Reporter) (T, error)
	say    func(T) string
}

// made is what a step left.
type made[T any] struct {
	output string
	digest string // "sha256:…" of the output
	result T
}

// resume runs the step, or takes what an earlier run recorded.
func resume[T any](ctx context.Context, b *Build, dir *Dir, s step[T]) (made[T], error) {
	m := made[T]{output: s.output}
	err := b.stage(ctx, s.name, func(ctx context.Context, p progress.Reporter) (string, error) {
		record, found, err := dir.Load(ctx, s.name, s.inputs, p)
		if err != nil {
			return "", err
		}
		if found && !record.Time.Before(b.NotBefore) && json.Unmarshal(record.Result, &m.result) == nil {
			m.digest = record.Digest
			b.record.reuse(s.name)
			return "done before, from the same inputs", nil
		}
		if m.result, err = s.run(ctx, s.output, p); err != nil {
			return "", err
		}
		p.Activity("hashing the result")
		m.digest, err = keep(ctx, dir, s, m.result, p)
		return s.say(m.result), err
	})
	return m, err
}

// keep records what a step made and returns the output's digest.
func keep[T any](ctx context.Context, dir *Dir, s step[T], result T, p progress.Reporter) (string, error) {
	digest, err := host.DigestFile(ctx, s.output, p)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(s.output)
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(result)
	if err != nil {
		return "", err
	}
	return digest, dir.Save(s.name, Record{Inputs: s.inputs, Output: filepath.Base(s.output), Digest: digest, Size: info.Size(), Result: text})
}

// checkBase checks, before anything slow starts, that the disk can hold the
// base image and that the host can hold the disks, which end in out.
func (b *Build) checkBase(ctx context.Context, dir *Dir, r ready, out string) error {
	info, err := disk.Inspect(ctx, r.base.Path)
	if err != nil {
		return err
	}
	if b.Config.DiskSize < info.VirtualSize {
		return failure.New(fmt.Sprintf("DISK_SIZE: %s is less than the base image's virtual size", text.Size(b.Config.DiskSize)),
			"give "+text.Size(info.VirtualSize)+" or more")
	}
	return disk.CheckNeeds(disk.BuildNeeds(disk.BuildPlan{
		Base: info, DiskSize: b.Config.DiskSize,
		Method: disk.Method(b.Config.Sparsify), Compression: disk.Compression(b.Config.Compression),
		WorkDir: dir.Path(), TmpDir: dir.Path(), LayoutDir: out, Left: left(dir.Path()),
	}))
}

// Left is what an earlier run of a build left in its OUTPUT_DIR.
func Left(outputDir string) disk.Left { return left(filepath.Join(outputDir, "work")) }

func left(work string) (l disk.Left) {
	for name, to := range map[string]*int64{provisionedFile: &l.Provisioned, sparsifiedFile: &l.Sparsified} {
		if info, err := os.Stat(filepath.Join(work, name)); err == nil {
			*to = info.Size()
		}
	}
	return l
}

// pack writes the disk as an OCI layout, which is there when it was inspected.
func (b *Build) pack(ctx context.Context, path, layout, distribution string, m oci.Metadata) (packed oci.Result, err error) {
	if err := os.MkdirAll(filepath.Dir(layout), 0o755); err != nil {
		return packed, err
	}
	if err := b.hint(&m, path, distribution); err != nil {
		return packed, err
	}
	m.Accept = func(ctx context.Context, dir string) error { return b.inspect(ctx, dir, layout) }
	err = b.stage(ctx, stagePack, func(ctx context.Context, p progress.Reporter) (string, error) {
		packed, err = oci.Pack(ctx, path, layout, m, p)
		b.record.note(func(to *report.Report) { to.Image.DiskDigest = packed.DiskDigest })
		return fmt.Sprintf("%s, a layer of %s", layout, text.Size(packed.Layer.Size)), err
	})
	return packed, err
}
