package main

import (
	"context"
	"fmt"
	"slices"

	"dagger/diskforge/address"
	"dagger/diskforge/flags"
	"dagger/diskforge/internal/dagger"
)

// Image is a disk that was built and booted.
type Image struct {
	// The disk, a qcow2 image.
	Disk *dagger.File
	// What the stages tell one another of the disk, as JSON: put it beside the disk as DISK.json.
	Record *dagger.File
	// What the stages wrote while they ran.
	Log string
	// +private
	Box *dagger.Container
	// +private
	Architecture string
}

// Report tells what was made from what, how long it took, what was checked and what it looks like: report.html, report.json, and summary.md for a job summary.
func (i *Image) Report(ctx context.Context) (*dagger.Directory, error) {
	told, err := stage(ctx, withDisk(i.Box, diskPath, disk{i.Disk, i.Record}), "report", diskPath, "-o", reportPath)
	if err != nil {
		return nil, err
	}
	return told.Directory(reportPath), nil
}

// Inspect checks the image, packed, against what KubeVirt and CDI ask of a containerdisk, and returns what it found.
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
	packed, err := i.pack(ctx, address.Address{Name: imageName, Tag: imageTag})
	if err != nil {
		return "", err
	}
	return inspect(ctx, packed, layoutPath, format, nil)
}

func inspect(ctx context.Context, c *dagger.Container, what, format string, args []string) (string, error) {
	if format != "text" && format != "json" {
		return "", fmt.Errorf("--format %q is not known: give text or json", format)
	}
	args = slices.Concat([]string{"inspect", what}, flags.Of("json", flags.Bool(format == "json")), args)
	inspected, err := stage(ctx, c, args...)
	if err != nil {
		return "", err
	}
	return inspected.Stdout(ctx)
}

// Layout is the image as an OCI layout. Its digest is the one that publish gives for the same name and tag.
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
	args := append([]string{"pack", diskPath, "-o", layoutPath}, settings(a)...)
	return stage(ctx, withDisk(i.Box, diskPath, disk{i.Disk, i.Record}), append(args, flags.Of("architecture", i.Architecture)...)...)
}
