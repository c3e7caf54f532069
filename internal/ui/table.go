package ui

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/netgroup-polito/diskforge/internal/text"
)

// Table shows many images at once. On a terminal it lives: the images that are
// being built and those that ended last, as far as they fit, and a line of
// counts. Elsewhere every image's lines begin with its name, or have a field
// "image". Its methods are safe for concurrent use.
type Table struct {
	ui    *UI
	began time.Time
	rows  []*row
	width int // of the names, in columns
}

// row is one image.
type row struct {
	name, state, why string
	view             *UI
	changed          time.Time // when the state did
	took             time.Duration
}

// The states that images can have.
const (
	Waiting   = "waiting"
	Running   = "running"
	Done      = "done"
	Skipped   = "skipped"   // there was nothing to do
	Failed    = "failed"    // it could not be done
	Blocked   = "blocked"   // what it starts from cannot be planned, or has failed
	Cancelled = "cancelled" // the run ended before it was done
)

// marks stand before the images that do not run, in the order in which the
// states are counted.
var marks = []struct{ state, mark string }{
	{Running, " "}, {Done, "✓"}, {Skipped, "–"}, {Failed, "✗"}, {Blocked, "⊘"}, {Cancelled, "✗"}, {Waiting, "·"},
}

// Table begins a table of images, in the order in which they are shown. The
// caller must call its Close.
func (u *UI) Table(images []string) *Table {
	t := &Table{ui: u, began: time.Now()}
	for _, name := range images {
		view := &UI{shared: u.shared, image: true, log: u.log.With("image", text.Line(name))}
		if !u.json {
			view.log = u.log.WithPrefix(text.Line(name))
		}
		t.rows = append(t.rows, &row{name: name, state: Waiting, view: view})
		t.width = max(t.width, ansi.StringWidth(text.Line(name)))
	}
	u.print(func() { u.table = t })
	return t
}

// Image returns the view of one image: what it shows is shown in its row. An
// image that the table does not have is shown like the command itself.
func (t *Table) Image(name string) *UI {
	if r := t.row(name); r != nil {
		return r.view
	}
	return t.ui
}

func (t *Table) row(name string) *row {
	if i := slices.IndexFunc(t.rows, func(r *row) bool { return r.name == name }); i >= 0 {
		return t.rows[i]
	}
	return nil
}

// Set tells an image's state and the reason for it, or what came out.
func (t *Table) Set(image, state, why string) {
	r := t.row(image)
	if r == nil {
		return
	}
	t.ui.print(func() {
		if state != r.state {
			if r.state == Running {
				r.took = time.Since(r.changed)
			}
			r.state, r.changed = state, time.Now()
			defer r.line()
		}
		r.why = r.view.say(why)
	})
}

// Warn tells something that the user should know about an image and that stops
// nothing.
func (t *Table) Warn(image, message string) { t.Image(image).Warn(message) }

// line writes a plain line; on a terminal the table says it.
func (r *row) line() {
	if r.view.screen != nil {
		return
	}
	var keyvals []any
	if r.took > 0 {
		keyvals = append(keyvals, "elapsed", r.took.Round(100*time.Millisecond))
	}
	if r.why != "" {
		keyvals = append(keyvals, "why", r.why)
	}
	switch r.state {
	case Failed:
		r.view.log.Error(r.state, keyvals...)
	case Blocked, Cancelled:
		r.view.log.Warn(r.state, keyvals...)
	default:
		r.view.log.Info(r.state, keyvals...)
	}
}

// Close ends the live table and prints it in full.
func (t *Table) Close() {
	t.ui.print(func() {
		t.ui.table = nil
		if t.ui.json {
			keyvals := []any{"elapsed", time.Since(t.began).Round(time.Millisecond)}
			for _, m := range marks {
				keyvals = append(keyvals, m.state, t.count(m.state))
			}
			t.ui.log.Info("images", keyvals...)
			return
		}
		for _, r := range t.rows {
			fmt.Fprintln(t.ui.out, strings.TrimRight(t.text(r, mark(r.state)), " "))
		}
		fmt.Fprintln(t.ui.out, t.counts())
	})
}

// live returns the lines of the table, at most height: all images in their
// order where they fit, else what is going on and what happened last.
func (t *Table) live(height int, spin string) []string {
	rows := t.rows
	if len(rows) > height-1 {
		rows = slices.SortedStableFunc(slices.Values(rows), byInterest)[:max(height-1, 0)]
	}
	var lines []string
	for _, r := range rows {
		m := mark(r.state)
		if r.state == Running {
			m = spin
		}
		lines = append(lines, t.text(r, m))
	}
	return append(lines, t.counts())
}

// byInterest sorts what runs first, the longest before; then what has ended,
// the latest before; then what waits.
func byInterest(a, b *row) int {
	rank := func(r *row) int {
		switch r.state {
		case Running:
			return 0
		case Waiting:
			return 2
		}
		return 1
	}
	if order := cmp.Compare(rank(a), rank(b)); order != 0 {
		return order
	}
	if a.state == Running {
		return a.changed.Compare(b.changed)
	}
	return b.changed.Compare(a.changed)
}

// text is an image's line: its name, its stage or state, how long it takes or
// took, what it does or why.
func (t *Table) text(r *row, mark string) string {
	what, took, why := r.state, r.took, r.why
	if r.state == Running {
		took = time.Since(r.changed)
		if n := len(r.view.stages); n > 0 {
			stage := r.view.stages[n-1]
			what, why = stage.name, stage.doing()
		}
	}
	elapsed := ""
	if took > 0 {
		elapsed = text.Span(took)
	}
	return fmt.Sprintf("%s %s  %-10s %11s  %s", mark, pad(text.Line(r.name), t.width), what, elapsed, why)
}

func mark(state string) string {
	for _, m := range marks {
		if m.state == state {
			return m.mark
		}
	}
	return " "
}

func (t *Table) count(state string) int {
	n := 0
	for _, r := range t.rows {
		if r.state == state {
			n++
		}
	}
	return n
}

// counts is the line that sums up the table.
func (t *Table) counts() string {
	var parts []string
	for _, m := range marks {
		if n := t.count(m.state); n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, m.state))
		}
	}
	images := "images"
	if len(t.rows) == 1 {
		images = "image"
	}
	return fmt.Sprintf("%d %s: %s, %s", len(t.rows), images, strings.Join(parts, ", "), text.Span(time.Since(t.began)))
}
