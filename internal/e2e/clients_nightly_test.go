//go:build nightly

package e2e

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// client runs somebody else's program in a folder of its own, with a login that is in
// Docker's form.
func client(t *testing.T, dir, login string, args ...string) {
	t.Helper()
	c := exec.Command(args[0], args[1:]...)
	c.Dir = dir
	c.Env = append(os.Environ(), "HOME="+dir, "REGISTRY_AUTH_FILE="+login, "XDG_RUNTIME_DIR="+dir)
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s: %s", args, out)
}

// dockerLogin is a config.json of Docker with the registry's login.
func dockerLogin(t *testing.T, address string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.json")
	auth := base64.StdEncoding.EncodeToString([]byte("me:" + secret))
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `{"auths": {%q: {"auth": %q}}}`, address, auth), 0o600))
	return path
}

// What we pack and push, the clients of others take out again, without anything of
// ours in between: those of containers/image (CDI's importer is one), and runc's.
func TestOtherClientsTakeTheDiskOutOfWhatWePublish(t *testing.T) {
	address, dir := registry(t), t.TempDir()
	disk := filepath.Join(dir, "disk.qcow2")
	raw := filepath.Join(dir, "disk.raw")
	content := make([]byte, 8<<20)
	_, _ = rand.Read(content) // never fails (crypto/rand)
	content[510], content[511] = 0x55, 0xaa
	clear(content[446:510])
	require.NoError(t, os.WriteFile(raw, content, 0o600))
	client(t, dir, "", "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", raw, disk)
	want, err := host.DigestFile(t.Context(), disk, progress.Discard)
	require.NoError(t, err)

	layout, ref := filepath.Join(dir, "layout"), address+"/labs/clients:nightly"
	env := map[string]string{"REGISTRY_USER": "me", "REGISTRY_PASS": secret}
	for _, args := range [][]string{{"pack", disk, "-o", layout, "--target-registry", address, "--registry-prefix", "labs", "--image-name", "clients", "--image-tag", "nightly"}, {"push", layout, ref, "--unverified"}} {
		r := start(t, env, diskforge(t), args...)
		require.Zero(t, r.wait(time.Minute), r.errors())
	}
	login := dockerLogin(t, address)

	for name, steps := range map[string][][]string{
		"skopeo and umoci": {
			{"skopeo", "copy", "--src-tls-verify=false", "docker://" + ref, "oci:copied:nightly"},
			{"umoci", "unpack", "--image", "copied:nightly", "bundle"},
			{"ln", "bundle/rootfs/disk/disk.qcow2", "taken"},
		},
		"oras and umoci": {
			{testkit.Tool(t, filepath.Join(root(t), ".ci", "oras"), "oras"), "copy", "--from-plain-http", "--from-registry-config", login, "--to-oci-layout", ref, "copied:nightly"},
			{"umoci", "unpack", "--image", "copied:nightly", "bundle"},
			{"ln", "bundle/rootfs/disk/disk.qcow2", "taken"},
		},
		"umoci of our layout": {
			{"cp", "-r", layout, "copied"},
			{"umoci", "unpack", "--image", "copied:nightly", "bundle"},
			{"ln", "bundle/rootfs/disk/disk.qcow2", "taken"},
		},
		"podman": {
			{"podman", "--root", "store", "--runroot", "run", "--storage-driver", "vfs", "pull", "--tls-verify=false", ref},
			{"podman", "--root", "store", "--runroot", "run", "--storage-driver", "vfs", "create", "--name", "c", ref, "none"},
			{"podman", "--root", "store", "--runroot", "run", "--storage-driver", "vfs", "cp", "c:/disk/disk.qcow2", "taken"},
		},
		"skopeo's directory": {
			{"skopeo", "copy", "--src-tls-verify=false", "docker://" + ref, "dir:copied"},
			{"sh", "-c", `tar -xOf copied/"$(jq -r '.layers[0].digest' copied/manifest.json | cut -d: -f2)" disk/disk.qcow2 >taken`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			work := t.TempDir()
			for _, step := range steps {
				client(t, work, login, step...)
			}
			got, err := host.DigestFile(t.Context(), filepath.Join(work, "taken"), progress.Discard)
			require.NoError(t, err)
			assert.Equal(t, want, got)
		})
	}
}
