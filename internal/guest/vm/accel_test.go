package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// fake returns a host with a device that opens, a kernel, and a QEMU that
// counts its boots in the file boots and then runs script.
func fake(t *testing.T, script string) (h probing, boots func() int) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, []byte(content), mode))
		return file
	}
	count := filepath.Join(dir, "boots")
	program := write("qemu", "#!/bin/sh\nif [ \"$1\" = --version ]; then echo QEMU emulator version 9.9; exit; fi\necho boot >> "+count+"\n"+script+"\n", 0o755)
	h = probing{
		arch:     arch.Of(""),
		platform: "linux/amd64",
		device:   write("kvm", "", 0o600),
		qemu:     program,
		kernels:  []string{write("vmlinuz", "kernel", 0o600)},
		bootID:   write("boot_id", "first boot\n", 0o600),
		patience: 10 * time.Second,
	}
	return h, func() int {
		b, _ := os.ReadFile(count)
		return strings.Count(string(b), "boot")
	}
}

const (
	boots = `echo; echo "[    0.000000] Linux version 6.1.0"; exec sleep 60`
	hangs = `trap '' TERM; echo $$ > "$0.pid"; while :; do sleep 0.05; done`
	fails = `echo "qemu: error: failed to set MSR 0x48d to 0x0" >&2; exit 1`
)

type warnings struct {
	progress.Reporter
	mu  sync.Mutex
	all []string
}

func (w *warnings) Warn(m string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, m)
}

func TestKVMThatBootsAKernelIsChosen(t *testing.T) {
	t.Parallel()
	h, _ := fake(t, boots)
	v, err := h.choose(t.Context(), Auto, "", progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, Verdict{Accelerator: KVM}, v)
	assert.Equal(t, []string{"-accel", "kvm", "-cpu", "host"}, v.QEMUArgs())
	assert.Equal(t, []string{"LIBGUESTFS_BACKEND=direct"}, v.LibguestfsEnv())
}

func TestAKernelThatPanicsAfterItsFirstLineProvesKVM(t *testing.T) {
	t.Parallel()
	h, _ := fake(t, `echo "Linux version 6.1.0"; exit 0`)
	v, err := h.choose(t.Context(), KVM, "", progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, KVM, v.Accelerator)
}

func TestAKernelThatHangsMeansEmulationWithAWarningAndNoQEMULeftOver(t *testing.T) {
	t.Parallel()
	h, _ := fake(t, hangs)
	h.patience = 300 * time.Millisecond
	w := &warnings{Reporter: progress.Discard}
	v, err := h.choose(t.Context(), Auto, "", w)
	require.NoError(t, err)
	assert.Equal(t, TCG, v.Accelerator)
	assert.Contains(t, v.Why, "printed nothing within 300ms")
	require.Len(t, w.all, 1)
	assert.Contains(t, w.all[0], "ten times as long")
	assert.Contains(t, v.LibguestfsEnv(), "LIBGUESTFS_BACKEND_SETTINGS=force_tcg")
	pid, err := os.ReadFile(h.qemu + ".pid")
	require.NoError(t, err)
	stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
	assert.True(t, err != nil || strings.Contains(string(stat), ") Z "), "the probe's QEMU still runs")
}

func TestKVMThatFailsIsAnErrorWhereKVMIsAskedFor(t *testing.T) {
	t.Parallel()
	h, _ := fake(t, fails)
	_, err := h.choose(t.Context(), KVM, "", progress.Discard)
	require.ErrorContains(t, err, "KVM does not work here: QEMU ended before the kernel's first line: qemu: error: failed to set MSR")
	assert.Contains(t, err.Error(), "ACCELERATOR=tcg")
}

func TestEmulationIsChosenWithoutAProbe(t *testing.T) {
	t.Parallel()
	h, count := fake(t, boots)
	v, err := h.choose(t.Context(), TCG, t.TempDir(), progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, TCG, v.Accelerator)
	assert.Contains(t, v.QEMUArgs(), "max")
	assert.Zero(t, count())
}

func TestTheVerdictIsProvenOncePerBootOfTheHost(t *testing.T) {
	t.Parallel()
	h, count := fake(t, fails)
	dir := filepath.Join(t.TempDir(), "cache")
	for range 2 {
		v, err := h.choose(t.Context(), Auto, dir, progress.Discard)
		require.NoError(t, err)
		assert.Contains(t, v.Why, "failed to set MSR")
		assert.Equal(t, 1, count())
	}
	require.NoError(t, os.WriteFile(h.bootID, []byte("second boot\n"), 0o600))
	_, err := h.choose(t.Context(), Auto, dir, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, 2, count())
}

func TestADamagedCacheIsProvenAgain(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"", "{", `{"key":"x"}`, `{"verdict":{"accelerator":"kvm"}}`} {
		h, count := fake(t, boots)
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "accelerator.json"), []byte(content), 0o600))
		_, err := h.choose(t.Context(), Auto, dir, progress.Discard)
		require.NoError(t, err)
		assert.Equal(t, 1, count())
	}
}

func TestACacheThatCannotBeWrittenIsOnlyAWarning(t *testing.T) {
	t.Parallel()
	h, _ := fake(t, boots)
	w := &warnings{Reporter: progress.Discard}
	v, err := h.choose(t.Context(), Auto, h.device, w) // a file, not a directory
	require.NoError(t, err)
	assert.Equal(t, KVM, v.Accelerator)
	require.Len(t, w.all, 1)
	assert.Contains(t, w.all[0], "not kept")
}

func TestWhatIsMissingIsNamed(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change func(*probing)
		why    string
	}{
		"no device":          {func(h *probing) { h.device += "-missing" }, "is missing: switch virtualisation on"},
		"no device in a pod": {func(h *probing) { h.device, h.pod = h.device+"-missing", true }, "devices.kubevirt.io/kvm"},
		"a device that does not open": {func(h *probing) {
			h.device = filepath.Dir(h.device) // opening a directory for writing fails
		}, "does not open: is a directory"},
		"no kernel": {func(h *probing) { h.kernels = []string{h.kernels[0] + "-missing*"} }, "no Linux kernel on this host can be read"},
		"a guest for another host": {func(h *probing) {
			h.arch = arch.Of("arm64")
		}, "KVM for arm64 guests needs an arm64 Linux host, this is linux/amd64"},
		"another platform": {func(h *probing) { h.platform = "darwin/arm64" }, "needs an amd64 Linux host, this is darwin/arm64"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h, count := fake(t, boots)
			tt.change(&h)
			v, err := h.choose(t.Context(), Auto, t.TempDir(), progress.Discard)
			require.NoError(t, err)
			assert.Equal(t, TCG, v.Accelerator)
			assert.Contains(t, v.Why, tt.why)
			assert.NotContains(t, v.Why, "\n")
			assert.Zero(t, count())
		})
	}
}

func TestADeviceWithoutPermissionNamesTheGroupToJoin(t *testing.T) {
	t.Parallel()
	h, _ := fake(t, boots)
	require.NoError(t, os.Chmod(h.device, 0o060))
	gid := os.Getgid()
	if os.Geteuid() == 0 {
		gid = 54321
		require.NoError(t, os.Chown(h.device, -1, gid))
	} else {
		assert.Equal(t, h.refused(), h.deviceFault(), "root may open every device")
	}
	assert.Contains(t, h.refused(), fmt.Sprintf("(mode 0060, group %d) may not be opened by this user: join group %s (sudo usermod -aG", gid, groupName(uint32(gid))))
	h.pod = true
	assert.Contains(t, h.refused(), fmt.Sprintf("supplementalGroups: [%d]", gid))
	assert.Contains(t, h.refused(), "device_ownership_from_security_context")

	assert.Equal(t, "root", groupName(0))
	assert.Equal(t, "54321", groupName(54321))
}

func TestADeviceWithoutAGroupThatMayOpenItNeedsOne(t *testing.T) {
	t.Parallel()
	h, _ := fake(t, boots)
	require.NoError(t, os.Chmod(h.device, 0o600))
	assert.Contains(t, h.refused(), `(udev: KERNEL=="kvm", GROUP="kvm", MODE="0660")`)
}

func TestAKernelThatABaseImageLeftInTheCacheWillDo(t *testing.T) {
	t.Parallel()
	h, count := fake(t, boots)
	h.kernels = nil
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "base"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "base", "base-bookworm-amd64-012.vmlinuz"), []byte("kernel"), 0o600))
	v, err := h.choose(t.Context(), Auto, dir, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, KVM, v.Accelerator)
	assert.Equal(t, 1, count())
}

func TestTheEndOfTheContextEndsTheProbe(t *testing.T) {
	t.Parallel()
	h, _ := fake(t, hangs)
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for {
			if _, err := os.Stat(h.qemu + ".pid"); err == nil {
				cancel(stop)
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	_, err := h.choose(ctx, Auto, "", progress.Discard)
	require.ErrorIs(t, err, stop)
}

func TestAMissingQEMUIsNamedWithItsPackage(t *testing.T) {
	h, _ := fake(t, boots)
	h.qemu = "qemu-system-x86_64"
	t.Setenv("PATH", t.TempDir())
	for _, want := range []string{Auto, TCG} {
		_, err := h.choose(t.Context(), want, "", progress.Discard)
		require.ErrorContains(t, err, "apt-get install qemu-system-x86")
	}
	h.qemu = "qemu-system-aarch64"
	_, err := h.choose(t.Context(), TCG, "", progress.Discard)
	require.ErrorContains(t, err, "apt-get install qemu-system-arm")
}

func TestAHostWithoutFirmwareForGuestsThatTakeItSaysSoBeforeTheyAreBooted(t *testing.T) {
	t.Parallel()
	h, _ := fake(t, boots)
	h.arch = arch.Of("arm64")
	h.arch.UEFI = nil
	_, err := h.choose(t.Context(), TCG, "", progress.Discard)
	require.ErrorContains(t, err, "no UEFI firmware for virtual machines of arm64: apt-get install qemu-efi-aarch64")
}

func TestTheProbeOfThisHostBootsARealKernelOrSaysWhyNot(t *testing.T) {
	t.Parallel()
	v, err := ChooseAccelerator(t.Context(), "", Auto, t.TempDir(), progress.Discard)
	require.NoError(t, err)
	t.Logf("%+v", v)
	assert.Equal(t, v.Accelerator == KVM, v.Why == "")
}

func TestAnOldQEMUEmulatesAllProcessorsInOneThread(t *testing.T) {
	t.Parallel()
	for version, single := range map[string]bool{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)": true,
		"QEMU emulator version 8.0.5":                                 true,
		"QEMU emulator version 8.1.0":                                 false,
		"QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)":         false,
		"an unknown emulator":                                         true,
	} {
		h, _ := fake(t, fails)
		require.NoError(t, os.WriteFile(h.qemu, []byte("#!/bin/sh\n[ \"$1\" != --version ] || { echo '"+version+"'; exit; }\nexit 1\n"), 0o755))
		for _, want := range []string{TCG, Auto} {
			v, err := h.choose(t.Context(), want, t.TempDir(), progress.Discard)
			require.NoError(t, err)
			assert.Equal(t, single, v.OneThread, version)
			assert.Equal(t, 3, v.CPUs(3))
			if single {
				assert.Equal(t, 1, v.CPUs(0))
				assert.Contains(t, v.QEMUArgs(), "tcg,thread=single")
			} else {
				assert.Equal(t, min(runtime.NumCPU(), 4), v.CPUs(0))
				assert.Contains(t, v.QEMUArgs(), "tcg,thread=multi")
			}
		}
	}
}
