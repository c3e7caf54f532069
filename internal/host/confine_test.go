package host_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/host"
)

// TestMain is the process that holds a password where a test asks for one: it
// hides its environment, runs what it is given with Run, and says how it went.
func TestMain(m *testing.M) {
	if os.Getenv("TEST_HOLDER") == "" {
		os.Exit(m.Run())
	}
	if err := host.HideEnvironment(); err != nil {
		fmt.Println("not hidden:", err)
		os.Exit(1)
	}
	c := host.Cmd{Program: os.Args[1], Args: os.Args[2:], Env: host.Env("ANSIBLE_LOCALHOST_WARNING=0", "LC_ALL=C.UTF-8"),
		Stdout: os.Stdout, Confined: os.Getenv("TEST_HOLDER") == "confined"}
	if err := host.Run(context.Background(), c); err != nil {
		fmt.Println(err, host.Tail(err))
		os.Exit(1)
	}
	os.Exit(0)
}

// hold runs args in a process that got a password, started by a shell that has
// it too, and returns what they printed.
func hold(t *testing.T, how, password string, args ...string) string {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command("sh", append([]string{"-c", `"$@"; exit $?`, "sh", self}, args...)...)
	cmd.Env = append(os.Environ(), "TEST_HOLDER="+how, "REGISTRY_PASS="+password)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return string(out)
}

// lookup is what found the password of a build once.
const lookup = `- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - debug:
        msg: "FOUND {{ lookup('pipe', 'cat /proc/[0-9]*/environ 2>/dev/null | tr \"\\0\" \"\\n\" | grep -a ^REGISTRY_PASS= | rev; true') }}."
`

func TestAPlaybookFindsNoPasswordInAnyProcess(t *testing.T) {
	t.Parallel()
	if err := host.Unconfined(); err != nil {
		t.Skip("this host confines nothing: ", err)
	}
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		t.Skip("ansible-core is not installed")
	}
	if testing.Short() {
		t.Skip("two runs of Ansible take seconds")
	}
	playbook := filepath.Join(t.TempDir(), "site.yml")
	require.NoError(t, os.WriteFile(playbook, []byte(lookup), 0o644))
	args := []string{"ansible-playbook", "-i", "localhost,", playbook}
	out := hold(t, "confined", "planted-in-vain", args...)
	assert.Contains(t, out, "FOUND .")
	assert.NotContains(t, out, "niav-ni-detnalp")
	// The shell that started us has it: without a /proc of its own it is found.
	assert.Contains(t, hold(t, "free", "planted-in-vain", args...), "niav-ni-detnalp")
}

func TestThePasswordIsNotInTheEnvironmentOfTheProcessThatGotIt(t *testing.T) {
	t.Parallel()
	out := hold(t, "free", "planted-in-vain", "sh", "-c", "cat /proc/$PPID/environ; echo end of $PPID")
	assert.NotContains(t, out, "planted-in-vain")
	assert.Contains(t, out, "end of")
}

func TestAConfinedProgramSeesOnlyItselfAndGivesItsExitCode(t *testing.T) {
	t.Parallel()
	if err := host.Unconfined(); err != nil {
		t.Skip("this host confines nothing: ", err)
	}
	c := sh("ls -d /proc/[0-9]* | wc -l; exit 3")
	c.Confined = true
	err := host.Run(t.Context(), c)
	require.ErrorContains(t, err, "sh: exit status 3")
	assert.Less(t, len(host.Tail(err)[0]), 2, "fewer than ten processes")
	c.Program = "there-is-no-such-program"
	require.ErrorIs(t, host.Run(t.Context(), c), exec.ErrNotFound)
}

func TestAConfinedProgramMayCleanUpAndNothingOutlivesIt(t *testing.T) {
	t.Parallel()
	if err := host.Unconfined(); err != nil {
		t.Skip("this host confines nothing: ", err)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	c := sh(`trap 'echo yes >cleaned; exit 0' TERM; setsid sh -c 'trap "" TERM; while :; do touch alive; sleep 0.05; done' & echo >started; wait`)
	c.Dir, c.Confined = dir, true
	p, err := host.Start(ctx, c)
	require.NoError(t, err)
	there := func(name string) func() bool {
		return func() bool { _, err := os.Stat(filepath.Join(dir, name)); return err == nil }
	}
	require.Eventually(t, there("alive"), 10*time.Second, 10*time.Millisecond)
	cancel()
	_ = p.Wait()
	assert.FileExists(t, filepath.Join(dir, "cleaned"))
	require.NoError(t, os.Remove(filepath.Join(dir, "alive")))
	assert.Never(t, there("alive"), 300*time.Millisecond, 50*time.Millisecond, "it had a session of its own")
}

func TestAConfinedProgramEndsWithAProcessThatIsKilled(t *testing.T) {
	t.Parallel()
	if err := host.Unconfined(); err != nil {
		t.Skip("this host confines nothing: ", err)
	}
	self, err := os.Executable()
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "alive")
	cmd := exec.Command(self, "sh", "-c", "while :; do touch "+file+"; sleep 0.05; done")
	cmd.Env = append(os.Environ(), "TEST_HOLDER=confined")
	require.NoError(t, cmd.Start())
	there := func() bool { _, err := os.Stat(file); return err == nil }
	require.Eventually(t, there, 10*time.Second, 10*time.Millisecond)
	require.NoError(t, cmd.Process.Signal(syscall.SIGKILL))
	_ = cmd.Wait()
	require.Eventually(t, func() bool {
		_ = os.Remove(file)
		time.Sleep(200 * time.Millisecond)
		return !there()
	}, 5*time.Second, 10*time.Millisecond)
}
