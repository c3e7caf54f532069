// Package starter writes the repository that a course of one's own begins with:
// a catalogue with one image, its playbook, its checks, a workflow and a page
// about them. What is there already is left as it is.
package starter

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"

	"github.com/netgroup-polito/diskforge/ansible"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
)

//go:embed all:files
var files embed.FS

// Options are what a starter is made for.
type Options struct {
	// Name is the image's; empty, the folder's name as far as a registry takes it.
	Name string
	// Release is the Debian release that the images are made of, e.g. bookworm.
	Release string
	// Course is one of Courses that the image starts from; empty: a desktop alone.
	Course string
}

// Written says what Write did, by paths relative to the folder, in their order.
type Written struct {
	New  []string
	Left []string // they were there already, and were not looked into
}

// Write writes what the folder lacks. Nothing that is there is changed, nor
// followed where it is a symbolic link. A name or a release that no catalogue
// takes is an error that has catalogue.Mistakes, and nothing is written.
func Write(dir string, o Options) (*Written, error) {
	content, err := o.files(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range content {
		if f.path == "catalogue.yaml" {
			// A name or a release that cannot be is known by now.
			if _, err := catalogue.Parse(f.path, dir, f.content); err != nil {
				return nil, fmt.Errorf("nothing is written, for the catalogue would not do: %w", err)
			}
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, failure.Wrap(err, "the folder cannot be made", "give a folder that you may write to: diskforge init DIR")
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	for _, f := range content {
		if err := inTheWay(root, f.path); err != nil {
			return nil, err
		}
	}
	w := &Written{}
	for _, f := range content {
		switch err := create(root, f); {
		case errors.Is(err, fs.ErrExist):
			w.Left = append(w.Left, f.path)
		case err != nil:
			return w, failure.Wrap(err, f.path+" cannot be written", "give a folder that you may write to: diskforge init DIR")
		default:
			w.New = append(w.New, f.path)
		}
	}
	return w, nil
}

// Courses are the playbooks that come with diskforge and are courses: all but the bases and what a refresh runs.
func Courses() (all []string) {
	playbooks, _ := fs.Glob(ansible.FS, "playbooks/*.yml")
	for _, playbook := range playbooks {
		name := strings.TrimSuffix(filepath.Base(playbook), ".yml")
		if name != "packages" && name != pipeline.RefreshPlaybook && !strings.HasSuffix(name, "-base") {
			all = append(all, name)
		}
	}
	return all
}

// inTheWay says what stands where a file or one of its folders would be, and is
// neither: nothing is written then.
func inTheWay(root *os.Root, path string) error {
	parts := strings.Split(path, "/")
	for n := range parts {
		at := strings.Join(parts[:n+1], "/")
		info, err := root.Lstat(at)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case at == path && !info.Mode().IsRegular(), at != path && !info.IsDir():
			return failure.New(fmt.Sprintf("nothing is written: %s is in the way of %s", at, path), "move it away, or give another folder: diskforge init DIR")
		}
	}
	return nil
}

// create writes a file that is not there, whole or not at all.
func create(root *os.Root, f file) error {
	if err := root.MkdirAll(filepath.Dir(f.path), 0o755); err != nil {
		return err
	}
	w, err := root.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = w.Write(f.content)
	if err = errors.Join(err, w.Close()); err != nil {
		_ = root.Remove(f.path)
	}
	return err
}

type file struct {
	path    string
	content []byte
}

// values are what the templates fill in.
type values struct{ Name, Release, Course, Playbook string }

func (o Options) files(dir string) ([]file, error) {
	v := values{Name: o.Name, Release: o.Release, Course: o.Course, Playbook: "course"}
	if v.Name == "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, err
		}
		v.Name = nameOf(filepath.Base(abs))
	}
	var all []file
	err := fs.WalkDir(files, "files", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name := strings.TrimPrefix(path, "files/")
		text, err := files.ReadFile(path)
		if err != nil {
			return err
		}
		// Ansible's and GitHub's own expressions have braces.
		t, err := template.New(name).Delims("[[", "]]").Parse(string(text))
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if err := t.Execute(&b, v); err != nil {
			return err
		}
		all = append(all, file{name, b.Bytes()})
		return nil
	})
	return all, err
}

// unfit is what a repository's name does not have (OCI distribution
// specification, <name>), other than separators.
var unfit = regexp.MustCompile(`[^a-z0-9]+`)

// nameOf makes the name of an image of a folder's.
func nameOf(folder string) string {
	name := strings.Trim(unfit.ReplaceAllString(strings.ToLower(folder), "-"), "-")
	if name == "" {
		return "course"
	}
	return name
}
