package ui_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/text"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

func TestPlainLinesTellTheStageItsActivitiesOnceAndItsResult(t *testing.T) {
	var out bytes.Buffer
	u := ui.New(&out, false)
	s := u.Stage("provision")
	s.Activity("TASK [base : Upgrade]")
	s.Activity("TASK [base : Upgrade]")
	s.End("588 MiB", nil)
	u.Close()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Len(t, lines, 3)
	assert.Contains(t, lines[0], "started")
	assert.Contains(t, lines[1], "TASK [base : Upgrade]")
	assert.Contains(t, lines[2], "588 MiB")
	assert.Contains(t, lines[2], "stage=provision")
}

func TestEveryLineOfTheMachineFormIsAnObject(t *testing.T) {
	var out bytes.Buffer
	u := ui.New(&out, true)
	s := u.Stage("push")
	s.Warn("the registry has no referrers API")
	s.End("", errors.New("boom"))
	u.Fail(&failure.Error{What: "task failed", Try: "put it right", Lines: []string{"fatal: x"}, Log: "/log"})
	u.Close()
	var last map[string]any
	for line := range strings.Lines(out.String()) {
		last = nil
		require.NoError(t, json.Unmarshal([]byte(line), &last), line)
	}
	assert.Equal(t, "task failed: put it right", last["msg"])
	assert.Equal(t, []any{"fatal: x"}, last["lines"])
	assert.Equal(t, "/log", last["log"])
}

func TestAFailureShowsOneLineThenTheEvidence(t *testing.T) {
	var out bytes.Buffer
	u := ui.New(&out, false)
	defer u.Close()
	u.Fail(fmt.Errorf("provision: %w", &failure.Error{What: "task failed", Try: "put it right", Lines: []string{"fatal: x"}, Log: "/log"}))
	assert.Equal(t, "diskforge: provision: task failed: put it right\n  | fatal: x\n  log: /log\n", out.String())
	out.Reset()
	u.Fail(&failure.Error{What: "task failed", Guest: true})
	assert.Equal(t, "diskforge: task failed\n  look: with --keep-on-error the guest stays up\n", out.String())
}

// hostile is what a task, a file or a registry may call itself.
const hostile = "esc \x1b]0;pwned\a\x1b[2J\u009b31m\u202e\n::error::forged\r\n  ::add-mask::x\u2028::warning::y"

func TestNothingThatOthersWroteForgesALineOrMovesTheCursor(t *testing.T) {
	for _, asJSON := range []bool{false, true} {
		var out bytes.Buffer
		u := ui.New(&out, asJSON)
		u.Mask(strings.NewReplacer("pass-word", "***"))
		s := u.Stage("provision")
		s.Activity(hostile + "pass-word")
		s.Warn(hostile)
		s.End(hostile, nil)
		u.Info(hostile)
		u.Warn(hostile)
		table := u.Table([]string{"image" + hostile})
		table.Set("image"+hostile, "failed", hostile)
		table.Close()
		u.Fail(&failure.Error{What: hostile, Try: hostile, Lines: []string{hostile, "::error::pass-word"}})
		u.Close()
		assert.NotContains(t, out.String(), "pass-word")
		assert.Contains(t, out.String(), "***")
		for line := range strings.Lines(out.String()) {
			line = strings.TrimSuffix(line, "\n")
			assert.NotRegexp(t, `^\s*(::|##\[)`, line)
			assert.Equal(t, text.Lines(line), line, "%q", line)
		}
	}
}

func TestATerminalShowsALiveBarAndKeepsTheResult(t *testing.T) {
	term := openTerminal(t, 80, 24)
	u := ui.New(term.file, false)
	s := u.Stage("sparsify")
	s.Bytes(1<<30, 2<<30)
	u.Info("look")
	s.End("200 MiB", nil)
	u.Close()
	term.text(t)
	got := term.all
	assert.Contains(t, got, "50% of 2.0 GiB")
	assert.Contains(t, got, "✓ sparsify")
	assert.Less(t, strings.Index(got, "50%"), strings.Index(got, "✓"))
}

// openPTY opens both sides of a pseudo-terminal.
func openPTY(t *testing.T) (slave, master *os.File) {
	t.Helper()
	t.Setenv("TERM", "xterm")
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { master.Close() })
	require.NoError(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { slave.Close() })
	return slave, master
}
