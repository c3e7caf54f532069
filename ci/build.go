package main

import (
	"context"
	"errors"
	"strings"

	"dagger/diskforge/internal/dagger"
)

// Build checks what it is given and returns an image, which is provisioned, sparsified and verified when something is asked of it: its summary, disk or layout, or to be published. A stage whose inputs are the same is not run again.
// +cache="session"
func (m *Diskforge) Build(
	ctx context.Context,
	// The playbook that provisions the image, a path in the playbook tree, e.g. debian-base.
	ansiblePlaybook string,
	// The URL of the base image: http, https, or oci:// with a containerdisk.
	// +optional
	isoUrl string,
	// The checksum of the base image: sha256:HEX, sha512:HEX, or file: with the URL of a SHA256SUMS or SHA512SUMS file; of a containerdisk sha256: with its manifest's digest, or inputs: with its input digest.
	// +optional
	isoChecksum string,
	// Make the base image from Debian packages, instead of iso-url.
	// +optional
	baseFromPackages bool,
	// Settings, KEY=VALUE each: MEMORY=4096.
	// +optional
	set []string,
	// Further settings: a file with a line KEY=VALUE for each.
	// +optional
	settings *dagger.File,
	// The base image as a file at hand, instead of iso-url; without iso-checksum it is taken as it is.
	// +optional
	base *dagger.File,
	// The base image as the OCI layout of a containerdisk, instead of iso-url; takes iso-checksum.
	// +optional
	baseLayout *dagger.Directory,
	// The playbook tree; it wins over git. Default: the one that diskforge brings along.
	// +optional
	ansible *dagger.Directory,
	// Further variables for Ansible as a file. No secrets: the engine keeps them.
	// +optional
	extraVars *dagger.File,
	// The file that excuses findings of the hygiene gate, with reasons, and may add rules (default: tests/PLAYBOOK.allow.yaml in the playbook tree).
	// +optional
	hygieneAllow *dagger.File,
	// Further certificate authorities (PEM) for downloads and for the guest during the build.
	// +optional
	caFile *dagger.File,
	// The password of what ansible-vault encrypted in the playbooks, e.g. file://vault-password; only Ansible is given it.
	// +optional
	vaultPassword *dagger.Secret,
) (*Image, error) {
	i := &Image{
		Module: m, Base: base, BaseLayout: baseLayout, Playbooks: ansible, Vars: extraVars, Allow: hygieneAllow, Ca: caFile, Vault: vaultPassword,
	}
	if base != nil && isoChecksum == "" {
		sum, err := withFile(m.golang(), basePath+"base", base).WithExec([]string{"sha256sum", basePath + "base"}).Stdout(ctx)
		if err != nil {
			return nil, err
		}
		hex, _, _ := strings.Cut(sum, " ")
		isoChecksum = "sha256:" + hex
	}
	flags := flagsOf("ansible-playbook", ansiblePlaybook, "iso-url", isoUrl, "iso-checksum", isoChecksum,
		"base-from-packages", onlyIf(baseFromPackages, "true"))
	if m.Registry != nil {
		flags = append(flags, "--target-registry="+m.Registry.Host)
	}
	given, err := i.given(ctx, isoUrl != "")
	if err != nil {
		return nil, err
	}
	if i.Stages, err = m.stages(ctx, i.things(), append(flags, given...), set, settings); err != nil {
		return nil, err
	}
	return i, nil
}

// given are the flags of what travels as a thing.
func (i *Image) given(ctx context.Context, url bool) ([]string, error) {
	base := ""
	switch {
	case i.Base != nil && i.BaseLayout != nil:
		return nil, errors.New("--base and --base-layout: choose one base image")
	case (i.Base != nil || i.BaseLayout != nil) && url:
		return nil, errors.New("--iso-url and a base image at hand: choose one base image")
	case i.Base != nil:
		name, err := i.Base.Name(ctx)
		if err != nil {
			return nil, err
		}
		i.BaseName, base = name, basePath+name
	case i.BaseLayout != nil:
		base = "oci:" + layoutBasePath
	}
	return flagsOf("iso-url", base, "ansible-dir", onlyIf(i.Playbooks != nil, treePath), "extra-vars", onlyIf(i.Vars != nil, "@"+varsPath),
		"hygiene-allow", onlyIf(i.Allow != nil, allowPath), "ca-file", onlyIf(i.Ca != nil, caPath),
		"ansible-vault-password-file", onlyIf(i.Vault != nil, vaultPath)), nil
}

// stages asks the program which arguments each stage takes, which says what is
// wrong with them before the toolbox is made. What may mean something else
// tomorrow, a branch or a list of checksums, is what it means now.
func (m *Diskforge) stages(ctx context.Context, t things, flags, set []string, settings *dagger.File) (string, error) {
	compiled, err := m.compile(ctx)
	if err != nil {
		return "", err
	}
	c := now(m.withPlaybooks(m.golang().WithFile(program, compiled)))
	if settings != nil {
		c, flags = withFile(c, settingsPath, settings), append(flags, "--settings="+settingsPath)
	}
	args := append(append([]string{"diskforge", "stages"}, flags...), "--")
	asked, err := run(ctx, t.mount(c, flags), append(args, set...), dagger.ContainerWithExecOpts{})
	if err != nil {
		return "", err
	}
	return asked.Stdout(ctx)
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
	// The file that excuses findings of the hygiene gate, with reasons, and may add rules (default: tests/PLAYBOOK.allow.yaml in the playbook tree).
	// +optional
	hygieneAllow *dagger.File,
	// Settings, KEY=VALUE each: INSTALL_DESKTOP_ENVIRONMENT=true.
	// +optional
	set []string,
	// Boot twice more: with CrownLabs' own seed, whose machine-id and host keys have to differ, and with UEFI where the disk can.
	// +optional
	full bool,
	// Boot once more with a disk that is kept: it reaches the network, installs updates and starts again twice.
	// +optional
	persistent bool,
) (string, error) {
	i := &Image{Module: m, Playbooks: ansible, Allow: hygieneAllow}
	flags, err := i.given(ctx, false)
	if err != nil {
		return "", err
	}
	flags = append(flags, flagsOf("for", "verify", "ansible-playbook", ansiblePlaybook)...)
	if i.Stages, err = m.stages(ctx, i.things(), flags, set, nil); err != nil {
		return "", err
	}
	return i.verify(ctx, func(c *dagger.Container) *dagger.Container { return withFile(c, diskPath, disk) }, furtherBoots(full, persistent))
}

// Inspect looks into a containerdisk in a registry, anybody's, and returns what it is and whether KubeVirt and CDI take it; where they do not, it fails.
// +cache="never"
func (m *Diskforge) Inspect(
	ctx context.Context,
	// The image, REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@DIGEST; the registry's login is with-registry's.
	ref string,
	// Write it as JSON.
	// +optional
	asJson bool,
) (string, error) {
	box, err := m.machine(ctx)
	if err != nil {
		return "", err
	}
	c, login := m.Registry.reach(box)
	return inspect(ctx, c, ref, asJson, login)
}

func inspect(ctx context.Context, c *dagger.Container, what string, asJson bool, login []string) (string, error) {
	inspected, err := stage(ctx, c, append(append([]string{"inspect", what}, flagsOf("json", onlyIf(asJson, "true"))...), login...)...)
	if err != nil {
		return "", err
	}
	return inspected.Stdout(ctx)
}
