//go:build nightly

package verify_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/accel"
	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/verify"
)

// cache keeps base images between runs where DISKFORGE_TEST_CACHE names a
// directory.
func image(t *testing.T, suite string) base.Image {
	t.Helper()
	cache := os.Getenv("DISKFORGE_TEST_CACHE")
	if cache == "" {
		cache = t.TempDir()
	}
	i, err := base.Make(t.Context(), base.Options{Suite: suite, CacheDir: cache, Mirror: os.Getenv("APT_MIRROR")}, progress.Discard)
	require.NoError(t, err)
	return i
}

func options(t *testing.T, i base.Image) verify.Options {
	t.Helper()
	v, err := accel.Choose(t.Context(), accel.Auto, t.TempDir(), progress.Discard)
	require.NoError(t, err)
	return verify.Options{
		Disk: i.Path, Format: i.Format, VirtualSize: 2 << 30, Dir: filepath.Join(t.TempDir(), "verify"),
		Accel: v, BuildUser: "builder", VMUser: "crownlabs",
	}
}

func TestAFreshBaseImageHoldsEveryCheck(t *testing.T) {
	for _, suite := range []string{"bookworm", "trixie"} {
		t.Run(suite, func(t *testing.T) {
			o := options(t, image(t, suite))
			if goss := os.Getenv("DISKFORGE_TEST_GOSS"); goss != "" {
				o.Goss, o.Checks = goss, filepath.Join(t.TempDir(), "checks.yaml")
				require.NoError(t, os.WriteFile(o.Checks, []byte("package:\n  cloud-init:\n    installed: true\nfile:\n  /etc/fstab:\n    exists: true\n"), 0o600))
			}
			r, err := verify.Run(t.Context(), o, progress.Discard)
			for _, c := range r.Checks {
				t.Logf("%+v", c)
			}
			f, _ := failure.In(err)
			require.NoError(t, err, "%+v", f)
			t.Logf("ssh %v, cloud-init %v, total %v", r.TimeToSSH, r.CloudInitDone, r.Total)
			assert.Contains(t, r.CloudInit, "done")
		})
	}
}

// prepared returns an overlay of a base image in which script ran before the
// first boot.
func prepared(t *testing.T, i base.Image, script string) base.Image {
	t.Helper()
	overlay := filepath.Join(t.TempDir(), "planted.qcow2")
	out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", i.Format, "-b", i.Path, overlay).CombinedOutput()
	require.NoError(t, err, "%s", out)
	customize := exec.Command("virt-customize", "-q", "-a", overlay, "--run-command", script)
	customize.Env = append(os.Environ(), "LIBGUESTFS_BACKEND=direct", "LIBGUESTFS_BACKEND_SETTINGS=force_tcg")
	out, err = customize.CombinedOutput()
	require.NoError(t, err, "%s", out)
	i.Path = overlay
	return i
}

func TestWhatABuildLeftIsFoundAndTheGuestIsKeptOnRequest(t *testing.T) {
	i := prepared(t, image(t, "bookworm"), `useradd -m -u 1000 builder
		echo 'builder ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/builder
		mkdir -p /root/.ssh; echo 'ssh-ed25519 AAAA builder' > /root/.ssh/authorized_keys
		echo 0123456789abcdef0123456789abcdef > /etc/machine-id; touch -d '1 hour ago' /etc/machine-id`)
	o := options(t, i)
	o.KeepOnError = true
	_, err := verify.Run(t.Context(), o, progress.Discard)
	f, ok := failure.In(err)
	require.True(t, ok, "%v", err)
	all := strings.Join(f.Lines, "\n")
	for _, want := range []string{
		"login user: crownlabs of the seed got the uid", "machine-id: the disk carries the machine-id 0123456789abcdef",
		"it is in /etc/passwd", "its home /home/builder is there", "it is named in /etc/sudoers.d/builder", "/root/.ssh/authorized_keys lets somebody in",
	} {
		assert.Contains(t, all, want)
	}
	cmd, kill, found := strings.Cut(strings.TrimPrefix(f.Try, "look into the guest, which still runs: "), " ; end it with: kill ")
	require.True(t, found, f.Try)
	var pid int
	_, err = fmt.Sscan(kill, &pid)
	require.NoError(t, err)
	out, err := exec.Command("sh", "-c", cmd+" -o BatchMode=yes hostname").CombinedOutput()
	assert.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), "diskforge-verify")
	require.NoError(t, syscall.Kill(pid, syscall.SIGTERM))
}
