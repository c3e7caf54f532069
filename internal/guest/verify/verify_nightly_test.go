//go:build nightly

package verify_test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/verify"
	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/progress"
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
	v, err := vm.ChooseAccelerator(t.Context(), arch.Default, vm.Auto, t.TempDir(), progress.Discard)
	require.NoError(t, err)
	return verify.Options{
		Disk: i.Path, Format: i.Format, VirtualSize: 2 << 30, Dir: filepath.Join(t.TempDir(), "verify"),
		MemoryMiB: 2048, Timeout: 15 * time.Minute, Accel: v, BuildUser: "builder", VMUser: "crownlabs",
	}
}

// verified boots the disk and shows all that was found.
func verified(t *testing.T, o verify.Options) (verify.Result, error) {
	t.Helper()
	began := time.Now()
	r, err := verify.Run(t.Context(), o, progress.Discard)
	for _, c := range r.Checks {
		t.Logf("%-5v %-8s %s: %s", c.OK, c.Group, c.Name, c.Detail)
	}
	for _, m := range r.Boot {
		t.Logf("%7.2f s  %s", m.At.Seconds(), m.Name)
	}
	for _, p := range r.Pictures {
		t.Logf("%s: %d×%d pixels, %d bytes", p.Title, p.Width, p.Height, len(p.PNG))
		if dir := os.Getenv("DISKFORGE_TEST_PICTURES"); dir != "" {
			require.NoError(t, os.WriteFile(filepath.Join(dir, strings.ReplaceAll(t.Name()+"-"+p.Title, "/", "-")+".png"), p.PNG, 0o644))
		}
	}
	t.Logf("ssh %v, cloud-init %v, %v after that; %d packages", r.TimeToSSH, r.CloudInitDone, time.Since(began)-r.CloudInitDone, len(r.Packages))
	return r, err
}

// holds fails the test with the checks that do not.
func holds(t *testing.T, err error) {
	t.Helper()
	f, _ := failure.In(err)
	require.NoError(t, err, "%+v", f)
}

func TestAFreshBaseImageHoldsEveryCheck(t *testing.T) {
	for _, suite := range []string{"bookworm", "trixie"} {
		t.Run(suite, func(t *testing.T) {
			o := options(t, image(t, suite))
			if goss := os.Getenv("DISKFORGE_TEST_GOSS"); goss != "" {
				o.Goss, o.Checks = goss, filepath.Join(t.TempDir(), "checks.yaml")
				require.NoError(t, os.WriteFile(o.Checks, []byte("package:\n  cloud-init:\n    installed: true\nfile:\n  /etc/fstab:\n    exists: true\n"), 0o600))
			}
			r, err := verified(t, o)
			holds(t, err)
			assert.Contains(t, fmt.Sprint(r.Checks), "{boot cloud-init true done")
			assert.Contains(t, fmt.Sprint(r.Packages), "{cloud-init ")
			var moments []string
			for _, m := range r.Boot {
				moments = append(moments, m.Name)
			}
			assert.Subset(t, moments, []string{"BIOS", "kernel", "systemd", "ssh", "cloud-init done", "boot finished"})
			require.Len(t, r.Pictures, 1)
			assert.Equal(t, "console at login", r.Pictures[0].Title)
		})
	}
}

// The second machine gets CrownLabs' literal seed, the third starts by UEFI: with
// Secure Boot, and where the loader counts as unsigned, without.
func TestAFreshBaseImageHoldsTheFullVerification(t *testing.T) {
	for suite, firmware := range map[string]string{"bookworm": "Secure Boot", "trixie": "UEFI"} {
		t.Run(suite, func(t *testing.T) {
			i := image(t, suite)
			has, err := disk.FirmwareOf(i.Path)
			require.NoError(t, err)
			require.Equal(t, disk.Firmware{BIOS: true, UEFI: true, SecureBoot: true, Architecture: arch.Default}, has)
			o := options(t, i)
			o.Full, o.UEFI, o.SecureBoot = true, true, firmware == "Secure Boot"
			r, err := verified(t, o)
			holds(t, err)
			names := map[string]string{}
			for _, c := range r.Checks {
				names[c.Name] = c.Detail
			}
			assert.Contains(t, names, "CrownLabs seed: cloud-init")
			assert.Contains(t, names["CrownLabs seed: cloud-init's schema"], "mounts: []")
			assert.Contains(t, names, "CrownLabs seed: machine-id and ssh host keys")
			for _, check := range []string{"firmware", "units", "root file system", "machine-id and ssh host keys"} {
				assert.Contains(t, names, firmware+": "+check)
			}
		})
	}
}

// The machine whose disk is kept is updated, and comes back twice as who it was.
func TestAFreshBaseImageLivesOn(t *testing.T) {
	o := options(t, image(t, "bookworm"))
	o.Persistent = true
	r, err := verified(t, o)
	holds(t, err)
	names := map[string]string{}
	for _, c := range r.Checks {
		names[c.Name] = c.Detail
	}
	assert.Regexp(t, `installed linux-image-\S+ again$`, names["second life: updates"])
	assert.Contains(t, names["second life: start 3"], "with the identity of the first start")
}

// serving makes a unit of testdata/desktop.py.
const serving = `printf '[Service]\nExecStart=/usr/bin/python3 /usr/local/lib/desktop.py\n[Install]\nWantedBy=multi-user.target\n' > /etc/systemd/system/desktop.service
	systemctl enable desktop.service`

func TestADesktopIsShownToWhoLooksFromOutside(t *testing.T) {
	i := prepared(t, image(t, "bookworm"), serving, "--copy-in", "testdata/desktop.py:/usr/local/lib")
	o := options(t, i)
	o.Desktop = true
	r, err := verified(t, o)
	holds(t, err)
	require.Len(t, r.Pictures, 2)
	assert.Equal(t, "desktop through VNC", r.Pictures[1].Title)
}

// prepared returns an overlay of a base image in which script ran before the
// first boot, after what virt-customize was told otherwise.
func prepared(t *testing.T, i base.Image, script string, args ...string) base.Image {
	t.Helper()
	overlay := filepath.Join(t.TempDir(), "planted.qcow2")
	out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", i.Format, "-b", i.Path, overlay).CombinedOutput()
	require.NoError(t, err, "%s", out)
	script = "truncate -s 0 /etc/machine-id\n" + script // virt-customize sets one
	customize := exec.Command("virt-customize", append(append([]string{"-q", "-a", overlay}, args...), "--run-command", script)...)
	customize.Env = append(os.Environ(), "LIBGUESTFS_BACKEND=direct", "LIBGUESTFS_BACKEND_SETTINGS=force_tcg")
	out, err = customize.CombinedOutput()
	require.NoError(t, err, "%s", out)
	i.Path = overlay
	return i
}

// planted are defects, each with what verify says about it.
var planted = map[string]string{
	"useradd -m -u 1000 builder":                                                                     "and not 1000, because of builder (1000); build user: it is in /etc/passwd",
	"echo 'builder ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/builder":                                 "sudo: /etc/sudoers.d/builder:1: builder ALL=(ALL) NOPASSWD:ALL",
	"mkdir -p /root/.ssh; echo 'ssh-ed25519 AAAA builder' > /root/.ssh/authorized_keys":              "authorized keys: /root/.ssh/authorized_keys lets somebody in",
	"echo 0123456789abcdef0123456789abcdef > /etc/machine-id; touch -d '1 hour ago' /etc/machine-id": "machine-id: the disk carries the machine-id 0123456789abcdef",
	"useradd -p '$6$salt$hash' guest":                                                                "passwords: guest has a password",
	"echo 'ssh_deletekeys: false' > /etc/cloud/cloud.cfg.d/99_keys.cfg; ssh-keygen -qt rsa -N '' -f /etc/ssh/ssh_host_rsa_key; touch -d '1 hour ago' /etc/ssh/ssh_host_rsa_key": "ssh host keys: /etc/ssh/ssh_host_rsa_key came with the disk",
	"echo 'f /run/open 0666 root root' > /etc/tmpfiles.d/open.conf": "writable by all: /run/open can be written by everybody",
	"mkdir -p /etc/systemd/system/systemd-networkd.service.d; printf '[Service]\\nEnvironment=REGISTRY_PASS=x\\n' > /etc/systemd/system/systemd-networkd.service.d/x.conf": "environment: systemd-network has REGISTRY_PASS in its environment",
	"echo 'install virtiofs /bin/false' > /etc/modprobe.d/x.conf": "virtiofs: the kernel",
	"printf '[Service]\\nExecStart=/bin/false\\n[Install]\\nWantedBy=multi-user.target\\n' > /etc/systemd/system/broken.service; systemctl enable broken.service": "units: failed: broken.service",
	serving: "port 6080: something listens on TCP 6080",
}

func TestWhatABuildLeftIsFoundAndTheGuestIsKeptOnRequest(t *testing.T) {
	scripts := slices.Sorted(maps.Keys(planted))
	i := prepared(t, image(t, "bookworm"), strings.Join(scripts, "\n"), "--copy-in", "testdata/desktop.py:/usr/local/lib")
	o := options(t, i)
	o.KeepOnError = true
	_, err := verified(t, o)
	f, ok := failure.In(err)
	require.True(t, ok, "%v", err)
	all := strings.Join(f.Lines, "\n")
	for _, want := range planted {
		for _, part := range strings.Split(want, "; ") {
			assert.Contains(t, all, part)
		}
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
