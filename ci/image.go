package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"dagger/diskforge/internal/dagger"
)

// Image is a disk that is built, booted and looked into when something is asked of it, once for all that is asked.
type Image struct {
	// +private
	Module *Diskforge
	// Stages are the arguments of the program's stages, as JSON.
	// +private
	Stages string
	// +private
	Base *dagger.File
	// +private
	BaseName string
	// +private
	BaseLayout *dagger.Directory
	// +private
	Playbooks *dagger.Directory
	// +private
	Vars *dagger.File
	// +private
	Allow *dagger.File
	// +private
	Ca *dagger.File
	// +private
	Vault *dagger.Secret
}

func (i *Image) things() things {
	t := things{
		dirs:  map[string]*dagger.Directory{layoutBasePath: i.BaseLayout, treePath: i.Playbooks},
		files: map[string]*dagger.File{varsPath: i.Vars, allowPath: i.Allow, caPath: i.Ca},
		vault: i.Vault,
	}
	if i.Base != nil {
		t.files[basePath+i.BaseName] = i.Base
	}
	return t
}

// build runs the stages; the engine has those that ran before.
func (i *Image) build(ctx context.Context) (*built, error) {
	box, err := i.Module.machine(ctx)
	if err != nil {
		return nil, err
	}
	work := work{box: box, within: box, registry: i.Module.Registry, things: i.things()}
	if i.Playbooks == nil && !strings.Contains(i.Stages, "--git-ansible-") {
		work.within = i.Module.withPlaybooks(box)
	}
	if work.stages, err = stagesOf(i.Stages); err != nil {
		return nil, err
	}
	return work.run(ctx)
}

// Disk is the disk, a qcow2 image.
// +cache="session"
func (i *Image) Disk(ctx context.Context) (*dagger.File, error) {
	b, err := i.build(ctx)
	if err != nil {
		return nil, err
	}
	return b.disk, nil
}

// Record is what the stages tell one another of the disk, as JSON: put it beside the disk as DISK.json.
// +cache="session"
func (i *Image) Record(ctx context.Context) (*dagger.File, error) {
	b, err := i.build(ctx)
	if err != nil {
		return nil, err
	}
	return b.record, nil
}

// Files are the disk in the forms that the setting OUTPUTS names (qcow2, raw.zst, ova), with their SHA256SUMS.
// +cache="session"
func (i *Image) Files(ctx context.Context) (*dagger.Directory, error) {
	stages, err := stagesOf(i.Stages)
	if err != nil {
		return nil, err
	}
	if !mentions(stages["export"], "--outputs=") {
		return nil, errors.New("no file was asked for: give --set OUTPUTS=ova, or several with blanks between them: --set \"OUTPUTS=qcow2 raw.zst ova\"")
	}
	b, err := i.build(ctx)
	if err != nil {
		return nil, err
	}
	done, err := stage(ctx, b.mount(b.box), append([]string{"export", diskPath, "-o", filesPath}, stages["export"]...)...)
	if err != nil {
		return nil, err
	}
	return done.Directory(filesPath), nil
}

// Log is what the stages wrote while they ran.
// +cache="session"
func (i *Image) Log(ctx context.Context) (string, error) {
	b, err := i.build(ctx)
	if err != nil {
		return "", err
	}
	return b.log, nil
}

// Report tells what was made from what, how long it took, what was checked and what it looks like: report.html, report.json, and summary.md for a job summary.
// +cache="session"
func (i *Image) Report(ctx context.Context) (*dagger.Directory, error) {
	b, err := i.build(ctx)
	if err != nil {
		return nil, err
	}
	return b.report(ctx)
}

// Summary tells the same in short, as text.
// +cache="session"
func (i *Image) Summary(ctx context.Context) (string, error) {
	report, err := i.Report(ctx)
	if err != nil {
		return "", err
	}
	return report.File("summary.md").Contents(ctx)
}

// Verify boots the disk once more and looks inside, as build did.
// +cache="session"
func (i *Image) Verify(
	ctx context.Context,
	// Boot twice more: with CrownLabs' own seed, whose machine-id and host keys have to differ, and with UEFI where the disk can.
	// +optional
	full bool,
	// Boot once more with a disk that is kept: it reaches the network, installs updates and starts again twice.
	// +optional
	persistent bool,
) (string, error) {
	b, err := i.build(ctx)
	if err != nil {
		return "", err
	}
	return i.verify(ctx, b.mount, furtherBoots(full, persistent))
}

// furtherBoots are the flags for machines beyond the first.
func furtherBoots(full, persistent bool) []string {
	return flagsOf("full", onlyIf(full, "true"), "persistent", onlyIf(persistent, "true"))
}

// verify boots the disk that withDisk gives a container.
func (i *Image) verify(ctx context.Context, withDisk func(*dagger.Container) *dagger.Container, further []string) (string, error) {
	stages, err := stagesOf(i.Stages)
	if err != nil {
		return "", err
	}
	box, err := i.Module.machine(ctx)
	if err != nil {
		return "", err
	}
	args := slices.Concat([]string{"verify", diskPath}, further, stages["verify"])
	verified, err := bootStage(ctx, withDisk(i.things().mount(i.Module.withPlaybooks(box), args)), args...)
	if err != nil {
		return "", err
	}
	return verified.Stderr(ctx)
}

// Inspect checks the image, packed, against what KubeVirt and CDI ask of a containerdisk, and returns what it found.
// +cache="session"
func (i *Image) Inspect(
	ctx context.Context,
	// Write it as JSON.
	// +optional
	asJson bool,
) (string, error) {
	packed, err := i.pack(ctx, "")
	if err != nil {
		return "", err
	}
	return inspect(ctx, packed, layoutPath, asJson, nil)
}

// Layout is the image as an OCI layout. Its digest is the one that publish gives.
// +cache="session"
func (i *Image) Layout(ctx context.Context) (*dagger.Directory, error) {
	packed, err := i.pack(ctx, "")
	if err != nil {
		return nil, err
	}
	return packed.Directory(layoutPath), nil
}

// Digest is the digest of the image's manifest, sha256:HEX.
// +cache="session"
func (i *Image) Digest(ctx context.Context) (string, error) {
	packed, err := i.pack(ctx, "")
	if err != nil {
		return "", err
	}
	reference, err := packed.Stdout(ctx)
	_, digest, _ := strings.Cut(lastLine(reference), "@")
	return digest, err
}

// Oci is the image's OCI layout as a tar archive.
// +cache="session"
func (i *Image) Oci(ctx context.Context) (*dagger.File, error) {
	packed, err := i.pack(ctx, "")
	if err != nil {
		return nil, err
	}
	const script = `exec tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$1" -cf "$2" .`
	archived, err := packed.WithExec([]string{"sh", "-euc", script, "tar", layoutPath, home + "/image.tar"}).Sync(ctx)
	if err != nil {
		return nil, err
	}
	return archived.File(home + "/image.tar"), nil
}

// Containerdisk is the image as a container, from scratch, with the disk in /disk. Publishing it gives it another digest than publish does: Dagger writes layers anew.
// +cache="session"
func (i *Image) Containerdisk(ctx context.Context) (*dagger.Container, error) {
	archive, err := i.Oci(ctx)
	if err != nil {
		return nil, err
	}
	return dag.Container().Import(archive), nil
}

// Publish pushes the image to with-registry's registry and returns its reference with digest, the one that `diskforge pack` gives for disk and record.
// +cache="never"
func (i *Image) Publish(
	ctx context.Context,
	// PREFIX/NAME:TAG in the registry; use a new tag for each build. Default: what the settings REGISTRY_PREFIX, IMAGE_NAME and IMAGE_TAG say.
	// +optional
	image string,
) (string, error) {
	to, err := i.address(image)
	if err != nil {
		return "", err
	}
	if i.Module.Registry == nil {
		return "", errors.New("there is no registry to publish to: name it by with-registry --host")
	}
	// An engine asks for a secret when it is used: one that is not there would be
	// found missing after the build.
	if pass := i.Module.Registry.Pass; pass != nil {
		if _, err := pass.Plaintext(ctx); err != nil {
			return "", why(err, func(e *dagger.ExecError) string { return e.Error() })
		}
	}
	packed, err := i.pack(ctx, image)
	if err != nil {
		return "", err
	}
	return push(ctx, packed, i.Module.Registry, to...)
}

// pack packs the disk under the name that the settings have, or another: the
// image's digest is made of the disk, its record, and the name and tag.
func (i *Image) pack(ctx context.Context, image string) (*dagger.Container, error) {
	to, err := i.address(image)
	if err != nil {
		return nil, err
	}
	if _, err := i.Module.stages(ctx, things{}, append([]string{"--for=pack"}, to...), nil, nil); err != nil {
		return nil, err
	}
	stages, err := stagesOf(i.Stages)
	if err != nil {
		return nil, err
	}
	b, err := i.build(ctx)
	if err != nil {
		return nil, err
	}
	return b.pack(ctx, append(stages["pack"], to...)...)
}

// address are the flags that name the image: those of the settings, or of
// PREFIX/NAME:TAG where that is given. The program checks what the parts are made of.
func (i *Image) address(image string) ([]string, error) {
	stages, err := stagesOf(i.Stages)
	if err != nil {
		return nil, err
	}
	var to []string
	for _, arg := range stages["push"] {
		if strings.HasPrefix(arg, "--target-registry=") || image == "" && (strings.HasPrefix(arg, "--registry-prefix=") || strings.HasPrefix(arg, "--image-")) {
			to = append(to, arg)
		}
	}
	if image == "" {
		return to, nil
	}
	prefix, last := "", image
	if at := strings.LastIndexByte(image, '/'); at >= 0 {
		prefix, last = image[:at], image[at+1:]
	}
	name, tag, _ := strings.Cut(last, ":")
	if name == "" || tag == "" || strings.Contains(image, "@") {
		return nil, fmt.Errorf("--image %q is no name to publish under: give PREFIX/NAME:TAG, a new tag for each image", image)
	}
	return append(to, "--registry-prefix="+prefix, "--image-name="+name, "--image-tag="+tag), nil
}
