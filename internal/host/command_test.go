package host_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/host"
)

func sh(script string) host.Cmd {
	return host.Cmd{Program: "sh", Args: []string{"-c", script}}
}

func TestAFailureNamesTheProgramAndItsLastLine(t *testing.T) {
	t.Parallel()
	err := host.Run(t.Context(), sh("echo first; echo the disk is full >&2; exit 3"))
	require.EqualError(t, err, "sh: exit status 3: the disk is full")
	assert.Equal(t, []string{"first", "the disk is full"}, host.Tail(err))
}

func TestOutputKeepsStandardErrorApart(t *testing.T) {
	t.Parallel()
	out, err := host.Output(t.Context(), sh("echo result; echo noise >&2"))
	require.NoError(t, err)
	assert.Equal(t, "result\n", string(out))
}

func TestOutputRefusesMoreThanItKeeps(t *testing.T) {
	t.Parallel()
	_, err := host.Output(t.Context(), sh("head -c 9000000 /dev/zero"))
	require.ErrorContains(t, err, "more than")
}

func TestLinesAndLogReceiveTheOutputAndTheTailIsBounded(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "log")
	var lines []string
	c := sh("i=0; while [ $i -lt 50 ]; do echo line $i; i=$((i+1)); done; printf '10%%\\r20%%\\rend'; exit 1")
	c.Log, c.OnLine = log, func(l string) { lines = append(lines, l) }
	err := host.Run(t.Context(), c)
	assert.Len(t, lines, 53)
	assert.Equal(t, "end", lines[52])
	assert.Len(t, host.Tail(err), 20)
	b, _ := os.ReadFile(log)
	assert.Equal(t, 50, bytes.Count(b, []byte("\n")))
}

func TestSecretsOfOurEnvironmentDoNotReachPrograms(t *testing.T) {
	t.Setenv("REGISTRY_PASS", "planted")
	out, err := host.Output(t.Context(), sh("env"))
	require.NoError(t, err)
	assert.NotContains(t, string(out), "planted")
	assert.Contains(t, string(out), "PATH=")
}

func TestTheEndOfTheContextEndsTheWholeProcessGroup(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	c := sh("trap '' TERM; sh -c 'trap \"\" TERM; echo $$ > child; while :; do sleep 0.1; done' & wait; sleep 100")
	c.Dir, c.Grace = dir, 200*time.Millisecond
	p, err := host.Start(ctx, c)
	require.NoError(t, err)
	child := filepath.Join(dir, "child")
	require.Eventually(t, func() bool { b, _ := os.ReadFile(child); return len(b) > 0 }, 5*time.Second, 10*time.Millisecond)
	cancel(stop)
	require.ErrorIs(t, p.Wait(), stop)
	b, _ := os.ReadFile(child)
	require.Eventually(t, func() bool { return gone(strings.TrimSpace(string(b))) }, 5*time.Second, 10*time.Millisecond)
}

// gone says whether the process has ended (a zombie that waits for its
// adoptive parent counts as ended).
func gone(pid string) bool {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	return err != nil || strings.Contains(string(b), ") Z ")
}

func TestAProgramThatIsNotThereIsNamed(t *testing.T) {
	t.Parallel()
	err := host.Run(t.Context(), host.Cmd{Program: "no-such-program"})
	require.ErrorContains(t, err, "no-such-program")
	require.ErrorIs(t, err, exec.ErrNotFound)
}

func TestAProgramThatMaySurviveHasASessionOfItsOwnAndStillStops(t *testing.T) {
	t.Parallel()
	c := sh("trap 'exit 0' TERM; while :; do sleep 0.05; done")
	c.Survive = true
	p, err := host.Start(t.Context(), c)
	require.NoError(t, err)
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(p.Pid()) + "/stat")
	require.NoError(t, err)
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	assert.Equal(t, strconv.Itoa(p.Pid()), fields[3], "the session's number")
	p.Stop()
	assert.True(t, gone(strconv.Itoa(p.Pid())))
}

// script(1) gives this test a terminal: a program that asks there, as Ansible
// does for a vault's password, would be stopped by the kernel for ever.
func TestAProgramHasNoTerminalToAskAt(t *testing.T) {
	t.Parallel()
	const inner = "DISKFORGE_TEST_IN_TERMINAL"
	if os.Getenv(inner) == "" {
		cmd := exec.Command("script", "-qec", os.Args[0]+" -test.run ^"+t.Name()+"$ -test.v", "/dev/null")
		cmd.Env = append(os.Environ(), inner+"=1")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		assert.Contains(t, string(out), "in a terminal")
		return
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	require.NoError(t, err, "the test itself has one")
	tty.Close()
	t.Log("in a terminal")
	assert.Error(t, host.Run(t.Context(), host.Cmd{Program: "sh", Args: []string{"-c", "read answer </dev/tty"}}))
}
