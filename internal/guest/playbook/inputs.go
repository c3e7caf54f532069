package playbook

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"sort"
	"sync"

	"github.com/netgroup-polito/diskforge/internal/failure"
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

	removed []removed // see CheckForms
}

// String says in a few words what the digest is of.
func (i Inputs) String() string {
	if i.Whole != "" {
		return "the whole tree: " + i.Whole
	}
	return fmt.Sprintf("%d files", len(i.Files))
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

// Tree is a playbook tree that is read once for all the playbooks in it. It
// notices no change after it was opened. Its methods may be called at the
// same time.
type Tree struct {
	URL      string // where it came from: a git URL, a directory, or "" for the program's own
	Revision string // full commit, or "" where it is not from git
	Vault    Vault

	fsys  fs.FS
	close func() error
	names []string // of files and links, sorted
	files map[string]*entry
	dirs  map[string]bool

	mu    sync.Mutex
	parts map[string][]part // by file
	words []string          // what names parts that are no roles
	facts map[string]*facts // by file
	cache map[string]Inputs
}

// entry is a regular file or a symbolic link.
type entry struct {
	link   string // the link's target as it is written, or empty
	leads  string // what the link leads to, relative to the tree; empty where another link is in between
	exec   bool
	digest string // once it was needed
}

// OpenTree lists a directory's files, without folders that are no part of it
// (no, absolute). What leads out of it is left out, as Resolve does. The caller
// must call Close.
func OpenTree(ctx context.Context, dir string, no ...string) (*Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, failure.Wrap(err, "reading the playbooks in ANSIBLE_DIR", "name a directory that is there")
	}
	t, err := NewTree(ctx, root.FS(), within(dir, no)...)
	if err != nil {
		root.Close()
		return nil, err
	}
	t.close = root.Close
	return t, nil
}

// NewTree lists the files of a tree, but for folders that are no part of it (no).
func NewTree(ctx context.Context, fsys fs.FS, no ...string) (*Tree, error) {
	t := &Tree{
		fsys: fsys, close: func() error { return nil },
		files: map[string]*entry{}, dirs: map[string]bool{},
		facts: map[string]*facts{}, cache: map[string]Inputs{},
	}
	err := walk(ctx, fsys, no, t.add)
	if _, told := failure.In(err); told || ctx.Err() != nil {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("reading the playbooks: %w", err)
	}
	sort.Strings(t.names)
	t.follow()
	return t, nil
}

// Close gives the directory back.
func (t *Tree) Close() error { return t.close() }

func (t *Tree) add(name string, d fs.DirEntry) error {
	e := &entry{}
	switch {
	case d.IsDir():
		t.dirs[name] = true
		return nil
	case d.Type()&fs.ModeSymlink != 0:
		target, err := fs.ReadLink(t.fsys, name)
		if err != nil {
			return err
		}
		if _, err := fs.Stat(t.fsys, name); err != nil {
			return nil // it leads nowhere, or out of the tree
		}
		e.link = target
	case d.Type().IsRegular():
		info, err := d.Info()
		if err != nil {
			return err
		}
		e.exec = info.Mode()&0o100 != 0
		if err := t.checkPointer(name, info.Size()); err != nil {
			return err
		}
	default:
		return nil
	}
	t.files[name] = e
	t.names = append(t.names, name)
	return nil
}

// follow finds what the links lead to.
func (t *Tree) follow() {
	for name, e := range t.files {
		if e.link == "" {
			continue
		}
		if target := path.Join(path.Dir(name), e.link); t.files[target] != nil || t.dirs[target] {
			e.leads = target
		}
	}
}

// under returns the files below a directory.
func (t *Tree) under(dir string) []string {
	if dir == "." {
		return t.names
	}
	from := sort.SearchStrings(t.names, dir+"/")
	to := sort.SearchStrings(t.names, dir+"0") // '0' follows '/'
	return t.names[from:to]
}

// isFile says whether name is a regular file or leads to one.
func (t *Tree) isFile(name string) bool {
	e := t.files[name]
	if e == nil || e.link == "" {
		return e != nil
	}
	info, err := fs.Stat(t.fsys, name)
	return err == nil && info.Mode().IsRegular()
}

// Find returns the path, within the tree, of the playbook called name.
func (t *Tree) Find(name string) (string, error) {
	if err := ValidateName(name); err != nil {
		return "", err
	}
	return find(name, t.isFile, t.playbooks)
}

// playbooks names the playbooks at the tree's top and in its playbooks folder.
func (t *Tree) playbooks() []string {
	return playbooksOf(t.fsys, t.isFile)
}

// digest returns the digest of one file's content, or of a link's target.
func (t *Tree) digest(name string) (string, error) {
	e := t.files[name]
	if e == nil {
		return "", &fs.PathError{Op: "digest", Path: name, Err: fs.ErrNotExist}
	}
	if e.digest != "" {
		return e.digest, nil
	}
	h := sha256.New()
	if e.link != "" {
		io.WriteString(h, e.link)
	} else {
		f, err := t.fsys.Open(name)
		if err != nil {
			return "", err
		}
		defer f.Close()
		if _, err := io.Copy(h, f); err != nil {
			return "", err
		}
	}
	e.digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	return e.digest, nil
}

// Inputs returns what of the tree a build of the playbook called name reads
// with these extra variables.
//
// That is the whole tree without what nothing in the rest names: roles, other
// playbooks, documents and checks. Roles are used by literal names, in plays,
// tasks and dependencies. Where a name is made as the playbook runs, or a path
// may lead out of a role, nothing is left out.
func (t *Tree) Inputs(ctx context.Context, name string, extraVars map[string]any) (Inputs, error) {
	file, err := t.Find(name)
	if err != nil {
		return Inputs{}, err
	}
	text, err := json.Marshal(extraVars)
	if err != nil {
		return Inputs{}, fmt.Errorf("encoding the extra variables: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.split() // facts are of its words
	vars := t.factsIn("vars.json", text)
	key := fmt.Sprintf("%q %q %q", file, vars.named, vars.whole)
	if in, ok := t.cache[key]; ok {
		return in, nil
	}
	u := usage{tree: t, used: map[string]bool{file: true}}
	u.apply("the extra variables", vars)
	if err := u.collect(ctx); err != nil {
		return Inputs{}, err
	}
	if u.encrypted != "" && !t.unlocked() {
		return Inputs{}, failure.New(u.encrypted+" is encrypted by ansible-vault, and there is no password for it", "set ANSIBLE_VAULT_PASSWORD_FILE, or ANSIBLE_VAULT_IDENTITY_LIST")
	}
	in := Inputs{Whole: u.whole, removed: u.removed, Files: slices.DeleteFunc(slices.Clone(t.names), u.leavesOut)}
	if in.Digest, err = t.digestOf(ctx, file, in.Files); err != nil {
		return Inputs{}, err
	}
	t.cache[key] = in
	return in, nil
}

// unlocked says whether Ansible is told a vault's password.
func (t *Tree) unlocked() bool {
	b, _ := t.read("ansible.cfg")
	return t.Vault != Vault{} || configValue(b, "vault_password_file", "vault_identity_list") != ""
}

// digestOf is the digest of the files' names, kinds and contents.
func (t *Tree) digestOf(ctx context.Context, playbook string, files []string) (string, error) {
	var list bytes.Buffer
	fmt.Fprintf(&list, "playbook %q\n", playbook)
	for _, name := range files {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		content, err := t.digest(name)
		if err != nil {
			return "", fmt.Errorf("hashing the playbooks: %w", err)
		}
		kind := "file"
		switch e := t.files[name]; {
		case e.link != "":
			kind = "link"
		case e.exec:
			kind = "program"
		}
		fmt.Fprintf(&list, "%s %q %s\n", kind, name, content)
	}
	sum := sha256.Sum256(list.Bytes())
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}
