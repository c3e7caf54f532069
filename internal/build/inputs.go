package build

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"

	"github.com/netgroup-polito/diskforge/packer"
)

// The digest of a stage's inputs decides whether an earlier run's output may
// be used again: whatever changes the output must be in it, and nothing that
// changes with the time or the place of a run.

// provisionInputs is the digest of all that a provisioned disk is made from.
func (b *Build) provisionInputs(r ready) string {
	c := b.Config
	return inputs(map[string]any{
		"base": r.base.Digest, "playbook": r.playbook.File, "revision": r.playbook.Revision,
		"template": treeDigest(packer.Template), "tools": r.tools.Versions, "ansible": r.controller,
		"diskSize": c.DiskSize, "buildUser": c.BuildUser, "vmUser": c.VMUser, "bakeUser": c.BakeUser,
		"desktop": c.Desktop, "extraVars": c.ExtraVars, "aptMirror": c.AptMirror,
	})
}

// sparsifyInputs is the digest of all that a sparsified disk is made from.
func (b *Build) sparsifyInputs(in made[provisioned]) string {
	return inputs(map[string]any{"disk": in.digest, "method": b.Config.Sparsify, "compression": b.Config.Compression, "trimmed": in.result.Trimmed})
}

// verifyInputs is the digest of what is verified and by which checks.
func (b *Build) verifyInputs(disk, checks string) string {
	c := b.Config
	content, err := os.ReadFile(checks)
	if err != nil && checks != "" {
		return "" // never equal to a recorded one: verify will say what is wrong
	}
	return inputs(map[string]any{
		"disk": disk, "checks": content, "version": b.Version,
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
