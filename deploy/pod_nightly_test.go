//go:build nightly

package deploy_test

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/deploy"
	"github.com/netgroup-polito/diskforge/internal/fleet"
	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/fleet/render"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
)

// builder is a pod with what it takes to build: Packer with its plugins, and a
// base image made from Debian's packages.
func builder(t *testing.T) pod {
	t.Helper()
	p := newPod(t)
	p.tools, p.base = diskforge(t, "tools"), diskforge(t, "base")
	return p
}

func TestTheJobBuildsUnderAPodsRestrictionsResumesAndPushes(t *testing.T) {
	build, push := job(t)
	p := builder(t)
	address := server(t)
	in := map[string]string{
		"ISO_URL": "/base.qcow2", "ISO_CHECKSUM": sum(t, p.base), "ANSIBLE_PLAYBOOK": "debian-base",
		"GIT_ANSIBLE_URL": "", "GIT_ANSIBLE_BRANCH": "", "BAKE_USER": "false", // the playbooks that diskforge carries: no network
		"TARGET_REGISTRY": address, "REGISTRY_PREFIX": "labs", "IMAGE_NAME": "course", "IMAGE_TAG": "1",
		"ACCELERATOR": "tcg", "MEMORY": "2048", "CPUS": "2",
	}

	// The node's kernel ends the container in the middle, while verify boots.
	killed, said := p.start(build, in)
	ended := make(chan error, 1)
	go func() { ended <- killed.Wait() }()
	limit := time.After(30 * time.Minute)
	for !exists(filepath.Join(p.scratch, "out", "work", "records", "sparsify.json")) {
		select {
		case err := <-ended:
			require.FailNow(t, "the build ended before it was killed", "%v\n%s", err, said)
		case <-limit:
			require.FailNow(t, "no disk after 30 minutes", said.String())
		case <-time.After(time.Second):
		}
	}
	require.NoError(t, killed.Process.Kill())
	require.Error(t, <-ended)

	again, said := p.start(build, in)
	require.NoError(t, again.Wait(), said.String())
	assert.Equal(t, 2, strings.Count(said.String(), "done before"), said.String())
	assert.Contains(t, said.String(), "oci:/scratch/out/course@sha256:")
	digest := said.String()[strings.LastIndex(said.String(), "@")+1:]

	pushed, said := p.start(push, in)
	require.NoError(t, pushed.Wait(), said.String())
	assert.Contains(t, said.String(), address+"/labs/course:1@"+strings.TrimSpace(digest))
	assert.NotContains(t, said.String(), password)
	found := exec.Command("grep", "-rlF", password, p.scratch)
	names, _ := found.Output()
	assert.Empty(t, string(names))
	assert.Equal(t, 1, found.ProcessState.ExitCode(), "grep found nothing and had no trouble")
}

// childOf is the Job of an image that starts from another, which is not there
// yet, and whose own inputs are others than planned, so that it ends before it
// boots anything.
func childOf(t *testing.T, address, inputs string) (base, build container) {
	t.Helper()
	c, err := catalogue.Parse("catalogue.yaml", "/", []byte(`
defaults: {playbook: debian-base, tags: "1"}
images: [{name: parent, base: {url: "https://example.org/x", checksum: "sha256:`+strings.Repeat("0", 64)+`"}}, {name: child, from: parent}]`))
	require.NoError(t, err)
	c.Images[1].Settings["IMAGE_INPUTS"] = "sha256:" + strings.Repeat("f", 64)
	facts := map[string]fleet.Facts{"parent": {Inputs: inputs, Tags: []string{"1"}}, "child": {Inputs: "sha256:" + strings.Repeat("f", 64), Tags: []string{"1"}}}
	var out bytes.Buffer
	require.NoError(t, render.Kubernetes(&out, deploy.Job, fleet.Decide(c.Images, facts, fleet.Policy{}), render.Target{Registry: address, Prefix: "labs"}, "registry-read-only"))
	_, text, _ := strings.Cut(out.String(), "\n---\n")
	var j manifest
	require.NoError(t, yaml.Unmarshal([]byte(text), &j))
	require.Len(t, j.Spec.Template.Spec.InitContainers, 2)
	return j.Spec.Template.Spec.InitContainers[0], j.Spec.Template.Spec.InitContainers[1]
}

func TestAChildStartsFromAPrivateParentWithoutAPassword(t *testing.T) {
	p, address, inputs := builder(t), server(t), "sha256:"+strings.Repeat("a", 64)
	base, build := childOf(t, address, inputs)
	waits, waited := p.start(base, nil)

	disk, layout := filepath.Join(t.TempDir(), "disk.qcow2"), filepath.Join(t.TempDir(), "layout")
	line(t, "qemu-img", "create", "-q", "-f", "qcow2", disk, "1M")
	packed, err := oci.Pack(t.Context(), disk, layout, oci.Metadata{
		Architecture: "amd64", Annotations: map[string]string{oci.AnnotationInputs: inputs, oci.AnnotationGuest: "Debian 12"},
	}, progress.Discard)
	require.NoError(t, err)
	_, err = registry.Push(t.Context(), layout, address+"/labs/parent:1", registry.Options{Username: "me", Password: password}, progress.Discard)
	require.NoError(t, err)
	require.NoError(t, waits.Wait(), waited.String())

	builds, said := p.start(build, map[string]string{"ACCELERATOR": "tcg"})
	require.Error(t, builds.Wait())
	assert.Contains(t, said.String(), "registry "+address+" wants a login")
	assert.Contains(t, said.String(), "fetched before is taken")
	assert.Contains(t, said.String(), "labs/parent:1@"+packed.Digest)
	lines := strings.Split(strings.TrimSpace(said.String()), "\n")
	assert.Contains(t, lines[len(lines)-1], "IMAGE_INPUTS is sha256:ffff", "the last line is the container's termination message")
	assert.NotContains(t, waited.String()+said.String(), password)
	found := exec.Command("grep", "-rlF", password, p.scratch)
	names, _ := found.Output()
	assert.Empty(t, string(names))
}
