package playbook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// Guest is a distribution release as far as Ansible cares.
type Guest struct {
	Name   string // as people call it: "Debian 12"
	Python string // the version its python3 has: "3.11"
}

// guests are the releases that the name of a cloud image may say, by the words
// that the distributions use in such names.
var guests = map[*regexp.Regexp]Guest{
	word(`bullseye|debian[- ]?11`):     {"Debian 11", "3.9"},
	word(`bookworm|debian[- ]?12`):     {"Debian 12", "3.11"},
	word(`trixie|debian[- ]?13`):       {"Debian 13", "3.13"},
	word(`bionic|ubuntu[- ]?18\.04`):   {"Ubuntu 18.04", "3.6"},
	word(`focal|ubuntu[- ]?20\.04`):    {"Ubuntu 20.04", "3.8"},
	word(`jammy|ubuntu[- ]?22\.04`):    {"Ubuntu 22.04", "3.10"},
	word(`noble|ubuntu[- ]?24\.04`):    {"Ubuntu 24.04", "3.12"},
	word(`plucky|ubuntu[- ]?25\.04`):   {"Ubuntu 25.04", "3.13"},
	word(`questing|ubuntu[- ]?25\.10`): {"Ubuntu 25.10", "3.13"},
	word(`resolute|ubuntu[- ]?26\.04`): {"Ubuntu 26.04", "3.14"},
}

func word(alternatives string) *regexp.Regexp {
	return regexp.MustCompile(`(?i)(?:^|[^a-z0-9])(?:` + alternatives + `)(?:[^a-z0-9]|$)`)
}

// GuessGuest guesses the release of a cloud image by its names, of which the
// first that says anything counts: addresses, file names (before the folders'),
// what an image says about itself. It reports false where none says anything,
// or one says two things.
func GuessGuest(names ...string) (found Guest, ok bool) {
	for _, name := range names {
		for _, part := range []string{path.Base(name), path.Dir(name)} {
			said := 0
			for words, guest := range guests {
				if words.MatchString(part) {
					found = guest
					said++
				}
			}
			switch {
			case said == 1:
				return found, true
			case said > 1:
				return Guest{}, false
			}
		}
	}
	return Guest{}, false
}

// coreVersion finds ansible-core's version in the first line of --version.
var coreVersion = regexp.MustCompile(`(?:\[core |^ansible-playbook )(\d+\.\d+\.\d+)`)

// ControllerVersion is the version of this host's ansible-core. It asks the
// Python that ansible-playbook runs with, which takes a tenth of the time of
// ansible-playbook --version, and that where there is no such Python.
func ControllerVersion(ctx context.Context) (string, error) {
	out, err := askPython(ctx, "import ansible.release; print(ansible.release.__version__)")
	if version := plainVersion.FindString(out); err == nil && version != "" {
		return version, nil
	}
	said, err := host.Output(ctx, host.Cmd{Program: "ansible-playbook", Args: []string{"--version"}, Env: host.Env("LC_ALL=C.UTF-8")})
	if errors.Is(err, exec.ErrNotFound) {
		return "", err
	}
	if err != nil {
		return "", failure.Wrap(err, "asking Ansible for its version", "does ansible-playbook --version work?")
	}
	m := coreVersion.FindSubmatch(said)
	if m == nil {
		first, _, _ := strings.Cut(string(said), "\n")
		return "", failure.New(fmt.Sprintf("ansible-playbook --version says %q", first), "install ansible-core 2.14 or newer")
	}
	return string(m[1]), nil
}

// plainVersion is a release's version, the beginning of that of a candidate.
var plainVersion = regexp.MustCompile(`^\d+\.\d+\.\d+`)

// shebang is the first line of what pip and Debian install: an interpreter by
// its path. Others, such as env or a wrapper, say nothing of the Python behind.
var shebang = regexp.MustCompile(`^#! ?(/[^\s]*/python[0-9.]*)\n`)

// askPython runs code in the Python that ansible-playbook runs with and
// returns what it prints.
func askPython(ctx context.Context, code string, args ...string) (string, error) {
	file, err := host.Look("ansible-playbook")
	if err != nil {
		return "", err
	}
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, 256)
	n, _ := io.ReadFull(f, head)
	m := shebang.FindSubmatch(head[:n])
	if m == nil {
		return "", fmt.Errorf("%s names no Python", file)
	}
	// In a folder where no module of the user's is in the way.
	out, err := host.Output(ctx, host.Cmd{Program: string(m[1]), Args: append([]string{"-c", code}, args...), Dir: "/", Env: host.Env("LC_ALL=C.UTF-8")})
	return string(out), err
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

// oldestPython is, by ansible-core's minor release, the oldest Python that its
// modules run with on a guest (docs.ansible.com, "ansible-core support
// matrix"), newest first; newer releases than those are taken to be like them.
var oldestPython = []struct{ core, python release }{
	{release{2, 20}, release{3, 9}},
	{release{2, 18}, release{3, 8}},
	{release{2, 17}, release{3, 7}},
	{release{2, 16}, release{3, 6}},
	{release{2, 14}, release{3, 5}},
}

// CheckVersions says whether the controller's ansible-core (2.14.18) can
// manage the guest, so that a mismatch is named before anything is booted and
// not by a stack trace after it. Up to 2.15 the modules import six in a way
// that Python 3.12 removed; each release also has an oldest Python.
func CheckVersions(controller string, guest Guest) error {
	core, err := releaseOf(controller)
	python, errPython := releaseOf(guest.Python)
	if err := errors.Join(err, errPython); err != nil {
		return fmt.Errorf("comparing ansible-core with the guest's Python: %w", err)
	}
	what := fmt.Sprintf("this host's ansible-core %s cannot manage %s (Python %s)", controller, guest.Name, guest.Python)
	if !python.before(release{3, 12}) && core.before(release{2, 16}) {
		return failure.New(what, "it takes ansible-core 2.16 or newer: "+
			"build on Debian 13, in the toolbox, or from an older guest such as Debian 12 or Ubuntu 22.04")
	}
	for _, row := range oldestPython {
		if core.before(row.core) {
			continue
		}
		if python.before(row.python) {
			return failure.New(what, fmt.Sprintf("it takes an older ansible-core, or a guest with Python %s or newer", row.python))
		}
		break
	}
	return nil
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

// removed is a place where a playbook uses one of the forms.
type removed struct {
	form string
	file string
	line int
}

// task notes the forms that an item of a list uses, if it is a task.
func (f *facts) task(n *yaml.Node) {
	note := func(form string, key *yaml.Node) {
		if key != nil {
			f.removed = append(f.removed, removed{form: form, line: key.Line})
		}
	}
	for _, module := range []string{"include", "command", "shell"} {
		for _, name := range []string{module, "ansible.builtin." + module} {
			key, value := child(n, name)
			switch {
			case module == "include":
				note("include", key)
			case key != nil:
				warn, _ := child(value, "warn")
				note("warn", warn)
				_, args := child(n, "args")
				warn, _ = child(args, "warn")
				note("warn", warn)
			}
		}
	}
}

// child is the key of that name in a mapping, and its value, or nil.
func child(n *yaml.Node, name string) (key, value *yaml.Node) {
	for i := 0; n != nil && n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i], n.Content[i+1]
		}
	}
	return nil, nil
}

// CheckForms says whether the controller's ansible-core still has the forms
// that a playbook uses.
func CheckForms(controller string, in Inputs) error {
	core, _ := releaseOf(controller) // CheckVersions refuses what is none
	for _, form := range forms {
		var places []string
		for _, r := range in.removed {
			if r.form == form.name && !core.before(form.core) {
				places = append(places, fmt.Sprintf("%s:%d", r.file, r.line))
			}
		}
		if places != nil {
			return failure.New(fmt.Sprintf("ansible-core %s has no %s any more (%s)", controller, form.name, strings.Join(places, ", ")),
				fmt.Sprintf("%s, or build with ansible-core %d.%d or older, as Debian 12 has for guests up to Python 3.11",
					form.try, form.core[0], form.core[1]-1))
		}
	}
	return nil
}
