package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"dagger/diskforge/address"
	"dagger/diskforge/catalogue"
	"dagger/diskforge/explain"
	"dagger/diskforge/flags"
	"dagger/diskforge/internal/dagger"
)

// Where the stages find the catalogue's folder and a parent's image.
const (
	cataloguePath = "/run/diskforge/catalogue"
	parentPath    = "/run/diskforge/parent"
)

// Plan says what build-all would build, and why. It is made with the toolbox's Ansible, so that its input digests are those of images that are built in it.
// +cache="never"
func (m *Diskforge) Plan(
	ctx context.Context,
	// The folder with the catalogue and what it refers to: playbooks, files of variables.
	source *dagger.Directory,
	// The catalogue, a path in that folder.
	// +default="catalogue.yaml"
	catalogue string,
	// The names of the images to build, globs such as ubuntu-*; default: all.
	// +optional
	only []string,
	// Build them though nothing has changed.
	// +optional
	force bool,
	// Build what is older, e.g. 7d.
	// +optional
	maxAge string,
	// text, json, github-matrix (its paths are relative to the folder) or kubernetes.
	// +default="text"
	format string,
	// The registry's host; it wins over the catalogue's.
	// +optional
	targetRegistry string,
	// The project or path in the registry; it wins over the catalogue's.
	// +optional
	registryPrefix string,
	// The first tag of the images; default: the catalogue's, or one made of their inputs.
	// +optional
	imageTag string,
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
	// The registry as a service, reached under target-registry's host.
	// +optional
	registryService *dagger.Service,
) (string, error) {
	w := wishes{catalogue, only, force, maxAge, format, address.Address{Registry: targetRegistry, Prefix: registryPrefix, Tag: imageTag}}
	if err := w.check(ctx, source, ""); err != nil {
		return "", err
	}
	a, err := m.all(ctx, source, targetRegistry, registryUser, registryPass, registryInsecure, caFile, registryService)
	if err != nil {
		return "", err
	}
	return a.plan(ctx, w)
}

// BuildAll builds the images of a catalogue that the registry does not have, parents before children, and publishes each when it passed its checks. It returns a line for each image. An image that fails stops those that start from it, and no other.
// +cache="never"
func (m *Diskforge) BuildAll(
	ctx context.Context,
	// The folder with the catalogue and what it refers to: playbooks, files of variables.
	source *dagger.Directory,
	// The catalogue, a path in that folder.
	// +default="catalogue.yaml"
	catalogue string,
	// The names of the images to build, globs such as ubuntu-*; default: all.
	// +optional
	only []string,
	// Build them though nothing has changed.
	// +optional
	force bool,
	// Build what is older, e.g. 7d, for fresh packages.
	// +optional
	maxAge string,
	// The images to build at once.
	// +default=1
	jobs int,
	// auto, kvm or tcg (default: auto).
	// +optional
	accelerator string,
	// The password of what ansible-vault encrypted in the playbooks, e.g. file://vault-password; only Ansible is given it.
	// +optional
	ansibleVaultPassword *dagger.Secret,
	// The registry's host; it wins over the catalogue's.
	// +optional
	targetRegistry string,
	// The project or path in the registry; it wins over the catalogue's.
	// +optional
	registryPrefix string,
	// The first tag of the images; default: the catalogue's, or one made of their inputs.
	// +optional
	imageTag string,
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
	// The registry as a service, reached under target-registry's host.
	// +optional
	registryService *dagger.Service,
) (string, error) {
	if jobs < 1 {
		return "", fmt.Errorf("--jobs %d is no number of images: give 1 or more", jobs)
	}
	w := wishes{catalogue, only, force, maxAge, "json", address.Address{Registry: targetRegistry, Prefix: registryPrefix, Tag: imageTag}}
	if err := w.check(ctx, source, accelerator); err != nil {
		return "", err
	}
	a, err := m.all(ctx, source, targetRegistry, registryUser, registryPass, registryInsecure, caFile, registryService)
	if err != nil {
		return "", err
	}
	a.accelerator, a.vault = accelerator, ansibleVaultPassword
	images, err := a.decide(ctx, w)
	if err != nil {
		return "", err
	}
	return a.build(ctx, images, jobs)
}

// all is a catalogue that is planned or built.
type all struct {
	module      *Diskforge
	source      *dagger.Directory
	registry    registry
	accelerator string
	vault       *dagger.Secret
	box         *dagger.Container
}

// wishes are the arguments that plan and build-all share.
type wishes struct {
	catalogue string
	only      []string
	force     bool
	maxAge    string
	format    string
	to        address.Address
}

// check says what the arguments alone tell to be wrong.
func (w wishes) check(ctx context.Context, source *dagger.Directory, accelerator string) error {
	if err := flags.Check(append(settings(w.to), flags.Of("max-age", w.maxAge, "accelerator", accelerator)...)); err != nil {
		return err
	}
	if formats := []string{"text", "json", "github-matrix", "kubernetes"}; !slices.Contains(formats, w.format) {
		return fmt.Errorf("--format %q is not known: give %s", w.format, strings.Join(formats, ", "))
	}
	if !filepath.IsLocal(w.catalogue) {
		return fmt.Errorf("--catalogue %q is no path in the source folder", w.catalogue)
	}
	if there, err := source.Exists(ctx, w.catalogue); err != nil || !there {
		return errors.Join(err, fmt.Errorf("--catalogue %s: the source folder has no such file", w.catalogue))
	}
	return nil
}

func (m *Diskforge) all(ctx context.Context, source *dagger.Directory, host, user string, pass *dagger.Secret, insecure bool, ca *dagger.File, service *dagger.Service) (*all, error) {
	if service != nil && host == "" {
		return nil, errors.New("--registry-service is given without --target-registry: give the host by which the service is reached")
	}
	to, err := registryAt(host, user, pass, insecure, ca, service)
	if err != nil {
		return nil, err
	}
	box, err := m.machine(ctx)
	return &all{module: m, source: source, registry: to, box: box}, err
}

// within is the toolbox with the catalogue's folder, always at the same path:
// the plan's arguments refer to it.
func (a *all) within() *dagger.Container {
	return a.module.withPlaybooks(a.box).
		WithMountedDirectory(cataloguePath, a.source, dagger.ContainerWithMountedDirectoryOpts{Owner: user}).
		WithWorkdir(cataloguePath)
}

// plan is what `diskforge plan` prints. It is an error only where that is
// nothing: images that cannot be planned stand in it, and stop no others.
func (a *all) plan(ctx context.Context, w wishes) (string, error) {
	c, login := a.registry.reach(a.within())
	args := flags.Of("catalogue", w.catalogue, "force", flags.Bool(w.force), "max-age", w.maxAge, "format", w.format)
	for _, glob := range w.only {
		args = append(args, "--only="+glob)
	}
	args = slices.Concat([]string{"diskforge", "plan"}, args, settings(w.to), login)
	planned, err := run(ctx, c.WithUser(user), args, dagger.ContainerWithExecOpts{Expect: dagger.ReturnTypeAny})
	if err != nil {
		return "", err
	}
	text, err := planned.Stdout(ctx)
	if err != nil || text != "" {
		return text, err
	}
	said, err := planned.Stderr(ctx)
	if err != nil {
		return "", err
	}
	code, err := planned.ExitCode(ctx)
	if err != nil {
		return "", err
	}
	return "", errors.New(explain.Stage("diskforge plan", said, code))
}

// decide is the plan, to be built.
func (a *all) decide(ctx context.Context, w wishes) ([]catalogue.Image, error) {
	text, err := a.plan(ctx, w)
	if err != nil {
		return nil, err
	}
	return catalogue.Parse([]byte(text))
}

// made is what came of an image.
type made = catalogue.Made[*dagger.Directory]

// build builds what the plan says, jobs images at once.
func (a *all) build(ctx context.Context, images []catalogue.Image, jobs int) (string, error) {
	g := catalogue.NewGraph[*dagger.Directory](images, jobs)
	var running sync.WaitGroup
	for _, i := range images {
		running.Go(func() {
			g.Run(ctx, i, func(parent made) (made, error) { return a.image(ctx, i, g.Image(i.From), parent) })
		})
	}
	running.Wait()
	return g.Summary()
}

// image does what the plan says of one image.
func (a *all) image(ctx context.Context, i, from catalogue.Image, parent made) (made, error) {
	switch i.Action {
	case catalogue.Skip:
		return made{Reference: i.Known()}, nil
	case catalogue.Tag:
		return made{Reference: i.Known()}, a.tag(ctx, i.Known(), i.Tags)
	case catalogue.Build:
		provisioned, err := a.provision(ctx, i, from, parent)
		if err != nil {
			return made{}, err
		}
		image, err := finish(ctx, a.box, a.within(), provisioned, i.Stages["sparsify"], append(i.Stages["verify"], a.guest()...))
		if err != nil {
			return made{}, err
		}
		return a.publish(ctx, i, image)
	}
	return made{}, errors.New(i.Why)
}

func (a *all) guest() []string { return flags.Of("accelerator", a.accelerator) }

// provision provisions the image's disk. Nothing but the base comes from the
// stage that may have asked the registry for it: none that runs a playbook sees
// the password.
func (a *all) provision(ctx context.Context, i, from catalogue.Image, parent made) (*dagger.Container, error) {
	box, within := a.box, a.within()
	if parent.Layout != nil {
		box, within = withParent(box, parent), withParent(within, parent)
	}
	if i.Anew { // a disk of the same inputs may be in the engine's cache
		now := time.Now().UTC().Format(time.RFC3339Nano)
		box, within = refreshed(box, now), refreshed(within, now)
	}
	base := catalogue.Base(i, from, parent.Reference, parent.Layout != nil, parentPath)
	args := append(i.Stages["base"], base...)
	if catalogue.Mentions(args, cataloguePath) {
		box = within
	}
	if catalogue.Mentions(args, "oci://") {
		reached, login := a.registry.reach(box)
		box, args = reached, append(args, login...)
	}
	fetched, err := makeBase(ctx, box, args...)
	if err != nil {
		return nil, err
	}
	within = within.WithDirectory(cacheDir, fetched.Directory(cacheDir), dagger.ContainerWithDirectoryOpts{Owner: user})
	within, vault := withVault(within, a.vault)
	return bootStage(ctx, within, slices.Concat([]string{"provision", "-o", diskPath}, i.Stages["provision"], base, a.guest(), vault)...)
}

func withParent(c *dagger.Container, parent made) *dagger.Container {
	return c.WithMountedDirectory(parentPath, parent.Layout, dagger.ContainerWithMountedDirectoryOpts{Owner: user})
}

// publish pushes the image, with all its tags.
func (a *all) publish(ctx context.Context, i catalogue.Image, image *built) (made, error) {
	packed, err := stage(ctx, withDisk(image.box, diskPath, image.disk),
		append([]string{"pack", diskPath, "-o", layoutPath}, i.Stages["pack"]...)...)
	if err != nil {
		return made{}, err
	}
	reference, err := push(ctx, packed, a.registry, i.Reference)
	if err == nil && len(i.Tags) > 1 {
		err = a.tag(ctx, reference, i.Tags[1:])
	}
	return made{Reference: reference, Layout: packed.Directory(layoutPath)}, err
}

// tag gives an image that is in the registry further tags.
func (a *all) tag(ctx context.Context, reference string, tags []string) error {
	c, login := a.registry.reach(a.box)
	_, err := stage(ctx, c, slices.Concat([]string{"images", "tag", reference}, tags, login)...)
	return err
}
