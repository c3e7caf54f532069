//go:build nightly

package provision_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/report"
)

// These tests boot guests under software emulation. DISKFORGE_TEST_BASE names
// a Debian cloud image (qcow2), as `diskforge base` makes one.

// watcher keeps what was reported and calls onActivity.
type watcher struct {
	t          *testing.T
	mu         sync.Mutex
	warnings   []string
	onActivity func(string)
}

func (w *watcher) Bytes(int64, int64) {}

func (w *watcher) Activity(what string) {
	w.t.Log(what)
	if w.onActivity != nil {
		w.onActivity(what)
	}
}

func (w *watcher) Warn(message string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.warnings = append(w.warnings, message)
	w.t.Log("warning:", message)
}

func cloudImage(t *testing.T) string {
	t.Helper()
	base := os.Getenv("DISKFORGE_TEST_BASE")
	require.NotEmpty(t, base, "set DISKFORGE_TEST_BASE to a Debian cloud image")
	return base
}

// options are a build of base with the playbook.
func options(t *testing.T, base, play string) provision.Options {
	t.Helper()
	tree := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(tree, "test.yml"), []byte(play), 0o600))
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	set, err := provision.EnsureTools(t.Context(), filepath.Join(cache, "diskforge", "tools"), runtime.GOARCH, progress.Discard)
	require.NoError(t, err)
	dir := t.TempDir()
	source, err := playbook.Resolve(t.Context(), playbook.Options{AnsibleDir: tree, Playbook: "test", Dir: filepath.Join(dir, "playbook")}, progress.Discard)
	require.NoError(t, err)
	require.NoError(t, source.Check(t.Context(), playbook.Inputs{}, nil, progress.Discard))
	return provision.Options{
		Base: base, BaseFormat: "qcow2", Output: filepath.Join(dir, "disk.qcow2"), WorkDir: filepath.Join(dir, "work"),
		Playbook: source, Tools: set, Accel: vm.Verdict{Accelerator: "tcg"},
		MemoryMiB: 2048, CPUs: 2, DiskSize: 10 << 30, VMUser: "crownlabs", BuildUser: "packer", SSHTimeout: 15 * time.Minute,
		ExtraVars: map[string]any{"token": "planted-extra-var"}, PackerLog: true,
	}
}

// running are the processes that have dir on their command line.
func running(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), dir) {
			found = append(found, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return found
}

// left asserts that nothing of the build but its logs is left.
func left(t *testing.T, opts provision.Options) {
	t.Helper()
	assert.Empty(t, running(t, opts.WorkDir))
	entries, _ := filepath.Glob(filepath.Join(opts.WorkDir, "*"))
	for _, e := range entries {
		assert.Equal(t, ".log", filepath.Ext(e), e)
	}
	assert.NoFileExists(t, opts.Output+".partial")
}

const goodPlay = `
- hosts: all
  become: true
  tasks:
    - name: Write a file
      ansible.builtin.copy: {content: "{{ crownlabs_mode }} {{ vm_user }} {{ http }}", dest: /etc/test-result, mode: "0644"}
      vars: {http: "{{ lookup('env', 'REGISTRY_PASS') }}"}
    - name: See the build user
      ansible.builtin.command: id packer
      changed_when: false
`

func TestABuildMakesACleanTrimmedStandaloneDiskAndTellsNoSecret(t *testing.T) {
	t.Setenv("REGISTRY_PASS", "planted-password")
	opts := options(t, cloudImage(t), goodPlay)
	opts.HTTPProxy = "http://user:planted-proxy@192.0.2.1:3128"
	var once sync.Once
	result, err := provision.Run(t.Context(), opts, &watcher{t: t, onActivity: func(what string) {
		if strings.HasPrefix(what, "Ansible: ") {
			once.Do(func() { onlyLoopbackListens(t) })
		}
	}})
	require.NoError(t, err)
	t.Logf("%+v", result.Timings)
	assert.True(t, result.Trimmed)
	require.Len(t, result.Tasks, 3)
	assert.Equal(t, "Write a file", result.Tasks[1].Name)
	assert.Equal(t, report.Changed, result.Tasks[1].Status)
	left(t, opts)

	info, err := exec.Command("qemu-img", "info", "--output=json", "-f", "qcow2", opts.Output).Output()
	require.NoError(t, err)
	assert.Contains(t, string(info), `"virtual-size": 10737418240`)
	assert.NotContains(t, string(info), "backing")
	for _, name := range []string{"packer.log", "packer-debug.log", "console.log", "ansible.log"} {
		log := filepath.Join(opts.WorkDir, name)
		b, err := os.ReadFile(log)
		require.NoError(t, err)
		assert.NotContains(t, string(b), "planted-", log)
	}
	inspectClean(t, opts.Output)
}

// onlyLoopbackListens looks at every socket on which the build's programs
// accept connections.
func onlyLoopbackListens(t *testing.T) {
	out, err := exec.Command("ss", "-Hltnp").Output()
	assert.NoError(t, err)
	seen := false
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "qemu-system") || strings.Contains(line, "packer") || strings.Contains(line, "ansible") {
			seen = seen || strings.Contains(line, "qemu-system")
			assert.Regexp(t, `\s(127\.0\.0\.1|\[::1\]):\d+\s`, line)
		}
	}
	assert.True(t, seen, "QEMU forwards ssh")
}

func TestABakedUserStaysLockedAndARawBaseIsTakenAsRaw(t *testing.T) {
	raw := filepath.Join(t.TempDir(), "base")
	require.NoError(t, exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", cloudImage(t), raw).Run())
	opts := options(t, raw, `
- hosts: all
  gather_facts: false
  tasks:
    - name: Write into the login user's home
      ansible.builtin.copy: {content: hello, dest: /home/crownlabs/greeting, mode: "0644"}
`)
	opts.BaseFormat, opts.BakeUser = "raw", true
	_, err := provision.Run(t.Context(), opts, &watcher{t: t})
	require.NoError(t, err)
	left(t, opts)
	disk := inspect(t, opts.Output)
	assert.Equal(t, "hello", disk.request("cat /home/crownlabs/greeting"))
	assert.Contains(t, disk.request("cat /etc/passwd"), "crownlabs:x:1000:")
	assert.Regexp(t, `(?m)^crownlabs:!`, disk.request("cat /etc/shadow"))
	assert.NotContains(t, disk.names("/home/crownlabs"), ".ssh")
	assert.NotContains(t, disk.names("/etc/sudoers.d"), "90-cloud-init-users")
}

// fileSystem is the first partition of a disk, read without booting it.
type fileSystem struct {
	t    *testing.T
	path string
}

func inspect(t *testing.T, disk string) fileSystem {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, raw).Run())
	// The first partition begins at 1 MiB on the images that we make.
	return fileSystem{t, raw + "?offset=1048576"}
}

// request asks debugfs.
func (f fileSystem) request(request string) string {
	out, err := exec.Command("debugfs", "-R", request, f.path).Output()
	require.NoError(f.t, err, request)
	return string(out)
}

// names are the entries of a directory: /inode/mode/uid/gid/name/size/.
func (f fileSystem) names(dir string) (names []string) {
	for line := range strings.Lines(f.request("ls -p " + dir)) {
		if f := strings.Split(line, "/"); len(f) > 5 && f[5] != "." && f[5] != ".." {
			names = append(names, f[5])
		}
	}
	return names
}

// inspectClean asserts that the disk has the playbook's work and no trace of
// the build.
func inspectClean(t *testing.T, path string) {
	t.Helper()
	disk := inspect(t, path)
	assert.Equal(t, "true crownlabs ", disk.request("cat /etc/test-result"))
	assert.Contains(t, disk.request("stat /etc/machine-id"), "Size: 0")
	for _, dir := range []string{"/home", "/tmp", "/root/.ssh", "/var/lib/apt/lists", "/var/lib/cloud/instances", "/var/log/journal", "/var/mail", "/etc/netplan"} {
		assert.Empty(t, disk.names(dir), dir)
	}
	for _, dir := range []string{"/etc", "/etc/ssh", "/etc/sudoers.d", "/etc/apt/apt.conf.d", "/var/lib/systemd", "/var/lib/dhcp"} {
		for _, name := range disk.names(dir) {
			assert.NotRegexp(t, `^ssh_host_|^90-cloud-init|diskforge|^random-seed$|\.leases$|^(passwd|shadow|group|gshadow|subuid|subgid)-$`, name, dir)
		}
	}
	for _, file := range []string{"passwd", "shadow", "group", "subuid", "subgid", "environment"} {
		content := disk.request("cat /etc/" + file)
		assert.NotContains(t, content, "packer", file)
		assert.NotContains(t, content, "planted", file)
	}
	for _, name := range disk.names("/var/log") {
		if strings.HasSuffix(name, ".log") {
			assert.Contains(t, disk.request("stat /var/log/"+name), "Size: 0", name)
		}
	}
}

func TestAFailingTaskIsNamedWithItsMessageAndTheGuestCanBeKeptUp(t *testing.T) {
	opts := options(t, cloudImage(t), `
- hosts: all
  gather_facts: false
  tasks:
    - name: Break on purpose
      ansible.builtin.command: sh -c 'echo the reason >&2; exit 3'
`)
	opts.KeepOnError = true
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := &watcher{t: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		kept := assert.Eventually(t, func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.warnings) > 0 }, 20*time.Minute, time.Second)
		if !kept {
			return
		}
		_, login, _ := strings.Cut(w.warnings[0], "(Ctrl-C): ")
		out, err := exec.Command("sh", "-c", login+" cat /etc/os-release").CombinedOutput()
		assert.NoError(t, err, string(out))
		assert.Contains(t, string(out), "Debian")
	}()
	_, err := provision.Run(ctx, opts, w)
	<-done
	f, ok := failure.In(err)
	require.True(t, ok, "%v", err)
	assert.Contains(t, f.What, `task "Break on purpose" failed: non-zero return code`)
	assert.Contains(t, f.Lines, "the reason")
	assert.NoFileExists(t, opts.Output)
	left(t, opts)
}

// rebooting is a playbook whose guest reboots without closing a connection, as
// one does whose network ends before its sessions.
const rebooting = `
- hosts: all
  become: true
  gather_facts: false
  tasks:
    - name: Reboot without a word
      ansible.builtin.reboot:
        reboot_command: sh -c 'sync; echo b > /proc/sysrq-trigger'
        reboot_timeout: 1200
    - name: Work on
      ansible.builtin.command: "true"
      changed_when: false
`

func TestAGuestThatRebootsWithoutAWordIsFoundAgain(t *testing.T) {
	opts := options(t, cloudImage(t), rebooting)
	result, err := provision.Run(t.Context(), opts, &watcher{t: t})
	require.NoError(t, err)
	require.Len(t, result.Tasks, 2)
	assert.Equal(t, "Work on", result.Tasks[1].Name)
	t.Logf("%+v", result.Timings)
	left(t, opts)
}

func TestADiskWithoutABootLoaderIsNamedByTheConsoleAtOnce(t *testing.T) {
	base := filepath.Join(t.TempDir(), "empty.qcow2")
	require.NoError(t, exec.Command("qemu-img", "create", "-q", "-f", "qcow2", base, "1G").Run())
	opts := options(t, base, goodPlay)
	_, err := provision.Run(t.Context(), opts, &watcher{t: t})
	f, ok := failure.In(err)
	require.True(t, ok, "%v", err)
	assert.Equal(t, "the disk has no boot loader that the BIOS finds", f.What)
	assert.Contains(t, strings.Join(f.Lines, "\n"), "No bootable device")
	left(t, opts)
}

func TestAGuestThatNeverAnswersIsGivenUpWithTheEndOfItsConsole(t *testing.T) {
	opts := options(t, cloudImage(t), goodPlay)
	opts.SSHTimeout = 10 * time.Second
	_, err := provision.Run(t.Context(), opts, &watcher{t: t})
	f, ok := failure.In(err)
	require.True(t, ok, "%v", err)
	assert.Contains(t, f.What, "did not answer ssh within 10s")
	assert.NotEmpty(t, f.Lines)
	left(t, opts)
}

func TestTheEndOfTheContextLeavesNothingBehind(t *testing.T) {
	for _, at := range []string{"boot: kernel", "Ansible: "} {
		t.Run(strings.TrimSpace(at), func(t *testing.T) {
			opts := options(t, cloudImage(t), goodPlay)
			stop := errors.New("interrupted by the test")
			ctx, cancel := context.WithCancelCause(t.Context())
			w := &watcher{t: t, onActivity: func(what string) {
				if strings.HasPrefix(what, at) {
					cancel(stop)
				}
			}}
			_, err := provision.Run(ctx, opts, w)
			require.ErrorIs(t, err, stop)
			assert.NoFileExists(t, opts.Output)
			left(t, opts)
		})
	}
}
