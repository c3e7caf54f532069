package playbook

import (
	"cmp"
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

// GuestAlias is the guest's name in the inventory, Packer's own.
const GuestAlias = "default"

// Check makes sure that this host's Ansible can run the playbook, and that it
// would change the guest: it installs what the requirements ask for beside the
// tree, and asks ansible-playbook for the hosts of each play, with the extra
// variables of the build, for which it reads all that --syntax-check reads.
// Nothing is booted.
func (s Source) Check(ctx context.Context, in Inputs, extraVars map[string]any, report progress.Reporter) error {
	// Ansible wants its configuration to be a file, be it an empty one.
	if err := errors.Join(os.MkdirAll(s.beside("ansible", "tmp"), 0o700), os.WriteFile(s.beside("ansible.cfg"), nil, 0o600)); err != nil {
		return fmt.Errorf("preparing Ansible: %w", err)
	}
	for _, file := range s.Requirements {
		if err := s.install(ctx, file, report); err != nil {
			return err
		}
	}
	report.Activity("checking the playbook's syntax")
	vars := s.beside("check-vars.json")
	defer os.Remove(vars)
	if err := WriteExtraVars(vars, extraVars); err != nil {
		return err
	}
	out, err := host.Output(ctx, host.Cmd{
		Program: "ansible-playbook", Dir: s.Root, Env: host.Env(s.Env()...), Confined: true,
		Args: []string{"--list-hosts", "--inventory", GuestAlias + ",", "--extra-vars", "@" + vars, filepath.Join(s.Root, filepath.FromSlash(s.File))},
	})
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return err
	case err != nil:
		return s.refused(ctx, err)
	}
	return s.checkHosts(string(out), in, extraVars["ansible_connection"] == "local")
}

// refused is the error of a playbook that ansible-playbook does not take.
func (s Source) refused(ctx context.Context, err error) error {
	lines := host.Tail(err)
	what := fmt.Sprintf("this host's Ansible refuses the playbook %s", s.File)
	for i, l := range lines {
		lines[i] = strings.ReplaceAll(strings.ReplaceAll(l, s.Root+"/", ""), s.Root, ".")
		for _, start := range []string{"ERROR! ", "[ERROR]: "} {
			if reason, found := strings.CutPrefix(lines[i], start); found {
				what += ": " + reason
			}
		}
	}
	try := "correct the playbook, or run it with the Ansible it was written for"
	if m := unresolved.FindStringSubmatch(what); m != nil {
		// Debian's ansible-core has no collections, its ansible package has them.
		try = "correct its name, or if it is part of a collection, apt-get install ansible or pin the collection in requirements.yml"
		if name := collectionOf(ctx, m[1]); name != "" {
			try = fmt.Sprintf("it is part of the collection %s, which is not installed: "+
				"apt-get install ansible, or pin the collection in requirements.yml", name)
		}
	}
	return &failure.Error{What: what, Lines: lines, Err: err, Try: try}
}

// unresolved is what ansible-core says of a module that it does not find.
var unresolved = regexp.MustCompile(`couldn't resolve module/action '([A-Za-z0-9_.]+)'`)

// collectionOf is the collection that a module is named as part of, or that a
// module of Ansible 2.9 moved to by ansible-core's own list, or "".
func collectionOf(ctx context.Context, module string) string {
	if strings.Count(module, ".") < 2 {
		var list struct {
			Routing map[string]map[string]struct{ Redirect string } `yaml:"plugin_routing"`
		}
		said, _ := saysVersion(ctx) // without it, and without the list, nobody knows
		if folder := coreFolder.FindStringSubmatch(said); folder != nil {
			b, _ := os.ReadFile(filepath.Join(folder[1], "config", "ansible_builtin_runtime.yml"))
			_ = yaml.Unmarshal(b, &list)
		}
		module = cmp.Or(list.Routing["modules"][module].Redirect, list.Routing["action"][module].Redirect)
	}
	if parts := strings.Split(module, "."); len(parts) > 2 {
		return parts[0] + "." + parts[1]
	}
	return ""
}

// listedPlay is a play, its name and hosts (those of the inventory, and
// localhost), as ansible-playbook --list-hosts lists them.
var listedPlay = regexp.MustCompile(`(?m)^  play #\d+ \((.*)\):.*\n` +
	`(?:    .*\n)*?    hosts \(\d+\):\n((?:      .*\n)*)`)

// checkHosts refuses a playbook that would not touch the guest, by Ansible's
// list of its plays and their hosts: one that is for localhost changes this
// host, and one for a group that is not there does nothing.
func (s Source) checkHosts(list string, in Inputs, local bool) error {
	const try = "write hosts: all, which is the guest"
	guest, elsewhere := false, false
	plays := listedPlay.FindAllStringSubmatch(list, -1)
	for i, p := range plays {
		// Which play is which cannot be told where Ansible counts others than we do.
		local := local || len(in.local) == len(plays) && in.local[i]
		switch name, hosts := p[1], strings.Fields(p[2]); {
		case len(hosts) == 0 && !in.groups:
			return failure.New(fmt.Sprintf("the play %q of %s matches no host: there is one, the guest", name, s.File), try)
		case slices.Contains(hosts, GuestAlias) && !local:
			guest = true
		case len(hosts) > 0:
			elsewhere = true
		}
	}
	if elsewhere && !guest {
		return failure.New(fmt.Sprintf("no play of %s is for the guest: "+
			"they are for localhost or connect locally, and would change this host", s.File), try)
	}
	return nil
}

// localPlays says which plays of a playbook connect to this host, with those
// that it imports in their place.
func (t *Tree) localPlays(playbook string, within map[string]bool) []bool {
	f := t.files[playbook]
	if f == nil || within[playbook] {
		return nil
	}
	within[playbook] = true
	defer delete(within, playbook)
	var all []bool
	for _, p := range f.facts.plays {
		if imported := p.Import.Value + p.FullImport.Value; imported != "" {
			all = append(all, t.localPlays(path.Join(path.Dir(playbook), imported), within)...)
			continue
		}
		var vars map[string]any
		_ = p.Vars.Decode(&vars)
		all = append(all, strings.TrimPrefix(p.Connection.Value, "ansible.builtin.") == "local" || vars["ansible_connection"] == "local")
	}
	return all
}

// WriteExtraVars writes variables to a file as JSON that only we can read, for
// ansible-playbook --extra-vars @FILE: values never stand on a command line.
func WriteExtraVars(file string, vars map[string]any) error {
	if vars == nil {
		vars = map[string]any{}
	}
	b, err := json.Marshal(vars)
	if err != nil {
		return fmt.Errorf("encoding the extra variables: %w", err)
	}
	_ = os.Remove(file) // it may be readable by others
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return fmt.Errorf("writing the extra variables: %w", err)
	}
	return nil
}

// Env are the variables that make Ansible use this tree and nothing of the
// user's own: configuration, roles, collections and state are the tree's or
// lie beside it. They are to be added to command.Env.
func (s Source) Env() []string {
	config := cmp.Or(s.companion("ansible.cfg"), s.beside("ansible.cfg"))
	// What the tree's own configuration names comes first, as it does without us.
	roles := append(s.folders("roles_path"), filepath.Join(s.Root, "roles"), s.beside("galaxy", "roles"))
	collections := append(s.folders("collections_path", "collections_paths"),
		filepath.Join(s.Root, "collections"), s.beside("galaxy", "collections"), "/usr/share/ansible/collections")
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

// folders are those that a setting of the tree's ansible.cfg names, by one of
// its names. Relative ones are relative to that file.
func (s Source) folders(names ...string) []string {
	b, _ := os.ReadFile(filepath.Join(s.Root, "ansible.cfg")) // it need not be there
	var dirs []string
	for dir := range strings.FieldsFuncSeq(configValue(b, names...), func(r rune) bool { return r == ':' }) {
		dir = strings.ReplaceAll(strings.TrimSpace(dir), "{{CWD}}", s.Root)
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
	_, defaults, _ := strings.Cut("\n"+string(b), "\n[defaults]")
	defaults, _, _ = strings.Cut(defaults, "\n[")
	setting := regexp.MustCompile(`(?im)^[ \t]*(?:` + strings.Join(names, "|") + `)[ \t]*[=:][ \t]*(.*?)[ \t\r]*(?: ;.*)?$`)
	if m := setting.FindStringSubmatch(defaults); m != nil {
		return m[1]
	}
	return ""
}
