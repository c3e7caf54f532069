package pipeline

import (
	"cmp"
	"context"
	"errors"
	"os"
	"strings"
	"sync"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

// Planner says what images will be made from, before anything of them is there,
// and looks up once what they share. It is for one goroutine.
type Planner struct {
	controller string // version of ansible-core
	trees      playbook.Trees
	suites     map[string]string                 // Debian's release, by the input digest of an image of it
	lists      map[string]func() (string, error) // by image URL and list
	p          progress.Reporter
}

// Pin is an image with exactly what it will be made from.
type Pin struct {
	Config   settings.Config
	Settings map[string]string // that make it so, whatever a list or a branch says by then
	Whole    string            // why the whole playbook tree counts, or empty
}

// The causes of errors about what an image asks for and nobody has.
var (
	ErrNoPlaybook = playbook.ErrUnknown
	ErrNoPackage  = base.ErrNoPackage
)

// NewPlanner plans what this host would build.
func NewPlanner(ctx context.Context, cacheDir string, p progress.Reporter) (*Planner, error) {
	controller, err := playbook.ControllerVersion(ctx)
	if err == nil {
		err = CheckCache(cacheDir)
	}
	return &Planner{controller: controller, suites: map[string]string{}, lists: map[string]func() (string, error){}, p: p}, err
}

// Close gives up what it keeps.
func (l *Planner) Close() { l.trees.Close() }

// Pin finds out what an image is made from; parent is the input digest of the
// image that it starts from, or empty. Its playbook's name is checked first.
func (l *Planner) Pin(ctx context.Context, c settings.Config, parent string) (Pin, error) {
	tree, uses, err := l.uses(ctx, c)
	if err != nil {
		return Pin{}, err
	}
	suite := cmp.Or(suiteOf(c, l.controller), l.suites[parent])
	if err := errors.Join(l.manageable(c), playbook.CheckForms(l.controller, uses), checkPackages(ctx, c, suite, base.CheckPackages, l.p)); err != nil {
		return Pin{}, err
	}
	pin := Pin{Config: c}
	if uses.Whole != "" {
		pin.Whole = uses.String()
	}
	if pin.Settings, err = l.fix(ctx, &pin.Config, tree); err != nil {
		return Pin{}, err
	}
	pin.Config.ImageInputs, err = plannedInputs(pin.Config, l.controller, uses.Digest, parent)
	pin.Settings["IMAGE_INPUTS"] = pin.Config.ImageInputs
	l.suites[pin.Config.ImageInputs] = suite
	if c.AptMirror != "" {
		pin.Settings["APT_MIRROR"] = c.AptMirror
	}
	return pin, err
}

// uses is what the playbook uses of its tree.
func (l *Planner) uses(ctx context.Context, c settings.Config) (tree *playbook.Tree, uses playbook.Inputs, err error) {
	if tree, err = l.trees.Open(ctx, PlaybookOptions(c), l.p); err == nil {
		uses, err = tree.Inputs(ctx, c.Playbook, c.ExtraVars)
	}
	return tree, uses, err
}

// manageable says whether this host's Ansible can manage the release that the
// base is of, where its name tells that: a build would find out when the base
// is there.
func (l *Planner) manageable(c settings.Config) error {
	name := c.ISOURL
	if c.BaseFromPackages {
		name = c.Suite
	}
	if guest, known := playbook.GuessGuest(name); known {
		return playbook.CheckVersions(l.controller, guest)
	}
	return nil
}

// suiteOf is Debian's release that the base is of, where its name tells that.
func suiteOf(c settings.Config, controller string) string {
	if c.BaseFromPackages {
		return cmp.Or(c.Suite, newestSuite(controller))
	}
	of, known := playbook.GuessGuest(c.ISOURL)
	for _, suite := range base.Suites {
		if guest, _ := playbook.GuessGuest(suite); known && guest == of {
			return suite
		}
	}
	return ""
}

// checkPackages says which of PACKAGES the release does not have.
func checkPackages(ctx context.Context, c settings.Config, suite string,
	check func(context.Context, base.Options, []string, progress.Reporter) error, p progress.Reporter,
) error {
	if c.Packages == "" || suite == "" {
		return nil
	}
	return check(ctx, base.Options{Suite: suite, Mirror: c.AptMirror, CacheDir: c.CacheDir}, strings.Split(c.Packages, ","), p)
}

// fix replaces a list of checksums, which is read once, and a branch by what they
// mean now, and returns the settings that do so. Tree may be nil.
func (l *Planner) fix(ctx context.Context, c *settings.Config, tree *playbook.Tree) (map[string]string, error) {
	fixed, key := map[string]string{}, c.ISOURL+"\n"+c.Checksum
	if l.lists[key] == nil {
		of := *c
		l.lists[key] = sync.OnceValues(func() (string, error) { return base.ResolveChecksum(ctx, of.ISOURL, of.Checksum, downloads(of), l.p) })
	}
	sum, err := l.lists[key]()
	if sum != c.Checksum {
		c.Checksum, fixed["ISO_CHECKSUM"] = sum, sum
	}
	if tree != nil && tree.Revision != "" {
		c.GitURL, c.GitBranch = tree.URL, tree.Revision
		fixed["GIT_ANSIBLE_URL"], fixed["GIT_ANSIBLE_BRANCH"] = tree.URL, tree.Revision
	}
	return fixed, err
}

// Pinned are the settings that have any host build what this one would now. It
// says where the playbook is missing.
func Pinned(ctx context.Context, c settings.Config) (_ map[string]string, err error) {
	if c.CacheDir, err = os.MkdirTemp("", "diskforge-stages-"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(c.CacheDir)
	l := &Planner{lists: map[string]func() (string, error){}, p: progress.Discard}
	defer l.Close()
	var tree *playbook.Tree
	if c.Playbook != "" {
		if tree, _, err = l.uses(ctx, c); err != nil {
			return nil, err
		}
	}
	return l.fix(ctx, &c, tree)
}
