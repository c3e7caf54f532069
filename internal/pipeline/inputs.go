package pipeline

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"sync"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

// The digest of a stage's inputs decides whether an earlier run's output may
// be used again: whatever changes the output must be in it, and nothing that
// changes with the time or the place of a run.

// generation stands for what this program itself does to a disk: the seed of a
// build, what the playbooks are given, how a disk is sparsified. A change there
// that changes disks adds one.
const generation = 2

// madeBy is all that shapes a disk besides its base.
func madeBy(c settings.Config, playbook, controller string) map[string]any {
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
var template = sync.OnceValue(func() string { return treeDigest(provision.Template) })

// imageInputs is the digest of all that an image is made from, as far as it
// is known before the base is there: what a registry is asked for.
func imageInputs(c settings.Config, base, playbook, controller string) string {
	all := madeBy(c, playbook, controller)
	all["base"], all["sparsify"], all["compression"], all["architecture"] = base, c.Sparsify, c.Compression, c.Architecture
	return inputs(all)
}

// plannedInputs is the digest of all that the image is made from, known before
// anything is fetched or made: by the version of ansible-core, the digest of
// what the playbook uses and, for an image that starts from another, that
// one's input digest. The checksum of a base must not be that of a list.
func plannedInputs(c settings.Config, controller, playbook, parent string) (_ string, err error) {
	from := cmp.Or(parent, c.BaseImage.Inputs, c.BaseImage.Digest, c.Checksum)
	if parent == "" && c.BaseFromPackages {
		from, err = baseOptions(c, controller).Recipe()
	}
	return imageInputs(c, from, playbook, controller), err
}

func (w *way) imageInputs() string {
	return imageInputs(w.Config, w.base.Inputs, w.playbookInputs.Digest, w.controller)
}

// checkPlan compares the image's inputs with those that a plan foresaw: others
// wait for the image by them, and would wait in vain.
func (w *way) checkPlan() error {
	planned, is := w.Config.ImageInputs, w.imageInputs()
	if planned == "" || is == planned {
		return nil
	}
	return failure.New(fmt.Sprintf("IMAGE_INPUTS is %s, but this image is made from %s, with ansible-core %s", planned, is, w.controller),
		"make the plan with the program, the Ansible and the playbooks that build: run diskforge plan in the same image")
}

// provisionInputs is the digest of all that a provisioned disk is made from.
func (w *way) provisionInputs() string {
	all := madeBy(w.Config, w.playbookInputs.Digest, w.controller)
	all["base"] = w.base.Digest
	if job := w.job(); job != "" {
		all["job"] = job
	}
	return inputs(all)
}

// sparsifyInputs is the digest of all that a sparsified disk is made from.
func (w *way) sparsifyInputs() string {
	return inputs(map[string]any{"disk": w.known.Digest, "method": w.Config.Sparsify, "compression": w.Config.Compression, "trimmed": w.known.Trimmed})
}

// verifyInputs is the digest of what is verified and by which checks
// and excuses.
func (w *way) verifyInputs() string {
	c := w.Config
	content, err := os.ReadFile(w.playbook.Checks)
	if err != nil && w.playbook.Checks != "" {
		return "" // never equal to a recorded one: verify will say what is wrong
	}
	return inputs(map[string]any{
		"disk": w.known.Digest, "checks": content, "excuses": w.policy.Excuses, "version": w.Version,
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
