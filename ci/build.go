package main

import (
	"context"
	"slices"

	"dagger/diskforge/flags"
	"dagger/diskforge/internal/dagger"
	"dagger/diskforge/lists"
)

// Build checks its arguments and returns an image, which is provisioned, sparsified and verified when something is asked of it: its summary, disk or layout, or to be published. A stage whose inputs are the same is not run again.
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
	// How long to wait for a containerdisk with the input digest of iso-checksum, e.g. 2h (default: not at all).
	// +optional
	baseTimeout string,
	// Allow plain HTTP to the registry of iso-url.
	// +optional
	registryInsecure bool,
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
	// The password of what ansible-vault encrypted in the playbooks, e.g. file://vault-password; only Ansible is given it.
	// +optional
	ansibleVaultPassword *dagger.Secret,
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
	// The KubeVirt instance type that the image hints at, or none (default where the distribution is known: u1.medium).
	// +optional
	instanceType string,
	// The KubeVirt preference that the image hints at, or none (default where the distribution is known: its own, or linux or linux.efi, as the disk's firmware asks for).
	// +optional
	preference string,
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
		Origin: origin{
			file: base, layout: baseLayout, Packages: baseFromPackages, Suite: suite, Mirror: aptMirror,
			URL: isoUrl, Checksum: isoChecksum, Timeout: baseTimeout, Insecure: registryInsecure,
		},
		Tree:  tree{directory: ansible, URL: gitAnsibleUrl, Ref: gitAnsibleBranch, Path: gitAnsiblePath, Playbook: ansiblePlaybook},
		Guest: guest(installDesktopEnvironment, accelerator, memory, cpus, bootTimeout, buildUser, vmUser, bakeUser),
		Provision: flags.Of("disk-size", diskSize, "architecture", architecture, "apt-mirror", aptMirror,
			"image-inputs", imageInputs, "sparsify", sparsify, "qcow2-compression", compression, // they are part of the image's inputs
			"http-proxy", httpProxy, "https-proxy", httpsProxy, "no-proxy", noProxy),
		Sparsify:  flags.Of("sparsify", sparsify, "qcow2-compression", compression),
		Pack:      flags.Of("architecture", architecture, "instance-type", instanceType, "preference", preference),
		ExtraVars: extraVars, vars: extraVarsFile, allow: hygieneAllow, ca: caFile, vault: ansibleVaultPassword, Refresh: refresh,
	}
	if err := p.check(ctx, m); err != nil {
		return nil, err
	}
	way := lists.Way{HTTPProxy: httpProxy, HTTPSProxy: httpsProxy, NoProxy: noProxy}
	if caFile != nil {
		var err error
		if way.CA, err = caFile.Contents(ctx); err != nil {
			return nil, err
		}
	}
	if err := p.Origin.settle(ctx, way); err != nil {
		return nil, err
	}
	if err := p.Tree.pin(ctx); err != nil {
		return nil, err
	}
	return p.image(m)
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
	tree := tree{directory: ansible, Playbook: ansiblePlaybook}
	settings := guest(installDesktopEnvironment, accelerator, memory, cpus, bootTimeout, buildUser, vmUser, bakeUser)
	if err := flags.Check(settings); err != nil {
		return "", err
	}
	if err := tree.check(ctx, m); err != nil {
		return "", err
	}
	box, err := m.machine(ctx)
	if err != nil {
		return "", err
	}
	c, allow := withAllowed(withFile(tree.mount(m, box), diskPath, disk), hygieneAllow)
	verified, err := bootStage(ctx, c, slices.Concat([]string{"verify", diskPath}, flags.Of("full", flags.Bool(full)), tree.args(), allow, settings)...)
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
	if err := checkFormat(format); err != nil {
		return "", err
	}
	at, err := registryAt(ref, registryUser, registryPass, registryInsecure, caFile, registryService)
	if err != nil {
		return "", err
	}
	box, err := m.machine(ctx)
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
