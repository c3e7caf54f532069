package ui

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/log"
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
}

// row is one image.
type row struct {
	name  string
	label string // the name as it may be shown, as wide as all others'
	state string
	why   string
	view  *UI
	since time.Time // when the state began
	took  time.Duration
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

// states are in the order in which they are counted, each with the mark before
// an image's name.
var states = []struct {
	name, mark string
	level      log.Level
}{
	{Running, " ", log.InfoLevel},
	{Done, "✓", log.InfoLevel},
	{Skipped, "–", log.InfoLevel},
	{Failed, "✗", log.ErrorLevel},
	{Blocked, "⊘", log.WarnLevel},
	{Cancelled, "✗", log.WarnLevel},
	{Waiting, "·", log.InfoLevel},
}

// Table begins a table of images, in the order in which they are shown. The
// caller must call its Close.
func (u *UI) Table(images []string) *Table {
	t := &Table{ui: u, began: time.Now()}
	width := 0
	for _, name := range images {
		label := text.Line(name)
		width = max(width, ansi.StringWidth(label))
		view := &UI{shared: u.shared, image: true, log: u.log.WithPrefix(label)}
		if u.json {
			view.log = u.log.With("image", label)
		}
		t.rows = append(t.rows, &row{name: name, label: label, state: Waiting, view: view})
	}
	for _, r := range t.rows {
		r.label += strings.Repeat(" ", width-ansi.StringWidth(r.label))
	}
	u.print(func() { u.table = t })
	return t
}

// row is the row of an image that the table was begun with.
func (t *Table) row(image string) *row {
	return t.rows[slices.IndexFunc(t.rows, func(r *row) bool { return r.name == image })]
}

// Image returns the view of one image: what it shows is shown in its row.
func (t *Table) Image(name string) *UI { return t.row(name).view }

// Warn shows something that the user should know about an image and that stops
// nothing.
func (t *Table) Warn(image, message string) { t.Image(image).Warn(message) }

// Set shows an image's state and the reason for it, or what came out.
func (t *Table) Set(image, state, why string) {
	r := t.row(image)
	t.ui.print(func() {
		r.why = r.view.line(why)
		if state == r.state {
			return
		}
		if r.state == Running {
			r.took = time.Since(r.since)
		}
		r.state, r.since = state, time.Now()
		if t.ui.screen == nil { // on a terminal the table says it
			r.log()
		}
	})
}

// log writes a plain line.
func (r *row) log() {
	var keyvals []any
	if r.took > 0 {
		keyvals = append(keyvals, "elapsed", r.took.Round(tenth))
	}
	if r.why != "" {
		keyvals = append(keyvals, "why", r.why)
	}
	for _, s := range states {
		if s.name == r.state {
			r.view.log.Log(s.level, r.state, keyvals...)
		}
	}
}

// Close ends the live table and prints it in full.
func (t *Table) Close() {
	t.ui.print(func() {
		t.ui.table = nil
		if t.ui.json {
			keyvals := []any{"elapsed", time.Since(t.began).Round(time.Millisecond)}
			for _, s := range states {
				keyvals = append(keyvals, s.name, t.count(s.name))
			}
			t.ui.log.Info("images", keyvals...)
			return
		}
		for _, r := range t.rows {
			fmt.Fprintln(t.ui.out, strings.TrimRight(r.text(" "), " "))
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
		lines = append(lines, r.text(spin))
	}
	return append(lines, t.counts())
}

// byInterest sorts what runs first, the longest before; then what has ended,
// the latest before; then what waits.
func byInterest(a, b *row) int {
	rank := map[string]int{Running: -1, Waiting: 1}
	if order := cmp.Compare(rank[a.state], rank[b.state]); order != 0 {
		return order
	}
	if a.state == Running {
		return a.since.Compare(b.since)
	}
	return b.since.Compare(a.since)
}

// text is an image's line: its name, its stage or state, how long it takes or
// took, what it does or why.
func (r *row) text(spin string) string {
	mark, what, took, why := spin, r.state, r.took, r.why
	for _, s := range states {
		if s.name == r.state && r.state != Running {
			mark = s.mark
		}
	}
	if r.state == Running {
		took = time.Since(r.since)
		if n := len(r.view.stages); n > 0 {
			stage := r.view.stages[n-1]
			what, why = stage.name, stage.doing()
		}
	}
	elapsed := ""
	if took > 0 {
		elapsed = text.Span(took)
	}
	return fmt.Sprintf("%s %s  %-10s %11s  %s", mark, r.label, what, elapsed, why)
}

func (t *Table) count(state string) (n int) {
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
	for _, s := range states {
		if n := t.count(s.name); n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, s.name))
		}
	}
	return fmt.Sprintf("%s: %s, %s", text.Count(len(t.rows), "image"), strings.Join(parts, ", "), text.Span(time.Since(t.began)))
}
