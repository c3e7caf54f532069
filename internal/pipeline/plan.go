package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/netgroup-polito/diskforge/ansible"
	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

// Planner says what images will be made from, before anything of them is there,
// and looks up once what they share. It is for one goroutine.
type Planner struct {
	controller string // version of ansible-core
	trees      playbook.Trees
	guests     map[string]playbook.Guest              // by the input digests of images of theirs
	lists      map[string]func() (base.Stated, error) // by image URL and list
	p          progress.Reporter
}

// Pin is an image with exactly what it will be made from.
type Pin struct {
	Config   settings.Config
	Settings map[string]string // that make it so, whatever a list or a branch says by then
	Whole    string            // why the whole playbook tree counts, or empty
}

// What commands need of rooms that they do not know: the causes of errors about what an
// image asks for and nobody has, and the tools' names.
var (
	ErrNoPlaybook = playbook.ErrUnknown
	ErrNoPackage  = base.ErrNoPackage
	ToolsVersions = provision.ToolsVersions
)

// ToolsDirVariable names the folder of tools that somebody compiled before.
const ToolsDirVariable = provision.ToolsDirVariable

// NewPlanner plans what this host would build.
func NewPlanner(ctx context.Context, cacheDir string, p progress.Reporter) (*Planner, error) {
	controller, err := playbook.ControllerVersion(ctx)
	if err == nil {
		err = CheckCache(cacheDir)
	}
	return &Planner{controller: controller, guests: map[string]playbook.Guest{}, lists: map[string]func() (base.Stated, error){}, p: p}, err
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
	guest := cmp.Or(guessGuest(c, l.controller), l.guests[parent])
	err = errors.Join(manageable(l.controller, guest, uses), playbook.CheckForms(l.controller, uses),
		checkPackages(ctx, c, suiteOf(guest), base.CheckPackages, l.p))
	if err == nil && uses.Unreadable() {
		if err = l.ask(ctx, c); err != nil {
			err = fmt.Errorf("%s: %w", uses.Whole, err)
		}
	}
	if err != nil {
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
	l.guests[pin.Config.ImageInputs] = guest
	if c.AptMirror != "" {
		pin.Settings["APT_MIRROR"] = c.AptMirror
	}
	return pin, err
}

// ask has Ansible judge a playbook that is not understood here, before the images are
// built that its own starts from.
func (l *Planner) ask(ctx context.Context, c settings.Config) error {
	dir, err := os.MkdirTemp("", "diskforge-plan-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	o := PlaybookOptions(c)
	o.Dir = filepath.Join(dir, "playbooks")
	_, _, err = usedPlaybook(ctx, o, c.ExtraVars, l.controller, l.p)
	return err
}

// uses is what the playbook uses of its tree.
func (l *Planner) uses(ctx context.Context, c settings.Config) (tree *playbook.Tree, uses playbook.Inputs, err error) {
	if tree, err = l.trees.Open(ctx, PlaybookOptions(c), l.p); err == nil {
		uses, err = tree.Inputs(ctx, c.Playbook, c.ExtraVars)
	}
	return tree, uses, err
}

// guessGuest is the release that the base is of, where its name tells that, or nothing.
func guessGuest(c settings.Config, controller string) playbook.Guest {
	name := c.ISOURL
	if c.BaseFromPackages {
		name = cmp.Or(c.Suite, newestSuite(controller))
	}
	guest, _ := playbook.GuessGuest(name)
	return guest
}

// CheckShipped says whether a playbook that comes with diskforge is for Debian's
// release (bookworm).
func CheckShipped(ctx context.Context, name, release string) error {
	tree, err := playbook.NewTree(ctx, ansible.FS)
	if err != nil {
		return err
	}
	defer tree.Close()
	uses, err := tree.Inputs(ctx, name, nil)
	if err != nil {
		return err
	}
	guest, _ := playbook.GuessGuest(release)
	return uses.CheckRelease(guest)
}

// manageable says whether the playbook is for the release that the base is of, and this
// host's Ansible can manage it: a build would find out when the base is there.
func manageable(controller string, guest playbook.Guest, uses playbook.Inputs) error {
	if guest == (playbook.Guest{}) {
		return nil
	}
	return errors.Join(uses.CheckRelease(guest), playbook.CheckVersions(controller, guest))
}

// suiteOf is Debian's release that the guest is of, or empty.
func suiteOf(guest playbook.Guest) string {
	for _, suite := range base.Suites {
		if of, _ := playbook.GuessGuest(suite); of == guest {
			return suite
		}
	}
	return ""
}

// checkPackages says which of PACKAGES the release does not have. A playbook of the
// user's own may add a repository that has them: then it only warns.
func checkPackages(ctx context.Context, c settings.Config, suite string,
	check func(context.Context, base.Options, []string, progress.Reporter) error, p progress.Reporter,
) error {
	if c.Packages == "" || suite == "" {
		return nil
	}
	o := baseOptions(c, "")
	o.Suite = suite
	err := check(ctx, o, strings.Split(c.Packages, ","), p)
	if errors.Is(err, base.ErrNoPackage) && (c.AnsibleDir != "" || c.GitURL != "") {
		p.Warn(err.Error() + ": unless the playbook adds a repository that has it")
		return nil
	}
	return err
}

// fix replaces a list of checksums, which is read once, and a branch by what they
// mean now, and returns the settings that do so. Tree may be nil.
func (l *Planner) fix(ctx context.Context, c *settings.Config, tree *playbook.Tree) (map[string]string, error) {
	fixed, key := map[string]string{}, c.ISOURL+"\n"+c.Checksum
	if l.lists[key] == nil {
		of := *c
		l.lists[key] = sync.OnceValues(func() (base.Stated, error) {
			return base.ResolveChecksum(ctx, of.ISOURL, of.Checksum, downloads(of), l.p)
		})
	}
	stated, err := l.lists[key]()
	if stated.Sum != c.Checksum { // of the list nothing is asked any more
		c.Checksum, fixed["ISO_CHECKSUM"] = stated.Sum, stated.Sum
		c.BaseKeyring, c.SignedBy, c.Release = "", stated.SignedBy, stated.Release
	}
	if err == nil && c.BaseKey != "" && c.BaseImage.Reference != "" { // who builds elsewhere has no key
		at, _, _ := strings.Cut(c.BaseImage.Reference, "@")
		if c.BaseImage.Digest != "" {
			at += "@" + c.BaseImage.Digest
		}
		_, err = (&Build{Config: *c}).VerifySignature(ctx, at, c.BaseKey, nil)
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
	l := &Planner{lists: map[string]func() (base.Stated, error){}, p: progress.Discard}
	defer l.Close()
	var tree *playbook.Tree
	if c.Playbook != "" {
		if tree, _, err = l.uses(ctx, c); err != nil {
			return nil, err
		}
	}
	return l.fix(ctx, &c, tree)
}
