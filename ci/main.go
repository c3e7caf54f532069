// Build KubeVirt containerdisks from a cloud image and an Ansible playbook.
//
// A chain of objects: toolbox is the container with Packer, QEMU, Ansible and
// the diskforge program; build runs the program's stages in it, one exec each,
// and returns an image; the image's disk, oci and containerdisk can be taken
// out, publish pushes it:
//
//	dagger call build --base-from-packages --ansible-playbook debian-base \
//	  publish --address registry.example.org/labs/debian:2026-11 \
//	  --registry-user me --registry-pass env://REGISTRY_PASS
//
// Arguments are the settings of `diskforge build`, by the same names. The
// module composes the program's stages and re-implements none.
package main

import "dagger/diskforge/internal/dagger"

// Diskforge builds KubeVirt containerdisks.
type Diskforge struct {
	// +private
	Source *dagger.Directory
	// +private
	BaseImage string
	// +private
	GoImage string
	// +private
	AptMirror string
}

// New takes the source of diskforge and the images that the toolbox is made of.
func New(
	// The source of diskforge; the default is the module's own.
	// +defaultPath="/"
	// +ignore=["*", "!go.mod", "!go.sum", "!main.go", "!internal/**", "!packer/**", "!ansible/**", "!tools/**", "!.ci/**", "!Taskfile.yml", "!README.md", "!deploy/**", "!.github/**"]
	source *dagger.Directory,
	// The Debian 13 image that the toolbox is made of: a mirror's, or one of an air-gapped registry.
	// +default="debian:trixie-slim@sha256:a29215f6a35e51e22adffa17f89e9d2ef06214e64a2bad10d765c46aea49f11f"
	baseImage string,
	// The Go image that compiles diskforge, Packer, its plugins and goss.
	// +default="golang:1.26.5-trixie@sha256:87ffdb09b6a2e29ff910748b745395e8a0299aa80b7c0551cdca9b55e3fd2b3e"
	goImage string,
	// The Debian mirror of the toolbox's packages instead of the base image's own; a dated snapshot pins them, e.g. http://snapshot.debian.org/archive/debian/20261101T000000Z.
	// +optional
	aptMirror string,
) *Diskforge {
	return &Diskforge{Source: source, BaseImage: baseImage, GoImage: goImage, AptMirror: aptMirror}
}
