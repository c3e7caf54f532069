//go:build nightly

package deploy_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/deploy"
	"github.com/netgroup-polito/diskforge/internal/catalogue"
	"github.com/netgroup-polito/diskforge/internal/containerdisk"
	"github.com/netgroup-polito/diskforge/internal/plan"
	"github.com/netgroup-polito/diskforge/internal/progress"
	images "github.com/netgroup-polito/diskforge/internal/registry"
)

// password is planted as the registry's and must never be seen again.
const password = "planted-job-PASSWORD"

// pod emulates what a kubelet makes of the Job on one node: bubblewrap stands
// for the container runtime. The root file system is this host's, read-only;
// only the volumes can be written; the user is not root, has no capability and
// can gain none; the program is process 1; the environment is the manifest's,
// the image's and the kubelet's, and nothing else. What it does not emulate:
// seccomp, limits of memory and space, /dev/kvm.
type pod struct {
	t       *testing.T
	program string // folder with diskforge
	tools   string // folder with Packer and its plugins
	passwd  string // file with the image's user
	base    string // a base image, made from Debian's packages
	scratch string // the volume
	secret  string // the secret's files
}

func newPod(t *testing.T) pod {
	t.Helper()
	p := pod{t: t, program: t.TempDir(), scratch: t.TempDir(), secret: t.TempDir(), passwd: filepath.Join(t.TempDir(), "passwd")}
	line(t, "go", "build", "-o", p.program, "..")
	p.tools = line(t, filepath.Join(p.program, "diskforge"), "tools")
	p.base = line(t, filepath.Join(p.program, "diskforge"), "base")
	require.NoError(t, os.WriteFile(p.passwd, []byte("diskforge:x:1000:1000::/nonexistent:/bin/sh\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(p.secret, "password"), []byte(password+"\n"), 0o440))
	return p
}

// start starts a container. Its files are this host's programs and nothing
// that can be written, not even /tmp.
func (p pod) start(c container, in map[string]string) (*exec.Cmd, *strings.Builder) {
	p.t.Helper()
	args := []string{
		"--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--as-pid-1", "--die-with-parent",
		"--uid", "1000", "--gid", "1000", "--cap-drop", "ALL",
		"--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc", "--ro-bind", p.passwd, "/etc/passwd",
		"--symlink", "usr/bin", "/bin", "--symlink", "usr/sbin", "/sbin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64",
		"--dev", "/dev", "--proc", "/proc", "--dir", "/tmp", "--dir", "/var/tmp", "--dir", "/run",
		"--ro-bind", p.program, "/opt/diskforge/bin", "--ro-bind", p.tools, "/opt/diskforge/tools",
		"--ro-bind", p.base, "/base.qcow2",
	}
	for _, m := range c.VolumeMounts {
		bind := "--bind"
		if m.ReadOnly {
			bind = "--ro-bind"
		}
		args = append(args, bind, map[string]string{"scratch": p.scratch, "registry": p.secret, "pull": p.secret}[m.Name], m.MountPath)
	}
	args = append(args, "--remount-ro", "/", "--clearenv",
		"--setenv", "PATH", "/opt/diskforge/bin:/usr/bin:/usr/sbin", "--setenv", "DISKFORGE_TOOLS_DIR", "/opt/diskforge/tools",
		"--setenv", "KUBERNETES_SERVICE_HOST", "10.96.0.1")
	env := c.filled(in)
	for name, value := range env {
		args = append(args, "--setenv", name, value)
	}
	cmd := exec.Command("bwrap", append(append(args, "--"), c.command(env)...)...)
	said := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = said, said
	require.NoError(p.t, cmd.Start())
	p.t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, said
}

// line runs a program and returns the line that it prints.
func line(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).Output()
	require.NoError(t, err)
	return strings.TrimSpace(string(out))
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func sum(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	hash := sha256.New()
	_, err = io.Copy(hash, f)
	require.NoError(t, err)
	return "sha256:" + hex.EncodeToString(hash.Sum(nil))
}

// server is a registry on loopback that lets only one user in.
func server(t *testing.T) (address string) {
	t.Helper()
	images := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithBlobHandler(registry.NewDiskBlobHandler(t.TempDir())))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pass, _ := r.BasicAuth(); user != "me" || pass != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		images.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func TestTheJobBuildsUnderAPodsRestrictionsResumesAndPushes(t *testing.T) {
	build, push := job(t)
	p := newPod(t)
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

func TestAPodsRefusedPushPublishesNothing(t *testing.T) {
	_, push := job(t)
	p := newPod(t)
	require.NoError(t, os.WriteFile(filepath.Join(p.secret, "password"), []byte("wrong\n"), 0o440))
	disk := filepath.Join(t.TempDir(), "disk.qcow2")
	line(t, "qemu-img", "create", "-q", "-f", "qcow2", disk, "1M")
	address := server(t)
	line(t, filepath.Join(p.program, "diskforge"), "pack", disk, "-o", filepath.Join(p.scratch, "out", "course"),
		"--target-registry", address, "--image-name", "course", "--image-tag", "1")
	push.Command = append(push.Command, "--unverified")
	refused, said := p.start(push, map[string]string{"TARGET_REGISTRY": address, "IMAGE_NAME": "course", "IMAGE_TAG": "1"})
	require.Error(t, refused.Wait())
	assert.Contains(t, said.String(), address)
	assert.NotContains(t, said.String(), "@sha256:")
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
	facts := map[string]plan.Facts{"parent": {Inputs: inputs, Tags: []string{"1"}}, "child": {Inputs: "sha256:" + strings.Repeat("f", 64), Tags: []string{"1"}}}
	var out bytes.Buffer
	require.NoError(t, plan.Kubernetes(&out, deploy.Job, plan.Decide(c.Images, facts, plan.Options{}), plan.Target{Registry: address, Prefix: "labs"}, "registry-read-only"))
	_, text, _ := strings.Cut(out.String(), "\n---\n")
	var j manifest
	require.NoError(t, yaml.Unmarshal([]byte(text), &j))
	require.Len(t, j.Spec.Template.Spec.InitContainers, 2)
	return j.Spec.Template.Spec.InitContainers[0], j.Spec.Template.Spec.InitContainers[1]
}

func TestAChildStartsFromAPrivateParentWithoutAPassword(t *testing.T) {
	p, address, inputs := newPod(t), server(t), "sha256:"+strings.Repeat("a", 64)
	base, build := childOf(t, address, inputs)
	waits, waited := p.start(base, nil)

	disk, layout := filepath.Join(t.TempDir(), "disk.qcow2"), filepath.Join(t.TempDir(), "layout")
	line(t, "qemu-img", "create", "-q", "-f", "qcow2", disk, "1M")
	packed, err := containerdisk.Pack(t.Context(), disk, layout, containerdisk.Metadata{
		Architecture: "amd64", Annotations: map[string]string{containerdisk.AnnotationInputs: inputs, containerdisk.AnnotationGuest: "Debian 12"},
	}, progress.Discard)
	require.NoError(t, err)
	_, err = images.Push(t.Context(), layout, address+"/labs/parent:1", images.Options{Username: "me", Password: password}, progress.Discard)
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
