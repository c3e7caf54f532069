package report

import (
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"slices"
	"time"

	"github.com/netgroup-polito/diskforge/internal/text"
)

//go:embed page.html.tmpl
var pageText string

//go:embed page.css
var pageCSS string

// policy lets the page load nothing but its own style and the pictures in it:
// what a guest smuggles in stays text. Bars are SVG because it forbids inline
// styles, too.
var policy = fmt.Sprintf("default-src 'none'; style-src 'sha256-%s'; img-src data:; base-uri 'none'; form-action 'none'", styleHash(pageCSS))

func styleHash(css string) string {
	sum := sha256.Sum256([]byte(css))
	return base64.StdEncoding.EncodeToString(sum[:])
}

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"size":       text.Size,
	"duration":   text.Span,
	"result":     Check.result,
	"table":      func(label string, rows []taskRow) table[taskRow] { return table[taskRow]{label, rows} },
	"checkTable": func(label string, rows []Check) table[Check] { return table[Check]{label, rows} },
	"first":      func(lines []string) string { return lines[0] },
	"rest":       func(lines []string) []string { return lines[1:] },
}).Parse(pageText))

// WriteHTML writes the report as one page that needs nothing else: no network,
// no fonts, no scripts.
func (r *Report) WriteHTML(w io.Writer) error {
	return pageTemplate.Execute(w, newPage(r.clean()))
}

// page is a clean report as the template shows it.
type page struct {
	*Report
	CSS    template.CSS
	Policy string
	Mood   string // good, open or bad: what the colours say
	Title  string
	Head   string
	Why    []string
	Facts  []fact

	Took     time.Duration
	Ticks    []tick
	Stages   []stageRow
	Moments  []momentRow
	TaskTime time.Duration
	Strip    []segment
	Longest  []taskRow
	Tasks    []taskRow
	Sizes    []sizeRow
	Groups   []group
	Tally    group
	Shots    []shot
}

// fact is a figure at the top of the page.
type fact struct{ Name, Value, Note string }

func newPage(r *Report) *page {
	p := &page{
		Report: r, CSS: template.CSS(pageCSS), Policy: policy,
		Mood: mood(r.Outcome), Title: r.Image.title(), Head: r.headline(), Why: r.reasons(),
		Took: r.took(), Groups: groups(r.Checks), Tally: tally(r.Checks), Moments: momentRows(r.Boot), Sizes: sizeRows(r.Sizes),
	}
	p.Ticks = ticks(p.Took)
	p.Stages = stageRows(r.Stages, p.Took)
	p.addTasks(r.Tasks)
	for _, picture := range r.Pictures {
		uri := "data:image/png;base64," + base64.StdEncoding.EncodeToString(picture.PNG)
		p.Shots = append(p.Shots, shot{picture, template.URL(uri)})
	}
	p.Facts = p.facts()
	return p
}

func mood(outcome string) string {
	switch outcome {
	case Failed:
		return "bad"
	case Published, Packed, Verified:
		return "good"
	}
	return "open"
}

// facts are the figures that people ask for first.
func (p *page) facts() []fact {
	var all []fact
	if p.Took > 0 {
		all = append(all, fact{"Time", text.Span(p.Took), plural(len(p.Stages), "stage")})
	}
	if n := len(p.Checks); n > 0 {
		note := "all passed"
		switch {
		case p.Tally.Failed > 0:
			note = fmt.Sprintf("%d failed", p.Tally.Failed)
		case p.Tally.Excused > 0:
			note = fmt.Sprintf("%d excused", p.Tally.Excused)
		}
		all = append(all, fact{"Checks", fmt.Sprintf("%d of %d", p.Tally.Passed, n), note})
	}
	if n := len(p.Tasks); n > 0 {
		all = append(all, fact{"Ansible", plural(n, "task"), text.Span(p.TaskTime)})
	}
	if n := len(p.Sizes); n > 0 {
		all = append(all, fact{"Size", text.Size(p.Sizes[n-1].Bytes), p.Sizes[n-1].Name})
	}
	if p.Image.VirtualSize > 0 {
		all = append(all, fact{"Disk", text.Size(p.Image.VirtualSize), "virtual size"})
	}
	return all
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// span is a part of a bar, in the percentages that SVG takes.
type span struct{ X, Width string }

// spanOf returns the part from start to end of a whole. What is there can be
// seen: no bar is thinner than half a percent.
func spanOf[T ~int64](start, end, whole T) span {
	if whole <= 0 {
		return span{"0%", "0%"}
	}
	const thinnest = 0.5
	x := 100 * float64(start) / float64(whole)
	width := max(100*float64(end-start)/float64(whole), thinnest)
	return span{percent(min(x, 100-thinnest)), percent(min(width, 100))}
}

func percent(f float64) string { return fmt.Sprintf("%.2f%%", f) }

// tick is a mark on the time axis.
type tick struct{ X, Label string }

// ticks divides a time span into four to seven parts that people count in.
func ticks(whole time.Duration) []tick {
	step := time.Second
	for _, factor := range []time.Duration{1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 18000, 36000} {
		if step = factor * time.Second; whole <= 6*step {
			break
		}
	}
	if whole > 8*step || whole < time.Second {
		return nil // of no use
	}
	var all []tick
	for at := time.Duration(0); at < whole-whole/12; at += step {
		all = append(all, tick{percent(100 * float64(at) / float64(whole)), axisLabel(at)})
	}
	return all
}

// axisLabel is a round time in as few letters as an axis has room for.
func axisLabel(at time.Duration) string {
	switch {
	case at == 0:
		return "0"
	case at < time.Minute:
		return fmt.Sprintf("%d s", at/time.Second)
	case at < time.Hour:
		return fmt.Sprintf("%d:%02d", at/time.Minute, at%time.Minute/time.Second)
	}
	return fmt.Sprintf("%d:%02d h", at/time.Hour, at%time.Hour/time.Minute)
}

type stageRow struct {
	Stage
	Span span
}

func stageRows(stages []Stage, whole time.Duration) []stageRow {
	var rows []stageRow
	for _, s := range stages {
		rows = append(rows, stageRow{s, spanOf(s.Start, s.Start+s.Took, whole)})
	}
	return rows
}

// momentRow is a step of the boot: what led from the moment before to this.
type momentRow struct {
	Moment
	Step time.Duration
	Span span
}

func momentRows(moments []Moment) []momentRow {
	sorted := slices.SortedStableFunc(slices.Values(moments), func(a, b Moment) int { return cmp.Compare(a.At, b.At) })
	var rows []momentRow
	var before time.Duration
	for _, m := range sorted {
		rows = append(rows, momentRow{m, m.At - before, spanOf(before, m.At, sorted[len(sorted)-1].At)})
		before = m.At
	}
	return rows
}

// How many of the longest tasks stand out, and how many are shown unfolded.
const (
	topTasks   = 3
	shownTasks = 10
)

type taskRow struct {
	Task
	Number int  // in the order in which they ran
	Top    bool // among the three longest
	Span   span
}

// table is a table with the id of its heading.
type table[Row any] struct {
	Label string
	Rows  []Row
}

// segment is a task in the strip of all tasks.
type segment struct {
	span
	Number int
	Center string
	Wide   bool // enough for its number
	Top    bool
	Failed bool
}

// addTasks ranks the tasks and lays them end to end. What failed is shown
// with the longest, before them.
func (p *page) addTasks(tasks []Task) {
	if len(tasks) == 0 {
		return
	}
	order := byTime(tasks)
	for i, t := range tasks {
		p.Tasks = append(p.Tasks, taskRow{Task: t, Number: i + 1, Span: spanOf(0, t.Took, tasks[order[0]].Took)})
		p.TaskTime += t.Took
	}
	for _, i := range order[:min(topTasks, len(order))] {
		p.Tasks[i].Top = true
	}
	for _, t := range p.Tasks {
		if t.Status == Failed {
			p.Longest = append(p.Longest, t)
		}
	}
	for _, i := range order[:min(shownTasks, len(order))] {
		if p.Tasks[i].Status != Failed {
			p.Longest = append(p.Longest, p.Tasks[i])
		}
	}
	p.Strip = strip(p.Tasks, p.TaskTime)
}

// strip shows how much of the whole each task took. Those too short to be seen
// are left out.
func strip(tasks []taskRow, whole time.Duration) []segment {
	var all []segment
	var at time.Duration
	for _, t := range tasks {
		share := 100 * float64(t.Took) / float64(max(whole, 1))
		if share >= 0.2 {
			center := 100*float64(at)/float64(whole) + share/2
			all = append(all, segment{spanOf(at, at+t.Took, whole), t.Number, percent(center), share >= 4, t.Top, t.Status == Failed})
		}
		at += t.Took
	}
	return all
}

// sizeRow is a size with what changed since the one before.
type sizeRow struct {
	Size
	Change string
	Same   span // what was there before, too
	More   span // what came to it
	Less   span // what is gone
}

func sizeRows(sizes []Size) []sizeRow {
	var largest int64
	for _, s := range sizes {
		largest = max(largest, s.Bytes)
	}
	var rows []sizeRow
	for i, s := range sizes {
		row := sizeRow{Size: s, Same: spanOf(0, s.Bytes, largest)}
		if i > 0 {
			before := sizes[i-1].Bytes
			row.Change = change(before, s.Bytes)
			switch {
			case s.Bytes > before:
				row.Same, row.More = spanOf(0, before, largest), spanOf(before, s.Bytes, largest)
			case s.Bytes < before:
				row.Less = spanOf(s.Bytes, before, largest)
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// change says how one size became another.
func change(before, after int64) string {
	switch {
	case after == before:
		return "the same"
	case after > before:
		return "+" + text.Size(after-before)
	}
	less := 100 * float64(before-after) / float64(before)
	if less < 10 {
		return fmt.Sprintf("−%.1f %%", less)
	}
	return fmt.Sprintf("−%.0f %%", less)
}

type shot struct {
	Picture
	URI template.URL
}
