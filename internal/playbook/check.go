package playbook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/command"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Check makes sure that this host's Ansible can run the playbook: it installs
// what requirements.yml asks for beside the tree, and asks ansible-playbook
// for a syntax check with the extra variables of the build. Nothing is booted.
func (s Source) Check(ctx context.Context, extraVars map[string]any, report progress.Reporter) error {
	if err := s.prepare(); err != nil {
		return err
	}
	if err := s.install(ctx, report); err != nil {
		return err
	}
	report.Activity("checking the playbook's syntax")
	vars, err := WriteExtraVars(s.beside("check-vars.json"), extraVars)
	if err != nil {
		return err
	}
	defer os.Remove(vars)
	err = command.Run(ctx, command.Cmd{
		Program: "ansible-playbook", Dir: s.Root, Env: command.Env(s.Env()...), Confined: true,
		Args: []string{"--syntax-check", "--inventory", "default,", "--extra-vars", "@" + vars, filepath.Join(s.Root, filepath.FromSlash(s.File))},
	})
	return s.checkFailed(ctx, err)
}

func (s Source) checkFailed(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, exec.ErrNotFound):
		return noAnsible(err)
	}
	lines := command.Tail(err)
	what := fmt.Sprintf("this host's Ansible refuses the playbook %s", s.File)
	for i, l := range lines {
		lines[i] = strings.ReplaceAll(strings.ReplaceAll(l, s.Root+"/", ""), s.Root, ".")
		if text, found := strings.CutPrefix(lines[i], "ERROR! "); found {
			what += ": " + text
		} else if text, found := strings.CutPrefix(lines[i], "[ERROR]: "); found {
			what += ": " + text
		}
	}
	try := "mend the playbook, or run it with the Ansible it was written for"
	if strings.Contains(what, "couldn't resolve module/action") {
		// Debian's ansible-core has no collections, its ansible package has them.
		try = "correct its name, or if it is part of a collection, apt-get install ansible or pin the collection in requirements.yml"
	}
	return &failure.Error{What: what, Lines: lines, Err: err, Try: try}
}

func noAnsible(err error) error {
	return failure.Wrap(err, "Ansible is not installed", "apt-get install ansible-core")
}

// WriteExtraVars writes variables to path as JSON that only we can read, for
// ansible-playbook --extra-vars @path: values never stand on a command line.
func WriteExtraVars(path string, vars map[string]any) (string, error) {
	if vars == nil {
		vars = map[string]any{}
	}
	b, err := json.Marshal(vars)
	if err != nil {
		return "", fmt.Errorf("encoding the extra variables: %w", err)
	}
	_ = os.Remove(path)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", fmt.Errorf("writing the extra variables: %w", err)
	}
	_, err = f.Write(b)
	return path, errors.Join(err, f.Close())
}

// Env are the variables that make Ansible use this tree and nothing of the
// user's own: configuration, roles, collections and state are the tree's or
// lie beside it. They are to be added to command.Env.
func (s Source) Env() []string {
	config := s.companion("ansible.cfg")
	if config == "" {
		config = s.beside("ansible.cfg")
	}
	return []string{
		"ANSIBLE_CONFIG=" + config,
		"ANSIBLE_HOME=" + s.beside("ansible"),
		"ANSIBLE_LOCAL_TEMP=" + s.beside("ansible", "tmp"),
		"ANSIBLE_ROLES_PATH=" + filepath.Join(s.Root, "roles") + ":" + s.beside("galaxy", "roles"),
		"ANSIBLE_COLLECTIONS_PATH=" + filepath.Join(s.Root, "collections") + ":" + s.beside("galaxy", "collections") + ":/usr/share/ansible/collections",
		"ANSIBLE_NOCOLOR=1",
		"ANSIBLE_NOCOWS=1",
		"ANSIBLE_RETRY_FILES_ENABLED=0",
		// The form that the build's progress is read from.
		"ANSIBLE_STDOUT_CALLBACK=default",
		"ANSIBLE_CALLBACK_RESULT_FORMAT=json",
		"ANSIBLE_DISPLAY_FAILED_STDERR=0",
		"ANSIBLE_SHOW_TASK_PATH_ON_FAILURE=0",
		"ANSIBLE_DEPRECATION_WARNINGS=0",
		"ANSIBLE_LOCALHOST_WARNING=0",
		"ANSIBLE_INVENTORY_UNPARSED_WARNING=0",
		"PYTHONUNBUFFERED=1",
		"LC_ALL=C.UTF-8",
	}
}

// beside is a path in our directory, next to the tree.
func (s Source) beside(elem ...string) string {
	return filepath.Join(append([]string{filepath.Dir(s.Root)}, elem...)...)
}

// prepare makes what Env names.
func (s Source) prepare() error {
	if err := os.MkdirAll(s.beside("ansible", "tmp"), 0o700); err != nil {
		return fmt.Errorf("preparing Ansible: %w", err)
	}
	// Ansible wants its configuration to be a file, be it an empty one.
	if err := os.WriteFile(s.beside("ansible.cfg"), nil, 0o600); err != nil {
		return fmt.Errorf("preparing Ansible: %w", err)
	}
	return nil
}

// install fetches the roles and collections of requirements.yml.
func (s Source) install(ctx context.Context, report progress.Reporter) error {
	if s.Requirements == "" {
		return nil
	}
	b, err := os.ReadFile(s.Requirements)
	if err != nil {
		return fmt.Errorf("reading the requirements: %w", err)
	}
	req, err := parseRequirements(b)
	if err != nil {
		return failure.Wrap(err, "requirements.yml", "pin every role and collection to one version: x.y.z, or a full commit")
	}
	report.Activity("installing the playbook's requirements")
	for kind, list := range map[string][]requirement{"role": req.Roles, "collection": req.Collections} {
		if len(list) == 0 {
			continue
		}
		args := []string{kind, "install", "-r", s.Requirements, "-p", s.beside("galaxy", kind+"s")}
		err := command.Run(ctx, command.Cmd{Program: "ansible-galaxy", Args: args, Dir: s.Root, Confined: true,
			Env: command.Env(append(gitVariables(), s.Env()...)...)})
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return &failure.Error{What: fmt.Sprintf("installing the %ss of requirements.yml: %v", kind, err), Lines: command.Tail(err), Err: err,
				Try: "are the versions there, and the server reachable?"}
		}
	}
	return nil
}

// requirements is the content of a requirements.yml.
type requirements struct {
	Roles       []requirement `yaml:"roles"`
	Collections []requirement `yaml:"collections"`
}

// requirement is one role or collection. The short form, a bare name, has no
// version and is refused with all others that have none.
type requirement struct {
	Name    string `yaml:"name"`
	Src     string `yaml:"src"`
	Source  string `yaml:"source"`
	Type    string `yaml:"type"`
	SCM     string `yaml:"scm"`
	Version string `yaml:"version"`
	Include string `yaml:"include"`
}

// UnmarshalYAML accepts the short form, for the sake of a better error.
func (r *requirement) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		r.Name = n.Value
		return nil
	}
	type plain requirement
	return n.Decode((*plain)(r))
}

// pinned are versions that name one thing: a release, a tag that looks like
// one, a full commit. A branch, a range or "latest" is none.
var pinned = regexp.MustCompile(`^v?[0-9]+(\.[0-9]+)+([-+.][0-9A-Za-z.+-]+)?$|^[0-9a-f]{40}$|^[0-9a-f]{64}$`)

// parseRequirements reads a requirements.yml, in its old form (a list of
// roles) or its new one, and refuses what is not pinned.
func parseRequirements(b []byte) (requirements, error) {
	var req requirements
	var old []requirement
	if err := yaml.Unmarshal(b, &old); err == nil {
		req.Roles = old
	} else if err := yaml.Unmarshal(b, &req); err != nil {
		return req, fmt.Errorf("is no list of roles and collections: %s", strings.Join(strings.Fields(err.Error()), " "))
	}
	for _, r := range append(append([]requirement(nil), req.Roles...), req.Collections...) {
		if err := r.check(); err != nil {
			return req, err
		}
	}
	return req, nil
}

func (r requirement) check() error {
	name := r.Name
	if name == "" {
		name = r.Src
	}
	switch {
	case r.Include != "":
		return fmt.Errorf("includes %q: name its roles here", r.Include)
	case r.Version == "":
		return fmt.Errorf("%q has no version", name)
	case !pinned.MatchString(r.Version):
		return fmt.Errorf("%q has the version %q, which may mean another one tomorrow", name, r.Version)
	}
	for _, v := range []string{r.Name, r.Src, r.Source} {
		if strings.HasPrefix(v, "-") || strings.Contains(v, "::") || strings.HasPrefix(v, "http://") {
			return fmt.Errorf("%q comes from where nothing may be fetched from", name)
		}
	}
	return nil
}
