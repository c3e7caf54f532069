package main

import (
	"context"
	"errors"
	"slices"

	"dagger/diskforge/flags"
	"dagger/diskforge/internal/dagger"
)

// Build provisions, sparsifies and verifies a disk and returns it as an image. A stage whose inputs are the same is not run again.
// +cache="session"
func (m *Diskforge) Build(
	ctx context.Context,
	// The playbook that provisions the image, a path in the playbook tree, e.g. debian-base.
	ansiblePlaybook string,
	// The base image as a file at hand, instead of iso-url.
	// +optional
	base *dagger.File,
	// The base image as the OCI layout of a containerdisk, instead of iso-url; iso-checksum is its manifest's digest, or inputs: with its input digest.
	// +optional
	baseLayout *dagger.Directory,
	// Make the base image from Debian packages, instead of iso-url.
	// +optional
	baseFromPackages bool,
	// The URL of the base image: http, https, or oci:// with a containerdisk that everybody may read.
	// +optional
	isoUrl string,
	// The checksum of the base image: sha256:HEX, sha512:HEX, or file: with the URL of a SHA256SUMS or SHA512SUMS file; of a containerdisk sha256: with its manifest's digest, or inputs: with its input digest; base needs none.
	// +optional
	isoChecksum string,
	// The Debian release for base-from-packages: bookworm or trixie (default: trixie).
	// +optional
	suite string,
	// The playbook tree; it wins over git. Default: the one that diskforge brings along.
	// +optional
	ansible *dagger.Directory,
	// The git repository of the playbook tree; where only git-ansible-branch is given: CrownLabs'.
	// +optional
	gitAnsibleUrl string,
	// The branch, tag or full commit of the playbooks (default: master).
	// +optional
	gitAnsibleBranch string,
	// The folder of the playbook tree in the git repository (default: provisioning/virtual-machines/ansible).
	// +optional
	gitAnsiblePath string,
	// Install XFCE, served by noVNC on port 6080.
	// +optional
	installDesktopEnvironment bool,
	// Further variables for Ansible, a JSON or YAML mapping. No secrets: the engine keeps and shows arguments.
	// +optional
	extraVars string,
	// Further variables for Ansible as a file.
	// +optional
	extraVarsFile *dagger.File,
	// The memory of the guest in MiB (default: 2048).
	// +optional
	memory string,
	// The processors of the guest (default: the engine's host's, at most 4).
	// +optional
	cpus string,
	// The virtual size of the disk, e.g. 20G (default: 10G).
	// +optional
	diskSize string,
	// auto (KVM if it boots a kernel, else emulation), kvm or tcg (default: auto).
	// +optional
	accelerator string,
	// The architecture of the image: amd64.
	// +optional
	architecture string,
	// How long a guest may take until ssh answers (default: 5m with KVM, 15m without).
	// +optional
	bootTimeout string,
	// The user that provisions the guest; it is deleted before the disk is closed (default: diskforge).
	// +optional
	buildUser string,
	// The login user of the virtual machines; cloud-init makes it where they run (default: crownlabs).
	// +optional
	vmUser string,
	// Provision as vm-user and keep the account, its password locked, for playbooks that write into its home.
	// +optional
	bakeUser bool,
	// The file that excuses findings of the hygiene gate, with reasons, and may add rules (default: tests/PLAYBOOK.allow.yaml in the playbook tree).
	// +optional
	hygieneAllow *dagger.File,
	// How unused blocks are left out: auto, trim or none (default: auto). The toolbox has no virt-sparsify.
	// +optional
	sparsify string,
	// QCOW2_COMPRESSION, the compression of the disk: zstd, zlib (Longhorn needs it) or none (default: zstd).
	// +optional
	compression string,
	// The Debian or Ubuntu mirror for the base from packages and for the guest during the build.
	// +optional
	aptMirror string,
	// Further certificate authorities (PEM) for downloads and for the guest during the build.
	// +optional
	caFile *dagger.File,
	// The proxy for HTTP of downloads and of the guest during the build.
	// +optional
	httpProxy string,
	// The proxy for HTTPS, likewise.
	// +optional
	httpsProxy string,
	// The hosts that are reached without a proxy, likewise.
	// +optional
	noProxy string,
	// The input digest that the image must have, as plan tells it; another is refused before anything is built.
	// +optional
	imageInputs string,
	// Any text that changes, e.g. a date: base packages and guest are built anew for fresh packages.
	// +optional
	refresh string,
) (*Image, error) {
	p := plan{
		origin: origin{File: base, Layout: baseLayout, Packages: baseFromPackages, Suite: suite, URL: isoUrl, Checksum: isoChecksum, Mirror: aptMirror},
		tree:   tree{Directory: ansible, URL: gitAnsibleUrl, Ref: gitAnsibleBranch, Path: gitAnsiblePath, Playbook: ansiblePlaybook},
		guest:  guest(installDesktopEnvironment, accelerator, memory, cpus, bootTimeout, buildUser, vmUser, bakeUser),
		provision: flags.Of("disk-size", diskSize, "architecture", architecture, "apt-mirror", aptMirror,
			"image-inputs", imageInputs, "sparsify", sparsify, "qcow2-compression", compression, // they are part of the image's inputs
			"http-proxy", httpProxy, "https-proxy", httpsProxy, "no-proxy", noProxy),
		sparsify:  flags.Of("sparsify", sparsify, "qcow2-compression", compression),
		extraVars: extraVars, vars: extraVarsFile, allow: hygieneAllow, ca: caFile, refresh: refresh, architecture: architecture,
	}
	if extraVars != "" && extraVarsFile != nil {
		return nil, errors.New("both --extra-vars and --extra-vars-file: give one")
	}
	if err := p.origin.check(); err != nil {
		return nil, err
	}
	if err := p.tree.pin(ctx); err != nil {
		return nil, err
	}
	return p.run(ctx, m)
}

// Verify boots a disk the way KubeVirt does, looks inside, there and at rest, and returns what it said. Build does that by itself.
// +cache="session"
func (m *Diskforge) Verify(
	ctx context.Context,
	// The disk, a qcow2 image.
	disk *dagger.File,
	// The playbook whose checks (tests/PLAYBOOK.yaml in the tree) the disk has to pass.
	// +optional
	ansiblePlaybook string,
	// The playbook tree. Default: the one that diskforge brings along.
	// +optional
	ansible *dagger.Directory,
	// The user that provisioned the guest, and must be gone (default: diskforge).
	// +optional
	buildUser string,
	// The login user of the virtual machines (default: crownlabs).
	// +optional
	vmUser string,
	// The file that excuses findings of the hygiene gate, with reasons, and may add rules (default: tests/PLAYBOOK.allow.yaml in the playbook tree).
	// +optional
	hygieneAllow *dagger.File,
	// The disk holds vm-user's account.
	// +optional
	bakeUser bool,
	// The disk serves a desktop on port 6080.
	// +optional
	installDesktopEnvironment bool,
	// Boot twice more: with CrownLabs' own seed, whose machine-id and host keys have to differ, and with UEFI where the disk can.
	// +optional
	full bool,
	// auto, kvm or tcg (default: auto).
	// +optional
	accelerator string,
	// The memory of the guest in MiB (default: 2048).
	// +optional
	memory string,
	// The processors of the guest (default: the engine's host's, at most 4).
	// +optional
	cpus string,
	// How long the guest may take until ssh answers (default: 5m with KVM, 15m without).
	// +optional
	bootTimeout string,
) (string, error) {
	box, err := m.machine()
	if err != nil {
		return "", err
	}
	tree := tree{Directory: ansible, Playbook: ansiblePlaybook}
	c, allow := withAllowed(withFile(tree.mount(m, box), diskPath, disk), hygieneAllow)
	verified, err := bootStage(ctx, c, slices.Concat([]string{"verify", diskPath}, flags.Of("full", flags.Bool(full)), tree.args(), allow,
		guest(installDesktopEnvironment, accelerator, memory, cpus, bootTimeout, buildUser, vmUser, bakeUser))...)
	if err != nil {
		return "", err
	}
	return verified.Stderr(ctx)
}

// Inspect looks into a containerdisk in a registry, anybody's, and returns what it is and whether KubeVirt and CDI take it; where they do not, it fails.
// +cache="never"
func (m *Diskforge) Inspect(
	ctx context.Context,
	// The image, REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@DIGEST.
	ref string,
	// text or json.
	// +default="text"
	format string,
	// The user of the registry.
	// +optional
	registryUser string,
	// The password of registry-user, e.g. env://REGISTRY_PASS.
	// +optional
	registryPass *dagger.Secret,
	// Allow plain HTTP to the registry.
	// +optional
	registryInsecure bool,
	// Further certificate authorities (PEM) for the registry.
	// +optional
	caFile *dagger.File,
	// The registry as a service, reached under the image's host; e.g. tcp://localhost:5000 for one on this host's loopback.
	// +optional
	registryService *dagger.Service,
) (string, error) {
	at, err := registryAt(ref, registryUser, registryPass, registryInsecure, caFile, registryService)
	if err != nil {
		return "", err
	}
	box, err := m.machine()
	if err != nil {
		return "", err
	}
	c, login := at.reach(box)
	return inspect(ctx, c, ref, format, login)
}

// guest are the settings that provision and verify share.
func guest(desktop bool, accelerator, memory, cpus, bootTimeout, buildUser, vmUser string, bakeUser bool) []string {
	return flags.Of("install-desktop-environment", flags.Bool(desktop), "accelerator", accelerator, "memory", memory, "cpus", cpus, "boot-timeout", bootTimeout,
		"build-user", buildUser, "vm-user", vmUser, "bake-user", flags.Bool(bakeUser))
}
