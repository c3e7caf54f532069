package report

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/netgroup-polito/diskforge/internal/text"
)

// What a terminal shows, so that it stays below 25 lines.
const (
	terminalReason   = 3 // lines
	terminalEvidence = 4 // likewise
	terminalStages   = 9
	terminalTasks    = 3
)

// WriteTerminal writes the report in at most 25 lines of width columns, in
// colour on request. Only what people copy is longer: the reference, and page,
// which is where report.html is, or empty.
func (r *Report) WriteTerminal(w io.Writer, width int, colour bool, page string) error {
	t := &terminal{width: max(width, 40), colour: colour}
	v := r.view()
	t.outcome(v)
	t.stages(v)
	for n, task := range v.ByTime[:min(terminalTasks, len(v.ByTime))] {
		name := ""
		if n == 0 {
			name = "longest"
		}
		t.field(name, fmt.Sprintf("%-13s%s", text.Span(task.Took), task.Name))
	}
	t.sums(v)
	if page != "" {
		t.whole("report", cleanText(page, 1000))
	}
	_, err := io.WriteString(w, t.text.String())
	return err
}

// terminal collects lines that fit.
type terminal struct {
	text   strings.Builder
	width  int
	colour bool
}

// SGR sequences of terminals (ECMA-48, 8.3.117).
const (
	bold  = "\x1b[1m"
	dim   = "\x1b[2m"
	red   = "\x1b[31m"
	green = "\x1b[32m"
	blue  = "\x1b[34m"
)

// paint returns a clean text in a colour.
func (t *terminal) paint(colour, clean string) string {
	if !t.colour || clean == "" {
		return clean
	}
	return colour + clean + "\x1b[0m"
}

func (t *terminal) line(parts ...string) {
	line := strings.ReplaceAll(strings.Join(parts, ""), "\n", " ")
	fmt.Fprintln(&t.text, strings.TrimRight(ansi.Truncate(line, t.width, "…"), " "))
}

// whole writes a line that people copy: it is not cut.
func (t *terminal) whole(name, value string) {
	fmt.Fprintf(&t.text, "  %s%s\n", t.paint(dim, pad(name, 9)), text.Cut(text.Line(value), summaryText))
}

func (t *terminal) field(name, value string) { t.line("  ", t.paint(dim, pad(name, 9)), value) }

// outcome is what came out, or why nothing did.
func (t *terminal) outcome(v *view) {
	sign, colour := "✓ ", green
	if v.Outcome == Failed {
		sign, colour = "✗ ", red
	}
	head := t.paint(bold+colour, sign+v.Head) + "  " + v.Title
	if v.Took > 0 {
		head += t.paint(dim, "  in "+text.Span(v.Took))
	}
	t.line(head)
	if len(v.Why) > 0 {
		t.reason(v.Why[0])
		for _, line := range v.Why[1:min(len(v.Why), 1+terminalEvidence)] {
			t.line("  | ", line)
		}
	}
	if v.Image.Reference != "" {
		t.whole("image", v.Image.Reference)
	}
}

// reason wraps the line that says what is wrong and how to put it right.
func (t *terminal) reason(why string) {
	lines := strings.Split(ansi.Wrap(text.Cut(text.Line(why), summaryText), t.width-2, ""), "\n")
	for _, line := range lines[:min(len(lines), terminalReason)] {
		t.line("  ", t.paint(red, line))
	}
}

// stages draws when each stage ran. Where there are too many, the longest are
// shown, in their order.
func (t *terminal) stages(v *view) {
	const room = 40 // columns beside the bar
	bar := min(t.width-room, 50)
	for _, s := range longestStages(v.Stages) {
		sign := t.paint(green, "✓")
		switch {
		case s.Failure != "":
			sign = t.paint(red, "✗")
		case s.Stopped:
			sign = t.paint(dim, "–")
		}
		line := "  " + sign + " " + pad(s.Name, 12) + fmt.Sprintf("%13s", text.Span(s.Took))
		if bar >= 10 {
			line += "  " + t.paint(blue, gantt(s.Start, s.Took, v.Took, bar))
		}
		if s.Reused {
			line += t.paint(dim, "  reused")
		}
		t.line(line)
	}
}

func longestStages(stages []Stage) []Stage {
	if len(stages) <= terminalStages {
		return stages
	}
	took := func(s Stage) time.Duration {
		if s.Failure != "" {
			return maxNumber // what failed is shown in any case
		}
		return s.Took
	}
	longest := slices.SortedStableFunc(slices.Values(stages), func(a, b Stage) int { return cmp.Compare(took(b), took(a)) })[:terminalStages]
	slices.SortStableFunc(longest, func(a, b Stage) int { return cmp.Compare(a.Start, b.Start) })
	return longest
}

// gantt is a bar of width columns that begins when the stage began.
func gantt(start, took, whole time.Duration, width int) string {
	column := func(at time.Duration) int { return int(float64(at) / float64(max(whole, 1)) * float64(width)) }
	from := min(column(start), width-1)
	to := max(column(start+took), from+1)
	return strings.Repeat("·", from) + strings.Repeat("█", to-from) + strings.Repeat("·", max(0, width-to))
}

// sums are the sizes and the checks.
func (t *terminal) sums(v *view) {
	var sizes []string
	for _, s := range v.Sizes {
		sizes = append(sizes, s.Name+" "+text.Size(s.Bytes))
	}
	if len(sizes) > 0 {
		t.field("sizes", strings.Join(sizes, " → "))
	}
	switch {
	case v.Tally.Failed > 0:
		t.field("checks", t.paint(red, v.Tally.Sum()))
	case len(v.Checks) > 0:
		t.field("checks", v.Tally.Sum())
	}
}

// pad fills a clean text to a number of columns, or cuts it.
func pad(s string, columns int) string {
	s = ansi.Truncate(strings.ReplaceAll(s, "\n", " "), columns-1, "…")
	return s + strings.Repeat(" ", columns-ansi.StringWidth(s))
}
