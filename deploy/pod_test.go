package deploy_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/cli"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// password is planted as the registry's and must never be seen again.
const password = "planted-job-PASSWORD"

// programVariable makes this test program diskforge.
const programVariable = "DISKFORGE_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programVariable) != "" {
		os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// pod emulates what a kubelet makes of the Job on one node: bubblewrap stands
// for the container runtime. The root file system is this host's, read-only;
// only the volumes can be written; the user is not root, has no capability and
// can gain none; the program is process 1; the environment is the manifest's,
// the image's and the kubelet's, and nothing else. What it does not emulate:
// seccomp, limits of memory and space, /dev/kvm.
type pod struct {
	t       *testing.T
	program string // diskforge
	tools   string // folder with Packer and its plugins, or empty
	base    string // a base image, or empty
	passwd  string // file with the image's user
	scratch string // the volume
	tmp     string // the one of the container that pushes
	secret  string // the secret's files
}

func newPod(t *testing.T) pod {
	t.Helper()
	if out, err := exec.Command("bwrap", "--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "true").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED, nothing was tested: bubblewrap makes no container here: %v: %s", err, out)
	}
	program, err := os.Executable()
	require.NoError(t, err)
	p := pod{t: t, program: program, scratch: t.TempDir(), tmp: t.TempDir(), secret: t.TempDir(), passwd: filepath.Join(t.TempDir(), "passwd")}
	require.NoError(t, os.WriteFile(p.passwd, []byte("diskforge:x:1000:1000::/nonexistent:/bin/sh\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(p.secret, "password"), []byte(password+"\n"), 0o440))
	return p
}

// start starts a container. Its files are this host's programs and nothing
// that can be written, not even /tmp, unless a volume is mounted there.
func (p pod) start(c container, in map[string]string) (*exec.Cmd, *strings.Builder) {
	p.t.Helper()
	args := []string{
		"--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--as-pid-1", "--die-with-parent",
		"--uid", "1000", "--gid", "1000", "--cap-drop", "ALL",
		"--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc", "--ro-bind", p.passwd, "/etc/passwd",
		"--symlink", "usr/bin", "/bin", "--symlink", "usr/sbin", "/sbin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64",
		"--dev", "/dev", "--proc", "/proc", "--dir", "/tmp", "--dir", "/var/tmp", "--dir", "/run",
		"--ro-bind", p.program, "/opt/diskforge/bin/diskforge",
	}
	for file, where := range map[string]string{p.tools: "/opt/diskforge/tools", p.base: "/base.qcow2"} {
		if file != "" {
			args = append(args, "--ro-bind", file, where)
		}
	}
	volumes := map[string]string{"scratch": p.scratch, "tmp": p.tmp, "registry": p.secret, "pull": p.secret}
	for _, m := range c.VolumeMounts {
		bind := "--bind"
		if m.ReadOnly {
			bind = "--ro-bind"
		}
		args = append(args, bind, volumes[m.Name], m.MountPath)
	}
	args = append(args, "--remount-ro", "/", "--clearenv", "--setenv", programVariable, "1",
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

// diskforge runs the program on this host and returns the line that it prints.
func diskforge(t *testing.T, args ...string) string {
	t.Helper()
	t.Setenv(programVariable, "1")
	return line(t, os.Args[0], args...)
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

// packed leaves on the volume what build leaves there: the layout of an image
// that was verified.
func (p pod) packed() {
	p.t.Helper()
	sectors := make([]byte, 8<<20)
	copy(sectors[446:], []byte{0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8}) // a partition, which boots
	copy(sectors[510:], "\x55\xAA")
	raw, disk := filepath.Join(p.t.TempDir(), "disk.raw"), filepath.Join(p.t.TempDir(), "disk.qcow2")
	require.NoError(p.t, os.WriteFile(raw, sectors, 0o600))
	line(p.t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk)
	_, err := oci.Pack(p.t.Context(), disk, filepath.Join(p.scratch, "out", "course"),
		oci.Metadata{Architecture: "amd64", Title: "course", VerifiedDisk: sum(p.t, disk)}, progress.Discard)
	require.NoError(p.t, err)
}

// pushes are the containers that push: the Job's and a rendered one's.
func pushes(t *testing.T) []container {
	t.Helper()
	_, push := job(t)
	all, _ := rendered(t)
	return []container{push, all[0].Spec.Template.Spec.Containers[0]}
}

func TestAPodsPushReadsAVolumeThatItCannotWriteTo(t *testing.T) {
	p, address := newPod(t), server(t)
	p.packed()
	in := map[string]string{"TARGET_REGISTRY": address, "REGISTRY_PREFIX": "labs", "IMAGE_NAME": "course", "IMAGE_TAG": "1"}
	for _, push := range pushes(t) {
		pushed, said := p.start(push, in)
		require.NoError(t, pushed.Wait(), said.String())
		assert.Contains(t, said.String(), address+"/labs/course:1@sha256:")
		assert.NotContains(t, said.String(), password)

		elsewhere := maps.Clone(in)
		elsewhere["TMPDIR"] = "/scratch"
		pushed, said = p.start(push, elsewhere)
		require.Error(t, pushed.Wait(), "it needs no folder of its own")
		assert.Contains(t, said.String(), "read-only file system")
	}
}

func TestAPodsRefusedPushPublishesNothing(t *testing.T) {
	p, address := newPod(t), server(t)
	p.packed()
	require.NoError(t, os.WriteFile(filepath.Join(p.secret, "password"), []byte("wrong\n"), 0o440))
	_, push := job(t)
	refused, said := p.start(push, map[string]string{"TARGET_REGISTRY": address, "IMAGE_NAME": "course", "IMAGE_TAG": "1"})
	require.Error(t, refused.Wait())
	assert.Contains(t, said.String(), address)
	assert.NotContains(t, said.String(), "@sha256:")
}
