package vm

import (
	"io"
	"os"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/text"
)

const (
	maxLines   = 30  // lines kept for an error
	maxColumns = 400 // bytes of a line kept
	poll       = 100 * time.Millisecond
	maxTail    = 16 << 10 // bytes of a log that LastLines reads
)

// phases are what a boot goes through, each with what its first line on the
// serial console looks like.
var phases = []struct {
	name string
	seen *regexp.Regexp
}{
	{"BIOS", regexp.MustCompile(`^`)},
	{"boot loader", regexp.MustCompile("GRUB|Booting `|Loading Linux")},
	{"kernel", regexp.MustCompile(`Linux version |Decompressing Linux`)},
	{"initial ramdisk", regexp.MustCompile(`Run /init as init|Loading, please wait`)},
	{"systemd", regexp.MustCompile(`systemd\[1\]: |Welcome to .*(Linux|Ubuntu).*!`)}, // GRUB welcomes, too
	{"cloud-init", regexp.MustCompile(`cloud-init\[|Cloud-init v\.`)},
	{"login", regexp.MustCompile(`login: *$`)},
}

// Hangs is what Died says of a guest that may well boot the next time.
const Hangs = "the guest's kernel hangs: a processor got nowhere for minutes"

// HangAdvice is what to try after that, or otherwise after anything else.
func HangAdvice(what, otherwise string) string {
	if what == Hangs {
		return "start the build again"
	}
	return otherwise
}

// dead are lines after which no ssh will come, each with what they mean and how
// often they come until they mean it.
var dead = []struct {
	seen  *regexp.Regexp
	what  string
	times int
}{
	{regexp.MustCompile(`Kernel panic - not syncing`), "the guest's kernel panicked", 1},
	{regexp.MustCompile(`No bootable device`), "the disk has no boot loader that the BIOS finds", 1},
	{regexp.MustCompile(`^grub rescue>|error: no such device: [0-9a-f-]+\.`), "the guest's boot loader does not find its files", 1},
	{regexp.MustCompile(`^\(initramfs\)|ALERT! .* does not exist\.\s+Dropping to a shell`), "the guest's kernel does not find its root file system", 1},
	{regexp.MustCompile(`You are in emergency mode`), "the guest's systemd gave up in emergency mode", 1},
	// Linux counts on while a processor is stuck. A host that was busy or
	// asleep makes it say so, too, but not again and again.
	{regexp.MustCompile(`BUG: soft lockup - CPU#\d+ stuck for \d{3,}s`), Hangs, 3},
}

// Moment is when the boot entered a phase.
type Moment struct {
	Phase string
	At    time.Time
}

// Console follows the log of a guest's serial console: which phase of the boot
// it is in, what ended that, what was said last.
type Console struct {
	p    progress.Reporter
	died chan string   // receives what killed the boot, at most once
	done chan struct{} // closed when the guest has ended and all is read
	now  func() time.Time

	mu    sync.Mutex
	split text.Splitter
	lines []string // the last, fit to print
	phase int
	seen  []Moment
	count []int // of the lines that are among dead
	dead  bool
}

func newConsole(p progress.Reporter) *Console {
	c := &Console{p: p, died: make(chan string, 1), done: make(chan struct{}), now: time.Now, count: make([]int, len(dead))}
	c.split = text.Splitter{Most: maxColumns, Line: c.line}
	c.enter(0)
	return c
}

// enter notes that the boot is in a phase.
func (c *Console) enter(phase int) {
	c.phase = phase
	c.seen = append(c.seen, Moment{phases[phase].name, c.now()})
	c.p.Activity("boot: " + phases[phase].name)
}

// WatchConsole follows the file, which may not be there yet, until ended is
// closed. The phases of the boot are reported to p.
func WatchConsole(file string, ended <-chan struct{}, p progress.Reporter) *Console {
	c := newConsole(p)
	go func() {
		defer close(c.done)
		c.follow(file, ended)
	}()
	return c
}

func (c *Console) follow(file string, ended <-chan struct{}) {
	var f *os.File
	for last := false; !last; {
		select {
		case <-ended:
			last = true
		case <-time.After(poll):
		}
		if f == nil {
			var err error
			if f, err = os.Open(file); err != nil {
				continue // QEMU makes it
			}
			defer f.Close()
		}
		// Write never fails; what cannot be read is missing, no more.
		_, _ = io.Copy(c, f)
	}
}

// Write takes what the guest printed.
func (c *Console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.split.Write(b)
	c.recognise(text.Lines(c.split.Part()), false) // a prompt has no end of line
	return n, err
}

func (c *Console) line(raw string) {
	line := text.Lines(raw)
	if line == "" {
		return
	}
	if c.lines = append(c.lines, line); len(c.lines) > maxLines {
		c.lines = c.lines[1:]
	}
	c.recognise(line, true)
}

// recognise moves the phase forward, never back: output of one may come late.
// What is not whole yet comes again.
func (c *Console) recognise(line string, whole bool) {
	for i := len(phases) - 1; i > c.phase; i-- {
		if phases[i].seen.MatchString(line) {
			c.enter(i)
			break
		}
	}
	for i, d := range dead {
		if c.dead || !d.seen.MatchString(line) {
			continue
		}
		if whole || d.times == 1 {
			c.count[i]++
		}
		if c.count[i] == d.times {
			c.dead = true
			c.died <- d.what
		}
	}
}

// Died receives, at most once, what killed the boot: no ssh will come.
func (c *Console) Died() <-chan string { return c.died }

// Done is closed when the guest has ended and all that it said is read.
func (c *Console) Done() <-chan struct{} { return c.done }

// Moments are the phases that were seen so far, in their order and to a tenth
// of a second. The first, the firmware's, is when following began.
func (c *Console) Moments() []Moment {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.seen)
}

// Last returns the last lines, fit to print, oldest first.
func (c *Console) Last() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := slices.Clone(c.lines)
	if part := text.Lines(c.split.Part()); part != "" {
		lines = append(lines, part)
	}
	return lines
}

// LastLines returns the last n lines of a log that a guest or a program wrote,
// fit to print; none where it cannot be read.
func LastLines(file string, n int) []string {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxTail {
		_, _ = f.Seek(-maxTail, io.SeekEnd) // from the start is as good
	}
	c := newConsole(progress.Discard)
	_, _ = io.Copy(c, io.LimitReader(f, maxTail))
	lines := c.Last()
	return lines[max(0, len(lines)-n):]
}
