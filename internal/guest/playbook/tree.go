package playbook

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// belongs says whether an entry of a directory belongs to the tree of playbooks:
// version control does not, nor do folders of results (no, relative to the
// tree) or OCI layouts.
func belongs(tree fs.FS, name string, d fs.DirEntry, no []string) bool {
	if d.Name() == ".git" || slices.Contains(no, name) {
		return false
	}
	if !d.IsDir() || name == "." {
		return true
	}
	_, err := fs.Stat(tree, path.Join(name, "oci-layout"))
	return err != nil
}

// walk is fs.WalkDir over what belongs to the tree.
func walk(ctx context.Context, tree fs.FS, no []string, visit func(name string, d fs.DirEntry) error) error {
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !utf8.ValidString(name):
			return failure.New(fmt.Sprintf("the playbook tree has a file whose name is not UTF-8: %q", name), "rename it, e.g. with convmv")
		case belongs(tree, name, d, no):
			return visit(name, d)
		case d.IsDir():
			return fs.SkipDir
		}
		return nil
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// within returns those of the paths that lie in dir, relative to it.
func within(dir string, paths []string) []string {
	var inside []string
	for _, p := range paths {
		abs, err := filepath.Abs(p)
		if err != nil || p == "" {
			continue
		}
		if rel, err := filepath.Rel(resolved(dir), resolved(abs)); err == nil && filepath.IsLocal(rel) && rel != "." {
			inside = append(inside, filepath.ToSlash(rel))
		}
	}
	return inside
}

// resolved is a path without links, as far as it is there.
func resolved(p string) string {
	if real, err := filepath.EvalSymlinks(p); err == nil {
		return real
	}
	if dir := filepath.Dir(p); dir != p {
		return filepath.Join(resolved(dir), filepath.Base(p))
	}
	return p
}

// copyTree copies the regular files, directories and links of src to dst,
// which it creates. A link that leads out of the tree is left out, with a
// warning, and so is what is neither file, directory nor link.
func copyTree(ctx context.Context, src fs.FS, no []string, dst string, report progress.Reporter) error {
	if err := os.Mkdir(dst, 0o700); err != nil {
		return fmt.Errorf("copying the playbooks: %w", err)
	}
	err := walk(ctx, src, no, func(name string, entry fs.DirEntry) error {
		to := filepath.Join(dst, filepath.FromSlash(name))
		switch {
		case name == ".":
			return nil
		case entry.IsDir():
			return os.Mkdir(to, 0o700)
		case entry.Type()&fs.ModeSymlink != 0:
			return copyLink(src, name, to, report)
		case entry.Type().IsRegular():
			return copyFile(src, name, to)
		}
		report.Warn(fmt.Sprintf("the playbooks' tree: %s is left out, it is neither a file nor a directory", name))
		return nil
	})
	if _, told := failure.In(err); err != nil && !told && ctx.Err() == nil {
		return fmt.Errorf("copying the playbooks: %w", err)
	}
	return err
}

// missingSubmodule finds a submodule of the repository that dir is in, and
// which the user did not fetch: an empty folder in dir that .gitmodules names.
func missingSubmodule(dir string) error {
	for top := dir; ; top = filepath.Dir(top) {
		b, err := os.ReadFile(filepath.Join(top, ".gitmodules"))
		if err != nil && top != filepath.Dir(top) {
			continue
		}
		for _, m := range submodulePath.FindAllSubmatch(b, -1) {
			module := filepath.Join(top, strings.TrimSpace(string(m[1])))
			rel, err := filepath.Rel(dir, module)
			if entries, e := os.ReadDir(module); err == nil && filepath.IsLocal(rel) && e == nil && len(entries) == 0 {
				return failure.New(fmt.Sprintf("%s is a git submodule that was not fetched: the folder is empty", rel), "run git submodule update --init --recursive in ANSIBLE_DIR")
			}
		}
		return nil
	}
}

// submodulePath is a submodule's folder in .gitmodules (gitmodules(5)).
var submodulePath = regexp.MustCompile(`(?m)^\s*path\s*=(.*)$`)

// lfsPointer begins what stands for a file that Git LFS keeps elsewhere
// (git-lfs' docs/spec.md).
const lfsPointer = "version https://git-lfs.github.com/spec/"

// checkPointer refuses a file that is a pointer of Git LFS: its few lines would
// be in the image in place of the file.
func (t *Tree) checkPointer(name string, size int64) error {
	if size < int64(len(lfsPointer)) || size > 1024 {
		return nil
	}
	b, err := t.read(name)
	if err == nil && strings.HasPrefix(string(b), lfsPointer) {
		return failure.New(fmt.Sprintf("%s is not the file itself but a pointer of Git LFS", name),
			"run git lfs pull in a clone and name it with ANSIBLE_DIR; where git fetches the playbooks, git lfs install --system makes it fetch such files")
	}
	return err
}

// copyLink copies a link whose target is within the tree. The file system of
// an os.Root resolves nothing outside it, so that a target it finds is inside.
func copyLink(src fs.FS, name, to string, report progress.Reporter) error {
	target, err := fs.ReadLink(src, name)
	if err != nil {
		return err
	}
	if _, err := fs.Stat(src, name); err != nil {
		report.Warn(fmt.Sprintf("the playbooks' tree: %s is left out, it is a link to %s, outside the tree or not there", name, target))
		return nil
	}
	return os.Symlink(target, to)
}

func copyFile(src fs.FS, name, to string) (err error) {
	in, err := src.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	// What Ansible's script module runs keeps its executable bit.
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600|info.Mode().Perm()&0o100)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

// digest identifies the content of the tree: every path with its kind and its
// bytes, in the order of WalkDir, which is that of the names.
func digest(root string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, file)
		if err != nil || entry.IsDir() {
			return err
		}
		var content []byte
		if entry.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			content = []byte(target)
		} else if content, err = os.ReadFile(file); err != nil {
			return err
		}
		fmt.Fprintf(h, "%d %q %d\n", entry.Type(), filepath.ToSlash(name), len(content))
		h.Write(content)
		return nil
	})
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), err
}
