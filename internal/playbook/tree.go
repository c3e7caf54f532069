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
	"path/filepath"

	"github.com/netgroup-polito/diskforge/internal/progress"
)

// copyTree copies the regular files, directories and links of src to dst,
// which it creates. A link that leads out of the tree is left out, with a
// warning, and so is what is neither file, directory nor link. Version
// control is no part of the tree.
func copyTree(ctx context.Context, src fs.FS, dst string, report progress.Reporter) error {
	if err := os.Mkdir(dst, 0o700); err != nil {
		return fmt.Errorf("copying the playbooks: %w", err)
	}
	err := fs.WalkDir(src, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		to := filepath.Join(dst, filepath.FromSlash(name))
		switch {
		case name == ".":
			return nil
		case entry.Name() == ".git":
			if entry.IsDir() {
				return fs.SkipDir
			}
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
	if err != nil && !errors.Is(err, context.Cause(ctx)) {
		return fmt.Errorf("copying the playbooks: %w", err)
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
