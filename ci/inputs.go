package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"dagger/diskforge/flags"
	"dagger/diskforge/internal/dagger"
	"dagger/diskforge/lists"
)

// origin is where the base image comes from.
type origin struct {
	file          *dagger.File
	layout        *dagger.Directory
	Packages      bool
	URL, Checksum string
	Suite, Mirror string
	Timeout       string   // how long to wait for a containerdisk
	Insecure      bool     // by plain HTTP
	Edition       string   // of the list of checksums
	args          []string // for provision
}

// way are the arguments by which a containerdisk is found.
func (o *origin) way() []string {
	return flags.Of("base-timeout", o.Timeout, "registry-insecure", flags.Bool(o.Insecure))
}

func (o *origin) check() error {
	var given []string
	for name, is := range map[string]bool{"--base": o.file != nil, "--base-layout": o.layout != nil, "--base-from-packages": o.Packages, "--iso-url": o.URL != ""} {
		if is {
			given = append(given, name)
		}
	}
	slices.Sort(given)
	switch len(given) {
	case 1:
		if o.URL != "" && o.Checksum == "" && !strings.Contains(o.URL, "@sha256:") || o.layout != nil && o.Checksum == "" {
			return errors.New("--iso-checksum is not given: " + given[0] + " takes one, so that the image is the one that is meant")
		}
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
	case o.file != nil:
		name, err := o.file.Name(ctx)
		if err != nil {
			return nil, nil, err
		}
		c = withFile(c, basePath+name, o.file)
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
	case o.layout != nil:
		o.args = flags.Of("iso-url", "oci:"+baseLayoutPath, "iso-checksum", o.Checksum)
		return c.WithMountedDirectory(baseLayoutPath, o.layout, dagger.ContainerWithMountedDirectoryOpts{Owner: user}), nil, nil
	}
	o.args = append(flags.Of("iso-url", o.URL, "iso-checksum", o.Checksum), o.way()...)
	if o.Edition != "" {
		c = c.WithEnvVariable("CHECKSUMS", o.Edition)
	}
	// The program locks each download, and hashes it whenever it is used.
	return c.WithMountedCache(cacheDir+"/images", dag.CacheVolume("diskforge-downloads"), dagger.ContainerWithMountedCacheOpts{Owner: user}), nil, nil
}

// settle decides on what the arguments leave open: a stage is run again when
// the list of checksums changes, and the list's address does not. The stage fetches and checks the list itself, by the same way.
func (o *origin) settle(ctx context.Context, way lists.Way) error {
	if o.Packages && o.Suite == "" {
		o.Suite = suite // as a catalogue names it, so that its base is the same
	}
	list, ok := strings.CutPrefix(o.Checksum, "file:")
	if !ok || o.file != nil {
		return nil
	}
	text, err := fetched(ctx, list, way)
	if err != nil {
		return fmt.Errorf("the list of checksums %s cannot be fetched: %v", list, err)
	}
	o.Edition = fmt.Sprintf("%x", sha256.Sum256([]byte(text)))
	return nil
}

// fetched is a text of the network. The engine knows neither the proxies nor
// the authorities of a build.
func fetched(ctx context.Context, url string, way lists.Way) (string, error) {
	if way == (lists.Way{}) {
		return dag.HTTP(url).Contents(ctx)
	}
	return lists.Fetch(ctx, url, way)
}

// tree is where the playbooks come from.
type tree struct {
	directory *dagger.Directory
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
	if t.directory != nil || (t.URL == "" && t.Ref == "") {
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

// check says whether the tree has the playbook, as far as its name tells. What
// git has is told by the stage that fetches it.
func (t *tree) check(ctx context.Context, m *Diskforge) error {
	from := t.directory
	if from == nil {
		from = m.Source.Directory("ansible")
	}
	if t.Playbook == "" || t.directory == nil && (t.URL != "" || t.Ref != "") {
		return nil
	}
	files, err := from.Glob(ctx, "**/*.y*ml")
	if err != nil {
		return err
	}
	return flags.Playbook(t.Playbook, files)
}

// mount gives the container the playbooks, and no other's.
func (t *tree) mount(m *Diskforge, c *dagger.Container) *dagger.Container {
	switch {
	case t.directory != nil:
		return c.WithMountedDirectory(treePath, t.directory, dagger.ContainerWithMountedDirectoryOpts{Owner: user})
	case t.URL != "":
		return c
	}
	return m.withPlaybooks(c)
}

func (t *tree) args() []string {
	args := flags.Of("ansible-playbook", t.Playbook, "ansible-dir", flags.File(t.directory != nil, treePath))
	if t.directory != nil {
		return args
	}
	return append(args, flags.Of("git-ansible-url", t.URL, "git-ansible-branch", t.Ref, "git-ansible-path", t.Path)...)
}
