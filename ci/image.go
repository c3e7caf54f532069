package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"dagger/diskforge/address"
	"dagger/diskforge/flags"
	"dagger/diskforge/internal/dagger"
)

// Image is a disk that is built, booted and looked into when something is asked of it, once for all that is asked.
type Image struct {
	// +private
	Plan string
	// +private
	Source *dagger.Directory
	// +private
	BaseImage string
	// +private
	GoImage string
	// +private
	AptMirror string
	// +private
	Base *dagger.File
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

// image keeps the plan of a build until something is asked of the image.
func (p *plan) image(m *Diskforge) (*Image, error) {
	text, err := json.Marshal(p)
	return &Image{
		Plan: string(text), Source: m.Source, BaseImage: m.BaseImage, GoImage: m.GoImage, AptMirror: m.AptMirror,
		Base: p.Origin.file, BaseLayout: p.Origin.layout, Playbooks: p.Tree.directory, Vars: p.vars, Allow: p.allow, Ca: p.ca, Vault: p.vault,
	}, err
}

// build runs the stages; the engine has those that ran before.
func (i *Image) build(ctx context.Context) (*built, *plan, error) {
	var p plan
	if err := json.Unmarshal([]byte(i.Plan), &p); err != nil {
		return nil, nil, err
	}
	p.Origin.file, p.Origin.layout, p.Tree.directory, p.vars, p.allow, p.ca, p.vault = i.Base, i.BaseLayout, i.Playbooks, i.Vars, i.Allow, i.Ca, i.Vault
	b, err := p.run(ctx, &Diskforge{Source: i.Source, BaseImage: i.BaseImage, GoImage: i.GoImage, AptMirror: i.AptMirror})
	return b, &p, err
}

// Disk is the disk, a qcow2 image.
// +cache="session"
func (i *Image) Disk(ctx context.Context) (*dagger.File, error) {
	b, _, err := i.build(ctx)
	if err != nil {
		return nil, err
	}
	return b.image, nil
}

// Record is what the stages tell one another of the disk, as JSON: put it beside the disk as DISK.json.
// +cache="session"
func (i *Image) Record(ctx context.Context) (*dagger.File, error) {
	b, _, err := i.build(ctx)
	if err != nil {
		return nil, err
	}
	return b.record, nil
}

// Log is what the stages wrote while they ran.
// +cache="session"
func (i *Image) Log(ctx context.Context) (string, error) {
	b, _, err := i.build(ctx)
	if err != nil {
		return "", err
	}
	return b.log, nil
}

// Report tells what was made from what, how long it took, what was checked and what it looks like: report.html, report.json, and summary.md for a job summary.
// +cache="session"
func (i *Image) Report(ctx context.Context) (*dagger.Directory, error) {
	b, _, err := i.build(ctx)
	if err != nil {
		return nil, err
	}
	told, err := stage(ctx, withDisk(b.box, diskPath, b.disk), "report", diskPath, "-o", reportPath)
	if err != nil {
		return nil, err
	}
	return told.Directory(reportPath), nil
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

// Inspect checks the image, packed, against what KubeVirt and CDI ask of a containerdisk, and returns what it found.
// +cache="session"
func (i *Image) Inspect(
	ctx context.Context,
	// The name of the image.
	// +optional
	imageName string,
	// The tag of the image.
	// +optional
	imageTag string,
	// text or json.
	// +default="text"
	format string,
) (string, error) {
	if err := checkFormat(format); err != nil {
		return "", err
	}
	packed, err := i.pack(ctx, address.Address{Name: imageName, Tag: imageTag})
	if err != nil {
		return "", err
	}
	return inspect(ctx, packed, layoutPath, format, nil)
}

func checkFormat(format string) error {
	if format != "text" && format != "json" {
		return fmt.Errorf("--format %q is not known: give text or json", format)
	}
	return nil
}

func inspect(ctx context.Context, c *dagger.Container, what, format string, args []string) (string, error) {
	args = slices.Concat([]string{"inspect", what}, flags.Of("json", flags.Bool(format == "json")), args)
	inspected, err := stage(ctx, c, args...)
	if err != nil {
		return "", err
	}
	return inspected.Stdout(ctx)
}

// Layout is the image as an OCI layout. Its digest is the one that publish gives for the same name and tag.
// +cache="session"
func (i *Image) Layout(
	ctx context.Context,
	// The registry's host that the layout is meant for.
	// +optional
	targetRegistry string,
	// The project or path in the registry.
	// +optional
	registryPrefix string,
	// The name of the image.
	// +optional
	imageName string,
	// The tag of the image.
	// +optional
	imageTag string,
) (*dagger.Directory, error) {
	packed, err := i.pack(ctx, address.Address{Registry: targetRegistry, Prefix: registryPrefix, Name: imageName, Tag: imageTag})
	if err != nil {
		return nil, err
	}
	return packed.Directory(layoutPath), nil
}

// Oci is the image's OCI layout as a tar archive.
// +cache="session"
func (i *Image) Oci(
	ctx context.Context,
	// The name of the image.
	// +optional
	imageName string,
	// The tag of the image.
	// +optional
	imageTag string,
) (*dagger.File, error) {
	packed, err := i.pack(ctx, address.Address{Name: imageName, Tag: imageTag})
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
func (i *Image) Containerdisk(
	ctx context.Context,
	// The name of the image.
	// +optional
	imageName string,
	// The tag of the image.
	// +optional
	imageTag string,
) (*dagger.Container, error) {
	archive, err := i.Oci(ctx, imageName, imageTag)
	if err != nil {
		return nil, err
	}
	return dag.Container().Import(archive), nil
}

// Publish pushes the image to a registry and returns its reference with digest, the one that `diskforge pack` gives for disk and record.
// +cache="never"
func (i *Image) Publish(
	ctx context.Context,
	// The whole address, REGISTRY/PREFIX/NAME:TAG, instead of its parts.
	// +optional
	address string,
	// The registry's host, without a scheme.
	// +optional
	targetRegistry string,
	// The project or path in the registry.
	// +optional
	registryPrefix string,
	// The name of the image.
	// +optional
	imageName string,
	// The tag of the image; use a new one for each build.
	// +optional
	imageTag string,
	// The user of the registry.
	// +optional
	registryUser string,
	// The password of registry-user, e.g. env://REGISTRY_PASS or file://password.
	// +optional
	registryPass *dagger.Secret,
	// Allow plain HTTP to the registry.
	// +optional
	registryInsecure bool,
	// Further certificate authorities (PEM) for the registry.
	// +optional
	caFile *dagger.File,
	// The registry as a service, reached under the address's host; e.g. tcp://localhost:5000 for one on this host's loopback.
	// +optional
	registryService *dagger.Service,
) (string, error) {
	to, err := whereTo(address, targetRegistry, registryPrefix, imageName, imageTag)
	if err != nil {
		return "", err
	}
	at, err := registryAt(to.Registry, registryUser, registryPass, registryInsecure, caFile, registryService)
	if err != nil {
		return "", err
	}
	packed, err := i.pack(ctx, to)
	if err != nil {
		return "", err
	}
	return push(ctx, packed, at, settings(to)...)
}

// whereTo exists because Publish's argument hides the package's name.
func whereTo(whole, registry, prefix, name, tag string) (address.Address, error) {
	return address.Of(whole, address.Address{Registry: registry, Prefix: prefix, Name: name, Tag: tag})
}

func settings(a address.Address) []string {
	return flags.Of("target-registry", a.Registry, "registry-prefix", a.Prefix, "image-name", a.Name, "image-tag", a.Tag)
}

// pack packs the disk for the address: the image's digest is made of the disk,
// its record, and the name and tag.
func (i *Image) pack(ctx context.Context, a address.Address) (*dagger.Container, error) {
	if err := flags.Check(settings(a)); err != nil {
		return nil, err
	}
	b, p, err := i.build(ctx)
	if err != nil {
		return nil, err
	}
	return stage(ctx, withDisk(b.box, diskPath, b.disk), slices.Concat([]string{"pack", diskPath, "-o", layoutPath}, settings(a), p.Pack)...)
}
