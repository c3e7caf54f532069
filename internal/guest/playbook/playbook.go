// Package playbook finds the Ansible playbook that configures an image, in a
// directory, a git repository or the program itself, and makes sure, before
// anything is booted, that this host's Ansible can run it.
//
// A Tree is a directory of playbooks and roles as it lies, for plans. A Source
// is the copy of one that a build runs. Both say which files a build of a
// playbook reads, and their digest (Inputs). What is not among them is taken
// out of the build's copy before anything runs (Source.Keep): no file can
// change the disk without changing the digest.
package playbook

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

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
	// Results are folders and files of builds: no part of the tree where they
	// are in AnsibleDir.
	Results []string
	Vault   Vault
}

// open opens the tree that the options name; clone gets one that is in git.
func (o Options) open(ctx context.Context, clone func(repository) (*Tree, error)) (*Tree, error) {
	switch {
	case o.AnsibleDir != "":
		dir, err := filepath.Abs(o.AnsibleDir)
		if err != nil {
			return nil, err
		}
		if err := missingSubmodule(dir); err != nil {
			return nil, err
		}
		t, err := OpenTree(ctx, dir, o.Results...)
		if err != nil {
			return nil, err
		}
		t.URL = dir
		return t, nil
	case o.GitURL != "" || o.GitBranch != "":
		r := repository{url: cmp.Or(o.GitURL, DefaultGitURL), ref: cmp.Or(o.GitBranch, DefaultGitBranch), path: path.Clean(cmp.Or(o.GitPath, DefaultGitPath))}
		for _, err := range []error{ValidateGitURL(r.url), ValidateGitRef(r.ref), ValidateGitPath(r.path)} {
			if err != nil {
				return nil, err
			}
		}
		return clone(r)
	case o.Embedded != nil:
		return NewTree(ctx, o.Embedded)
	}
	return nil, failure.New("there is no playbook to run", "set ANSIBLE_DIR to a directory of playbooks, or GIT_ANSIBLE_URL to a repository")
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
// executed is asked by Ansible, and says nothing here.
func (v Vault) Passwords() []string {
	files := []string{v.PasswordFile}
	for identity := range strings.SplitSeq(v.Identities, ",") {
		files = append(files, identity[strings.Index(identity, "@")+1:])
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
	s := Source{Root: filepath.Join(dir, "tree"), Vault: opts.Vault}
	clone := filepath.Join(dir, "repository")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.RemoveAll(s.Root), os.RemoveAll(clone)); err != nil {
		return Source{}, fmt.Errorf("clearing the playbooks' directory: %w", err)
	}
	defer os.RemoveAll(clone)
	opts.Results = append(slices.Clone(opts.Results), dir)
	tree, err := opts.open(ctx, func(r repository) (*Tree, error) {
		commit, err := r.clone(ctx, clone, report)
		if err != nil {
			return nil, err
		}
		return r.openTree(ctx, filepath.Join(clone, filepath.FromSlash(r.path)), commit)
	})
	if err != nil {
		return Source{}, err
	}
	defer tree.Close()
	if s.File, err = tree.Find(opts.Playbook); err != nil {
		return Source{}, err
	}
	for _, why := range tree.leftOut {
		report.Warn("the playbooks' tree: " + why)
	}
	content, err := tree.copy(ctx, s.Root)
	if err != nil {
		return Source{}, err
	}
	s.URL, s.Revision = tree.URL, cmp.Or(tree.Revision, content)
	checks := path.Join("tests", strings.TrimSuffix(path.Base(s.File), path.Ext(s.File)))
	s.Checks = s.companion(checks + ".yaml")
	s.Allow = s.companion(checks + ".allow.yaml")
	s.Requirements = s.requirements()
	return s, nil
}

// requirements are the files that AWX and Semaphore look for, too: beside the
// playbook or at the tree's top, by themselves or in a folder for their kind.
func (s Source) requirements() []string {
	var files []string
	for _, folder := range []string{"", "roles", "collections"} {
		for _, beside := range []string{path.Dir(s.File), "."} {
			found := cmp.Or(s.companion(beside, folder, "requirements.yml"), s.companion(beside, folder, "requirements.yaml"))
			if found != "" && !slices.Contains(files, found) {
				files = append(files, found)
				break
			}
		}
	}
	return files
}

// companion is the absolute path of a regular file of the tree, or "".
func (s Source) companion(elem ...string) string {
	file := filepath.Join(s.Root, filepath.FromSlash(path.Join(elem...)))
	if info, err := os.Stat(file); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	return file
}

// Inputs returns what of the tree can change the disk; see Tree.Inputs.
func (s Source) Inputs(ctx context.Context, extraVars map[string]any) (Inputs, error) {
	tree, err := OpenTree(ctx, s.Root)
	if err != nil {
		return Inputs{}, err
	}
	defer tree.Close()
	tree.Vault = s.Vault
	return tree.Inputs(ctx, s.File, extraVars)
}

// Keep takes what is not among the inputs out of the copy of the tree, with the
// folders that are empty then, so that nothing can change the disk without
// changing their digest. What verify and the hygiene gate read is kept beside
// the tree.
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
		kept[filepath.Join(s.Root, filepath.FromSlash(name))] = true
	}
	var folders []string
	err := filepath.WalkDir(s.Root, func(file string, d fs.DirEntry, err error) error {
		if err != nil || kept[file] {
			return err
		}
		if d.IsDir() {
			folders = append(folders, file)
			return nil
		}
		return os.Remove(file) //nolint:gosec // our own copy, which no one else writes to
	})
	if err != nil {
		return fmt.Errorf("taking out what the playbook does not use: %w", err)
	}
	for _, folder := range slices.Backward(folders) {
		_ = os.Remove(folder) // where it is empty now
	}
	return nil
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

// Find returns the path, within the tree, of the playbook called name.
func (t *Tree) Find(name string) (string, error) {
	if err := ValidateName(name); err != nil {
		return "", err
	}
	places := []string{path.Clean(name), path.Join("playbooks", name)}
	for _, tree := range []string{"ansible/", DefaultGitPath + "/"} { // the path that it has in its repository
		if within, found := strings.CutPrefix(path.Clean(name), tree); found {
			places = append(places, within)
		}
	}
	for _, base := range places {
		for _, ext := range []string{"", ".yml", ".yaml"} {
			if t.isFile(base + ext) {
				return base + ext, nil
			}
		}
	}
	known := t.playbooks()
	if len(known) == 0 {
		return "", unknown(fmt.Sprintf("there is no playbook %q, nor any other", name), "is this the directory that holds the playbooks?")
	}
	return "", unknown(fmt.Sprintf("there is no playbook %q", name), "there are "+strings.Join(known, ", "))
}

// playbooks names the playbooks at the tree's top and in its playbooks folder.
func (t *Tree) playbooks() []string {
	var names []string
	for _, name := range t.names {
		dir, ext := path.Dir(name), path.Ext(name)
		if (dir == "." || dir == "playbooks") && (ext == ".yml" || ext == ".yaml") && t.isFile(name) {
			if f, err := t.read(name); err == nil && f.facts.plays != nil {
				names = append(names, strings.TrimSuffix(path.Base(name), ext))
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
