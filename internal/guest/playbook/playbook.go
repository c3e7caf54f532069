// Package playbook finds the Ansible playbook that configures an image, in a
// directory, a git repository or the program itself, and makes sure, before
// anything is booted, that this host's Ansible can run it.
package playbook

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Where the playbooks come from when only one of GitURL and GitBranch is set,
// and where they are in that repository.
const (
	DefaultGitURL    = "https://github.com/netgroup-polito/CrownLabs.git"
	DefaultGitBranch = "master"
	DefaultGitPath   = "provisioning/virtual-machines/ansible"
)

// Options say where the playbook is. AnsibleDir wins over git, git (either of
// GitURL and GitBranch set) over Embedded.
type Options struct {
	AnsibleDir string
	GitURL     string
	GitBranch  string // branch, tag or full commit
	GitPath    string // the tree within the repository; DefaultGitPath if empty
	Embedded   fs.FS  // the tree that the program carries
	// Playbook is a path in the tree, or the name of a playbook in its
	// playbooks folder; .yml or .yaml may be left out.
	Playbook string
	// Dir is a directory of ours for the copy of the tree; it is created.
	// What a former call left there is replaced.
	Dir string
	// Results are folders and files of builds, absolute paths: no part of the
	// tree where they are in AnsibleDir.
	Results []string
	Vault   Vault
}

// Source is a playbook and the tree it belongs to, copied to this disk: what
// was checked is what will run, whatever happens to the original.
type Source struct {
	Root         string   // absolute path of the tree
	File         string   // the playbook, relative to Root
	URL          string   // where the tree came from: a git URL, a directory, or "" for the program's own
	Revision     string   // full commit, or "sha256:…" of the tree's content
	Checks       string   // absolute path of tests/<playbook>.yaml, or ""
	Allow        string   // absolute path of tests/<playbook>.allow.yaml, what the hygiene gate excuses, or ""
	Requirements []string // absolute paths of files with roles and collections to install
	Vault        Vault
}

// Vault says how Ansible gets at files that ansible-vault encrypted.
type Vault struct {
	PasswordFile string // absolute path, or ""
	Identities   string // LABEL@FILE, separated by commas, or ""
}

// Passwords are the passwords that stand in the vaults' files. A file that can be
// executed is asked by Ansible, and tells nothing here.
func (v Vault) Passwords() []string {
	files := []string{v.PasswordFile}
	for one := range strings.SplitSeq(v.Identities, ",") {
		_, file, found := strings.Cut(one, "@")
		if !found {
			file = one
		}
		files = append(files, file)
	}
	var all []string
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 != 0 {
			continue
		}
		if b, err := host.ReadFile(file, 1<<16); err == nil {
			all = append(all, strings.TrimSpace(string(b)))
		}
	}
	return all
}

// Resolve copies the tree to opts.Dir and finds the playbook in it. Errors
// that a person must act on are a *failure.Error.
func Resolve(ctx context.Context, opts Options, report progress.Reporter) (Source, error) {
	if err := ValidateName(opts.Playbook); err != nil {
		return Source{}, err
	}
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return Source{}, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Source{}, fmt.Errorf("making the playbooks' directory: %w", err)
	}
	root := filepath.Join(dir, "tree")
	if err := os.RemoveAll(root); err != nil {
		return Source{}, fmt.Errorf("clearing the playbooks' directory: %w", err)
	}
	s, err := fetch(ctx, opts, dir, root, report)
	if err != nil {
		return Source{}, err
	}
	s.Root = root
	if s.Revision == "" {
		if s.Revision, err = digest(root); err != nil {
			return Source{}, fmt.Errorf("hashing the playbooks: %w", err)
		}
	}
	isFile := func(name string) bool { return isFile(root, name) }
	list := func() []string { return playbooksOf(os.DirFS(root), isFile) }
	if s.File, err = find(opts.Playbook, isFile, list); err != nil {
		return Source{}, err
	}
	s.Checks = s.companion(checksOf(s.File))
	s.Allow = s.companion(strings.TrimSuffix(checksOf(s.File), ".yaml") + ".allow.yaml")
	s.Vault = opts.Vault
	s.Requirements = s.requirements()
	return s, nil
}

// requirements are the files that AWX and Semaphore look for, too: beside the
// playbook or at the tree's top, by themselves or in a folder for their kind.
func (s Source) requirements() []string {
	var files []string
	for _, folder := range []string{"", "roles", "collections"} {
		for _, beside := range []string{path.Dir(s.File), "."} {
			found := s.companion(beside, folder, "requirements.yml")
			if found == "" {
				found = s.companion(beside, folder, "requirements.yaml")
			}
			if found != "" && !slices.Contains(files, found) {
				files = append(files, found)
				break
			}
		}
	}
	return files
}

// fetch fills root with the tree from where opts say.
func fetch(ctx context.Context, opts Options, dir, root string, report progress.Reporter) (Source, error) {
	switch {
	case opts.AnsibleDir != "":
		return fromDir(ctx, opts.AnsibleDir, append(opts.Results, dir), root, report)
	case opts.GitURL != "" || opts.GitBranch != "":
		return fromGit(ctx, opts, dir, root, report)
	case opts.Embedded != nil:
		return Source{}, copyTree(ctx, opts.Embedded, nil, root, report)
	}
	return Source{}, errNoSource()
}

func errNoSource() error {
	return failure.New("there is no playbook to run", "set ANSIBLE_DIR to a directory of playbooks, or GIT_ANSIBLE_URL to a repository")
}

// fromDir copies a directory of the user's.
func fromDir(ctx context.Context, dir string, results []string, root string, report progress.Reporter) (Source, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return Source{}, err
	}
	r, err := os.OpenRoot(abs)
	if err != nil {
		return Source{}, failure.Wrap(err, "reading the playbooks in ANSIBLE_DIR", "name a directory that is there")
	}
	defer r.Close()
	if err := missingSubmodule(abs); err != nil {
		return Source{}, err
	}
	return Source{URL: abs}, copyTree(ctx, r.FS(), within(abs, results), root, report)
}

// Keep takes what is not among the inputs out of the copy of the tree, so that
// no file can change the disk without changing their digest. What verify and
// the hygiene gate read is kept beside the tree.
func (s *Source) Keep(in Inputs) error {
	if err := os.MkdirAll(s.beside("tests"), 0o700); err != nil {
		return fmt.Errorf("keeping the playbook's checks: %w", err)
	}
	for _, file := range []*string{&s.Checks, &s.Allow} {
		if *file == "" {
			continue
		}
		b, err := os.ReadFile(*file)
		if err == nil {
			*file = s.beside("tests", filepath.Base(*file))
			err = os.WriteFile(*file, b, 0o600)
		}
		if err != nil {
			return fmt.Errorf("keeping the playbook's checks: %w", err)
		}
	}
	kept := make(map[string]bool, len(in.Files))
	for _, name := range in.Files {
		kept[name] = true
	}
	err := filepath.WalkDir(s.Root, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(s.Root, file)
		if err != nil || kept[filepath.ToSlash(name)] {
			return err
		}
		return os.Remove(file)
	})
	if err != nil {
		return fmt.Errorf("taking out what the playbook does not use: %w", err)
	}
	return nil
}

// companion is the absolute path of a regular file of the tree, or "".
func (s Source) companion(elem ...string) string {
	name := path.Join(elem...)
	if !isFile(s.Root, name) {
		return ""
	}
	return filepath.Join(s.Root, filepath.FromSlash(name))
}

// ErrUnknown is the cause of errors about a playbook's name: the tree has none
// of that name, or none can have.
var ErrUnknown = errors.New("unknown playbook")

func unknown(what, try string) error { return &failure.Error{What: what, Try: try, Err: ErrUnknown} }

// ValidateName says whether name can be the path of a playbook within a tree.
// It touches no file.
func ValidateName(name string) error {
	const try = "give a path within the tree, or the name of a playbook in its playbooks folder"
	switch {
	case name == "":
		return unknown("no playbook is named", try)
	case strings.HasPrefix(name, "-"):
		return unknown(fmt.Sprintf("the playbook %q looks like an option", name), try)
	case !filepath.IsLocal(name) || strings.ContainsAny(name, "\x00\n\r\\"):
		return unknown(fmt.Sprintf("the playbook %q is outside the tree of playbooks", name), try)
	}
	return nil
}

// find is the path, relative to the tree, of the playbook called name.
func find(name string, isFile func(string) bool, list func() []string) (string, error) {
	name = path.Clean(name)
	places := []string{name, path.Join("playbooks", name)}
	for _, tree := range []string{"ansible/", DefaultGitPath + "/"} { // the path that it has in its repository
		if within, found := strings.CutPrefix(name, tree); found {
			places = append(places, within)
		}
	}
	for _, base := range places {
		for _, ext := range []string{"", ".yml", ".yaml"} {
			if isFile(base + ext) {
				return base + ext, nil
			}
		}
	}
	known := list()
	if len(known) == 0 {
		return "", unknown(fmt.Sprintf("there is no playbook %q, nor any other", name), "is this the directory that holds the playbooks?")
	}
	return "", unknown(fmt.Sprintf("there is no playbook %q", name), "there are "+strings.Join(known, ", "))
}

// checksOf is where the checks of a playbook would be in its tree.
func checksOf(playbook string) string {
	return path.Join("tests", strings.TrimSuffix(path.Base(playbook), path.Ext(playbook))+".yaml")
}

// isFile says whether name is a regular file of the tree; a link that leads
// out of the tree is not.
func isFile(root, name string) bool {
	r, err := os.OpenRoot(root)
	if err != nil {
		return false
	}
	defer r.Close()
	info, err := r.Stat(filepath.FromSlash(name))
	return err == nil && info.Mode().IsRegular()
}

// playbooksOf names the playbooks at the tree's top and in its playbooks folder.
func playbooksOf(tree fs.FS, isFile func(string) bool) []string {
	var names []string
	for _, pattern := range []string{"*.yml", "*.yaml", "playbooks/*.yml", "playbooks/*.yaml"} {
		files, _ := fs.Glob(tree, pattern)
		for _, f := range files {
			if !isFile(f) {
				continue
			}
			if b, err := fs.ReadFile(tree, f); err == nil && isPlaybook(b) {
				names = append(names, strings.TrimSuffix(path.Base(f), path.Ext(f)))
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// isPlaybook says whether a file with this content holds a list of plays.
func isPlaybook(b []byte) bool {
	var plays []map[string]yaml.Node
	if yaml.Unmarshal(b, &plays) != nil || len(plays) == 0 {
		return false
	}
	for _, play := range plays {
		if !hasAny(play, "hosts", "import_playbook", "ansible.builtin.import_playbook") {
			return false
		}
	}
	return true
}

func hasAny(m map[string]yaml.Node, keys ...string) bool {
	return slices.ContainsFunc(keys, func(k string) bool { _, ok := m[k]; return ok })
}
