package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"dagger/diskforge/flags"
	"dagger/diskforge/internal/dagger"
)

// origin is where the base image comes from.
type origin struct {
	File          *dagger.File
	Layout        *dagger.Directory
	Packages      bool
	URL, Checksum string
	Suite, Mirror string
	args          []string // for provision
}

func (o *origin) check() error {
	var given []string
	for name, is := range map[string]bool{"--base": o.File != nil, "--base-layout": o.Layout != nil, "--base-from-packages": o.Packages, "--iso-url": o.URL != ""} {
		if is {
			given = append(given, name)
		}
	}
	slices.Sort(given)
	switch len(given) {
	case 1:
		return nil
	case 0:
		return errors.New("there is no base image: give --base, --base-layout, --base-from-packages, or --iso-url with --iso-checksum")
	}
	return errors.New(strings.Join(given, " and ") + ": choose one base image")
}

// mount gives provision's container the base image, and returns the stages
// that this took.
func (o *origin) mount(ctx context.Context, c, box *dagger.Container) (*dagger.Container, []*dagger.Container, error) {
	switch {
	case o.Packages:
		made, err := makeBase(ctx, box, flags.Of("base-from-packages", "true", "suite", o.Suite, "apt-mirror", o.Mirror)...)
		if err != nil {
			return nil, nil, err
		}
		o.args = flags.Of("base-from-packages", "true", "suite", o.Suite)
		return c.WithDirectory(cacheDir+"/base", made.Directory(cacheDir+"/base"), dagger.ContainerWithDirectoryOpts{Owner: user}), []*dagger.Container{made}, nil
	case o.File != nil:
		name, err := o.File.Name(ctx)
		if err != nil {
			return nil, nil, err
		}
		c = withFile(c, basePath+name, o.File)
		if o.Checksum == "" {
			sum, err := c.WithExec([]string{"sha256sum", basePath + name}).Stdout(ctx)
			if err != nil {
				return nil, nil, err
			}
			hex, _, _ := strings.Cut(sum, " ")
			o.Checksum = "sha256:" + hex
		}
		o.args = flags.Of("iso-url", basePath+name, "iso-checksum", o.Checksum)
		return c, nil, nil
	case o.Layout != nil:
		o.args = flags.Of("iso-url", "oci:"+baseLayoutPath, "iso-checksum", o.Checksum)
		return c.WithMountedDirectory(baseLayoutPath, o.Layout, dagger.ContainerWithMountedDirectoryOpts{Owner: user}), nil, nil
	}
	o.args = flags.Of("iso-url", o.URL, "iso-checksum", o.Checksum)
	if list, ok := strings.CutPrefix(o.Checksum, "file:"); ok {
		c = c.WithEnvVariable("CHECKSUMS", edition(ctx, list))
	}
	// The program locks each download, and hashes it whenever it is used.
	return c.WithMountedCache(cacheDir+"/images", dag.CacheVolume("diskforge-downloads"), dagger.ContainerWithMountedCacheOpts{Owner: user}), nil, nil
}

// edition tells one content of a list of checksums from another: a stage is run
// again when it changes, and the list's address does not. The stage fetches
// and checks the list itself; one that cannot be read here counts as changed.
func edition(ctx context.Context, list string) string {
	text, err := dag.HTTP(list).Contents(ctx)
	if err != nil {
		text = time.Now().UTC().Format(time.RFC3339Nano)
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(text)))
}

// tree is where the playbooks come from.
type tree struct {
	Directory *dagger.Directory
	URL, Ref  string
	Path      string
	Playbook  string
}

// Where the playbooks come from when only one of url and branch is given: the
// program's own defaults, which it tells in its --help.
const (
	defaultGitURL = "https://github.com/netgroup-polito/CrownLabs.git"
	defaultGitRef = "master"
)

// pin replaces a branch or tag by the commit that it names now: a stage is run
// again when its arguments change, and a branch that moved would not.
func (t *tree) pin(ctx context.Context) (err error) {
	if t.Directory != nil || (t.URL == "" && t.Ref == "") {
		return nil
	}
	if t.URL == "" {
		t.URL = defaultGitURL
	}
	if t.Ref == "" {
		t.Ref = defaultGitRef
	}
	t.Ref, err = dag.Git(t.URL).Ref(t.Ref).Commit(ctx)
	return err
}

// mount gives the container the playbooks, and no other's.
func (t *tree) mount(m *Diskforge, c *dagger.Container) *dagger.Container {
	switch {
	case t.Directory != nil:
		return c.WithMountedDirectory(treePath, t.Directory, dagger.ContainerWithMountedDirectoryOpts{Owner: user})
	case t.URL != "":
		return c
	}
	return m.withPlaybooks(c)
}

func (t *tree) args() []string {
	args := flags.Of("ansible-playbook", t.Playbook, "ansible-dir", flags.File(t.Directory != nil, treePath))
	if t.Directory != nil {
		return args
	}
	return append(args, flags.Of("git-ansible-url", t.URL, "git-ansible-branch", t.Ref, "git-ansible-path", t.Path)...)
}
