// All builds the images of a catalogue: it finds out what each is
// made from and what there is already, has the plan decided, and runs what is
// left to do. Every image is built as a single build is; nothing of that is
// done here.

package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/fleet/render"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// All is a catalogue with what is wished for it.
type All struct {
	// Settings are the command's own: where images go, what the host gives.
	// Where TARGET_REGISTRY, REGISTRY_PREFIX and IMAGE_TAG are given, they win
	// over the catalogue.
	Settings settings.Settings
	Config   settings.Config // what they mean
	UI       *ui.UI
	Version  string // of diskforge

	Catalogue *catalogue.Catalogue
	Only      []string // globs; none: all images
	Jobs      int      // at once; 0: as many as the host bears
	Options   render.Options

	// run builds one image; nil: as a single build does.
	run func(context.Context, *pipeline.Build) (pipeline.Result, error)
}

// image is one image with what it takes to build it.
type image struct {
	catalogue.Image
	settings settings.Settings
	config   settings.Config
	facts    render.Facts
	// fixed are values in place of those that name something which may change,
	// and what else of the command makes the image what it is.
	fixed map[string]string
}

// everywhere are the command's settings that hold on any host that builds the
// images. The others are about this host, or are the images' own.
var everywhere = []string{"ACCELERATOR", "BOOT_TIMEOUT", "CPUS", "REGISTRY_INSECURE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}

// Target is the registry that the images go to.
func (a *All) Target() render.Target {
	host := map[string]string{}
	for _, f := range settings.Fields() {
		if v := f.Value(a.Settings); slices.Contains(everywhere, f.Env) && v != f.Default {
			host[f.Env] = v
		}
	}
	if !a.Config.RegistryInsecure {
		delete(host, "REGISTRY_INSECURE")
	}
	return render.Target{
		Registry: cmp.Or(a.Settings["TARGET_REGISTRY"], a.Catalogue.Registry),
		Prefix:   cmp.Or(a.Settings["REGISTRY_PREFIX"], a.Catalogue.Prefix),
		Host:     host,
	}
}

// Plan says what is to be done for each image, parents first.
func (a *All) Plan(ctx context.Context) ([]render.Entry, error) {
	entries, _, err := a.plan(ctx)
	return entries, err
}

func (a *All) plan(ctx context.Context) ([]render.Entry, map[string]*image, error) {
	selected, err := a.Catalogue.Select(a.Only...)
	if err != nil {
		return nil, nil, err
	}
	if err := a.checkAddress(); err != nil {
		return nil, nil, err
	}
	if err := a.logIn(); err != nil {
		return nil, nil, err
	}
	images, err := a.images(selected)
	if err != nil {
		return nil, nil, err
	}
	if err := a.learn(ctx, selected, images); err != nil {
		return nil, nil, err
	}
	facts := make(map[string]render.Facts, len(images))
	for n, one := range selected {
		i := images[one.Name]
		facts[one.Name], selected[n].Settings = i.facts, i.pinned()
	}
	o := a.Options
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	entries := render.Decide(selected, facts, o)
	fields := settings.Fields()
	for n, e := range entries {
		entries[n].Stages = images[e.Name].stages(fields, e.Settings)
	}
	return entries, images, nil
}

// checkAddress checks what all images share of their address, so that it is
// told once and not of each.
func (a *All) checkAddress() error {
	target := a.Target()
	if target.Registry == "" {
		target.Prefix = ""
	}
	if _, err := registry.ParseReference(target.Registry, target.Prefix, "image", cmp.Or(a.Settings["IMAGE_TAG"], untagged)); err != nil {
		return settings.Mistakes{err.Error()}
	}
	return nil
}

// pinned are the catalogue's settings with which exactly the planned image is
// built, or none, wherever that is done.
func (i *image) pinned() map[string]string {
	all := make(map[string]string, len(i.Settings)+len(i.fixed))
	maps.Copy(all, i.Settings)
	maps.Copy(all, i.fixed)
	return all
}

// stages are the arguments of the commands that build the image one by one.
func (i *image) stages(fields []settings.Field, pinned map[string]string) map[string][]string {
	all := map[string][]string{}
	for _, stage := range []string{"base", "provision", "sparsify", "verify", "pack"} {
		all[stage] = []string{}
		for _, f := range fields {
			if !f.In(stage) {
				continue
			}
			if v, ok := i.argument(f, pinned); ok {
				all[stage] = append(all[stage], "--"+f.Flag+"="+v)
			}
		}
	}
	return all
}

// argument is the value of a setting that makes the image what it is, or is
// its address.
func (i *image) argument(f settings.Field, pinned map[string]string) (value string, ok bool) {
	switch f.Env {
	case "IMAGE_TAG":
		return i.config.ImageTag, i.config.Reference != ""
	case "TARGET_REGISTRY", "REGISTRY_PREFIX", "IMAGE_NAME":
		value = f.Value(i.settings)
		return value, value != ""
	}
	value, ok = pinned[f.Env]
	return value, ok
}

// images puts the settings of each image together and checks them all.
func (a *All) images(selected []catalogue.Image) (map[string]*image, error) {
	all := make(map[string]*image, len(selected))
	var mistakes catalogue.Mistakes
	told := map[string][]string{} // a child does not repeat what is wrong with its parent
	target := a.Target()
	for _, one := range selected {
		i := &image{Image: one, settings: a.Settings.With(one.Settings)}
		i.facts.Tags = a.tags(one)
		address := map[string]string{
			"TARGET_REGISTRY": target.Registry, "REGISTRY_PREFIX": target.Prefix, "IMAGE_NAME": one.Name,
			"IMAGE_TAG": cmp.Or(append(slices.Clone(i.facts.Tags), untagged)...),
		}
		if target.Registry == "" {
			address["REGISTRY_PREFIX"] = ""
		}
		i.settings = i.settings.With(address)
		var err error
		if i.config, err = settings.Parse(i.settings, i.needs()...); err == nil {
			err = i.fits(all[one.From])
		}
		if err != nil {
			told[one.Name] = several(err)
			mistakes = append(mistakes, a.mistakes(one, without(told[one.Name], told[one.From]))...)
			continue
		}
		all[one.Name] = i
	}
	return all, inLines(mistakes)
}

// inLines is the error that has the mistakes in the order of their lines, or
// none.
func inLines(mistakes catalogue.Mistakes) error {
	if mistakes == nil {
		return nil
	}
	slices.SortStableFunc(mistakes, func(a, b catalogue.Mistake) int { return cmp.Compare(a.Line, b.Line) })
	return mistakes
}

// fits says whether the parent's disk fits the image's: a disk grows, and
// never shrinks.
func (i *image) fits(parent *image) error {
	if parent == nil || i.config.DiskSize >= parent.config.DiskSize {
		return nil
	}
	size := parent.settings.Get("DISK_SIZE")
	return fmt.Errorf("size %s is less than its parent %s's %s: give %s or more, or leave size out", i.settings.Get("DISK_SIZE"), i.From, size, size)
}

// tags are those that an image shall have: the command's first.
func (a *All) tags(one catalogue.Image) []string {
	if a.Settings["IMAGE_TAG"] == "" {
		return one.Tags
	}
	others := slices.DeleteFunc(slices.Clone(one.Tags), func(tag string) bool { return tag == a.Settings["IMAGE_TAG"] })
	return append([]string{a.Settings["IMAGE_TAG"]}, others...)
}

// several are the mistakes that an error has.
func several(err error) []string {
	var mistakes settings.Mistakes
	if errors.As(err, &mistakes) {
		return mistakes
	}
	return []string{err.Error()}
}

// without are the texts that are not among others.
func without(texts, others []string) []string {
	return slices.DeleteFunc(slices.Clone(texts), func(text string) bool { return slices.Contains(others, text) })
}

// mistakes are what is wrong with an image, each in its line.
func (a *All) mistakes(one catalogue.Image, texts []string) (all catalogue.Mistakes) {
	for _, what := range texts {
		all = append(all, catalogue.Mistake{File: a.Catalogue.File, Line: one.Line, What: "image " + one.Name + ": " + keyed(what)})
	}
	return all
}

// variable is a setting's name as a word of a message, where it begins one or
// stands behind a space: so it does in no path.
var variable = regexp.MustCompile(`(^| )([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*)(=)?`)

// keyed puts the catalogue's keys in place of the variables that it has keys for.
func keyed(what string) string {
	return variable.ReplaceAllStringFunc(what, func(found string) string {
		m := variable.FindStringSubmatch(found)
		key := catalogue.Key(m[2])
		if key == m[2] {
			return found
		}
		return m[1] + key + strings.ReplaceAll(m[3], "=", ": ")
	})
}

// untagged stands for the tag of an image that nobody named one for, until its
// inputs are known.
const untagged = "untagged"

// needs are those of a build; a child has no base of its own.
func (i *image) needs() []settings.Need {
	needs := []settings.Need{settings.NeedPlaybook, settings.NeedReference}
	if i.From == "" {
		needs = append(needs, settings.NeedBase)
	}
	return needs
}

// Run builds what the plan says and returns how it went. The error names each
// image that failed.
func (a *All) Run(ctx context.Context) (Summary, error) {
	entries, images, err := a.plan(ctx)
	if err != nil {
		return Summary{}, err
	}
	session, err := a.session()
	if err != nil {
		return Summary{}, err
	}
	defer session.Close()
	names := make([]string, len(entries))
	for n, e := range entries {
		names[n] = e.Name
	}
	table := a.UI.Table(names)
	defer table.Close()
	for _, e := range entries {
		for _, note := range e.Notes {
			table.Warn(e.Name, note)
		}
	}
	b := &builder{all: a, images: images, entries: map[string]render.Entry{}, session: session, table: table, run: a.run}
	if b.run == nil {
		b.run = func(ctx context.Context, one *pipeline.Build) (pipeline.Result, error) { return one.Run(ctx) }
	}
	for _, e := range entries {
		b.entries[e.Name] = e
	}
	return Run(ctx, a.toDo(entries, images), b, Options{OutputDir: a.Config.OutputDir, Jobs: a.Jobs}, table)
}

// logIn reads the password file once for all images: it may be a pipe.
func (a *All) logIn() error {
	if a.Config.RegistryPassFile == "" {
		return nil
	}
	options, err := (&pipeline.Build{Config: a.Config}).RegistryOptions()
	if err != nil {
		return err
	}
	a.Config.RegistryPass, a.Config.RegistryPassFile = settings.Secret(options.Password), ""
	a.Settings = a.Settings.With(map[string]string{"REGISTRY_PASS": options.Password, "REGISTRY_PASS_FILE": ""})
	return nil
}

// session asks the registry with the command's credentials.
func (a *All) session() (*registry.Session, error) {
	options, err := (&pipeline.Build{Config: a.Config, Version: a.Version}).RegistryOptions()
	if err != nil {
		return nil, err
	}
	return registry.NewSession(options)
}

// toDo are the plan's entries as the fleet takes them. An image that cannot
// be planned fails when its turn comes, with the reason, so that it stops its
// descendants and nothing else.
func (a *All) toDo(entries []render.Entry, images map[string]*image) []Entry {
	all := make([]Entry, len(entries))
	for n, e := range entries {
		i := images[e.Name]
		all[n] = Entry{
			Name: e.Name, Parent: e.From, Action: Action(e.Action), Why: e.Why, Inputs: e.Inputs,
			Needs: i.resources(a.Config.OutputDir), NotBefore: a.notBefore(e),
			Known: Result{Reference: i.known(a.Config.OutputDir), Digest: e.Found, Layout: i.layout(a.Config.OutputDir, e)},
		}
		if e.Action == render.Blocked {
			all[n].Action, all[n].Needs = Build, Resources{}
		}
		if i.facts.Err != nil {
			all[n].Parent = "" // its turn is now
		}
	}
	return all
}

// notBefore is when what a build made may have been made at the earliest to be
// used again. What is built for its parent's sake may be of any age: it is by
// the parent's digest that the old is told from the new.
func (a *All) notBefore(e render.Entry) time.Time {
	switch {
	case !e.Anew:
	case a.Options.Force:
		return time.Now()
	case a.Options.MaxAge > 0:
		return time.Now().Add(-a.Options.MaxAge)
	}
	return time.Time{}
}

// Failed is an error where the plan has images that cannot be built.
func NotBuildable(entries []render.Entry) error {
	var lines []string
	for _, e := range entries {
		if e.Action == render.Blocked {
			lines = append(lines, e.Name+": "+e.Why)
		}
	}
	if lines == nil {
		return nil
	}
	f := failure.New(fmt.Sprintf("%d of %s cannot be planned", len(lines), render.Images(len(entries))), "")
	f.Lines, f.Err = lines, errors.New("blocked")
	return f
}
