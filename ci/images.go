package main

import "dagger/diskforge/internal/dagger"

// New takes the source of diskforge and the images that the toolbox is made
// of. They are pinned here, by digest; a mirror's or an air-gapped registry's
// may be given instead.
func New(
	// The source of diskforge; the default is the module's own.
	// +defaultPath="/"
	// +ignore=["*", "!go.mod", "!go.sum", "!main.go", "!internal/**", "!packer/**", "!ansible/**", "!tools/**", "!.ci/**", "!Taskfile.yml", "!README.md", "!deploy/**", "!.github/**", "!dagger.json", "!ci/**"]
	source *dagger.Directory,
	// The Debian 13 image that the toolbox is made of.
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
