package playbook

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// Guest is a distribution release as far as Ansible cares.
type Guest struct {
	Name   string // as people call it: "Debian 12"
	Python string // the version its python3 has: "3.11"
}

// namedGuest is a release with the words that the distributions use in the
// names of its cloud images.
type namedGuest struct {
	Guest
	words *regexp.Regexp
}

var guests = []namedGuest{
	{Guest{"Debian 11", "3.9"}, word(`bullseye|debian[- ]?11`)},
	{Guest{"Debian 12", "3.11"}, word(`bookworm|debian[- ]?12`)},
	{Guest{"Debian 13", "3.13"}, word(`trixie|debian[- ]?13`)},
	{Guest{"Ubuntu 18.04", "3.6"}, word(`bionic|ubuntu[- ]?18\.04`)},
	{Guest{"Ubuntu 20.04", "3.8"}, word(`focal|ubuntu[- ]?20\.04`)},
	{Guest{"Ubuntu 22.04", "3.10"}, word(`jammy|ubuntu[- ]?22\.04`)},
	{Guest{"Ubuntu 24.04", "3.12"}, word(`noble|ubuntu[- ]?24\.04`)},
	{Guest{"Ubuntu 25.04", "3.13"}, word(`plucky|ubuntu[- ]?25\.04`)},
	{Guest{"Ubuntu 25.10", "3.13"}, word(`questing|ubuntu[- ]?25\.10`)},
	{Guest{"Ubuntu 26.04", "3.14"}, word(`resolute|ubuntu[- ]?26\.04`)},
}

func word(alternatives string) *regexp.Regexp {
	return regexp.MustCompile(`(?i)(?:^|[^a-z0-9])(?:` + alternatives + `)(?:[^a-z0-9]|$)`)
}

// GuessGuest guesses the release of a cloud image by its names, of which the
// first that says anything counts: addresses, file names (before the folders'),
// what an image says about itself. It reports false where none says anything,
// or one says two things.
func GuessGuest(names ...string) (guest Guest, known bool) {
	for _, name := range names {
		for _, part := range []string{path.Base(name), path.Dir(name)} {
			said := slices.DeleteFunc(slices.Clone(guests), func(g namedGuest) bool { return !g.words.MatchString(part) })
			switch len(said) {
			case 0:
			case 1:
				return said[0].Guest, true
			default:
				return Guest{}, false
			}
		}
	}
	return Guest{}, false
}

// Parts of what ansible-playbook --version says.
var (
	coreVersion = regexp.MustCompile(`(?:\[core |^ansible-playbook )(\d+\.\d+\.\d+)`)
	coreFolder  = regexp.MustCompile(`(?m)^ *ansible python module location = (.*)$`)
)

func saysVersion(ctx context.Context) (string, error) {
	said, err := host.Output(ctx, host.Cmd{Program: "ansible-playbook", Args: []string{"--version"}, Env: host.Env("LC_ALL=C.UTF-8")})
	return string(said), err
}

// ControllerVersion is the version of this host's ansible-core.
func ControllerVersion(ctx context.Context) (string, error) {
	if version := pythonSays(ctx); version != "" {
		return version, nil
	}
	said, err := saysVersion(ctx)
	if errors.Is(err, exec.ErrNotFound) {
		return "", err
	}
	if err != nil {
		return "", failure.Wrap(err, "asking Ansible for its version", "does ansible-playbook --version work?")
	}
	if m := coreVersion.FindStringSubmatch(said); m != nil {
		return m[1], nil
	}
	first, _, _ := strings.Cut(said, "\n")
	return "", failure.New(fmt.Sprintf("ansible-playbook --version says %q", first), "install ansible-core 2.14 or newer")
}

var (
	// shebang is the first line of what pip and Debian install: an interpreter by
	// its path. Others, such as env or a wrapper, say nothing of the Python behind.
	shebang = regexp.MustCompile(`^#! ?(/[^\s]*/python[0-9.]*)\n`)
	// plainVersion is a release's version, the beginning of that of a candidate.
	plainVersion = regexp.MustCompile(`^\d+\.\d+\.\d+`)
)

// pythonSays asks the Python that ansible-playbook runs with for ansible-core's
// version, which takes a tenth of the time of ansible-playbook --version. It is
// empty where that cannot be told.
func pythonSays(ctx context.Context) string {
	file, _ := host.Look("ansible-playbook")
	script, _ := host.ReadFile(file, 1<<20)
	python := shebang.FindSubmatch(script)
	if python == nil {
		return ""
	}
	// In a folder where no module of the user's is in the way.
	out, _ := host.Output(ctx, host.Cmd{
		Program: string(python[1]), Args: []string{"-c", "import ansible.release; print(ansible.release.__version__)"},
		Dir: "/", Env: host.Env("LC_ALL=C.UTF-8"),
	})
	return string(plainVersion.Find(out))
}

// release is the first two numbers of a version.
type release [2]int

func releaseOf(version string) (r release, err error) {
	if _, err := fmt.Sscanf(version, "%d.%d", &r[0], &r[1]); err != nil {
		return r, fmt.Errorf("reading the version %q: %w", version, err)
	}
	return r, nil
}

func (r release) before(other release) bool { return slices.Compare(r[:], other[:]) < 0 }

func (r release) String() string { return fmt.Sprintf("%d.%d", r[0], r[1]) }

type supported struct{ core, oldest, newest release }

// pythons are, by ansible-core's minor release, the oldest and the newest Python
// that its modules run with on a guest (docs.ansible.com, "ansible-core support
// matrix"), newest first. Newer releases than those are taken to be like them,
// and no Python too new but for releases up to 2.15, whose modules import six in
// a way that Python 3.12 removed.
var pythons = []supported{
	{release{2, 20}, release{3, 9}, release{9}},
	{release{2, 18}, release{3, 8}, release{9}},
	{release{2, 17}, release{3, 7}, release{9}},
	{release{2, 16}, release{3, 6}, release{9}},
	{release{}, release{3, 5}, release{3, 11}},
}

// CheckVersions says whether the controller's ansible-core (2.14.18) can
// manage the guest, so that a mismatch is named before anything is booted and
// not by a stack trace after it.
func CheckVersions(controller string, guest Guest) error {
	core, err := releaseOf(controller)
	python, errPython := releaseOf(guest.Python)
	if err := errors.Join(err, errPython); err != nil {
		return fmt.Errorf("comparing ansible-core with the guest's Python: %w", err)
	}
	row := pythons[slices.IndexFunc(pythons, func(row supported) bool { return !core.before(row.core) })]
	what := fmt.Sprintf("this host's ansible-core %s cannot manage %s (Python %s)", controller, guest.Name, guest.Python)
	switch {
	case row.newest.before(python):
		return failure.New(what, "it takes ansible-core 2.16 or newer: "+
			"build on Debian 13, in the toolbox, or from an older guest such as Debian 12 or Ubuntu 22.04")
	case python.before(row.oldest):
		return failure.New(what, fmt.Sprintf("it takes an older ansible-core, or a guest with Python %s or newer", row.oldest))
	}
	return nil
}

// releases are those that a playbook's own plays name in the variable lab_releases, by
// which the role lab of our playbooks refuses a guest.
func (t *Tree) releases(playbook string) (all []string) {
	for _, p := range t.files[playbook].facts.plays {
		var vars struct {
			Releases []string `yaml:"lab_releases"`
		}
		_ = p.Vars.Decode(&vars) // a template says nothing before it runs
		all = append(all, vars.Releases...)
	}
	return all
}

// CheckRelease says whether the playbook is for the guest, as far as its text tells:
// what only its run shows is an error of that.
func (i Inputs) CheckRelease(guest Guest) error {
	if len(i.releases) == 0 || slices.Contains(i.releases, guest.Name) {
		return nil
	}
	return failure.New(fmt.Sprintf("the playbook is for %s, and the base is %s", strings.Join(i.releases, ", "), guest.Name),
		"take another base, or another playbook")
}

// forms are ways of writing that an ansible-core release removed: its syntax
// check sees them in what a playbook imports, not in what it includes.
var forms = []struct {
	name string
	core release // the first without it
	try  string
}{
	{"include", release{2, 16}, "write include_tasks or import_tasks"}, // porting guide 2.16
	{"warn", release{2, 14}, "leave it out"},                           // of command and shell, porting guide 2.14
}

// CheckForms says whether the controller's ansible-core still has the forms
// that a playbook uses.
func CheckForms(controller string, in Inputs) error {
	core, _ := releaseOf(controller) // CheckVersions refuses what is none
	for _, form := range forms {
		if places := in.removed[form.name]; places != nil && !core.before(form.core) {
			return failure.New(fmt.Sprintf("ansible-core %s has no %s any more (%s)", controller, form.name, strings.Join(places, ", ")),
				fmt.Sprintf("%s, or build with ansible-core %d.%d or older, as Debian 12 has for guests up to Python 3.11",
					form.try, form.core[0], form.core[1]-1))
		}
	}
	return nil
}
