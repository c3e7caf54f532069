package playbook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Check makes sure that this host's Ansible can run the playbook, and that it
// would change the guest: it installs what the requirements ask for beside the
// tree, and asks ansible-playbook for the hosts of each play, with the extra
// variables of the build, for which it reads all that --syntax-check reads.
// Nothing is booted.
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
	out, err := host.Output(ctx, host.Cmd{
		Program: "ansible-playbook", Dir: s.Root, Env: host.Env(s.Env()...), Confined: true,
		Args: []string{"--list-hosts", "--inventory", GuestAlias + ",", "--extra-vars", "@" + vars, filepath.Join(s.Root, filepath.FromSlash(s.File))},
	})
	if err != nil {
		return s.checkFailed(ctx, err)
	}
	return s.checkHosts(string(out), extraVars)
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
	lines := host.Tail(err)
	what := fmt.Sprintf("this host's Ansible refuses the playbook %s", s.File)
	for i, l := range lines {
		lines[i] = strings.ReplaceAll(strings.ReplaceAll(l, s.Root+"/", ""), s.Root, ".")
		if text, found := strings.CutPrefix(lines[i], "ERROR! "); found {
			what += ": " + text
		} else if text, found := strings.CutPrefix(lines[i], "[ERROR]: "); found {
			what += ": " + text
		}
	}
	try := "correct the playbook, or run it with the Ansible it was written for"
	if m := unresolved.FindStringSubmatch(what); m != nil {
		// Debian's ansible-core has no collections, its ansible package has them.
		try = "correct its name, or if it is part of a collection, apt-get install ansible or pin the collection in requirements.yml"
		if name := collectionOf(ctx, m[1]); name != "" {
			try = fmt.Sprintf("it is part of the collection %s, which is not installed: apt-get install ansible, or pin the collection in requirements.yml", name)
		}
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
	// What the tree's own configuration names comes first, as it does without us.
	roles := append(s.configured("roles_path"), filepath.Join(s.Root, "roles"), s.beside("galaxy", "roles"))
	collections := append(s.configured("collections_path", "collections_paths"), filepath.Join(s.Root, "collections"), s.beside("galaxy", "collections"), "/usr/share/ansible/collections")
	env := []string{
		"ANSIBLE_CONFIG=" + config,
		"ANSIBLE_HOME=" + s.beside("ansible"),
		"ANSIBLE_LOCAL_TEMP=" + s.beside("ansible", "tmp"),
		"ANSIBLE_ROLES_PATH=" + strings.Join(roles, ":"),
		"ANSIBLE_COLLECTIONS_PATH=" + strings.Join(collections, ":"),
		"ANSIBLE_NOCOLOR=1",
		"ANSIBLE_NOCOWS=1",
		"ANSIBLE_RETRY_FILES_ENABLED=0",
		// Nobody is there to answer, whatever the tree's configuration says.
		"ANSIBLE_ASK_PASS=0",
		"ANSIBLE_ASK_VAULT_PASS=0",
		"ANSIBLE_BECOME_ASK_PASS=0",
		// ansible-core 2.19 and newer fail on conditions that are not boolean,
		// which all others take; with this they warn.
		"ANSIBLE_ALLOW_BROKEN_CONDITIONALS=1",
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
	if s.Vault.PasswordFile != "" {
		env = append(env, "ANSIBLE_VAULT_PASSWORD_FILE="+s.Vault.PasswordFile)
	}
	if s.Vault.Identities != "" {
		env = append(env, "ANSIBLE_VAULT_IDENTITY_LIST="+s.Vault.Identities)
	}
	return env
}

// configured are the folders that a setting of the tree's ansible.cfg names, by
// one of its names. Relative ones are relative to that file.
func (s Source) configured(names ...string) []string {
	b, err := os.ReadFile(filepath.Join(s.Root, "ansible.cfg"))
	if err != nil {
		return nil
	}
	var dirs []string
	for dir := range strings.SplitSeq(configValue(b, names...), ":") {
		if dir = strings.TrimSpace(dir); dir == "" {
			continue
		}
		dir = strings.ReplaceAll(dir, "{{CWD}}", s.Root)
		if !filepath.IsAbs(dir) && !strings.HasPrefix(dir, "~") {
			dir = filepath.Join(s.Root, dir)
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// configValue is the value of a setting in the defaults of an ansible.cfg, by
// one of its names, as Python's configparser reads it, or "".
func configValue(b []byte, names ...string) string {
	section := ""
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[]")
			continue
		}
		name, value, found := strings.Cut(line, "=")
		if !found {
			name, value, found = strings.Cut(line, ":")
		}
		if found && section == "defaults" && slices.Contains(names, strings.ToLower(strings.TrimSpace(name))) {
			value, _, _ = strings.Cut(value, " ;")
			return strings.TrimSpace(value)
		}
	}
	return ""
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

// install fetches the roles and collections of the requirements.
func (s Source) install(ctx context.Context, report progress.Reporter) error {
	for _, file := range s.Requirements {
		name, _ := filepath.Rel(s.Root, file)
		b, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("reading the requirements: %w", err)
		}
		req, err := parseRequirements(b, path.Base(filepath.Dir(file)))
		if err != nil {
			return failure.Wrap(err, name, "pin every role and collection to one version: x.y.z, or a full commit")
		}
		report.Activity("installing the playbook's requirements")
		for _, kind := range []struct {
			name string
			list []requirement
		}{{"role", req.Roles}, {"collection", req.Collections}} {
			if len(kind.list) == 0 {
				continue
			}
			args := []string{kind.name, "install", "-r", file, "-p", s.beside("galaxy", kind.name+"s")}
			err := host.Run(ctx, host.Cmd{Program: "ansible-galaxy", Args: args, Dir: s.Root, Confined: true,
				Env: host.Env(append(gitVariables(), s.Env()...)...)})
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				return &failure.Error{What: fmt.Sprintf("installing the %ss of %s: %v", kind.name, name, err), Lines: host.Tail(err), Err: err,
					Try: "are the versions there, and the server reachable?"}
			}
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
var pinned = regexp.MustCompile(`^(?:==)?v?[0-9]+(\.[0-9]+)+([-+.][0-9A-Za-z.+-]+)?$|^[0-9a-f]{40}$|^[0-9a-f]{64}$`)

// parseRequirements reads a requirements.yml, in its old form (a list of
// roles, or of collections in a folder of that name) or its new one, and
// refuses what is not pinned.
func parseRequirements(b []byte, folder string) (requirements, error) {
	var req requirements
	var old []requirement
	if err := yaml.Unmarshal(b, &old); err == nil && folder == "collections" {
		req.Collections = old
	} else if err == nil {
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
	case slices.Contains(strings.Split(r.Name, "/"), ".."):
		return fmt.Errorf("%q would be installed outside the folder of roles", name)
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
