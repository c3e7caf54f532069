package fleet

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/fleet/render"
	"github.com/netgroup-polito/diskforge/internal/guest/accel"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

// learn fills in the facts of all images: first their input digests, parents
// before children, then what there is already, side by side.
func (a *All) learn(ctx context.Context, selected []catalogue.Image, images map[string]*image) error {
	s := a.UI.Stage("plan")
	err := a.learnInputs(ctx, selected, images, s)
	if err == nil {
		err = common(selected, images)
	}
	if err == nil {
		s.Activity("looking for what there is already")
		err = a.learnFound(ctx, selected, images)
	}
	s.End(render.Images(len(images)), err)
	return err
}

// common is the error that keeps every image from being planned, where it is
// one and the same.
func common(selected []catalogue.Image, images map[string]*image) error {
	var first error
	name := ""
	for _, one := range selected {
		switch i := images[one.Name]; {
		case i.facts.Inputs != "", i.facts.Err != nil && first != nil && i.facts.Err.Error() != first.Error():
			return nil
		case i.facts.Err != nil && first == nil:
			first, name = i.facts.Err, one.Name
		}
	}
	if first == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", name, first)
}

func (a *All) learnInputs(ctx context.Context, selected []catalogue.Image, images map[string]*image, p progress.Reporter) error {
	controller, err := playbook.ControllerVersion(ctx)
	if err != nil {
		return err
	}
	if err := pipeline.CheckCache(a.Config.CacheDir); err != nil {
		return err
	}
	l := &learner{controller: controller, trees: playbook.Trees{Dir: filepath.Join(a.Config.CacheDir, "playbooks")}, lists: map[string]resolved{}, p: p}
	defer l.trees.Close()
	var mistakes catalogue.Mistakes
	for _, one := range selected {
		i := images[one.Name]
		i.facts.Err = l.learn(ctx, i, images[one.From])
		if f, ok := failure.In(i.facts.Err); ok { // the catalogue's author knows its keys
			f.What, f.Try = keyed(f.What), keyed(f.Try)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(i.facts.Err, playbook.ErrUnknown) {
			mistakes = append(mistakes, a.mistakes(one, several(i.facts.Err))...)
		}
	}
	return inLines(mistakes)
}

// learner keeps what images share.
type learner struct {
	controller string // version of ansible-core
	trees      playbook.Trees
	lists      map[string]resolved // by image URL and list
	p          progress.Reporter
}

type resolved struct {
	sum base.Checksum
	err error
}

// learn fills in what is known of an image before anything is built. The name
// of its playbook is checked in any case.
func (l *learner) learn(ctx context.Context, i, parent *image) error {
	b := &pipeline.Build{Config: i.config}
	tree, err := l.trees.Open(ctx, b.PlaybookOptions(), l.p)
	var uses playbook.Inputs
	if err == nil {
		uses, err = tree.Inputs(ctx, i.config.Playbook, i.config.ExtraVars)
	}
	if parent != nil && parent.facts.Inputs == "" && !errors.Is(err, playbook.ErrUnknown) {
		return nil // nobody can say: the plan blocks it with its parent
	}
	if err != nil {
		return err
	}
	if err := errors.Join(l.manageable(i.config), playbook.CheckForms(l.controller, uses)); err != nil {
		return err
	}
	if uses.Whole != "" {
		i.facts.Notes = append(i.facts.Notes, "depends on "+uses.String())
	}
	return l.inputs(ctx, i, parent, uses.Digest, tree)
}

// manageable says whether this host's Ansible can manage the release that the
// base is of, where its name tells that: a build would find out when the base
// is there.
func (l *learner) manageable(c settings.Config) error {
	base := c.ISOURL
	if c.BaseFromPackages {
		base = c.Suite
	}
	if guest, known := playbook.GuessGuest(base); known {
		return playbook.CheckVersions(l.controller, guest)
	}
	return nil
}

// inputs fills in the image's input digest and what follows from it.
func (l *learner) inputs(ctx context.Context, i, parent *image, uses string, tree *playbook.Tree) error {
	b, from := &pipeline.Build{Config: i.config}, ""
	if parent != nil {
		from = parent.facts.Inputs
	}
	if err := l.checksum(ctx, b); err != nil {
		return err
	}
	var err error
	if i.facts.Inputs, err = b.Inputs(l.controller, uses, from); err != nil {
		return err
	}
	i.fix(b.Config.ISOChecksum, tree)
	i.facts.MemoryMiB, i.facts.DiskSize = i.config.MemoryMiB, i.config.DiskSize
	i.address()
	return nil
}

// fix has the image built from what was planned, even if the list of checksums
// or the branch of the playbooks says something else by then.
func (i *image) fix(sum base.Checksum, tree *playbook.Tree) {
	i.fixed = map[string]string{"IMAGE_INPUTS": i.facts.Inputs}
	i.config.ImageInputs = i.facts.Inputs
	if i.config.ISOChecksum.File != "" {
		i.config.ISOChecksum = sum
		i.fixed["ISO_CHECKSUM"] = sum.String()
	}
	if tree.Revision != "" {
		i.config.GitURL, i.config.GitBranch = tree.URL, tree.Revision
		i.fixed["GIT_ANSIBLE_URL"], i.fixed["GIT_ANSIBLE_BRANCH"] = tree.URL, tree.Revision
	}
	if i.config.AptMirror != "" {
		i.fixed["APT_MIRROR"] = i.config.AptMirror
	}
	i.settings = i.settings.With(i.fixed)
}

// checksum looks the base's checksum up in its list, once for all images.
func (l *learner) checksum(ctx context.Context, b *pipeline.Build) error {
	c := &b.Config
	if c.ISOChecksum.File == "" {
		return nil
	}
	key := c.ISOURL + "\n" + c.ISOChecksum.File
	r, known := l.lists[key]
	if !known {
		r.sum, r.err = base.ResolveChecksum(ctx, c.ISOURL, c.ISOChecksum, b.Downloads(), l.p)
		l.lists[key] = r
	}
	c.ISOChecksum = r.sum
	return r.err
}

// address names the image in the registry. Without a tag of anybody's it is
// that of its inputs: another image never takes its place.
func (i *image) address() {
	tag := i.config.ImageTag
	switch {
	case len(i.facts.Tags) > 0:
	case i.config.Reference == "":
		tag = ""
	default:
		tag = strings.TrimPrefix(i.facts.Inputs, "sha256:")[:12]
		i.config.Reference = strings.TrimSuffix(i.config.Reference, untagged) + tag
		i.facts.Tags = []string{tag}
	}
	i.config.ImageTag, i.settings = tag, i.settings.With(map[string]string{"IMAGE_TAG": tag})
	if i.config.Reference == "" {
		i.facts.Tags = nil
	}
	i.facts.Reference = i.config.Reference
}

// questions bounds how many images are asked for at once.
const questions = 16

// learnFound asks the registry, or looks into OUTPUT_DIR, for images of the
// same inputs. It is an error where that fails for all images: then it is for
// the same reason. The first show that, so that a registry which is away or
// refuses a login is not bothered with the rest.
func (a *All) learnFound(ctx context.Context, selected []catalogue.Image, images map[string]*image) error {
	session, err := a.session()
	if err != nil {
		return err
	}
	defer session.Close()
	var asked []*image
	for _, one := range selected {
		if i := images[one.Name]; i.facts.Inputs != "" {
			asked = append(asked, i)
		}
	}
	first := asked[:min(len(asked), questions)]
	a.ask(ctx, session, first)
	if ctx.Err() == nil && len(first) > 0 && !slices.ContainsFunc(first, func(i *image) bool { return i.facts.Err == nil }) {
		return first[0].facts.Err
	}
	a.ask(ctx, session, asked[len(first):])
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// ask finds the images, side by side.
func (a *All) ask(ctx context.Context, session *registry.Session, images []*image) {
	g := new(errgroup.Group)
	g.SetLimit(questions)
	for _, i := range images {
		g.Go(func() error {
			switch {
			case ctx.Err() != nil:
			case i.facts.Reference == "":
				i.facts.Found = i.made(a.Config.OutputDir)
			default:
				i.facts.Err = i.find(ctx, session)
			}
			return nil
		})
	}
	_ = g.Wait()
}

// find looks the image up in the registry, under each tag that it shall have.
func (i *image) find(ctx context.Context, session *registry.Session) error {
	found, ok, err := session.Find(ctx, i.facts.Reference, i.facts.Inputs)
	if err != nil {
		return err
	}
	if !ok {
		switch {
		case found.Lost != "":
			i.facts.Absent = "the registry has lost " + found.Lost
		case found.Other:
			i.facts.Absent = changed
		}
		return nil
	}
	i.facts.Found = &render.Found{Digest: found.Digest, Tags: []string{found.Tag}, Built: found.Built}
	for _, tag := range i.facts.Tags[1:] {
		if tag == found.Tag {
			continue
		}
		other, ok, err := session.Find(ctx, i.repository()+":"+tag, i.facts.Inputs)
		if err != nil {
			return err
		}
		if ok && other.Tag == tag && other.Digest == found.Digest {
			i.facts.Found.Tags = append(i.facts.Found.Tags, tag)
		}
	}
	return nil
}

// changed is why an image is built of which there is another.
const changed = "its inputs have changed"

// repository is where the image goes, without its tag.
func (i *image) repository() string {
	return strings.TrimSuffix(i.config.Reference, ":"+i.config.ImageTag)
}

// known is the reference of the image that there is already, as a build tells it.
func (i *image) known(outputDir string) string {
	switch {
	case i.facts.Found == nil:
		return ""
	case i.config.Reference == "":
		return "oci:" + i.layoutDir(outputDir) + "@" + i.facts.Found.Digest
	}
	return i.config.Reference + "@" + i.facts.Found.Digest
}

// made is the image of these inputs in OUTPUT_DIR, or nil.
func (i *image) made(outputDir string) *render.Found {
	layout, annotations, err := i.load(outputDir)
	if errors.Is(err, errOther) {
		i.facts.Absent = changed
	}
	if err != nil {
		return nil // whatever it is, the build will say
	}
	found := &render.Found{Digest: layout.Digest}
	found.Built, _ = time.Parse(time.RFC3339, annotations[oci.AnnotationBuilt])
	return found
}

var errOther = errors.New("holds another image, or one that was not verified")

// load reads the image's layout in OUTPUT_DIR and its manifest's annotations,
// if it is of these inputs and was verified.
func (i *image) load(outputDir string) (*oci.Layout, map[string]string, error) {
	dir := i.layoutDir(outputDir)
	layout, err := oci.Load(dir)
	if err != nil {
		return nil, nil, err
	}
	manifest, err := layout.Image.Manifest()
	if err != nil {
		return nil, nil, err
	}
	if manifest.Annotations[oci.AnnotationInputs] != i.facts.Inputs || !layout.Verified {
		return nil, nil, fmt.Errorf("%s %w", dir, errOther)
	}
	return layout, manifest.Annotations, nil
}

func (i *image) layoutDir(outputDir string) string {
	return pipeline.Layout(Dir(outputDir, i.Name), i.Name)
}

// layout is the directory of the image that there is, where OUTPUT_DIR has it.
// What others start from need not be fetched then.
func (i *image) layout(outputDir string, e render.Entry) string {
	switch {
	case e.Found == "":
		return ""
	case i.config.Reference == "":
	case !e.Fetch:
		return ""
	default:
		if here, _, err := i.load(outputDir); err != nil || here.Digest != e.Found {
			return ""
		}
	}
	return i.layoutDir(outputDir)
}

const (
	// qemuMiB is what QEMU and the programs beside it take besides the guest's
	// memory.
	qemuMiB = 512
	// baseData is what is assumed of a base that is not there yet, in bytes: a
	// server image has less. The build itself knows, and checks again.
	baseData = 1 << 30
)

// resources is what a build takes of the host. A guest that installs
// packages keeps half of its processors busy (measured: 1.05 of 2 under
// emulation). Which accelerator works is the build's to find out: the guest is
// counted as one that may have them all.
func (i *image) resources(dir string) Resources {
	c := i.config
	r := Resources{CPUs: (accel.Verdict{}.CPUs(c.CPUs) + 1) / 2, MemoryMiB: c.MemoryMiB + qemuMiB, Disk: map[string]int64{}, Keep: map[string]int64{}}
	for _, need := range disk.BuildNeeds(disk.BuildPlan{
		Base: disk.Info{DataSize: baseData}, DiskSize: c.DiskSize,
		Method: disk.Method(c.Sparsify), Compression: disk.Compression(c.Compression), WorkDir: dir, TmpDir: dir, LayoutDir: dir,
		Left: pipeline.Left(Dir(dir, i.Name)),
	}) {
		r.Disk[dir] += need.Bytes
		if need.What == disk.LayoutSpace {
			r.Keep[dir] += need.Bytes
		}
	}
	return r
}
