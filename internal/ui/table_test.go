package ui_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/ui"
)

func TestPlainLinesOfAnImageBeginWithItsNameAndTheTableIsPrintedAtTheEnd(t *testing.T) {
	var out bytes.Buffer
	u := ui.New(&out, false)
	table := u.Table([]string{"base", "child", "other"})
	table.Set("base", "running", "")
	table.Image("base").Stage("provision").End("588 MiB", nil)
	table.Set("base", "failed", "task failed")
	table.Set("child", "waiting", "for base")
	table.Set("child", "blocked", "blocked by base")
	table.Set("other", "skipped", "the registry has it")
	table.Warn("other", "it is old")
	table.Close()
	u.Close()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Len(t, lines, 11)
	assert.Contains(t, lines[0], "base: running")
	assert.Contains(t, lines[1], "base: started stage=provision")
	assert.Contains(t, lines[2], "base: done stage=provision")
	assert.Regexp(t, `ERRO base: failed elapsed=\S+ why="task failed"`, lines[3])
	assert.Contains(t, lines[4], `child: blocked why="blocked by base"`)
	assert.Contains(t, lines[5], `other: skipped why="the registry has it"`)
	assert.Contains(t, lines[6], "WARN other: it is old")
	assert.Regexp(t, `^✗ base   failed +\d+ ms  task failed$`, lines[7])
	assert.Regexp(t, `^⊘ child  blocked +blocked by base$`, lines[8])
	assert.Regexp(t, `^– other  skipped +the registry has it$`, lines[9])
	assert.Regexp(t, `^3 images: 1 skipped, 1 failed, 1 blocked, \d+ ms$`, lines[10])
	assert.NotContains(t, out.String(), "\x1b")
}

func TestEveryLineOfTheMachineFormNamesItsImageAndTheLastCountsThem(t *testing.T) {
	var out bytes.Buffer
	u := ui.New(&out, true)
	table := u.Table([]string{"base", "child"})
	table.Set("base", "running", "")
	s := table.Image("base").Stage("pack")
	s.Warn("look")
	s.End("", errors.New("boom"))
	table.Set("base", "failed", "boom")
	table.Close()
	u.Close()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Len(t, lines, 6)
	for i, line := range lines {
		var fields map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &fields), line)
		if i < 5 {
			assert.Equal(t, "base", fields["image"], line)
			continue
		}
		assert.Equal(t, "images", fields["msg"])
		assert.EqualValues(t, 1, fields["failed"])
		assert.EqualValues(t, 1, fields["waiting"])
	}
}

func TestATableThatFitsShowsEveryImageInItsOrder(t *testing.T) {
	term := openTerminal(t, 80, 24)
	u := ui.New(term.file, false)
	table := u.Table([]string{"base", "日本語", "z"})
	table.Set("base", "done", "oci:base@sha256:1")
	table.Set("日本語", "running", "")
	s := table.Image("日本語").Stage("provision")
	s.Activity("TASK [base : Upgrade]")
	table.Set("z", "waiting", "for 日本語")
	term.shows(t, `^✓ base    done +oci:base@sha256:1
\S 日本語  provision +\d+ ms  TASK \[base : Upgrade\]
· z       waiting +for 日本語
3 images: 1 running, 1 done, 1 waiting, \d+ ms$`)
	s.End("", nil)
	table.Set("日本語", "done", "")
	table.Close()
	u.Close()
	term.shows(t, `^✓ base    done +oci:base@sha256:1
✓ 日本語  done +\d+ ms
· z       waiting +for 日本語
3 images: 2 done, 1 waiting, \d+ ms$`)
}

func many() []string {
	var names []string
	for i := range 25 {
		names = append(names, fmt.Sprint("image-", i))
	}
	return names
}

func TestOfManyImagesThoseThatRunAndTheLatestAreShownAndAllAtTheEnd(t *testing.T) {
	term := openTerminal(t, 60, 7)
	u := ui.New(term.file, false)
	table := u.Table(many())
	for i := range 10 {
		table.Set(fmt.Sprint("image-", i), "running", "")
		table.Set(fmt.Sprint("image-", i), "done", "")
	}
	table.Set("image-20", "running", "")
	table.Set("image-7", "failed", strings.Repeat("日", 60))
	table.Set("image-21", "running", "")
	term.shows(t, `^\S image-20  running .*
\S image-21  running .*
✗ image-7   failed .*日…
✓ image-9   done .*
✓ image-8   done .*
25 images: 2 running, 9 done, 1 failed, 13 waiting, \d+…?.*$`)
	u.Info("in between")
	table.Image("image-20").Warn("look")
	table.Close()
	u.Close()
	got := ansi.Strip(term.text(t))
	assert.Regexp(t, `^\S+ INFO in between\n\S+ WARN image-20: look\n✓ image-0 `, got)
	assert.Contains(t, got, strings.Repeat("日", 60))
	for _, name := range many() {
		assert.Equal(t, 1, len(regexp.MustCompile(`(?m)^. `+name+` `).FindAllString(got, -1)), name)
	}
	assert.Equal(t, 1, strings.Count(got, "25 images:"))
}

func TestATerminalThatIsResizedKeepsOneTable(t *testing.T) {
	term := openTerminal(t, 100, 30)
	u := ui.New(term.file, false)
	table := u.Table(many())
	for _, size := range [][2]int{{40, 30}, {120, 12}, {21, 5}, {80, 2}, {80, 24}} {
		term.text(t)
		term.resize(t, size[0], size[1])
		table.Set("image-3", "running", strings.Repeat("long ", 40))
		lines := strings.Split(term.text(t), "\n")
		// What a lower terminal has scrolled away cannot be erased.
		for _, line := range lines[max(len(lines)-size[1]+1, 0):] {
			assert.Less(t, ansi.StringWidth(line), size[0])
		}
		assert.Equal(t, 1, strings.Count(strings.Join(lines, "\n"), "25 images:"), "%v", size)
	}
	table.Close()
	u.Close()
	assert.Equal(t, 1, strings.Count(term.text(t), "25 images:"))
}

func TestControlCharactersOfGuestsDoNotReachTheTerminal(t *testing.T) {
	term := openTerminal(t, 80, 24)
	u := ui.New(term.file, false)
	table := u.Table([]string{"a"})
	table.Set("a", "failed", "red\x1b[31m\u009b2J\nnext")
	table.Close()
	u.Close()
	term.shows(t, `^✗ a  failed +red�2J next
1 image: 1 failed`)
}

// terminal is a pseudo-terminal whose text flows anew when it is resized, as
// most do today.
type terminal struct {
	file  *os.File
	mu    sync.Mutex
	width int
	all   string // as it came
	raw   string // not yet understood
	lines []string

	asked, answered int
}

func openTerminal(t *testing.T, width, height int) *terminal {
	t.Helper()
	slave, master := openPTY(t)
	term := &terminal{file: slave}
	term.resize(t, width, height)
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, err := master.Read(b)
			if err != nil {
				return
			}
			term.mu.Lock()
			term.feed(string(b[:n]))
			term.mu.Unlock()
		}
	}()
	return term
}

func (m *terminal) resize(t *testing.T, width, height int) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.width = width
	require.NoError(t, unix.IoctlSetWinsize(int(m.file.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(width), Row: uint16(height)}))
}

var (
	upAndErase = regexp.MustCompile(`^\x1b\[(\d+)A\x1b\[J`)
	message    = regexp.MustCompile(`^\x1b_(\d+)\x1b\\`)
)

// feed understands lines, and going up and erasing from there.
func (m *terminal) feed(s string) {
	m.all += s
	m.raw += s
	for {
		if found := upAndErase.FindStringSubmatch(m.raw); found != nil {
			rows, _ := strconv.Atoi(found[1])
			m.up(rows)
			m.raw = m.raw[len(found[0]):]
			continue
		}
		if found := message.FindStringSubmatch(m.raw); found != nil {
			m.answered, _ = strconv.Atoi(found[1])
			m.raw = m.raw[len(found[0]):]
			continue
		}
		line, rest, whole := strings.Cut(m.raw, "\r\n")
		if !whole {
			return
		}
		m.lines, m.raw = append(m.lines, line), rest
	}
}

func (m *terminal) up(rows int) {
	for rows > 0 && len(m.lines) > 0 {
		last := len(m.lines) - 1
		rows -= max(1, (ansi.StringWidth(m.lines[last])+m.width-1)/m.width)
		m.lines = m.lines[:last]
	}
}

// text returns what can be read when everything that was written has come: a
// message to the terminal itself says so.
func (m *terminal) text(t *testing.T) string {
	t.Helper()
	m.mu.Lock()
	m.asked++
	asked := m.asked
	m.mu.Unlock()
	_, err := fmt.Fprintf(m.file, "\x1b_%d\x1b\\", asked)
	require.NoError(t, err)
	var got string
	require.Eventually(t, func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		got = strings.Join(m.lines, "\n")
		return m.answered == asked
	}, time.Minute, 5*time.Millisecond)
	return got
}

func (m *terminal) shows(t *testing.T, pattern string) {
	t.Helper()
	want := regexp.MustCompile(pattern)
	var got string
	assert.Eventually(t, func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		got = strings.Join(m.lines, "\n")
		return want.MatchString(got)
	}, time.Minute, 5*time.Millisecond, "%s", pattern)
	assert.Regexp(t, want, got)
}
