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
	CAFile     string // authorities that git trusts besides the host's (PEM), or empty
	Embedded   fs.FS  // the tree that the program carries; needed where nothing else is set
	// Playbook is a path in the tree, or the name of a playbook in its
	// playbooks folder; .yml or .yaml may be left out.
	Playbook string
	// Dir is a directory of ours for the copy of the tree and what Ansible needs
	// beside it. It is made anew.
	Dir string
	// Cache is a directory of ours for trees from git, by commit: one that is
	// there is not fetched again. It is created.
	Cache string
	// Results are folders and files of builds: no part of the tree where they
	// are in AnsibleDir.
	Results []string
	Vault   Vault
}

// open opens the tree that the options name.
func (o Options) open(ctx context.Context, report progress.Reporter) (t *Tree, err error) {
	switch {
	case o.AnsibleDir != "":
		var dir string
		if dir, err = filepath.Abs(o.AnsibleDir); err == nil {
			err = missingSubmodule(dir)
		}
		if err == nil {
			t, err = OpenTree(ctx, dir, o.Results...)
		}
		if err == nil {
			t.URL = dir
		}
	case o.GitURL != "" || o.GitBranch != "":
		r := repository{
			url: cmp.Or(o.GitURL, DefaultGitURL), ref: cmp.Or(o.GitBranch, DefaultGitBranch),
			path: path.Clean(cmp.Or(o.GitPath, DefaultGitPath)), caFile: o.CAFile,
		}
		if err = errors.Join(ValidateGitURL(r.url), ValidateGitRef(r.ref), ValidateGitPath(r.path)); err == nil {
			t, err = r.open(ctx, o.Cache, report)
		}
	default:
		t, err = NewTree(ctx, o.Embedded)
	}
	if err != nil {
		return nil, err
	}
	t.Vault = o.Vault
	return t, nil
}

// Trees opens playbook trees to look into, each once however many images
// share it; one that cannot be opened is not tried again. Nothing is copied but
// what comes from git. The zero value is ready. It is for one goroutine.
type Trees struct{ opened map[string]opened }

type opened struct {
	tree *Tree
	err  error
}

// Open returns the tree that opts name, of which Playbook and Dir do not
// matter. It is Trees that closes it.
func (t *Trees) Open(ctx context.Context, opts Options, report progress.Reporter) (*Tree, error) {
	// There is only one tree that the program carries.
	key := fmt.Sprintf("%q %q %q %q %q", opts.AnsibleDir, opts.GitURL, opts.GitBranch, opts.GitPath, opts.Vault)
	if known, ok := t.opened[key]; ok {
		return known.tree, known.err
	}
	tree, err := opts.open(ctx, report)
	if ctx.Err() == nil || err == nil { // whoever comes next may have more time
		if t.opened == nil {
			t.opened = map[string]opened{}
		}
		t.opened[key] = opened{tree, err}
	}
	return tree, err
}

// Close gives the directories back.
func (t *Trees) Close() error {
	var all error
	for _, o := range t.opened {
		if o.tree != nil {
			all = errors.Join(all, o.tree.Close())
		}
	}
	t.opened = nil
	return all
}

// Source is a playbook and the tree it belongs to, copied to this disk: what
// was checked is what will run, whatever happens to the original.
type Source struct {
	Root         string   // absolute path of the tree
	File         string   // the playbook, relative to Root
	URL          string   // where the tree came from: a git URL, a directory, or "" for the program's own
	Revision     string   // full commit, or "sha256:…" of the tree's content
	Checks       string   // absolute path of a copy of tests/<playbook>.yaml, beside the tree, or ""
	Allow        string   // likewise of tests/<playbook>.allow.yaml, what the hygiene gate excuses
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
func Resolve(ctx context.Context, opts Options, report progress.Reporter) (s Source, err error) {
	if err := validateName(opts.Playbook); err != nil {
		return Source{}, err
	}
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return Source{}, err
	}
	// Roles that a former run installed might be of another version.
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return Source{}, fmt.Errorf("clearing the playbooks' directory: %w", err)
	}
	opts.Results = append(slices.Clone(opts.Results), dir)
	tree, err := opts.open(ctx, report)
	if err != nil {
		return Source{}, err
	}
	defer tree.Close()
	for _, why := range tree.leftOut {
		report.Warn("the playbooks' tree: " + why)
	}
	s = Source{Root: filepath.Join(dir, "tree"), URL: tree.URL, Vault: opts.Vault}
	if s.File, err = tree.Find(opts.Playbook); err != nil {
		return Source{}, err
	}
	content, err := tree.copy(ctx, s.Root)
	if err != nil {
		return Source{}, err
	}
	s.Revision = cmp.Or(tree.Revision, content)
	checks := path.Join("tests", strings.TrimSuffix(path.Base(s.File), path.Ext(s.File)))
	if s.Checks, err = s.aside(checks+".yaml", s.checks); err == nil {
		s.Allow, err = s.aside(checks+".allow.yaml", func(name string) ([]byte, error) { return os.ReadFile(s.companion(name)) })
	}
	if err != nil {
		return Source{}, fmt.Errorf("keeping the playbook's checks: %w", err)
	}
	for _, folder := range []string{"", "roles", "collections"} { // where AWX and Semaphore look, too
		beside := path.Join(path.Dir(s.File), folder)
		file := cmp.Or(s.companion(beside, "requirements.yml"), s.companion(beside, "requirements.yaml"),
			s.companion(folder, "requirements.yml"), s.companion(folder, "requirements.yaml"))
		if file != "" && !slices.Contains(s.Requirements, file) {
			s.Requirements = append(s.Requirements, file)
		}
	}
	return s, nil
}

// companion is the absolute path of a regular file of the tree, or "".
func (s Source) companion(elem ...string) string {
	file := filepath.Join(s.Root, filepath.FromSlash(path.Join(elem...)))
	if info, err := os.Stat(file); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	return file
}

// aside keeps what read says of a file of the tree, if it is there, beside the tree,
// and returns its path: what reads it is no part of the build.
func (s Source) aside(name string, read func(string) ([]byte, error)) (string, error) {
	b, err := read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	to := s.beside(name)
	return to, errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, b, 0o600))
}

// beside is a path in our directory, next to the tree.
func (s Source) beside(elem ...string) string {
	return filepath.Join(append([]string{filepath.Dir(s.Root)}, elem...)...)
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

// Keep takes what is not among the inputs out of the copy of the tree, so that
// nothing can change the disk without changing their digest.
func (s Source) Keep(in Inputs) error {
	all := s.beside("all")
	err := os.Rename(s.Root, all)
	for _, name := range in.Files {
		to := filepath.Join(s.Root, filepath.FromSlash(name))
		if err == nil {
			err = os.MkdirAll(filepath.Dir(to), 0o700)
		}
		if err == nil {
			err = os.Rename(filepath.Join(all, filepath.FromSlash(name)), to)
		}
	}
	if err == nil {
		err = os.RemoveAll(all)
	}
	if err != nil {
		return fmt.Errorf("taking out what the playbook does not use: %w", err)
	}
	return nil
}
