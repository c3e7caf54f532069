package main

import (
	"context"
	"errors"
	"slices"

	"dagger/diskforge/flags"
	"dagger/diskforge/internal/dagger"
)

// Where a stage finds and leaves what it reads and makes.
const (
	provisionedPath = home + "/provisioned.qcow2"
	diskPath        = home + "/disk.qcow2"
	layoutPath      = home + "/layout"
	reportPath      = home + "/report"
	allowPath       = "/run/diskforge/hygiene-allow.yaml"
	varsPath        = "/run/diskforge/extra-vars.yml"
	caPath          = "/run/diskforge/ca.pem"
	vaultPath       = "/run/diskforge/vault-password"
	basePath        = "/run/diskforge/base/"
	baseLayoutPath  = "/run/diskforge/base-layout"
	treePath        = "/run/diskforge/ansible"
)

// disk is a disk with what is known about it (DISK.json).
type disk struct{ image, record *dagger.File }

func diskOf(c *dagger.Container) disk {
	return disk{c.File(diskPath), c.File(diskPath + ".json")}
}

// withDisk puts the disk at path: the disk itself is mounted, for it is large;
// its record is a file that a stage may replace.
func withDisk(c *dagger.Container, path string, d disk) *dagger.Container {
	return c.WithMountedFile(path, d.image).WithFile(path+".json", d.record, dagger.ContainerWithFileOpts{Owner: user})
}

// withFile mounts a file that came from outside: its mode may keep it from
// everybody but its owner, so the stages' user becomes that.
func withFile(c *dagger.Container, path string, f *dagger.File) *dagger.Container {
	return c.WithMountedFile(path, f, dagger.ContainerWithMountedFileOpts{Owner: user})
}

// plan is a build: its inputs, and the settings that each stage reads. An image
// keeps it as text, but for the files and folders.
type plan struct {
	Origin      origin
	Tree        tree
	Guest       []string // for the stages that boot it
	Provision   []string
	Sparsify    []string
	Pack        []string
	ExtraVars   string
	vars, allow *dagger.File
	ca          *dagger.File
	vault       *dagger.Secret
	Refresh     string
}

// check says what the arguments alone tell to be wrong, before anything is
// made for them.
func (p *plan) check(ctx context.Context, m *Diskforge) error {
	if p.ExtraVars != "" && p.vars != nil {
		return errors.New("both --extra-vars and --extra-vars-file: give one")
	}
	args := slices.Concat(p.Guest, p.Provision, p.Pack, p.Origin.way(), flags.Of("suite", p.Origin.Suite, "iso-url", p.Origin.URL, "iso-checksum", p.Origin.Checksum))
	if err := flags.Check(args); err != nil {
		return err
	}
	if err := p.Origin.check(); err != nil {
		return err
	}
	return p.Tree.check(ctx, m)
}

// built is what came of the stages.
type built struct {
	disk
	log string // what they wrote
	box *dagger.Container
}

// run runs the stages, each with what the one before it made.
func (p *plan) run(ctx context.Context, m *Diskforge) (*built, error) {
	box, err := m.machine(ctx)
	if err != nil {
		return nil, err
	}
	provisioned, log, err := p.provisionIn(ctx, m, box)
	if err != nil {
		return nil, err
	}
	withPlaybooks, allow := withAllowed(p.Tree.mount(m, box), p.allow)
	withPlaybooks, vars := p.withVars(withPlaybooks) // what they hold must not be on the disk
	return finish(ctx, box, withPlaybooks, provisioned,
		p.Sparsify, slices.Concat(p.Tree.args(), p.Guest, allow, vars), append(log, provisioned)...)
}

// finish sparsifies the provisioned disk and verifies it, the latter in a
// container that has the playbooks. The log begins with what earlier stages
// wrote.
func finish(ctx context.Context, box, withPlaybooks, provisioned *dagger.Container, sparsify, verify []string, earlier ...*dagger.Container) (*built, error) {
	sparse, err := stage(ctx, withDisk(box, provisionedPath, diskOf(provisioned)),
		append([]string{"sparsify", provisionedPath, "-o", diskPath}, sparsify...)...)
	if err != nil {
		return nil, err
	}
	verified, err := bootStage(ctx, withDisk(withPlaybooks, diskPath, diskOf(sparse)), append([]string{"verify", diskPath}, verify...)...)
	if err != nil {
		return nil, err
	}
	text, err := transcript(ctx, append(earlier, sparse, verified)...)
	return &built{disk: disk{sparse.File(diskPath), verified.File(diskPath + ".json")}, log: text, box: box}, err
}

// refreshed has the stages in a container run again where the text is another
// than before. Without one the container stays as it is, so that the stages of
// build and of build-all are the same.
func refreshed(c *dagger.Container, text string) *dagger.Container {
	if text == "" {
		return c
	}
	return c.WithEnvVariable("REFRESH", text)
}

// provisionIn provisions the disk. It also returns the stages that its base
// image took.
func (p *plan) provisionIn(ctx context.Context, m *Diskforge, box *dagger.Container) (*dagger.Container, []*dagger.Container, error) {
	c, log, err := p.Origin.mount(ctx, refreshed(p.Tree.mount(m, box), p.Refresh), refreshed(box, p.Refresh))
	if err != nil {
		return nil, nil, err
	}
	c, vars := p.withVars(c)
	args := slices.Concat([]string{"provision", "-o", diskPath}, p.Origin.args, p.Tree.args(), p.Guest, p.Provision, vars)
	if p.ca != nil {
		c, args = withFile(c, caPath, p.ca), append(args, flags.Of("ca-file", caPath)...)
	}
	c, vault := withVault(c, p.vault)
	provisioned, err := bootStage(ctx, c, append(args, vault...)...)
	return provisioned, log, err
}

// withVault gives a container the password of the vaults, and returns the
// argument that goes with it.
func withVault(c *dagger.Container, password *dagger.Secret) (*dagger.Container, []string) {
	if password == nil {
		return c, nil
	}
	return c.WithMountedSecret(vaultPath, password, dagger.ContainerWithMountedSecretOpts{Owner: user, Mode: 0o400}),
		flags.Of("ansible-vault-password-file", vaultPath)
}

// withAllowed gives a container the hygiene gate's excuses, and returns the
// argument that goes with them.
func withAllowed(c *dagger.Container, allow *dagger.File) (*dagger.Container, []string) {
	if allow == nil {
		return c, nil
	}
	return withFile(c, allowPath, allow), flags.Of("hygiene-allow", allowPath)
}

// withVars gives a container the further variables for Ansible, and returns
// the arguments that go with them.
func (p *plan) withVars(c *dagger.Container) (*dagger.Container, []string) {
	if p.vars == nil {
		return c, flags.Of("extra-vars", p.ExtraVars)
	}
	return withFile(c, varsPath, p.vars), flags.Of("extra-vars", "@"+varsPath)
}
