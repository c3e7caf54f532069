package playbook

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

// Tree is a playbook tree, listed once for all the playbooks in it, and of
// which each file is read at most once. It notices no later change. It is for
// one goroutine.
type Tree struct {
	URL      string // where it came from: a git URL, a directory, or "" for the program's own
	Revision string // full commit, or "" where it is not from git
	Vault    Vault

	fsys    fs.FS
	close   func() error
	files   map[string]*file
	names   []string // the files', sorted
	dirs    map[string]bool
	leftOut []string // what is there and no part of it, with the reason
	words   []string // what names parts that are no roles; nil before split
	inputs  map[string]Inputs
}

// file is a regular file or a symbolic link.
type file struct {
	link  string // the link's target as it is written, or empty
	leads string // what the link leads to, relative to the tree; empty where another link is in between
	exec  bool
	parts []part // see Tree.split

	// Known once it was read:
	digest string // of the content, or of a link's target
	facts  facts
}

// OpenTree lists a directory's files. What leads out of it is left out, and so
// are results of builds in it, by their paths. The caller must call Close.
func OpenTree(ctx context.Context, dir string, results ...string) (*Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, failure.Wrap(err, "reading the playbooks in ANSIBLE_DIR", "name a directory that is there")
	}
	var no []fs.FileInfo
	for _, result := range results {
		if info, err := os.Stat(result); err == nil { // by whatever name it has in the tree
			no = append(no, info)
		}
	}
	t, err := NewTree(ctx, root.FS(), no...)
	if err != nil {
		root.Close()
		return nil, err
	}
	t.close = root.Close
	return t, nil
}

// NewTree lists the files of a tree, but for files and folders that are no part of it (no).
func NewTree(ctx context.Context, fsys fs.FS, no ...fs.FileInfo) (*Tree, error) {
	t := &Tree{fsys: fsys, close: func() error { return nil }, files: map[string]*file{}, dirs: map[string]bool{}, inputs: map[string]Inputs{}}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !utf8.ValidString(name):
			return failure.New(fmt.Sprintf("the playbook tree has a file whose name is not UTF-8: %q", name), "rename it, e.g. with convmv")
		case name != "." && t.isNone(name, d, no):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		return t.add(name, d)
	})
	if _, actionable := failure.In(err); actionable || ctx.Err() != nil {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("reading the playbooks: %w", err)
	}
	t.names = slices.Sorted(maps.Keys(t.files))
	for name, f := range t.files {
		if target := path.Join(path.Dir(name), f.link); f.link != "" && (t.files[target] != nil || t.dirs[target]) {
			f.leads = target
		}
	}
	return t, nil
}

// Close gives the directory back.
func (t *Tree) Close() error { return t.close() }

// isNone says whether something is no part of the tree: version control's, an
// OCI layout or among what the caller names.
func (t *Tree) isNone(name string, d fs.DirEntry, no []fs.FileInfo) bool {
	if d.Name() == ".git" {
		return true
	}
	if d.IsDir() {
		if _, err := fs.Stat(t.fsys, path.Join(name, "oci-layout")); err == nil {
			return true
		}
	}
	info, err := d.Info()
	return err == nil && slices.ContainsFunc(no, func(other fs.FileInfo) bool { return os.SameFile(info, other) })
}

func (t *Tree) add(name string, d fs.DirEntry) error {
	f := &file{}
	switch d.Type() {
	case fs.ModeDir:
		t.dirs[name] = true
		return nil
	case fs.ModeSymlink:
		target, err := fs.ReadLink(t.fsys, name)
		if err != nil {
			return err
		}
		// The file system of an os.Root resolves nothing outside it.
		if _, err := fs.Stat(t.fsys, name); err != nil {
			t.leftOut = append(t.leftOut, fmt.Sprintf("%s is left out, it is a link to %s, outside the tree or not there", name, target))
			return nil //nolint:nilerr // it is left out
		}
		f.link = target
	case 0:
		info, err := d.Info()
		if err != nil {
			return err
		}
		f.exec = info.Mode()&0o100 != 0
	default:
		t.leftOut = append(t.leftOut, name+" is left out, it is neither a file nor a directory")
		return nil
	}
	t.files[name] = f
	return nil
}

// isFile says whether name is a regular file or leads to one.
func (t *Tree) isFile(name string) bool {
	f := t.files[name]
	if f == nil || f.link == "" {
		return f != nil
	}
	info, err := fs.Stat(t.fsys, name)
	return err == nil && info.Mode().IsRegular()
}

// maxScan bounds the size of the files that are looked into, in bytes: no
// playbook or template is larger.
const maxScan = 4 << 20

// lfsPointer begins what stands for a file that Git LFS keeps elsewhere
// (git-lfs' docs/spec.md). Its few lines would be in the image in place of the file.
var lfsPointer = []byte("version https://git-lfs.github.com/spec/")

// read reads a file, once: its digest, and what its text says. Of a link it
// reads what Ansible does.
func (t *Tree) read(name string) (*file, error) {
	f := t.files[name]
	if f == nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
	}
	if f.digest == "" {
		if err := t.scan(name, f); err != nil {
			return nil, fmt.Errorf("reading the playbooks: %w", err)
		}
	}
	return f, nil
}

func (t *Tree) scan(name string, f *file) error {
	h := sha256.New()
	if f.link != "" {
		_, _ = io.WriteString(h, f.link)
	}
	if f.link == "" || t.files[f.leads] != nil {
		in, err := t.fsys.Open(name)
		if err != nil {
			return err
		}
		defer in.Close()
		content := io.Reader(in)
		if f.link == "" {
			content = io.TeeReader(in, h)
		}
		head, err := io.ReadAll(io.LimitReader(content, maxScan+1))
		if err != nil {
			return err
		}
		if len(head) < 1024 && bytes.HasPrefix(head, lfsPointer) {
			return failure.New(fmt.Sprintf("%s is not the file itself but a pointer of Git LFS", name),
				"run git lfs pull in a clone and name it with ANSIBLE_DIR; where git fetches the playbooks, git lfs install --system makes it fetch such files")
		}
		f.facts = factsIn(name, head)
		if _, err := io.Copy(io.Discard, content); err != nil {
			return err
		}
	}
	f.digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	return nil
}

// copy writes the tree to a new directory and returns the digest of what it
// wrote: each path with its kind and its bytes, folder by folder. Folders
// without files, which no digest covers, are left out.
func (t *Tree) copy(ctx context.Context, to string) (digest string, err error) {
	byFolder := slices.SortedFunc(slices.Values(t.names), func(a, b string) int {
		return strings.Compare(strings.ReplaceAll(a, "/", "\x00"), strings.ReplaceAll(b, "/", "\x00"))
	})
	h := sha256.New()
	for _, name := range byFolder {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		kind, content, err := t.copyFile(name, filepath.Join(to, filepath.FromSlash(name)))
		if err != nil {
			return "", fmt.Errorf("copying the playbooks: %w", err)
		}
		fmt.Fprintf(h, "%d %q %d\n", kind, name, len(content))
		h.Write(content)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// copyFile copies a file, or a link, which it does not follow. What Ansible's
// script module runs keeps its executable bit.
func (t *Tree) copyFile(name, to string) (fs.FileMode, []byte, error) {
	f := t.files[name]
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return 0, nil, err
	}
	if f.link != "" {
		return fs.ModeSymlink, []byte(f.link), os.Symlink(f.link, to)
	}
	content, err := fs.ReadFile(t.fsys, name)
	if err != nil {
		return 0, nil, err
	}
	mode := fs.FileMode(0o600)
	if f.exec {
		mode = 0o700
	}
	return 0, content, os.WriteFile(to, content, mode)
}

// submodulePath is a submodule's folder in .gitmodules (gitmodules(5)).
var submodulePath = regexp.MustCompile(`(?m)^\s*path\s*=(.*)$`)

// missingSubmodule finds a submodule of the repository that dir is in, and
// which the user did not fetch: an empty folder in dir that .gitmodules names.
func missingSubmodule(dir string) error {
	top := dir
	b, err := os.ReadFile(filepath.Join(top, ".gitmodules"))
	for errors.Is(err, fs.ErrNotExist) && top != filepath.Dir(top) {
		top = filepath.Dir(top)
		b, err = os.ReadFile(filepath.Join(top, ".gitmodules"))
	}
	for _, m := range submodulePath.FindAllSubmatch(b, -1) {
		module := filepath.Join(top, strings.TrimSpace(string(m[1])))
		rel, err := filepath.Rel(dir, module)
		if entries, errRead := os.ReadDir(module); err == nil && filepath.IsLocal(rel) && errRead == nil && len(entries) == 0 {
			return failure.New(fmt.Sprintf("%s is a git submodule that was not fetched: the folder is empty", rel),
				"run git submodule update --init --recursive in ANSIBLE_DIR")
		}
	}
	return nil
}
