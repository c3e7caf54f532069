// Package ui tells people and machines what diskforge is doing: live lines on
// a terminal, plain lines elsewhere, one JSON object a line on request; for
// many images at once, a table. Everything goes to one writer, standard error;
// results are not its business.
package ui

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/charmbracelet/log"
	"golang.org/x/term"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// UI shows stages: the command's own, or those of one image of a Table. Its
// methods are safe for concurrent use.
type UI struct {
	*shared
	log    *log.Logger
	image  bool // whether it is a row of a table
	stages []*Stage
	secret atomic.Pointer[strings.Replacer] // what must not be told, or nil
}

// Mask has secrets replaced in all that this view tells from now on.
func (u *UI) Mask(secrets *strings.Replacer) { u.secret.Store(secrets) }

// say is a text as it may be told: in one line, harmless, without secrets.
func (u *UI) say(what string) string {
	if secrets := u.secret.Load(); secrets != nil {
		what = secrets.Replace(what)
	}
	return text.Line(what)
}

// shared is what all views write to.
type shared struct {
	mu     sync.Mutex
	out    io.Writer
	json   bool
	screen *screen // nil where out is no terminal
	main   *UI     // the command's own view
	table  *Table  // nil where there is none
	stop   chan struct{}
	ended  sync.WaitGroup
}

// redraw is how often live lines are drawn anew: often enough for a spinner,
// seldom enough for a slow ssh session.
const redraw = 150 * time.Millisecond

// New returns a UI that writes to out: JSON lines on request, live lines where
// out is a terminal, plain lines elsewhere. The caller must call Close.
func New(out io.Writer, asJSON bool) *UI {
	u := &UI{shared: &shared{out: out, json: asJSON, stop: make(chan struct{})}}
	u.main = u
	u.log = log.NewWithOptions(out, log.Options{ReportTimestamp: true, TimeFormat: time.TimeOnly})
	if asJSON {
		u.log.SetFormatter(log.JSONFormatter)
		u.log.SetTimeFormat(time.RFC3339)
	}
	if f, ok := out.(*os.File); ok && !asJSON && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		u.screen = &screen{out: f}
		u.ended.Add(1)
		go u.animate()
	}
	return u
}

// Close ends the live lines. Those of an image end with the command's.
func (u *UI) Close() {
	if u.image {
		return
	}
	close(u.stop)
	u.ended.Wait()
}

func (s *shared) animate() {
	defer s.ended.Done()
	tick := time.NewTicker(redraw)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			s.mu.Lock()
			s.screen.clear()
			s.mu.Unlock()
			return
		case <-tick.C:
			s.mu.Lock()
			s.screen.draw(s.live)
			s.mu.Unlock()
		}
	}
}

// print runs write with the live lines out of the way.
func (s *shared) print(write func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.screen != nil {
		s.screen.clear()
		defer s.screen.draw(s.live)
	}
	write()
}

// live returns the live lines, at most height: the command's stages, then the
// table.
func (s *shared) live(width, height int, spin string) []string {
	var lines []string
	for _, stage := range s.main.stages {
		lines = append(lines, spin+" "+stage.live())
	}
	if s.table != nil {
		lines = append(lines, s.table.live(height-len(lines), spin)...)
	}
	lines = lines[max(len(lines)-height, 0):]
	for i := range lines {
		lines[i] = clip(lines[i], width)
	}
	return lines
}

// Info tells something that belongs to no stage.
func (u *UI) Info(message string, keyvals ...any) {
	u.print(func() { u.log.Info(u.say(message), keyvals...) })
}

// Warn tells something that the user should know and that stops nothing.
func (u *UI) Warn(message string, keyvals ...any) {
	u.print(func() { u.log.Warn(u.say(message), keyvals...) })
}

// evidence are the lines of a text as they may be told, each as it is indented.
func (u *UI) evidence(what string) []string {
	if secrets := u.secret.Load(); secrets != nil {
		what = secrets.Replace(what)
	}
	return strings.Split(text.Lines(what), "\n")
}

// Fail tells why the command failed: one line, then the evidence, where the
// whole log is, and how to look into the guest.
func (u *UI) Fail(err error) {
	f, detailed := failure.In(err)
	u.print(func() {
		var lines []string
		if detailed {
			for _, line := range f.Lines {
				lines = append(lines, u.evidence(line)...)
			}
		}
		if u.json {
			keyvals := []any{}
			if detailed {
				keyvals = append(keyvals, "lines", lines, "log", f.Log, "try", u.say(f.Try))
			}
			u.log.Error(strings.Join(u.evidence(err.Error()), "\n"), keyvals...)
			return
		}
		for _, line := range u.evidence(err.Error()) {
			fmt.Fprintf(u.out, "diskforge: %s\n", line)
		}
		if !detailed {
			return
		}
		// Behind the bar no line of a guest's is a command to a CI system, as
		// one that begins with :: is.
		for _, line := range lines {
			fmt.Fprintf(u.out, "  | %s\n", line)
		}
		if f.Log != "" {
			fmt.Fprintf(u.out, "  log: %s\n", f.Log)
		}
		if f.Guest {
			fmt.Fprintln(u.out, "  look: with --keep-on-error the guest stays up")
		}
	})
}
