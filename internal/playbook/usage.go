package playbook

import (
	"context"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// usage follows a playbook to all that it statically uses.
type usage struct {
	tree  *Tree
	used  map[string]bool
	roles map[string]bool // directories
	plays []string        // directories of the playbooks, which Ansible searches
	queue []string        // files that were not looked into yet
	named []reference     // what names files outside its role
	whole string          // why the tree counts whole
}

// reference is a name that may be one of a file, and who says it.
type reference struct {
	mention
	by, role string // the file, and the directory of its role or ""
}

func newUsage(t *Tree, playbook string) *usage {
	u := &usage{tree: t, used: map[string]bool{}, roles: map[string]bool{}}
	u.playbook(playbook)
	u.always(".")
	return u
}

// files returns what counts, in order.
func (u *usage) files() []string {
	if u.whole != "" {
		return u.tree.disks()
	}
	var files []string
	for _, name := range u.tree.names {
		if u.used[name] {
			files = append(files, name)
		}
	}
	return files
}

// dynamic notes why the whole tree counts; the first reason is told.
func (u *usage) dynamic(format string, args ...any) {
	if u.whole == "" {
		u.whole = fmt.Sprintf(format, args...)
	}
}

// collect looks into files until nothing new is named.
func (u *usage) collect(ctx context.Context, vars *facts) {
	u.apply("the extra variables", vars)
	for u.whole == "" && ctx.Err() == nil {
		if len(u.queue) > 0 {
			name := u.queue[0]
			u.queue = u.queue[1:]
			u.apply(name, u.tree.factsOf(name, u.roleOf(name)))
			continue
		}
		before := len(u.used)
		for _, r := range u.named {
			u.resolve(r)
		}
		if len(u.used) == before {
			return
		}
	}
}

// apply uses what a file says.
func (u *usage) apply(name string, f *facts) {
	role := u.roleOf(name)
	if f.whole != "" {
		u.dynamic("%s %s", name, f.whole)
	}
	for _, file := range f.playbooks {
		if file = path.Join(path.Dir(name), file); !u.tree.isFile(file) {
			u.dynamic("%s imports %s, which is not in it", name, file)
			return
		}
		u.playbook(file)
	}
	for _, r := range f.roles {
		u.role(name, r)
	}
	for _, m := range f.paths {
		u.named = append(u.named, reference{m, name, role})
	}
}

// playbook uses a playbook and what works for all plays beside it.
func (u *usage) playbook(file string) {
	u.use(file)
	if dir := path.Dir(file); !slices.Contains(u.plays, dir) {
		u.plays = append(u.plays, dir)
		u.always(dir)
	}
}

// atWork matches what Ansible reads without being told, beside a playbook or
// at the tree's top (where Env points to).
var atWork = regexp.MustCompile(`^(ansible\.cfg|requirements\.yml|(group|host)_vars(/.*)?|library/.*|module_utils/.*|[a-z]+_plugins/.*|collections/.*)$`)

func (u *usage) always(dir string) {
	for _, name := range u.tree.under(dir) {
		rel := strings.TrimPrefix(name, dir+"/")
		if atWork.MatchString(rel) {
			u.use(name)
		}
	}
}

// use makes a file count, and what it leads to.
func (u *usage) use(name string) {
	if u.used[name] {
		return
	}
	u.used[name] = true
	e := u.tree.files[name]
	switch {
	case e.link == "":
		u.queue = append(u.queue, name)
	case e.leads == "":
		u.dynamic("the link %s leads to another link", name)
	default:
		u.take(e.leads, name)
	}
}

// take uses a file or a directory, with the role that it is in.
func (u *usage) take(name, by string) {
	role := u.tree.roleDir(name)
	if role != "" {
		u.useRole(role)
	}
	if u.tree.files[name] != nil {
		u.use(name)
		return
	}
	for _, file := range u.tree.under(name) {
		if u.tree.roleDir(file) != role {
			u.dynamic("%s names %s, a folder of roles", by, name)
			return
		}
		if !isCheck(file) {
			u.use(file)
		}
	}
}

// roleDir is the directory of the role that name is in: roles/NAME, wherever
// the roles are, or "".
func (t *Tree) roleDir(name string) string {
	parts := strings.Split(name, "/")
	i := slices.Index(parts, "roles")
	if i < 0 || len(parts) < i+2 {
		return ""
	}
	if dir := path.Join(parts[:i+2]...); t.dirs[dir] {
		return dir
	}
	return "" // a file beside the roles
}

// roleOf is the role in use that a file belongs to, or "".
func (u *usage) roleOf(name string) string {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if u.roles[dir] {
			return dir
		}
	}
	return ""
}

// galaxyName is a role of a collection.
var galaxyName = regexp.MustCompile(`^[a-z0-9_]+(\.[a-z0-9_]+){2,}$`)

// role finds a role as Ansible does (lib/ansible/playbook/role/definition.py):
// in roles/ beside the playbook, in the tree's roles/, beside the role that
// names it, and beside the playbook.
func (u *usage) role(by, name string) {
	var places []string
	for _, dir := range u.plays {
		places = append(places, path.Join(dir, "roles"))
	}
	places = append(places, "roles")
	if within := u.roleOf(by); within != "" {
		places = append(places, path.Dir(within))
	}
	places = append(places, u.plays...)
	found := false
	for _, place := range places {
		dir := path.Join(place, name)
		if e := u.tree.files[dir]; e != nil && e.link != "" {
			u.dynamic("the role %s is a link", dir)
		}
		if u.tree.dirs[dir] && dir != "." {
			u.useRole(dir)
			found = true
		}
	}
	if galaxyName.MatchString(name) {
		parts := strings.SplitN(name, ".", 3) // collections count anyway
		found = found || u.tree.dirs[path.Join("collections/ansible_collections", parts[0], parts[1], "roles", parts[2])]
	}
	// The requirements pin what is not here, and count themselves.
	if !found && !u.required(name) {
		u.dynamic("%s uses the role %s, which is not in it", by, name)
	}
}

// required says whether requirements.yml brings the role.
func (u *usage) required(role string) bool {
	for _, dir := range append(slices.Clone(u.plays), ".") {
		if u.tree.requires(path.Join(dir, "requirements.yml"), role) {
			return true
		}
	}
	return false
}

// documents of a role change no disk where nothing in the role names them.
var documents = regexp.MustCompile(`(?i)^((readme|license|changelog|contributing|authors)[^/]*|docs?/.*|molecule/.*|tests/.*|examples?/.*|\.github/.*|\.(ansible-lint|yamllint|gitignore|gitattributes|editorconfig)[^/]*)$`)

// useRole makes a role count, whole.
func (u *usage) useRole(dir string) {
	if u.roles[dir] {
		return
	}
	u.roles[dir] = true
	for _, name := range u.tree.under(dir) {
		if !documents.MatchString(strings.TrimPrefix(name, dir+"/")) {
			u.use(name)
		}
	}
}

// bases are where Ansible looks for a file that somebody names: the folders of
// the role, and those of the playbooks. What begins with ".." may be a
// variable's value, and so another role's to use.
func (u *usage) bases(r reference) []string {
	dirs := append([]string{r.role, path.Dir(r.by)}, u.plays...)
	if strings.HasPrefix(r.path, "..") {
		dirs = append(dirs, slices.Sorted(maps.Keys(u.roles))...)
	}
	var bases []string
	for _, dir := range dirs {
		if dir == "" || slices.Contains(bases, dir) {
			continue
		}
		bases = append(bases, dir)
		for _, sub := range []string{"files", "templates", "vars", "tasks", "handlers"} {
			if d := path.Join(dir, sub); u.tree.dirs[d] {
				bases = append(bases, d)
			}
		}
	}
	return bases
}

// resolve uses what a name may mean.
func (u *usage) resolve(r reference) {
	for _, base := range u.bases(r) {
		full := path.Join(base, r.path)
		u.links(full)
		switch {
		case full == ".." || strings.HasPrefix(full, "../"):
		case strings.ContainsAny(full, wildcards):
			u.match(full)
		case full == "." || full == base && r.role == "":
			u.dynamic("%s names the whole folder %s", r.by, full)
		case full == base: // its own role
		case u.tree.files[full] != nil && !u.used[full]:
			if !u.tree.isPlaybook(full) {
				u.take(full, r.by)
			}
		case u.tree.dirs[full] && r.folder && (r.role == "" || full != r.role):
			u.take(full, r.by)
		}
	}
}

// links uses the links to directories that a path goes through.
func (u *usage) links(name string) {
	for dir := path.Dir(name); dir != "." && dir != ".."; dir = path.Dir(dir) {
		if e := u.tree.files[dir]; e != nil && e.link != "" {
			u.use(dir)
		}
	}
}

// match uses every file whose name, or whose folder's, fits the pattern. A
// wildcard does not lead into a role: what leads there says "roles" or "..".
func (u *usage) match(pattern string) {
	fits := compilePattern(pattern)
	intoRoles := slices.Contains(strings.Split(pattern, "/"), "roles")
	for _, name := range u.tree.names {
		if u.used[name] || !fits.MatchString(name) || isCheck(name) {
			continue
		}
		if (intoRoles || u.tree.roleDir(name) == "") && !u.tree.isPlaybook(name) {
			u.take(name, pattern)
		}
	}
}
