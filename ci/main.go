// Build KubeVirt containerdisks from a cloud image and an Ansible playbook.
//
// A chain of objects: build returns an image, which the stages of the program
// diskforge make in the toolbox container, one exec each, when something is asked
// of it: its disk, layout, digest, report or summary, or to be published:
//
//	dagger call with-registry --host registry.example.org --user me --pass env://REGISTRY_PASS \
//	  build --base-from-packages --ansible-playbook debian-base publish --image labs/debian:2026-11
//
// Settings are those of the program (docs/settings.md), by the same names: --set
// MEMORY=4096, or a file of such lines. What is a file, a folder or a secret is an
// argument. The module composes the program's stages and re-implements none.
package main

import (
	"errors"
	"strings"

	"dagger/diskforge/internal/dagger"
)

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
	// +private
	Refresh string
	// +private
	Registry *Registry
}

// New takes the source of diskforge and the images that the toolbox is made
// of. They are pinned here, by digest; a mirror's or an air-gapped registry's
// may be given instead.
func New(
	// The source of diskforge; the default is the module's own.
	// +defaultPath="/"
	// +ignore=["*", "!go.mod", "!go.sum", "!main.go", "!internal/**", "!packer/**", "!ansible/**", "!tools/**", "!.ci/**", "!Taskfile.yml", "!README.md", "!LICENSE", "!.goreleaser.yaml", "!docs/**", "!deploy/**", "!.github/**", "!dagger.json", "!ci/**"]
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
	// Any text that changes, e.g. a date: the toolbox, bases from packages and guests are made anew, with fresh packages.
	// +optional
	refresh string,
) *Diskforge {
	return &Diskforge{Source: source, BaseImage: baseImage, GoImage: goImage, AptMirror: aptMirror, Refresh: refresh}
}

// Registry is where images go, and how to get there.
type Registry struct {
	// +private
	Host string
	// +private
	User string
	// +private
	Pass *dagger.Secret
	// +private
	Insecure bool
	// +private
	Ca *dagger.File
	// +private
	Service *dagger.Service
}

// WithRegistry says which registry is published to and asked, and who asks. No stage that runs a playbook sees the password.
func (m *Diskforge) WithRegistry(
	// The registry's host, without a scheme.
	host string,
	// The user.
	// +optional
	user string,
	// The password, e.g. env://REGISTRY_PASS or file://password.
	// +optional
	pass *dagger.Secret,
	// Allow plain HTTP.
	// +optional
	insecure bool,
	// Further certificate authorities (PEM).
	// +optional
	caFile *dagger.File,
	// The registry as a service, reached under its host's name; e.g. tcp://localhost:5000 for one on this host's loopback.
	// +optional
	service *dagger.Service,
) (*Diskforge, error) {
	switch {
	case host == "" || strings.ContainsAny(host, "/@ "):
		return nil, errors.New("--host is no registry's host: give it without a scheme, e.g. harbor.example.org or registry:5000")
	case user != "" && pass == nil:
		return nil, errors.New("--pass is not given, but --user is: give e.g. --pass env://REGISTRY_PASS")
	}
	with := *m
	with.Registry = &Registry{Host: host, User: user, Pass: pass, Insecure: insecure, Ca: caFile, Service: service}
	return &with, nil
}
