package playbook

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// Inputs is what of a tree a build of one playbook reads: Source.Keep takes
// the rest out of the build's copy, so that nothing else can change the disk.
type Inputs struct {
	// Digest, "sha256:…", is the same wherever and whenever the files have the
	// same names below the tree, the same bytes and the same executable bits.
	Digest string
	// Files are those that the digest is of, in order, relative to the tree.
	Files []string
	// Whole says why that is the whole tree, or is empty where other playbooks
	// and the roles that they alone use are left out.
	Whole string

	releases []string            // that the playbook says it is for; see CheckRelease
	removed  map[string][]string // see CheckForms
	groups   bool                // whether groups of hosts are made as the playbook runs
	local    []bool              // for each play, whether it connects to this host
}

// Unreadable says whether a file is not understood, which Ansible may be asked about.
func (i Inputs) Unreadable() bool { return strings.Contains(i.Whole, unreadable) }

// String says in a few words what the digest is of.
func (i Inputs) String() string {
	if i.Whole != "" {
		return "the whole tree: " + i.Whole
	}
	return text.Count(len(i.Files), "file")
}

// Inputs returns what of the tree a build of the playbook called name reads
// with these extra variables.
//
// That is the whole tree without what nothing in the rest names: roles, other
// playbooks, documents and checks. Roles are used by literal names, in plays,
// tasks and dependencies. Where a role's name is made as the playbook runs, or
// a path may lead out of a role, nothing is left out.
//
// The digest is sound whatever this overlooks, for what is left out is not
// there when the playbook runs: the worst is a build that misses a file.
func (t *Tree) Inputs(ctx context.Context, name string, extraVars map[string]any) (Inputs, error) {
	playbook, err := t.Find(name)
	if err != nil {
		return Inputs{}, err
	}
	vars, err := json.Marshal(extraVars)
	if err != nil {
		return Inputs{}, fmt.Errorf("encoding the extra variables: %w", err)
	}
	if err := t.split(); err != nil {
		return Inputs{}, err
	}
	u := usage{tree: t, used: map[string]bool{playbook: true}, looked: map[string]bool{}, in: Inputs{removed: map[string][]string{}}}
	u.apply("the extra variables", factsIn("vars.json", vars))
	key := fmt.Sprintf("%q %q %q", playbook, slices.Sorted(maps.Keys(u.used)), u.in.Whole)
	if in, known := t.inputs[key]; known {
		return in, nil
	}
	if err := u.collect(ctx); err != nil {
		return Inputs{}, err
	}
	if u.encrypted != "" && !t.unlocked() {
		return Inputs{}, failure.New(u.encrypted+" is encrypted by ansible-vault, and there is no password for it",
			"set ANSIBLE_VAULT_PASSWORD_FILE, or ANSIBLE_VAULT_IDENTITY_LIST")
	}
	in := u.in
	in.Files = slices.DeleteFunc(slices.Clone(t.names), u.leavesOut)
	in.Digest = t.digest(playbook, in.Files)
	in.local = t.localPlays(playbook, map[string]bool{})
	in.releases = t.releases(playbook)
	t.inputs[key] = in
	return in, nil
}

// digest is the digest of files that were read: of their names, kinds and contents.
func (t *Tree) digest(playbook string, files []string) string {
	h := sha256.New()
	fmt.Fprintf(h, "playbook %q\n", playbook)
	for _, name := range files {
		f, kind := t.files[name], "file"
		switch {
		case f.link != "":
			kind = "link"
		case f.exec:
			kind = "program"
		}
		fmt.Fprintf(h, "%s %q %s\n", kind, name, f.digest)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// unlocked says whether Ansible gets a vault's password.
func (t *Tree) unlocked() bool {
	config, err := t.read("ansible.cfg")
	return t.Vault != Vault{} || err == nil && configValue(config.facts.text, "vault_password_file", "vault_identity_list") != ""
}

// part is something that a build may leave out: a role, another playbook, a
// document, a check. All other files always count.
type part struct {
	path  string // of the folder or the file
	named string // what names it: "role NAME", or the last part of its path
	check bool   // it changes no disk, even where all else may
}

// documents are what people and their tools read, at the top of a tree and of
// a role; Ansible reads none of them.
var documents = regexp.MustCompile(`(?i)^((readme|license|changelog|contributing|authors)(\.[^/]*)?` +
	`|docs|molecule|tests|examples|catalogue\.ya?ml|makefile|taskfile\.ya?ml|jenkinsfile|\.[^/]+)$`)

// split finds the parts of all files, and the words that name them, once.
func (t *Tree) split() error {
	if t.words != nil {
		return nil
	}
	words := []string{}
	for _, name := range t.names {
		parts, err := t.partsOf(name)
		if err != nil {
			return err
		}
		t.files[name].parts = parts
		for _, p := range parts {
			if !strings.HasPrefix(p.named, "role ") {
				words = append(words, p.named)
			}
		}
	}
	slices.Sort(words)
	t.words = slices.Compact(words)
	return nil
}

// partsOf are the parts that a file is in; it counts if all of them do.
func (t *Tree) partsOf(name string) ([]part, error) {
	elem := strings.Split(name, "/")
	rest := elem
	var parts []part
	// A plain file beside the roles, such as roles/requirements.yml, is none.
	if i := slices.Index(elem, "roles"); i >= 0 && elem[0] != "collections" && (len(elem) > i+2 || len(elem) == i+2 && t.files[name].link != "") {
		parts = append(parts, part{path: path.Join(elem[:i+2]...), named: "role " + elem[i+1]})
		rest = elem[i+2:]
	}
	switch ext := path.Ext(name); {
	case len(rest) > 0 && documents.MatchString(rest[0]):
		top := path.Join(elem[:len(elem)-len(rest)+1]...)
		if top == "tests" { // the tree's checks are named one by one
			top = name
		}
		parts = append(parts, part{path: top, named: path.Base(top), check: path.Dir(name) == "tests" && ext == ".yaml"})
	case len(parts) == 0 && (ext == ".yml" || ext == ".yaml"):
		f, err := t.read(name)
		if err != nil {
			return nil, err
		}
		if f.facts.plays != nil {
			parts = append(parts, part{path: name, named: path.Base(name)})
		}
	}
	return parts, nil
}

// usage is what a playbook uses.
type usage struct {
	tree      *Tree
	used      map[string]bool // what names parts, and paths of parts
	looked    map[string]bool // files that were looked into
	encrypted string          // the first file that ansible-vault encrypted
	in        Inputs
}

// leavesOut says whether a file does not count.
func (u *usage) leavesOut(name string) bool {
	return !u.used[name] && slices.ContainsFunc(u.tree.files[name].parts, func(p part) bool {
		return !u.used[p.path] && !u.used[p.named] && (u.in.Whole == "" || p.check)
	})
}

// collect looks into all files that count, until no further one does.
func (u *usage) collect(ctx context.Context) error {
	for more := true; more; {
		more = false
		for _, name := range u.tree.names {
			if u.looked[name] || u.leavesOut(name) {
				continue
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			f, err := u.tree.read(name)
			if err != nil {
				return err
			}
			u.looked[name], more = true, true
			u.apply(name, f.facts)
			u.follow(name, f)
		}
	}
	return nil
}

// apply uses what a file names.
func (u *usage) apply(name string, f facts) {
	if f.whole != "" {
		u.whole(name + " " + f.whole)
	}
	for _, role := range f.roles {
		u.used["role "+role] = true
	}
	for _, word := range u.tree.words {
		if !u.used[word] && bytes.Contains(f.text, []byte(word)) {
			u.used[word] = true
		}
	}
	if f.encrypted {
		u.encrypted = cmp.Or(u.encrypted, name)
	}
	u.in.groups = u.in.groups || bytes.Contains(f.text, []byte("group_by")) || bytes.Contains(f.text, []byte("add_host"))
	for form, places := range f.removed {
		u.in.removed[form] = append(u.in.removed[form], places...)
	}
}

// whole notes the first reason why nothing is left out.
func (u *usage) whole(why string) { u.in.Whole = cmp.Or(u.in.Whole, why) }

// follow uses what a link leads to.
func (u *usage) follow(name string, f *file) {
	if f.link == "" {
		return
	}
	if f.leads == "" {
		u.whole(fmt.Sprintf("the link %s leads to another link", name))
	}
	for _, target := range u.tree.names {
		if target == f.leads || strings.HasPrefix(target, f.leads+"/") {
			for _, p := range u.tree.files[target].parts {
				u.used[p.path] = true
			}
		}
	}
}
