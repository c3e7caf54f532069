package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	order "dagger/diskforge/catalogue"
	"dagger/diskforge/explain"
	"dagger/diskforge/internal/dagger"
)

// Plan is what build-all would build, and why. It is made with the toolbox's Ansible, so that its input digests are those of images that are built in it.
type Plan struct {
	// +private
	Module *Diskforge
	// +private
	Catalogue *dagger.Directory
	// +private
	Args []string
	// Booting are the settings of the stages that boot a guest here.
	// +private
	Booting []string
	// +private
	Vault *dagger.Secret
}

// Plan says what build-all would build, and why, as text, JSON, a matrix for GitHub's runners or Kubernetes Jobs.
func (m *Diskforge) Plan(
	ctx context.Context,
	// The folder with the catalogue and what it refers to: playbooks, files of variables.
	catalogue *dagger.Directory,
	// The catalogue, a path in that folder.
	// +default="catalogue.yaml"
	file string,
	// The names of the images to build, globs such as ubuntu-*; default: all.
	// +optional
	only []string,
	// Build them though nothing has changed.
	// +optional
	force bool,
	// Build what is older, e.g. 7d.
	// +optional
	maxAge string,
	// Settings that win over the catalogue, KEY=VALUE each: IMAGE_TAG=2026-11-23.
	// +optional
	set []string,
) (*Plan, error) {
	return m.planned(ctx, catalogue, file, only, force, maxAge, set, nil)
}

// Text is the plan for people.
// +cache="never"
func (p *Plan) Text(ctx context.Context) (string, error) { return p.print(ctx, "text") }

// Json is the plan for programs.
// +cache="never"
func (p *Plan) Json(ctx context.Context) (string, error) { return p.print(ctx, "json") }

// GithubMatrix is the plan as the workflow catalogue.yml takes it; its paths are relative to the folder.
// +cache="never"
func (p *Plan) GithubMatrix(ctx context.Context) (string, error) {
	return p.print(ctx, "github-matrix")
}

// Kubernetes is the plan as Jobs.
// +cache="never"
func (p *Plan) Kubernetes(
	ctx context.Context,
	// The secret with username and password by which children fetch their parents, in a container that runs no playbook.
	// +optional
	pullSecret string,
) (string, error) {
	return p.print(ctx, "kubernetes", flagsOf("pull-secret", pullSecret)...)
}

// Fleet is what came of the images of a catalogue.
type Fleet struct {
	// Entries are its images, parents before children.
	Entries []*Entry
}

// Entry is what came of one image of a catalogue.
type Entry struct {
	// Name is the image's name.
	Name string
	// State is how it ended.
	State State
	// Why says why it was built, or was not.
	Why string
	// Reference is where the image is, with digest.
	Reference string
	// +private
	Reported *dagger.Directory
}

// State is how an image of a catalogue ended.
type State string

const (
	// Built now, and published.
	Built State = "BUILT"
	// Tagged: the registry had it, and it has further tags now.
	Tagged State = "TAGGED"
	// Unchanged: the registry has it.
	Unchanged State = "UNCHANGED"
	// Failed, or what it starts from did.
	Failed State = "FAILED"
)

// Digest is the digest of the image's manifest, sha256:HEX.
func (e *Entry) Digest() string {
	_, digest, _ := strings.Cut(e.Reference, "@")
	return digest
}

// Report is the report of the image, where it was built now: report.html, report.json and summary.md.
func (e *Entry) Report() (*dagger.Directory, error) {
	if e.Reported == nil {
		return nil, fmt.Errorf("%s was not built now: there is no report of it", e.Name)
	}
	return e.Reported, nil
}

// Summary is a line for each image.
func (f *Fleet) Summary() string {
	var text strings.Builder
	for _, e := range f.Entries {
		fmt.Fprintf(&text, "%-10s %s", strings.ToLower(string(e.State)), e.Name)
		if e.Reference != "" {
			text.WriteString("  " + e.Reference)
		}
		text.WriteString("\n")
	}
	return text.String()
}

// Reports are the reports of the images that were built now, each in a folder of the image's name.
func (f *Fleet) Reports() *dagger.Directory {
	all := dag.Directory()
	for _, e := range f.Entries {
		if e.Reported != nil {
			all = all.WithDirectory(e.Name, e.Reported)
		}
	}
	return all
}

// BuildAll builds the images of a catalogue that the registry does not have, parents before children, and publishes each when it passed its checks. An image that fails stops those that start from it, and no other; the call then fails and says how all ended.
// +cache="never"
func (m *Diskforge) BuildAll(
	ctx context.Context,
	// The folder with the catalogue and what it refers to: playbooks, files of variables.
	catalogue *dagger.Directory,
	// The catalogue, a path in that folder.
	// +default="catalogue.yaml"
	file string,
	// The names of the images to build, globs such as ubuntu-*; default: all.
	// +optional
	only []string,
	// Build them though nothing has changed.
	// +optional
	force bool,
	// Build what is older, e.g. 7d, for fresh packages.
	// +optional
	maxAge string,
	// Settings that win over the catalogue, KEY=VALUE each: IMAGE_TAG=2026-11-23.
	// +optional
	set []string,
	// The images to build at once.
	// +default=1
	jobs int,
	// The password of what ansible-vault encrypted in the playbooks, e.g. file://vault-password; only Ansible is given it.
	// +optional
	vaultPassword *dagger.Secret,
) (*Fleet, error) {
	if jobs < 1 {
		return nil, fmt.Errorf("--jobs %d is no number of images: give 1 or more", jobs)
	}
	p, err := m.planned(ctx, catalogue, file, only, force, maxAge, set, vaultPassword)
	if err != nil {
		return nil, err
	}
	images, err := p.decide(ctx)
	if err != nil {
		return nil, err
	}
	return p.build(ctx, images, jobs)
}

// planned says what the arguments alone tell to be wrong.
func (m *Diskforge) planned(ctx context.Context, dir *dagger.Directory, file string, only []string, force bool, maxAge string,
	set []string, vault *dagger.Secret,
) (*Plan, error) {
	if !filepath.IsLocal(file) {
		return nil, fmt.Errorf("--file %q is no path in the catalogue's folder", file)
	}
	if there, err := dir.Exists(ctx, file); err != nil || !there {
		return nil, errors.Join(err, fmt.Errorf("--file %s: the catalogue's folder has no such file", file))
	}
	flags := []string{"--for=plan"}
	if m.Registry != nil {
		flags = append(flags, "--target-registry="+m.Registry.Host)
	}
	text, err := m.stages(ctx, things{}, flags, set, nil)
	if err != nil {
		return nil, err
	}
	stages, err := stagesOf(text)
	if err != nil {
		return nil, err
	}
	args := append(flagsOf("catalogue", file, "force", onlyIf(force, "true"), "max-age", maxAge), stages["plan"]...)
	for _, glob := range only {
		args = append(args, "--only="+glob)
	}
	p := &Plan{Module: m, Catalogue: dir, Args: args, Vault: vault}
	for _, arg := range stages["plan"] {
		if strings.HasPrefix(arg, "--accelerator=") || strings.HasPrefix(arg, "--cpus=") || strings.HasPrefix(arg, "--boot-timeout=") {
			p.Booting = append(p.Booting, arg)
		}
	}
	return p, nil
}

// within is the toolbox with the catalogue's folder, always at the same path:
// the plan's arguments refer to it.
func (p *Plan) within(box *dagger.Container) *dagger.Container {
	return p.Module.withPlaybooks(box).
		WithMountedDirectory(cataloguePath, p.Catalogue, dagger.ContainerWithMountedDirectoryOpts{Owner: user}).
		WithWorkdir(cataloguePath)
}

// print is what `diskforge plan` prints. It is an error only where that is
// nothing: images that cannot be planned stand in it, and stop no others.
func (p *Plan) print(ctx context.Context, format string, args ...string) (string, error) {
	box, err := p.Module.machine(ctx)
	if err != nil {
		return "", err
	}
	c, login := p.Module.Registry.reach(p.within(box))
	args = slices.Concat([]string{"diskforge", "plan", "--format", format}, p.Args, args, login)
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
func (p *Plan) decide(ctx context.Context) ([]order.Image, error) {
	text, err := p.print(ctx, "json")
	if err != nil {
		return nil, err
	}
	return order.Parse([]byte(text))
}

// made is what came of an image.
type made struct {
	reference string
	layout    *dagger.Directory // of an image that was built now
	report    *dagger.Directory
}

// build builds what the plan says, jobs images at once.
func (p *Plan) build(ctx context.Context, images []order.Image, jobs int) (*Fleet, error) {
	g := order.NewGraph[made](images, jobs)
	var running sync.WaitGroup
	for _, i := range images {
		running.Go(func() {
			g.Run(ctx, i, func(parent made) (made, error) { return p.image(ctx, i, g.Image(i.From), parent) })
		})
	}
	running.Wait()
	f := &Fleet{}
	var failed []string
	for _, i := range images {
		came, err := g.Result(i.Name)
		e := &Entry{Name: i.Name, Why: i.Why, Reference: came.reference, Reported: came.report}
		e.State = map[string]State{order.Skip: Unchanged, order.Tag: Tagged, order.Build: Built}[i.Action]
		if err != nil {
			e.State, e.Why = Failed, strings.TrimPrefix(err.Error(), "input: ") // gqlerror's word for where it was
			failed = append(failed, i.Name+": "+e.Why)
		}
		f.Entries = append(f.Entries, e)
	}
	if failed != nil {
		return nil, fmt.Errorf("%d of %d images failed\n%s\nall images:\n%s",
			len(failed), len(images), strings.Join(failed, "\n"), strings.TrimSpace(f.Summary()))
	}
	return f, nil
}

// image does what the plan says of one image.
func (p *Plan) image(ctx context.Context, i, from order.Image, parent made) (made, error) {
	switch i.Action {
	case order.Skip:
		return made{reference: i.Known()}, nil
	case order.Tag:
		return made{reference: i.Known()}, p.tag(ctx, i.Known(), i.Tags)
	case order.Build:
		return p.make(ctx, i, from, parent)
	}
	return made{}, errors.New(i.Why)
}

// make builds the image and publishes it, with all its tags.
func (p *Plan) make(ctx context.Context, i, from order.Image, parent made) (made, error) {
	box, err := p.Module.machine(ctx)
	if err != nil {
		return made{}, err
	}
	if i.Anew { // a disk of the same inputs may be in the engine's cache
		box = box.WithEnvVariable("REFRESH", time.Now().UTC().Format(time.RFC3339Nano))
	}
	base := order.Base(i, from, parent.reference, parent.layout != nil, parentPath)
	stages := maps.Clone(i.Stages)
	stages["base"] = append(slices.Clone(stages["base"]), base...)
	stages["provision"] = slices.Concat(stages["provision"], base, p.Booting, flagsOf("ansible-vault-password-file", onlyIf(p.Vault != nil, vaultPath)))
	stages["verify"] = append(slices.Clone(stages["verify"]), p.Booting...)
	w := work{stages: stages, box: box, within: p.within(box), registry: p.Module.Registry, things: things{
		dirs: map[string]*dagger.Directory{parentPath: parent.layout, cataloguePath: p.Catalogue}, vault: p.Vault,
	}}
	b, err := w.run(ctx)
	if err != nil {
		return made{}, err
	}
	packed, err := b.pack(ctx, i.Stages["pack"]...)
	if err != nil {
		return made{}, err
	}
	report, err := b.report(ctx)
	if err != nil {
		return made{}, err
	}
	reference, err := push(ctx, packed, p.Module.Registry, i.Reference)
	if err == nil && len(i.Tags) > 1 {
		err = p.tag(ctx, reference, i.Tags[1:])
	}
	return made{reference: reference, layout: packed.Directory(layoutPath), report: report}, err
}

// tag gives an image that is in the registry further tags.
func (p *Plan) tag(ctx context.Context, reference string, tags []string) error {
	box, err := p.Module.machine(ctx)
	if err != nil {
		return err
	}
	c, login := p.Module.Registry.reach(box)
	_, err = stage(ctx, c, slices.Concat([]string{"images", "tag", reference}, tags, login)...)
	return err
}
