package pipeline

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/accel"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/report"
)

// The stages on their own. What one tells the next stands beside the disk, in
// DISK.json; work and logs are in DISK.work.

// ProvisionTo provisions a disk and writes it to out.
func (b *Build) ProvisionTo(ctx context.Context, out string) error {
	return b.inWorkOf(out, func(dir *Dir) error {
		r, err := b.prepare(ctx, dir.Path("playbooks"))
		if err != nil {
			return err
		}
		b.sources(ctx, r)
		if err := b.checkPlan(r); err != nil {
			return err
		}
		if err := b.checkBase(ctx, dir, r, filepath.Dir(out)); err != nil {
			return err
		}
		var known Sidecar
		err = b.stage(ctx, stageProvision, func(ctx context.Context, p progress.Reporter) (string, error) {
			made, err := b.provision(ctx, r, out, dir.Path("logs"), false, p)
			if err != nil {
				return "", err
			}
			known, err = b.describe(ctx, r, made, out, p)
			return made.String(), err
		})
		return b.tell(out, known, report.Built, err)
	})
}

// tell writes what is known about a disk beside it, where its stage ended well.
func (b *Build) tell(disk string, known Sidecar, outcome string, err error) error {
	if err != nil {
		return err
	}
	if known.Report, err = b.told(outcome); err != nil {
		return err
	}
	return WriteSidecar(disk, known)
}

// describe is what is known about a provisioned disk.
func (b *Build) describe(ctx context.Context, r ready, made provisioned, out string, p progress.Reporter) (Sidecar, error) {
	digest, err := host.DigestFile(ctx, out, p)
	m := b.metadata(r, made.Built)
	return Sidecar{
		Digest: digest, Trimmed: made.Trimmed, BaseName: m.BaseName, BaseDigest: m.BaseDigest, Source: m.Source, Revision: m.Revision,
		Created: m.Created, Architecture: m.Architecture, Title: m.Title, Version: m.Version,
		Inputs: m.Annotations[oci.AnnotationInputs], Built: made.Built, Guest: r.base.distribution(),
	}, err
}

// inWorkOf runs work with the work directory of an output.
func (b *Build) inWorkOf(out string, work func(*Dir) error) error {
	b.Results = append(b.Results, out, out+".work", out+".json")
	dir, err := OpenDir(out + ".work")
	if err != nil {
		return err
	}
	return errors.Join(work(dir), dir.Close())
}

// SparsifyTo writes the disk in, sparsified, to out.
func (b *Build) SparsifyTo(ctx context.Context, in, out string) error {
	var known Sidecar
	err := b.stage(ctx, stageSparsify, func(ctx context.Context, p progress.Reporter) (_ string, err error) {
		if known, err = ReadSidecar(ctx, in, p); err != nil {
			return "", err
		}
		b.recall(known.Report)
		var verdict accel.Verdict
		if b.Config.Sparsify != "none" && !known.Trimmed { // virt-sparsify boots an appliance
			if verdict, err = b.accelerator(ctx, p); err != nil {
				return "", err
			}
		}
		result, err := b.sparsify(ctx, verdict, "", in, out, known.Trimmed, p)
		if err != nil {
			return "", err
		}
		b.sparsifiedDisk(result)
		known.Verified = "" // that was another file
		known.Digest, err = host.DigestFile(ctx, out, p)
		return sparsified(result), err
	})
	return b.tell(out, known, report.Built, err)
}

// VerifyDisk looks into the disk, at rest and in an overlay that it boots, and,
// where all is well, records that beside it.
func (b *Build) VerifyDisk(ctx context.Context, disk string) error {
	return b.inWorkOf(disk, func(dir *Dir) error {
		r, err := b.prepareVerify(ctx, dir)
		if err != nil {
			return err
		}
		known, err := ReadSidecar(ctx, disk, progress.Discard)
		if err != nil {
			return err
		}
		b.recall(known.Report)
		if known.Verified != "" { // by earlier checks: these may find more
			known.Verified = ""
			if err := WriteSidecar(disk, known); err != nil {
				return err
			}
		}
		err = b.examine(ctx, dir, r, disk, func(ctx context.Context) error {
			return b.stage(ctx, stageVerify, func(ctx context.Context, p progress.Reporter) (string, error) {
				result, err := b.verify(ctx, r, disk, dir.Path("logs"), p)
				if err != nil {
					return "", err
				}
				b.verifiedDisk(result)
				return summary(result), nil
			})
		})
		known.Verified = known.Digest
		return b.tell(disk, known, report.Verified, err)
	})
}

// prepareVerify gets what verify needs: an accelerator and, where the playbook
// has checks, these and goss.
func (b *Build) prepareVerify(ctx context.Context, dir *Dir) (ready, error) {
	var r ready
	err := b.stage(ctx, "accel", func(ctx context.Context, p progress.Reporter) (_ string, err error) {
		r.accel, err = b.accelerator(ctx, p)
		return r.accel.Accelerator, err
	})
	if err != nil {
		return r, err
	}
	if b.Config.Playbook != "" {
		err = b.stage(ctx, "playbook", func(ctx context.Context, p progress.Reporter) (_ string, err error) {
			r.playbook, err = b.copyTree(ctx, dir.Path("playbooks"), p)
			return r.playbook.Checks, err
		})
	}
	if err == nil {
		r.policy, err = b.policy(r.playbook)
	}
	if err != nil || r.playbook.Checks == "" {
		return r, err
	}
	return r, b.stage(ctx, "tools", func(ctx context.Context, p progress.Reporter) (_ string, err error) {
		r.tools, err = b.tools(ctx, p)
		return "goss " + r.tools.Versions["goss"], err
	})
}

// PackTo packs the disk into an OCI layout and returns its reference. The
// settings win over what stands beside the disk.
func (b *Build) PackTo(ctx context.Context, disk, layout string) (string, error) {
	known, err := ReadSidecar(ctx, disk, progress.Discard)
	if err != nil {
		return "", err
	}
	m := oci.Metadata{
		Created: created(known.Created), Architecture: b.Config.Architecture,
		Title: first(b.Config.ImageName, known.Title), Version: first(b.Config.ImageTag, known.Version),
		Source: known.Source, Revision: known.Revision, BaseName: known.BaseName, BaseDigest: known.BaseDigest,
		Reference: b.Config.Reference, Annotations: annotations(known.Inputs, known.Built),
	}
	if known.IsVerified() {
		m.VerifiedDisk = known.Digest
	}
	packed, err := b.pack(ctx, disk, layout, known.Guest, m)
	return layoutReference(layout, packed.Digest), err
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// PushLayout pushes the layout to the reference, or to the address of the
// settings, or to the one that it was packed for. The cause of the error is
// registry.ErrReference where that is none.
func (b *Build) PushLayout(ctx context.Context, layout, reference string, unverified bool) (string, error) {
	if reference = first(reference, b.Config.Reference); reference != "" {
		if err := registry.CheckTarget(reference); err != nil {
			return "", err
		}
	}
	loaded, err := oci.Load(layout)
	if err != nil {
		return "", err
	}
	if reference = first(reference, loaded.Reference); reference == "" {
		return "", &failure.Error{
			What: "there is no address to push to", Try: "name one: diskforge push " + layout + " REGISTRY/NAME:TAG",
			Err: registry.ErrReference,
		}
	}
	if !loaded.Verified && !unverified {
		return "", failure.New("the image in "+layout+" was not verified", "run diskforge verify on its disk and pack it again, or push it as it is with --unverified")
	}
	if !unverified {
		if err := b.inspect(ctx, layout, layout); err != nil {
			return "", err
		}
	}
	return b.push(ctx, layout, reference)
}

// Base makes or fetches the base image, from packages where nothing else is
// named, and returns its path.
func (b *Build) Base(ctx context.Context) (path string, err error) {
	if !b.Config.BaseImage.IsSet() && b.Config.ISOURL == "" {
		b.Config.BaseFromPackages = true
	}
	controller := ""
	if b.Config.BaseFromPackages && b.Config.Suite == "" {
		if controller, err = playbook.ControllerVersion(ctx); err != nil {
			return "", err
		}
	}
	err = b.stage(ctx, "base", func(ctx context.Context, p progress.Reporter) (string, error) {
		made, err := b.base(ctx, controller, p)
		path = made.Path
		return path, err
	})
	return path, err
}

// Tools compiles Packer, its plugins and goss, or finds them in the cache, and
// returns their folder.
func (b *Build) Tools(ctx context.Context) (dir string, err error) {
	err = b.stage(ctx, "tools", func(ctx context.Context, p progress.Reporter) (string, error) {
		set, err := b.tools(ctx, p)
		dir = filepath.Dir(set.Packer)
		return dir, err
	})
	return dir, err
}
