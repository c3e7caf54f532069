// Package ui shows people and machines what diskforge is doing: live lines on
// a terminal, plain lines elsewhere, one JSON object a line on request; for
// many images at once, a table. Everything goes to one writer, standard error;
// results are not its business.
//
// A UI is a view: the command's own or that of one image in a Table. A view
// begins Stages, which are progress.Reporters. All views share one writer and
// one screen, whose live lines make way for each line that stays.
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
	"github.com/charmbracelet/x/ansi"
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
	secret atomic.Pointer[strings.Replacer] // what must not be shown, or nil
}

// shared is what all views write to.
type shared struct {
	mu     sync.Mutex
	out    io.Writer
	json   bool
	screen *screen // nil where out is no terminal
	main   *UI     // the command's own view
	table  *Table  // nil where there is none
	closed bool
}

// redraw is how often live lines are drawn anew: often enough for a spinner,
// seldom enough for a slow ssh session.
const redraw = 150 * time.Millisecond

// plainWidth is the width, in columns, of what is shown where there is no
// terminal: logs are read in wide windows.
const plainWidth = 100

// New returns a UI that writes to out: JSON lines on request, live lines where
// out is a terminal, plain lines elsewhere. The caller must call Close.
func New(out io.Writer, asJSON bool) *UI {
	u := &UI{shared: &shared{out: out, json: asJSON}}
	u.main = u
	u.log = log.NewWithOptions(out, log.Options{ReportTimestamp: true, TimeFormat: time.TimeOnly})
	if asJSON {
		u.log.SetFormatter(log.JSONFormatter)
		u.log.SetTimeFormat(time.RFC3339)
	}
	if f, ok := out.(*os.File); ok && !asJSON && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		u.screen = &screen{out: f}
		time.AfterFunc(redraw, u.animate)
	}
	return u
}

func (s *shared) animate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.screen.draw(s.live)
		time.AfterFunc(redraw, s.animate)
	}
}

// Close ends the live lines. Those of an image end with the command's.
func (u *UI) Close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.screen != nil && !u.image {
		u.closed = true
		u.screen.clear()
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
		lines = append(lines, spin+" "+stage.row(time.Second, stage.doing()))
	}
	if s.table != nil {
		lines = append(lines, s.table.live(height-len(lines), spin)...)
	}
	lines = lines[max(len(lines)-height, 0):]
	for i, line := range lines {
		lines[i] = ansi.Truncate(line, width, "…") // a wrapped line could not be cleared again
	}
	return lines
}

// Mask has secrets replaced in all that this view shows from now on.
func (u *UI) Mask(secrets *strings.Replacer) { u.secret.Store(secrets) }

// lines is a text as it may be shown: harmless, without secrets.
func (u *UI) lines(what string) string {
	if secrets := u.secret.Load(); secrets != nil {
		what = secrets.Replace(what)
	}
	return text.Lines(what)
}

// line is a text as it may be shown in one line.
func (u *UI) line(what string) string { return text.Line(u.lines(what)) }

// Info shows something that belongs to no stage.
func (u *UI) Info(message string) {
	u.print(func() { u.log.Info(u.line(message)) })
}

// Warn shows something that the user should know and that stops nothing.
func (u *UI) Warn(message string) {
	u.print(func() { u.log.Warn(u.line(message)) })
}

// Show writes for people what takes more than a line, in so many columns and
// in colours where they work. Machines, and a table of images, are spared it.
func (u *UI) Show(write func(w io.Writer, width int, colour bool) error) {
	if u.json || u.image {
		return
	}
	width := plainWidth
	if u.screen != nil {
		width, _ = u.screen.size()
	}
	// What a closed terminal does not take changes no result.
	u.print(func() { _ = write(u.out, width, u.screen != nil) })
}

// Fail shows why the command failed: one line, then the evidence, where the
// whole log is, and how to look into the guest.
func (u *UI) Fail(err error) {
	f, detailed := failure.In(err)
	if !detailed {
		f = &failure.Error{}
	}
	message := u.lines(err.Error())
	var evidence []string
	for _, line := range f.Lines {
		evidence = append(evidence, strings.Split(u.lines(line), "\n")...)
	}
	u.print(func() {
		if u.json {
			var keyvals []any
			if detailed {
				keyvals = []any{"lines", evidence, "log", f.Log, "try", u.line(f.Try)}
			}
			u.log.Error(message, keyvals...)
			return
		}
		for line := range strings.SplitSeq(message, "\n") {
			fmt.Fprintf(u.out, "diskforge: %s\n", line)
		}
		// Behind the bar no line of a guest's is a command to a CI system, as
		// one that begins with :: is.
		for _, line := range evidence {
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
