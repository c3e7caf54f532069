package provision

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/progress"
)

// bootError is a boot that the console says will never succeed.
type bootError struct{ what string }

func (e *bootError) Error() string { return e.what }

// hopeless are the console's words after which no guest ever answers: waiting
// for ssh any longer would be a waste of time.
var hopeless = []struct{ words, what string }{
	{"No bootable device", "the base image does not boot: its disk has no boot loader that a BIOS finds"},
	{"Kernel panic - not syncing", "the guest's kernel panicked"},
	{"grub rescue>", "the base image does not boot: its boot loader does not find its files"},
}

// console reads the file that QEMU writes the serial console to.
type console struct {
	path string
	read int64
	tail []byte // the last few KiB
}

const consoleTail = 8 << 10

func newConsole(path string) *console { return &console{path: path} }

// follow reports the console's last line until connected is closed or ctx
// ends, and cancels with a *bootError once the boot is hopeless.
func (c *console) follow(ctx context.Context, connected <-chan struct{}, report progress.Reporter, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-connected:
			return
		case <-tick.C:
		}
		if !c.more() {
			continue
		}
		for _, h := range hopeless {
			if bytes.Contains(c.tail, []byte(h.words)) {
				cancel(&bootError{h.what})
				return
			}
		}
		if lines := printable(c.tail); len(lines) > 0 && lines[len(lines)-1] != last {
			last = lines[len(lines)-1]
			report.Activity("booting: " + last)
		}
	}
}

// more reads what was added, and says whether that was anything.
func (c *console) more() bool {
	f, err := os.Open(c.path)
	if err != nil {
		return false
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, c.read, 1<<20))
	if err != nil || len(b) == 0 {
		return false
	}
	c.read += int64(len(b))
	c.tail = append(c.tail, b...)
	if n := len(c.tail) - consoleTail; n > 0 {
		c.tail = append([]byte(nil), c.tail[n:]...)
	}
	return true
}

// escapes are a terminal's control sequences.
var escapes = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b.`)

// printable are the non-empty lines of a console, without control characters.
func printable(b []byte) []string {
	var lines []string
	for _, line := range strings.FieldsFunc(escapes.ReplaceAllString(string(b), ""), func(r rune) bool { return r == '\n' || r == '\r' }) {
		line = strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f || r == '\ufffd' {
				return -1
			}
			return r
		}, strings.ToValidUTF8(line, ""))
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// lastLines are the last n printable lines of the console's log.
func lastLines(path string, n int) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > consoleTail {
		if _, err := f.Seek(-consoleTail, io.SeekEnd); err != nil {
			return []string{fmt.Sprintf("reading %s: %v", path, err)}
		}
	}
	b, _ := io.ReadAll(io.LimitReader(f, consoleTail))
	lines := printable(b)
	return lines[max(0, len(lines)-n):]
}
