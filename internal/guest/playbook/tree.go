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
	link    string // the link's target as it is written, or empty
	leads   string // what the link leads to, relative to the tree; empty where another link is in between
	regular bool   // whether it is a regular file, or leads to one
	exec    bool
	parts   []part // see Tree.split

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
	t := &Tree{
		fsys: fsys, close: func() error { return nil },
		files: map[string]*file{}, dirs: map[string]bool{}, inputs: map[string]Inputs{},
	}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !utf8.ValidString(name):
			return failure.New(fmt.Sprintf("the playbook tree has a file whose name is not UTF-8: %q", name), "rename it, e.g. with convmv")
		}
		return t.add(name, d, no)
	})
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

// add lists a file or a folder, unless it is no part of the tree: version
// control's, an OCI layout or among what the caller names.
func (t *Tree) add(name string, d fs.DirEntry, no []fs.FileInfo) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	leaveOut := func(why string) { t.leftOut = append(t.leftOut, name+" is left out, it is "+why) }
	var layout fs.FileInfo
	if d.IsDir() {
		layout, _ = fs.Stat(t.fsys, path.Join(name, "oci-layout"))
	}
	named := func(other fs.FileInfo) bool { return os.SameFile(info, other) }
	switch {
	case name != "." && (d.Name() == ".git" || layout != nil || slices.ContainsFunc(no, named)):
		if d.IsDir() {
			return fs.SkipDir
		}
	case d.IsDir():
		t.dirs[name] = true
	case d.Type().IsRegular():
		t.files[name] = &file{regular: true, exec: info.Mode()&0o100 != 0}
	case d.Type() == fs.ModeSymlink:
		target, err := fs.ReadLink(t.fsys, name)
		if err != nil {
			return err
		}
		// The file system of an os.Root resolves nothing outside it.
		if info, err = fs.Stat(t.fsys, name); err != nil {
			leaveOut(fmt.Sprintf("a link to %s, outside the tree or not there", target))
			return nil //nolint:nilerr // it is left out
		}
		t.files[name] = &file{link: target, regular: info.Mode().IsRegular()}
	default:
		leaveOut("neither a file nor a directory")
	}
	return nil
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
// wrote: each path with its kind and its bytes, folder by folder. Links are not
// followed; what Ansible's script module runs keeps its executable bit. Folders
// without files, which no digest covers, are left out.
func (t *Tree) copy(ctx context.Context, dir string) (digest string, err error) {
	byFolder := slices.SortedFunc(slices.Values(t.names), func(a, b string) int {
		return strings.Compare(strings.ReplaceAll(a, "/", "\x00"), strings.ReplaceAll(b, "/", "\x00"))
	})
	h := sha256.New()
	for _, name := range byFolder {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		f, to := t.files[name], filepath.Join(dir, filepath.FromSlash(name))
		kind, mode, content := fs.FileMode(0), fs.FileMode(0o600), []byte(f.link)
		err := os.MkdirAll(filepath.Dir(to), 0o700)
		switch {
		case err != nil:
		case f.link != "":
			kind, err = fs.ModeSymlink, os.Symlink(f.link, to)
		default:
			if f.exec {
				mode = 0o700
			}
			if content, err = fs.ReadFile(t.fsys, name); err == nil {
				err = os.WriteFile(to, content, mode)
			}
		}
		if err != nil {
			return "", fmt.Errorf("copying the playbooks: %w", err)
		}
		fmt.Fprintf(h, "%d %q %d\n", kind, name, len(content))
		h.Write(content)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// ErrUnknown is the cause of errors about a playbook's name: the tree has none
// of that name, or none can have.
var ErrUnknown = errors.New("unknown playbook")

func unknown(what, try string) error { return &failure.Error{What: what, Try: try, Err: ErrUnknown} }

// validateName says whether name can be the path of a playbook within a tree.
// It touches no file.
func validateName(name string) error {
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
	if err := validateName(name); err != nil {
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
			if f := t.files[base+ext]; f != nil && f.regular {
				return base + ext, nil
			}
		}
	}
	known := t.playbooks()
	if len(known) == 0 {
		return "", unknown(fmt.Sprintf("there is no playbook %q, nor any other", name), "is this the directory that holds the playbooks?")
	}
	try := "there are " + strings.Join(known, ", ")
	if t.URL == "" { // the program's own
		try += "; ANSIBLE_DIR (--ansible-dir) names a folder of yours"
	}
	return "", unknown(fmt.Sprintf("there is no playbook %q", name), try)
}

// playbooks names the playbooks at the tree's top and in its playbooks folder.
func (t *Tree) playbooks() []string {
	var names []string
	for _, name := range t.names {
		dir, ext := path.Dir(name), path.Ext(name)
		if (dir == "." || dir == "playbooks") && (ext == ".yml" || ext == ".yaml") && t.files[name].regular {
			if f, err := t.read(name); err == nil && f.facts.plays != nil {
				names = append(names, strings.TrimSuffix(path.Base(name), ext))
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
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
