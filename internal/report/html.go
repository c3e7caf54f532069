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
	"size":     text.Size,
	"duration": text.Span,
	"result":   Check.result,
	"table":    func(label string, rows any) table { return table{label, rows} },
}).Parse(pageText))

// WriteHTML writes the report as one page that needs nothing else: no network,
// no fonts, no scripts.
func (r *Report) WriteHTML(w io.Writer) error {
	return pageTemplate.Execute(w, newPage(r.view()))
}

// page is a view as the template shows it, with its bars.
type page struct {
	*view
	CSS    template.CSS
	Policy string
	Facts  []fact

	Ticks   []tick
	Stages  []stageBar
	Moments []momentBar
	Strip   []segment
	Longest []taskBar
	Tasks   []taskBar
	Sizes   []sizeBar
	Shots   []shot
}

// fact is a figure at the top of the page.
type fact struct{ Name, Value, Note string }

func newPage(v *view) *page {
	p := &page{view: v, CSS: template.CSS(pageCSS), Policy: policy, Ticks: ticks(v.Took), Moments: momentBars(v.Boot), Sizes: sizeBars(v)}
	for _, s := range v.Stages {
		p.Stages = append(p.Stages, stageBar{s, spanOf(s.Start, s.Start+s.Took, v.Took)})
	}
	p.addTasks()
	for _, picture := range v.Pictures {
		uri := "data:image/png;base64," + base64.StdEncoding.EncodeToString(picture.PNG)
		p.Shots = append(p.Shots, shot{picture, template.URL(uri)})
	}
	p.addFacts()
	return p
}

// addFacts adds the figures that people ask for first.
func (p *page) addFacts() {
	add := func(name, value, note string) { p.Facts = append(p.Facts, fact{name, value, note}) }
	if p.Took > 0 {
		add("Time", text.Span(p.Took), text.Count(len(p.Stages), "stage"))
	}
	if n := len(p.Checks); n > 0 {
		note := "all passed"
		switch {
		case p.Tally.Failed > 0:
			note = fmt.Sprintf("%d failed", p.Tally.Failed)
		case p.Tally.Excused > 0:
			note = fmt.Sprintf("%d excused", p.Tally.Excused)
		}
		add("Checks", fmt.Sprintf("%d of %d", p.Tally.Passed, n), note)
	}
	if n := len(p.Tasks); n > 0 {
		add("Ansible", text.Count(n, "task"), text.Span(p.TaskTime))
	}
	if n := len(p.Sizes); n > 0 {
		add("Size", text.Size(p.Sizes[n-1].Bytes), p.Sizes[n-1].Name)
	}
	if p.Image.VirtualSize > 0 {
		add("Disk", text.Size(p.Image.VirtualSize), "virtual size")
	}
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

// The rows of the page's charts.
type (
	stageBar struct {
		Stage
		Span span
	}
	// momentBar is a step of the boot: what led from the moment before to this.
	momentBar struct {
		Moment
		Step time.Duration
		Span span
	}
	taskBar struct {
		taskRow
		Span span
	}
	// sizeBar is a size with what changed since the one before.
	sizeBar struct {
		Size
		Change string
		Same   span // what was there before, too
		More   span // what came to it
		Less   span // what is gone
	}
	// segment is a task in the strip of all tasks.
	segment struct {
		span
		Number int
		Center string
		Wide   bool // enough for its number
		Top    bool
		Failed bool
	}
	shot struct {
		Picture
		URI template.URL
	}
	// table is a table with the id of its heading.
	table struct {
		Label string
		Rows  any
	}
)

func momentBars(moments []Moment) (bars []momentBar) {
	sorted := slices.SortedStableFunc(slices.Values(moments), func(a, b Moment) int { return cmp.Compare(a.At, b.At) })
	var before time.Duration
	for _, m := range sorted {
		bars = append(bars, momentBar{m, m.At - before, spanOf(before, m.At, sorted[len(sorted)-1].At)})
		before = m.At
	}
	return bars
}

// addTasks lays the tasks end to end in the strip, without those too short to
// be seen. What failed is listed with the longest, before them.
func (p *page) addTasks() {
	var at, longest time.Duration
	if len(p.ByTime) > 0 {
		longest = p.ByTime[0].Took
	}
	bar := func(t taskRow) taskBar { return taskBar{t, spanOf(0, t.Took, longest)} }
	for _, t := range p.view.Tasks {
		p.Tasks = append(p.Tasks, bar(t))
		if t.Status == Failed {
			p.Longest = append(p.Longest, bar(t))
		}
		if share := 100 * float64(t.Took) / float64(max(p.TaskTime, 1)); share >= 0.2 {
			center := 100*float64(at)/float64(p.TaskTime) + share/2
			p.Strip = append(p.Strip, segment{spanOf(at, at+t.Took, p.TaskTime), t.Number, percent(center), share >= 4, t.Top, t.Status == Failed})
		}
		at += t.Took
	}
	for _, t := range p.ByTime[:min(shownTasks, len(p.ByTime))] {
		if t.Status != Failed {
			p.Longest = append(p.Longest, bar(t))
		}
	}
}

func sizeBars(v *view) (bars []sizeBar) {
	largest := v.largest()
	for i, s := range v.Sizes {
		bar := sizeBar{Size: s, Same: spanOf(0, s.Bytes, largest)}
		if i > 0 {
			before := v.Sizes[i-1].Bytes
			bar.Change = change(before, s.Bytes)
			switch {
			case s.Bytes > before:
				bar.Same, bar.More = spanOf(0, before, largest), spanOf(before, s.Bytes, largest)
			case s.Bytes < before:
				bar.Less = spanOf(s.Bytes, before, largest)
			}
		}
		bars = append(bars, bar)
	}
	return bars
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
