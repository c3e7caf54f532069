package playbook

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// GuestAlias is the guest's name in the inventory, Packer's own.
const GuestAlias = "default"

// play is what ansible-playbook --list-hosts says of a play.
type play struct {
	name  string   // as Ansible shows it
	hosts []string // those of the inventory, and localhost
}

var (
	playLine  = regexp.MustCompile(`^  play #\d+ \((.*)\):`)
	hostsLine = regexp.MustCompile(`^    hosts \(\d+\):`)
)

// plays reads the list of plays and their hosts.
func plays(list string) []play {
	var all []play
	hosts := false
	for line := range strings.Lines(list) {
		line = strings.TrimRight(line, "\r\n")
		if m := playLine.FindStringSubmatch(line); m != nil {
			all, hosts = append(all, play{name: m[1]}), false
		} else if hostsLine.MatchString(line) {
			hosts = true
		} else if host := strings.TrimSpace(line); hosts && host != "" && len(all) > 0 {
			all[len(all)-1].hosts = append(all[len(all)-1].hosts, host)
		}
	}
	return all
}

// checkHosts refuses a playbook that would not touch the guest, by what
// Ansible says of its plays' hosts: one that is for localhost changes this
// host, and one for a group that is not there does nothing.
func (s Source) checkHosts(list string, extraVars map[string]any) error {
	const try = "write hosts: all, which is the guest"
	guest, elsewhere := false, false
	all := plays(list)
	local := s.localPlays(s.File, len(all))
	for i, p := range all {
		switch {
		case len(p.hosts) == 0 && !s.makesGroups():
			return failure.New(fmt.Sprintf("the play %q of %s matches no host: there is one, the guest", p.name, s.File), try)
		case slices.Contains(p.hosts, GuestAlias) && !local[i] && extraVars["ansible_connection"] != "local":
			guest = true
		case len(p.hosts) > 0:
			elsewhere = true
		}
	}
	if elsewhere && !guest {
		return failure.New(fmt.Sprintf("no play of %s is for the guest: they are for localhost or connect locally, and would change this host", s.File), try)
	}
	return nil
}

// makesGroups says whether the tree makes groups of hosts as it runs: no play
// can be said to match none before that.
func (s Source) makesGroups() bool {
	found := false
	_ = filepath.WalkDir(s.Root, func(file string, d os.DirEntry, err error) error {
		if ext := path.Ext(file); err != nil || found || !d.Type().IsRegular() || ext != ".yml" && ext != ".yaml" && ext != "" {
			return err
		}
		b, err := os.ReadFile(file)
		found = found || strings.Contains(string(b), "group_by") || strings.Contains(string(b), "add_host")
		return err
	})
	return found
}

// localPlays says which plays of a playbook connect to this host, with those
// that it imports in their place; all none where that cannot be told.
func (s Source) localPlays(file string, want int) []bool {
	local := s.connections(file, map[string]bool{})
	if len(local) != want {
		return make([]bool, want)
	}
	return local
}

func (s Source) connections(file string, seen map[string]bool) []bool {
	var plays []struct {
		Import     string `yaml:"import_playbook"`
		FullImport string `yaml:"ansible.builtin.import_playbook"`
		Connection string
		Vars       yaml.Node
	}
	b, err := os.ReadFile(filepath.Join(s.Root, filepath.FromSlash(file)))
	if err != nil || seen[file] || yaml.Unmarshal(b, &plays) != nil {
		return nil
	}
	seen[file] = true
	var local []bool
	for _, p := range plays {
		if imported := p.Import + p.FullImport; imported != "" {
			local = append(local, s.connections(path.Join(path.Dir(file), imported), seen)...)
			continue
		}
		var vars map[string]any
		_ = p.Vars.Decode(&vars)
		local = append(local, strings.TrimPrefix(p.Connection, "ansible.builtin.") == "local" || vars["ansible_connection"] == "local")
	}
	seen[file] = false
	return local
}

// unresolved is what ansible-core says of a module that it has not.
var unresolved = regexp.MustCompile(`couldn't resolve module/action '([A-Za-z0-9_.]+)'`)

// collectionOf is the collection that a module moved to, by ansible-core's own
// list (its ansible_builtin_runtime.yml), or is named as part of, or "".
func collectionOf(ctx context.Context, module string) string {
	parts := strings.Split(module, ".")
	if len(parts) > 2 {
		return parts[0] + "." + parts[1]
	}
	python := ansiblePython()
	if python == "" {
		return ""
	}
	out, err := host.Output(ctx, host.Cmd{Program: python, Dir: "/", Env: host.Env("LC_ALL=C.UTF-8"),
		Args: []string{"-c", "import ansible.config, os; print(os.path.dirname(ansible.config.__file__))"}})
	if err != nil {
		return ""
	}
	b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "ansible_builtin_runtime.yml"))
	if err != nil {
		return ""
	}
	type redirect struct{ Redirect string }
	var runtime struct {
		Routing struct{ Modules, Action map[string]redirect } `yaml:"plugin_routing"`
	}
	if yaml.Unmarshal(b, &runtime) != nil {
		return ""
	}
	for _, list := range []map[string]redirect{runtime.Routing.Modules, runtime.Routing.Action} {
		if to := strings.Split(list[module].Redirect, "."); len(to) > 2 {
			return to[0] + "." + to[1]
		}
	}
	return ""
}
