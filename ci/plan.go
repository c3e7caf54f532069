package main

import (
	"context"
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

// plan is a build: its inputs, and the settings that each stage reads.
type plan struct {
	origin       origin
	tree         tree
	guest        []string // for the stages that boot it
	provision    []string
	sparsify     []string
	extraVars    string
	vars, allow  *dagger.File
	ca           *dagger.File
	refresh      string
	architecture string
}

// run runs the stages, each with what the one before it made.
func (p *plan) run(ctx context.Context, m *Diskforge) (*Image, error) {
	box, err := m.machine()
	if err != nil {
		return nil, err
	}
	provisioned, log, err := p.provisionIn(ctx, m, box)
	if err != nil {
		return nil, err
	}
	withPlaybooks, allow := withAllowed(p.tree.mount(m, box), p.allow)
	withPlaybooks, vars := p.withVars(withPlaybooks) // what they hold must not be on the disk
	image, err := finish(ctx, box, withPlaybooks, provisioned,
		p.sparsify, slices.Concat(p.tree.args(), p.guest, allow, vars), append(log, provisioned)...)
	if err != nil {
		return nil, err
	}
	image.Architecture = p.architecture
	return image, nil
}

// finish sparsifies the provisioned disk and verifies it, the latter in a
// container that has the playbooks. The log begins with what earlier stages
// wrote.
func finish(ctx context.Context, box, withPlaybooks, provisioned *dagger.Container, sparsify, verify []string, earlier ...*dagger.Container) (*Image, error) {
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
	return &Image{Disk: sparse.File(diskPath), Record: verified.File(diskPath + ".json"), Log: text, Box: box}, err
}

// provisionIn provisions the disk. It also returns the stages that its base
// image took.
func (p *plan) provisionIn(ctx context.Context, m *Diskforge, box *dagger.Container) (*dagger.Container, []*dagger.Container, error) {
	c, log, err := p.origin.mount(ctx, p.tree.mount(m, box).WithEnvVariable("REFRESH", p.refresh), box.WithEnvVariable("REFRESH", p.refresh))
	if err != nil {
		return nil, nil, err
	}
	c, vars := p.withVars(c)
	args := slices.Concat([]string{"provision", "-o", diskPath}, p.origin.args, p.tree.args(), p.guest, p.provision, vars)
	if p.ca != nil {
		c, args = withFile(c, caPath, p.ca), append(args, flags.Of("ca-file", caPath)...)
	}
	provisioned, err := bootStage(ctx, c, args...)
	return provisioned, log, err
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
		return c, flags.Of("extra-vars", p.extraVars)
	}
	return withFile(c, varsPath, p.vars), flags.Of("extra-vars", "@"+varsPath)
}
