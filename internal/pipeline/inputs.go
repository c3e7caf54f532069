package pipeline

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"sync"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/packer"
)

// The digest of a stage's inputs decides whether an earlier run's output may
// be used again: whatever changes the output must be in it, and nothing that
// changes with the time or the place of a run.

// generation stands for what this program itself does to a disk: the seed of a
// build, what the playbooks are told, how a disk is sparsified. A change there
// that changes disks adds one.
const generation = 2

// madeBy is all that shapes a disk besides its base.
func (b *Build) madeBy(playbook, controller string) map[string]any {
	c := b.Config
	versions := maps.Clone(provision.ToolsVersions())
	delete(versions, "goss") // it looks at disks and makes none
	return map[string]any{
		"generation": generation, "playbook": playbook, "template": template(), "tools": versions, "ansible": controller,
		"diskSize": c.DiskSize, "buildUser": c.BuildUser, "vmUser": c.VMUser, "bakeUser": c.BakeUser,
		"desktop": c.Desktop, "extraVars": c.ExtraVars, "aptMirror": c.AptMirror,
	}
}

// template is the digest of the Packer template, which is hashed once: a plan
// asks for each of its images.
var template = sync.OnceValue(func() string { return treeDigest(packer.Template) })

// provisionInputs is the digest of all that a provisioned disk is made from.
func (b *Build) provisionInputs(r ready) string {
	all := b.madeBy(r.playbookInputs.Digest, r.controller)
	all["base"] = r.base.Digest
	return inputs(all)
}

// imageInputs is the digest of all that an image is made from, as far as it
// is known before the base is there: what a registry is asked for.
func (b *Build) imageInputs(base, playbook, controller string) string {
	all := b.madeBy(playbook, controller)
	all["base"], all["sparsify"], all["compression"], all["architecture"] = base, b.Config.Sparsify, b.Config.Compression, b.Config.Architecture
	return inputs(all)
}

// Inputs is the digest of all that the image is made from, known before
// anything is fetched or made: by the version of ansible-core, the digest of
// what the playbook uses and, for an image that starts from another, that
// one's input digest. The checksum of a base must not be that of a list.
func (b *Build) Inputs(controller, playbook, parent string) (string, error) {
	base, err := b.baseInputs(controller, parent)
	return b.imageInputs(base, playbook, controller), err
}

// checkPlan compares the image's inputs with those that a plan foresaw: others
// wait for the image by them, and would wait in vain.
func (b *Build) checkPlan(r ready) error {
	inputs := b.imageInputs(r.base.Inputs, r.playbookInputs.Digest, r.controller)
	if b.Config.ImageInputs == "" || inputs == b.Config.ImageInputs {
		return nil
	}
	return failure.New(fmt.Sprintf("IMAGE_INPUTS is %s, but this image is made from %s, with ansible-core %s", b.Config.ImageInputs, inputs, r.controller),
		"make the plan with the program, the Ansible and the playbooks that build: run diskforge plan in the same image")
}

// baseInputs is what is known of the base before it is there.
func (b *Build) baseInputs(controller, parent string) (string, error) {
	c := b.Config
	switch {
	case parent != "":
		return parent, nil
	case c.BaseFromPackages:
		return b.baseOptions(controller).Recipe()
	case c.BaseImage.IsSet():
		return first(c.BaseImage.Inputs, c.BaseImage.Digest), nil
	}
	return c.ISOChecksum.String(), nil
}

// sparsifyInputs is the digest of all that a sparsified disk is made from.
func (b *Build) sparsifyInputs(in made[provisioned]) string {
	return inputs(map[string]any{"disk": in.digest, "method": b.Config.Sparsify, "compression": b.Config.Compression, "trimmed": in.result.Trimmed})
}

// verifyInputs is the digest of what is verified and by which checks
// and excuses.
func (b *Build) verifyInputs(disk, checks string, policy hygiene.Policy) string {
	c := b.Config
	content, err := os.ReadFile(checks)
	if err != nil && checks != "" {
		return "" // never equal to a recorded one: verify will say what is wrong
	}
	return inputs(map[string]any{
		"disk": disk, "checks": content, "excuses": policy.Excuses, "version": b.Version,
		"buildUser": c.BuildUser, "vmUser": c.VMUser, "bakeUser": c.BakeUser,
	})
}

// inputs is the digest of the values. JSON writes a map's keys in order.
func inputs(values map[string]any) string {
	text, err := json.Marshal(values)
	if err != nil {
		panic(err) // extra variables came from YAML and are plain values
	}
	sum := sha256.Sum256(text)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// treeDigest is the digest of an embedded tree's names and contents.
func treeDigest(tree fs.FS) string {
	files := map[string]any{}
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files[name], err = fs.ReadFile(tree, name)
		return err
	})
	if err != nil {
		panic(err) // embedded at compile time
	}
	return inputs(files)
}
