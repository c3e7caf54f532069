package playbook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strconv"
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

// guests are the releases that a cloud image's name may tell: by the words
// that the distributions use in their names.
var guests = []struct {
	word *regexp.Regexp
	Guest
}{
	{word(`bullseye|debian[- ]?11`), Guest{"Debian 11", "3.9"}},
	{word(`bookworm|debian[- ]?12`), Guest{"Debian 12", "3.11"}},
	{word(`trixie|debian[- ]?13`), Guest{"Debian 13", "3.13"}},
	{word(`bionic|ubuntu[- ]?18\.04`), Guest{"Ubuntu 18.04", "3.6"}},
	{word(`focal|ubuntu[- ]?20\.04`), Guest{"Ubuntu 20.04", "3.8"}},
	{word(`jammy|ubuntu[- ]?22\.04`), Guest{"Ubuntu 22.04", "3.10"}},
	{word(`noble|ubuntu[- ]?24\.04`), Guest{"Ubuntu 24.04", "3.12"}},
	{word(`plucky|ubuntu[- ]?25\.04`), Guest{"Ubuntu 25.04", "3.13"}},
	{word(`questing|ubuntu[- ]?25\.10`), Guest{"Ubuntu 25.10", "3.13"}},
	{word(`resolute|ubuntu[- ]?26\.04`), Guest{"Ubuntu 26.04", "3.14"}},
}

func word(alternatives string) *regexp.Regexp {
	return regexp.MustCompile(`(?i)(?:^|[^a-z0-9])(?:` + alternatives + `)(?:[^a-z0-9]|$)`)
}

// GuessGuest tells the release of a cloud image by its names, of which the
// first that says anything counts: addresses, file names (before the folders'),
// what an image says about itself. It reports false where none says anything,
// or one says two things.
func GuessGuest(names ...string) (Guest, bool) {
	for _, name := range names {
		for _, part := range []string{path.Base(name), path.Dir(name)} {
			var found []Guest
			for _, g := range guests {
				if g.word.MatchString(part) {
					found = append(found, g.Guest)
				}
			}
			if len(found) > 0 {
				return found[0], len(found) == 1
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
	if python := ansiblePython(); python != "" {
		// In a folder where no module of the user's is in the way.
		out, err := host.Output(ctx, host.Cmd{Program: python, Args: []string{"-c", "import ansible.release; print(ansible.release.__version__)"}, Dir: "/", Env: host.Env("LC_ALL=C.UTF-8")})
		if version := plainVersion.FindString(string(out)); err == nil && version != "" {
			return version, nil
		}
	}
	out, err := host.Output(ctx, host.Cmd{Program: "ansible-playbook", Args: []string{"--version"}, Env: host.Env("LC_ALL=C.UTF-8")})
	if errors.Is(err, exec.ErrNotFound) {
		return "", noAnsible(err)
	}
	if err != nil {
		return "", failure.Wrap(err, "asking Ansible for its version", "does ansible-playbook --version work?")
	}
	m := coreVersion.FindSubmatch(out)
	if m == nil {
		return "", failure.New(fmt.Sprintf("ansible-playbook --version says %q", firstLine(string(out))), "install ansible-core 2.14 or newer")
	}
	return string(m[1]), nil
}

// plainVersion is a release's version, the beginning of that of a candidate.
var plainVersion = regexp.MustCompile(`^\d+\.\d+\.\d+`)

// shebang is the first line of what pip and Debian install: an interpreter by
// its path. Others, such as env or a wrapper, say nothing of the Python behind.
var shebang = regexp.MustCompile(`^#! ?(/[^\s]*/python[0-9.]*)\n`)

// ansiblePython is the interpreter of ansible-playbook, or "".
func ansiblePython() string {
	file, err := exec.LookPath("ansible-playbook")
	if err != nil {
		return ""
	}
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	head := make([]byte, 256)
	n, _ := io.ReadFull(f, head)
	if m := shebang.FindSubmatch(head[:n]); m != nil {
		return string(m[1])
	}
	return ""
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// oldestPython is, by ansible-core's minor release, the oldest Python that its
// modules run with on a guest (docs.ansible.com, "ansible-core support
// matrix"); newer releases than the last one here are taken to be like it.
var oldestPython = []struct{ core, python [2]int }{
	{[2]int{2, 14}, [2]int{3, 5}},
	{[2]int{2, 16}, [2]int{3, 6}},
	{[2]int{2, 17}, [2]int{3, 7}},
	{[2]int{2, 18}, [2]int{3, 8}},
	{[2]int{2, 20}, [2]int{3, 9}},
}

// CheckVersions says whether the controller's ansible-core (2.14.18) can
// manage the guest, so that a mismatch is named before anything is booted and
// not by a stack trace after it. Up to 2.15 the modules import six in a way
// that Python 3.12 removed; each release also has an oldest Python.
func CheckVersions(controller string, guest Guest) error {
	core, ok := minor(controller)
	python, ok2 := minor(guest.Python)
	if !ok || !ok2 {
		return fmt.Errorf("comparing ansible-core %q with Python %q: no versions", controller, guest.Python)
	}
	what := fmt.Sprintf("this host's ansible-core %s cannot manage %s (Python %s)", controller, guest.Name, guest.Python)
	if !less(python, [2]int{3, 12}) && less(core, [2]int{2, 16}) {
		return failure.New(what, "it takes ansible-core 2.16 or newer: build on Debian 13, in the toolbox, or from an older guest such as Debian 12 or Ubuntu 22.04")
	}
	for i := len(oldestPython) - 1; i >= 0; i-- {
		if row := oldestPython[i]; !less(core, row.core) {
			if less(python, row.python) {
				return failure.New(what, fmt.Sprintf("it takes an older ansible-core, or a guest with Python %d.%d or newer", row.python[0], row.python[1]))
			}
			break
		}
	}
	return nil
}

// minor is the first two numbers of a version.
func minor(version string) (v [2]int, ok bool) {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return v, false
	}
	for i := range v {
		n, err := strconv.Atoi(parts[i])
		if err != nil {
			return v, false
		}
		v[i] = n
	}
	return v, true
}

func less(a, b [2]int) bool { return a[0] < b[0] || a[0] == b[0] && a[1] < b[1] }

// forms are ways of writing that an ansible-core release removed: its syntax
// check sees them in what a playbook imports, not in what it includes.
var forms = map[string]struct {
	core [2]int // the first without it
	try  string
}{
	"include": {[2]int{2, 16}, "write include_tasks or import_tasks"}, // porting guide 2.16
	"warn":    {[2]int{2, 14}, "leave it out"},                        // of command and shell, porting guide 2.14
}

// removed is a place where a playbook uses one of the forms.
type removed struct {
	form  string
	line  int
	where string // FILE:LINE
}

// task notes the forms that an item of a list uses, if it is a task.
func (f *facts) task(n *yaml.Node) {
	note := func(key *yaml.Node) { f.removed = append(f.removed, removed{form: key.Value, line: key.Line}) }
	command := false
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		switch key := n.Content[i]; key.Value {
		case "include", "ansible.builtin.include":
			f.removed = append(f.removed, removed{form: "include", line: key.Line})
		case "command", "shell", "ansible.builtin.command", "ansible.builtin.shell":
			command = true
			child(n.Content[i+1], "warn", note)
		}
	}
	if command {
		child(n, "args", func(args *yaml.Node) { child(n.Content[slices.Index(n.Content, args)+1], "warn", note) })
	}
}

// child calls found with the key of that name in a mapping.
func child(n *yaml.Node, name string, found func(key *yaml.Node)) {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			found(n.Content[i])
		}
	}
}

// CheckForms says whether the controller's ansible-core still has the forms
// that a playbook uses.
func CheckForms(controller string, in Inputs) error {
	core, _ := minor(controller)
	places := map[string][]string{}
	for _, r := range in.removed {
		if !less(core, forms[r.form].core) {
			places[r.form] = append(places[r.form], r.where)
		}
	}
	for _, form := range slices.Sorted(maps.Keys(places)) {
		f := forms[form]
		return failure.New(fmt.Sprintf("ansible-core %s has no %s any more (%s)", controller, form, strings.Join(places[form], ", ")),
			fmt.Sprintf("%s, or build with ansible-core %d.%d or older, as Debian 12 has for guests up to Python 3.11", f.try, f.core[0], f.core[1]-1))
	}
	return nil
}
