package vm

import (
	"bytes"
	"context"
	"errors"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// blank returns the options to boot a disk without an operating system: the
// machine starts, and nothing ever answers.
func blank(t *testing.T) Options {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	require.NoError(t, os.Truncate(disk, 8<<20))
	return Options{
		Disk: disk, Format: "raw", Dir: filepath.Join(t.TempDir(), "a,b guest"), User: "tester",
		MemoryMiB: 64, CPUs: 1, Accel: Verdict{Accelerator: TCG}, Timeout: 500 * time.Millisecond,
	}
}

func TestTheSeedHoldsUserKeyAndHostKeyAndCanBeReadBack(t *testing.T) {
	t.Parallel()
	o := blank(t)
	require.NoError(t, os.MkdirAll(o.Dir, 0o700))
	o.Hostname = "lab"
	k, err := newKeys()
	require.NoError(t, err)
	require.NoError(t, writeSeed(t.Context(), o, k))

	out := t.TempDir()
	iso := filepath.Join(o.Dir, seedFile)
	msg, err := exec.Command("xorriso", "-osirrox", "on", "-indev", iso, "-extract", "/", out).CombinedOutput()
	require.NoError(t, err, "%s", msg)
	assert.Contains(t, string(msg), "cidata")
	raw, err := os.ReadFile(filepath.Join(out, "user-data"))
	require.NoError(t, err)
	assert.True(t, bytes.HasPrefix(raw, []byte("#cloud-config\n")))
	var u struct {
		Users []struct {
			Name       string
			LockPasswd bool     `yaml:"lock_passwd"`
			Keys       []string `yaml:"ssh_authorized_keys"`
		}
		HostKeys map[string]string `yaml:"ssh_keys"`
	}
	require.NoError(t, yaml.Unmarshal(raw, &u))
	require.Len(t, u.Users, 1)
	assert.Equal(t, "tester", u.Users[0].Name)
	assert.True(t, u.Users[0].LockPasswd)
	assert.Equal(t, []string{k.user.Authorized()}, u.Users[0].Keys)
	assert.Equal(t, k.host.Authorized(), u.HostKeys["ed25519_public"])
	assert.Equal(t, string(k.host.Private), u.HostKeys["ed25519_private"])
	var m map[string]string
	raw, err = os.ReadFile(filepath.Join(out, "meta-data"))
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(raw, &m))
	assert.Equal(t, "lab", m["local-hostname"])
	assert.NotEmpty(t, m["instance-id"])

	first, err := os.ReadFile(iso)
	require.NoError(t, err)
	time.Sleep(1100 * time.Millisecond) // ISO 9660 counts seconds
	require.NoError(t, writeSeed(t.Context(), o, k))
	second, err := os.ReadFile(iso)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(first, second), "the same seed is not the same bytes")
	left, err := filepath.Glob(filepath.Join(o.Dir, ".seed-*"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestEachBootHasKeysOfItsOwn(t *testing.T) {
	t.Parallel()
	a, err := newKeys()
	require.NoError(t, err)
	b, err := newKeys()
	require.NoError(t, err)
	assert.NotEqual(t, a.user.Authorized(), b.user.Authorized())
	assert.NotEqual(t, a.host.Authorized(), b.host.Authorized())
	assert.NotEqual(t, a.host.Authorized(), a.user.Authorized())
}

func TestAGuestThatNeverAnswersFailsWithItsConsoleAndLeavesOnlyLogs(t *testing.T) {
	t.Parallel()
	o := blank(t)
	before, err := os.ReadFile(o.Disk)
	require.NoError(t, err)
	_, err = Start(t.Context(), o, progress.Discard)
	f, ok := failure.In(err)
	require.True(t, ok, "%v", err)
	assert.Contains(t, f.What, "did not answer ssh within 500ms")
	assert.Equal(t, filepath.Join(o.Dir, consoleFile), f.Log)
	assert.FileExists(t, f.Log)
	assertOnlyLogs(t, o.Dir)
	after, err := os.ReadFile(o.Disk)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(before, after), "the disk itself was written to")
}

func assertOnlyLogs(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, f := range left {
		assert.Contains(t, []string{consoleFile, qemuLog}, f.Name())
	}
	// QEMU runs in dir: none may be left that does.
	procs, err := filepath.Glob("/proc/[0-9]*/cwd")
	require.NoError(t, err)
	for _, p := range procs {
		cwd, _ := os.Readlink(p)
		assert.NotEqual(t, dir, cwd, "%s still runs", p)
	}
}

func TestTheEndOfTheContextEndsABoot(t *testing.T) {
	t.Parallel()
	o := blank(t)
	o.Timeout = time.Minute
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for {
			if _, err := os.Stat(filepath.Join(o.Dir, consoleFile)); err == nil {
				cancel(stop)
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	_, err := Start(ctx, o, progress.Discard)
	require.ErrorIs(t, err, stop)
	assertOnlyLogs(t, o.Dir)
}

func TestAQEMUThatEndsSaysWhy(t *testing.T) {
	t.Parallel()
	o := blank(t)
	o.MemoryMiB = 1 << 40 // more than any machine type takes
	_, err := Start(t.Context(), o, progress.Discard)
	f, ok := failure.In(err)
	require.True(t, ok, "%v", err)
	assert.Contains(t, f.What, "the guest did not start: qemu-system-x86_64: exit status 1: ")
	assert.NotEmpty(t, f.Lines)
	assertOnlyLogs(t, o.Dir)
}

func TestOptionsThatCannotBootAreRefused(t *testing.T) {
	t.Parallel()
	o := blank(t)
	o.Format = "vmdk"
	_, err := Start(t.Context(), o, progress.Discard)
	require.ErrorContains(t, err, `format "vmdk"`)
	o = blank(t)
	o.Disk += "-missing"
	_, err = Start(t.Context(), o, progress.Discard)
	require.ErrorContains(t, err, "there is no disk to boot")
	o = blank(t)
	o.Format = "qcow2" // it is raw
	_, err = Start(t.Context(), o, progress.Discard)
	f, ok := failure.In(err)
	require.True(t, ok, "%v", err)
	assert.Contains(t, strings.Join(f.Lines, "\n"), "Image is not in qcow2 format")
}

func TestTheGuestIsReachableOnTheLoopbackOnlyAndReachesNothing(t *testing.T) {
	t.Parallel()
	args := strings.Join(Options{Forward: []int{6080}, Accel: Verdict{Accelerator: KVM}}.arguments(), " ")
	assert.Contains(t, args, "restrict=on,hostfwd=tcp:127.0.0.1:0-:22,hostfwd=tcp:127.0.0.1:0-:6080")
	assert.Contains(t, args, "-accel kvm -cpu host")
	assert.NotContains(t, args, "hostfwd=tcp::")
}

func TestTheForwardedPortsAreRead(t *testing.T) {
	t.Parallel()
	const table = "Hub -1 (n):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n" +
		"  TCP[HOST_FORWARD]   4       127.0.0.1 40001       10.0.2.15  6080     0     0\r\n" +
		"  TCP[HOST_FORWARD]   3       127.0.0.1 46813       10.0.2.15    22     0     0\r\n"
	ports, err := parsePorts(table, []int{22, 6080})
	require.NoError(t, err)
	assert.Equal(t, map[int]int{22: 46813, 6080: 40001}, ports)
	_, err = parsePorts(table, []int{22, 80})
	require.ErrorContains(t, err, "guest's port 80")
	for _, table := range []string{"", "TCP[HOST_FORWARD] 3 0.0.0.0 1 10.0.2.15 22 0 0", "TCP[HOST_FORWARD]  3  127.0.0.1 99999  10.0.2.15 22 0 0"} {
		_, err := parsePorts(table, []int{22})
		require.Error(t, err, table)
	}
}

func TestPathsAreQuotedForTheShell(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "plain/path.txt", "a b", "it's", "$(id)", "a\nb", `\`} {
		out, err := exec.Command("sh", "-c", "printf %s "+Quote(s)).Output()
		require.NoError(t, err)
		assert.Equal(t, s, string(out))
	}
}

func TestCrownLabsSeedIsWhatCrownLabsWrites(t *testing.T) {
	t.Parallel()
	k, err := newKeys()
	require.NoError(t, err)
	raw, err := yaml.Marshal(Options{User: CrownLabsUser, CrownLabs: true, OwnHostKeys: true}.userData(k))
	require.NoError(t, err)
	var got map[string]any
	require.NoError(t, yaml.Unmarshal(raw, &got))
	keys := []any{k.user.Authorized()}
	assert.Equal(t, map[string]any{
		"users": []any{map[string]any{
			"name": "crownlabs", "lock_passwd": false, "passwd": unknownPassword,
			"sudo": "ALL=(ALL) NOPASSWD:ALL", "ssh_authorized_keys": keys, "shell": "/bin/bash",
		}},
		"network":             map[string]any{"version": 2, "id0": map[string]any{"dhcp4": true}},
		"mounts":              []any{},
		"ssh_authorized_keys": keys,
	}, got)
}

func TestAHostWithoutUEFIFirmwareSaysHowToGetIt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := arch.Firmware{Code: filepath.Join(dir, "code"), Vars: filepath.Join(dir, "vars")}
	a := arch.Of("")
	a.UEFI = []arch.Firmware{{Code: "/nowhere", Vars: "/nowhere"}, f}
	_, err := Firmware(a, false)
	require.ErrorContains(t, err, "apt-get install ovmf")
	require.NoError(t, os.WriteFile(f.Code, nil, 0o600))
	_, err = Firmware(a, false)
	require.Error(t, err, "code without variables")
	require.NoError(t, os.WriteFile(f.Vars, nil, 0o600))
	got, err := Firmware(a, false)
	require.NoError(t, err)
	assert.Equal(t, f, got)
}

func TestTheScreenOfAMachineIsAPicture(t *testing.T) {
	t.Parallel()
	o, err := blank(t).complete()
	require.NoError(t, err)
	g := &Guest{options: o, unwatch: func() bool { return true }}
	require.NoError(t, g.prepare(t.Context()))
	require.NoError(t, g.launch(t.Context()))
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	_, err = g.qmp.forwardedPorts(t.Context(), []int{sshPort})
	require.NoError(t, err)
	picture, err := g.Screen(t.Context())
	require.NoError(t, err)
	config, err := png.DecodeConfig(bytes.NewReader(picture))
	require.NoError(t, err)
	assert.Positive(t, config.Width*config.Height)
	assert.NoFileExists(t, filepath.Join(o.Dir, screenFile))
}

// What KubeVirt's converter makes (v1.9): QEMU itself says here whether it can
// make that machine, with disks on virtio and on SATA.
func TestQEMUMakesTheMachineThatKubeVirtAsksFor(t *testing.T) {
	t.Parallel()
	for _, kind := range []struct {
		architecture string
		sata         bool
	}{{"amd64", false}, {"amd64", true}, {"arm64", false}} {
		dir := t.TempDir()
		o, err := Options{
			Disk: "x", Format: "qcow2", Dir: dir, MemoryMiB: 2048, CPUs: 2, SATA: kind.sata, Accel: Verdict{Architecture: kind.architecture, Accelerator: TCG},
		}.complete()
		require.NoError(t, err)
		for _, file := range []string{overlayFile, seedFile} {
			format := map[string]string{overlayFile: "qcow2", seedFile: "raw"}[file]
			out, err := exec.Command("qemu-img", "create", "-q", "-f", format, filepath.Join(dir, file), "1M").CombinedOutput()
			require.NoError(t, err, "%s", out)
		}
		assert.Equal(t, kind.architecture == "arm64", o.UEFI, "where there is no BIOS")
		if o.UEFI {
			vars, err := os.ReadFile(o.firmware.Vars)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, varsFile), vars, 0o600))
		}
		cmd := exec.Command(o.arch().QEMU, append(o.arguments(), "-S")...)
		cmd.Dir = dir
		cmd.Stdin = strings.NewReader(`{"execute":"qmp_capabilities"}{"execute":"query-cpus-fast"}{"execute":"query-hotpluggable-cpus"}{"execute":"query-chardev"}{"execute":"quit"}`)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		said := string(out)
		added := map[string]int{"amd64": 8}[kind.architecture] // later, which others do not take
		assert.Equal(t, 2+added, strings.Count(said, `"socket-id"`), "two processors of eight are there: %s", said)
		assert.Contains(t, said, `"label": "agent"`)
		args := strings.Join(o.arguments(), " ")
		assert.Contains(t, args, "-device pcie-root-port,id=port1,chassis=1,slot=1 -device virtio-net-pci-non-transitional,netdev=net,romfile=,bus=port1", "enp1s0")
		assert.NotContains(t, args, "virtio-rng")
	}
}

func TestEachMachineHasAUUIDOfItsOwn(t *testing.T) {
	t.Parallel()
	one, other := strings.Join(Options{}.arguments(), " "), strings.Join(Options{}.arguments(), " ")
	assert.Regexp(t, `,uuid=[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12} `, one)
	assert.NotEqual(t, one, other)
}

// An image for x86-64-v2 (RHEL 9 and its kin) must start under emulation, too:
// QEMU's own default, qemu64, has not its instructions.
func TestEmulationHasTheInstructionsOfTodaysDistributions(t *testing.T) {
	t.Parallel()
	for _, a := range arch.All {
		args := strings.Join(Options{Accel: Verdict{Architecture: a.Name, Accelerator: TCG}}.arguments(), " ")
		assert.Contains(t, args, "-cpu max")
	}
}
