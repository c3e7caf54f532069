package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/text"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// All is a catalogue with what is asked for.
type All struct {
	// Settings are the command's own: where images go, what the host gives.
	// Where TARGET_REGISTRY, REGISTRY_PREFIX and IMAGE_TAG are given, they win
	// over the catalogue.
	Settings settings.Settings
	Config   settings.Config // what they mean
	UI       *ui.UI
	Version  string // of diskforge

	Catalogue *catalogue.Catalogue
	Jobs      int // at once; 0: as many as the host bears
	Policy    Policy

	// run builds one image; nil: as a single build does.
	run func(context.Context, *pipeline.Build) (Result, error)
}

// Address is the registry that the images go to, or nothing, and the project or
// path there.
func (a *All) Address() (host, prefix string) {
	if host = cmp.Or(a.Settings["TARGET_REGISTRY"], a.Catalogue.Registry); host != "" {
		prefix = cmp.Or(a.Settings["REGISTRY_PREFIX"], a.Catalogue.Prefix)
	}
	return host, prefix
}

// Plan says what is to be done for each image, parents first.
func (a *All) Plan(ctx context.Context) ([]*Entry, error) {
	entries := newEntries(a.Catalogue.Images)
	if err := a.checkAddress(); err != nil {
		return nil, err
	}
	var err error
	if a.Settings, err = pipeline.ReadPassword(a.Settings, &a.Config, a.Version); err != nil {
		return nil, err
	}
	if err := a.configure(entries); err != nil {
		return nil, err
	}
	if err := a.learn(ctx, entries); err != nil {
		return nil, err
	}
	policy := a.Policy
	policy.Now = cmp.Or(policy.Now, time.Now())
	policy.decide(entries)
	addIndexes(entries)
	if err := a.decideIndexes(ctx, entries); err != nil {
		return nil, err
	}
	fields := settings.Fields()
	for _, e := range entries {
		e.Stages = e.stages(fields)
		a.noteFiles(e)
	}
	return entries, nil
}

// Run builds what the plan says and returns how it went. The error names each
// image that failed.
func (a *All) Run(ctx context.Context) (Summary, error) {
	entries, err := a.Plan(ctx)
	if err != nil {
		return Summary{}, err
	}
	session, err := pipeline.NewSession(a.Config, a.Version)
	if err != nil {
		return Summary{}, err
	}
	defer session.Close()
	var names []string
	for _, e := range entries {
		names = append(names, e.Name)
	}
	indexes := Indexes(entries)
	for _, x := range indexes {
		names = append(names, x.Name)
	}
	table := a.UI.Table(names)
	defer table.Close()
	for _, e := range entries {
		for _, note := range e.Notes {
			table.Warn(e.Name, note)
		}
		a.prepare(e)
	}
	b := &builder{All: a, session: session, table: table}
	s, err := Run(ctx, entries, b, Options{OutputDir: a.Config.OutputDir, Jobs: a.Jobs}, table)
	if s.Images != nil && ctx.Err() == nil {
		err = errors.Join(err, a.indexes(ctx, indexes, &s, b))
	}
	return s, err
}

// noteFiles says how an image that is not built again gets the files of OUTPUTS: they
// are no part of what it is made from, so they may be asked for later.
func (a *All) noteFiles(e *Entry) {
	dir := Dir(a.Config.OutputDir, e.Name)
	sums, _ := filepath.Glob(filepath.Join(dir, "*.SHA256SUMS"))
	if e.Found != nil && e.Action != Build && e.config.Outputs != "" && len(sums) == 0 {
		e.Notes = append(e.Notes, fmt.Sprintf("it is not built again, so its files are not made: diskforge export %s -o %s --outputs %s",
			cmp.Or(e.config.Reference, e.layout(a.Config.OutputDir)), dir, e.config.Outputs))
	}
}

// untagged stands for the tag of an image that nobody named one for, until its
// inputs are known.
const untagged = "untagged"

// checkAddress checks what all images share of their address, so that it is
// said once and not of each.
func (a *All) checkAddress() error {
	host, prefix := a.Address()
	if _, err := registry.ParseReference(host, prefix, "image", cmp.Or(a.Settings["IMAGE_TAG"], untagged)); err != nil {
		return settings.Mistakes{err.Error()}
	}
	return nil
}

// configure puts the settings of each image together and checks them all.
func (a *All) configure(entries []*Entry) error {
	var mistakes catalogue.Mistakes
	said := map[*Entry][]string{} // a child does not repeat what is wrong with its parent
	host, prefix := a.Address()
	for _, e := range entries {
		for _, tag := range a.tags(e.image) {
			e.Tags = append(e.Tags, tag+e.suffix())
		}
		e.settings = a.Settings.With(e.image.Settings).With(map[string]string{
			"TARGET_REGISTRY": host, "REGISTRY_PREFIX": prefix, "IMAGE_NAME": e.ImageName(), "IMAGE_TAG": cmp.Or(append(slices.Clone(e.Tags), untagged)...),
		})
		needs := []pipeline.Need{pipeline.NeedPlaybook, pipeline.NeedReference}
		if e.Parent == nil {
			needs = append(needs, pipeline.NeedBase)
		}
		var err error
		if e.config, err = pipeline.Parse(e.settings, needs...); err == nil {
			err = e.fits()
		}
		if err != nil {
			said[e] = several(err)
			mistakes = append(mistakes, a.mistakes(e, said[e], said[e.Parent])...)
		}
	}
	return mistakes.Sorted()
}

// fits says whether the parent's disk fits the image's: a disk grows, and
// never shrinks.
func (e *Entry) fits() error {
	if e.Parent == nil || e.config.DiskSize >= e.Parent.config.DiskSize {
		return nil
	}
	size := e.Parent.settings.Get("DISK_SIZE")
	return fmt.Errorf("size %s is less than its parent %s's %s: give %s or more, or leave size out", e.settings.Get("DISK_SIZE"), e.From, size, size)
}

// tags are those that an image shall have: the command's first.
func (a *All) tags(one catalogue.Image) []string {
	if a.Settings["IMAGE_TAG"] == "" {
		return one.Tags
	}
	others := slices.DeleteFunc(slices.Clone(one.Tags), func(tag string) bool { return tag == a.Settings["IMAGE_TAG"] })
	return append([]string{a.Settings["IMAGE_TAG"]}, others...)
}

// stages are the arguments of the commands that build the image one by one.
func (e *Entry) stages(fields []settings.Field) map[string][]string {
	all := map[string][]string{}
	for _, stage := range []string{"base", "provision", "sparsify", "verify", "pack"} {
		all[stage] = []string{}
		for _, f := range fields {
			if v, ok := e.argument(f); ok && f.In(stage) {
				all[stage] = append(all[stage], "--"+f.Flag+"="+v)
			}
		}
	}
	return all
}

// argument is the value of a setting that makes the image what it is, or is
// its address.
func (e *Entry) argument(f settings.Field) (value string, ok bool) {
	switch f.Env {
	case "IMAGE_TAG":
		return e.config.ImageTag, e.config.Reference != ""
	case "TARGET_REGISTRY", "REGISTRY_PREFIX", "IMAGE_NAME":
		value = f.Value(e.settings)
		return value, value != ""
	}
	value, ok = e.Settings[f.Env]
	return value, ok
}

// several are the mistakes that an error has.
func several(err error) []string {
	if mistakes, ok := errors.AsType[settings.Mistakes](err); ok {
		return mistakes
	}
	return []string{err.Error()}
}

// mistakes are what is wrong with an image, each in its line, but for those.
func (a *All) mistakes(e *Entry, texts, but []string) (all catalogue.Mistakes) {
	for _, what := range texts {
		if !slices.Contains(but, what) {
			all = append(all, catalogue.Mistake{File: a.Catalogue.File, Line: e.image.Line, What: "image " + e.Name + ": " + keyed(what)})
		}
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
		f, _ := settings.By(m[2])
		if f.Key == "" {
			return found
		}
		return m[1] + f.Key + strings.ReplaceAll(m[3], "=", ": ")
	})
}

// Unplannable is the error where the plan has images that cannot be built, or
// nil.
func Unplannable(entries []*Entry) error {
	var lines []string
	for _, e := range entries {
		if e.Action == Blocked {
			lines = append(lines, e.Name+": "+e.Why)
		}
	}
	if lines == nil {
		return nil
	}
	return &failure.Error{
		What:  fmt.Sprintf("%d of %s cannot be planned", len(lines), text.Count(len(entries), "image")),
		Lines: lines, Err: errors.New("blocked"),
	}
}
