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
func policy() string {
	style := sha256.Sum256([]byte(pageCSS))
	return fmt.Sprintf("default-src 'none'; style-src 'sha256-%s'; img-src data:; base-uri 'none'; form-action 'none'",
		base64.StdEncoding.EncodeToString(style[:]))
}

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"css":    func() template.CSS { return template.CSS(pageCSS) }, //nolint:gosec // our own
	"policy": policy,
	"picture": func(png []byte) template.URL {
		return template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(png)) //nolint:gosec // base64 is no markup
	},
	"size":     text.Size,
	"duration": text.Span,
	"count":    text.Count,
	"result":   Check.result,
	"span":     func(start, took, whole time.Duration) span { return spanOf(start, start+took, whole) },
	"table":    func(label string, rows any) table { return table{Label: label, Rows: rows} },
	"tasks":    func(label string, rows []taskRow, longest time.Duration) table { return table{label, rows, longest} },
}).Parse(pageText))

// table is a table with the id of its heading.
type table struct {
	Label string
	Rows  any
	Whole time.Duration // what the longest bar shows
}

// WriteHTML writes the report as one page that needs nothing else: no network,
// no fonts, no scripts.
func (r *Report) WriteHTML(w io.Writer) error { return pageTemplate.Execute(w, r.view()) }

// fact is a figure at the top of the page.
type fact struct{ Name, Value, Note string }

// Facts are the figures that people ask for first.
func (v *view) Facts() (all []fact) {
	add := func(name, value, note string) { all = append(all, fact{name, value, note}) }
	if v.Took > 0 {
		add("Time", text.Span(v.Took), text.Count(len(v.Stages), "stage"))
	}
	if n := len(v.Checks); n > 0 {
		note := "all passed"
		switch {
		case v.Tally.Failed > 0:
			note = fmt.Sprintf("%d failed", v.Tally.Failed)
		case v.Tally.Excused > 0:
			note = fmt.Sprintf("%d excused", v.Tally.Excused)
		}
		add("Checks", fmt.Sprintf("%d of %d", v.Tally.Passed, n), note)
	}
	if n := len(v.Tasks); n > 0 {
		add("Ansible", text.Count(n, "task"), text.Span(v.TaskTime))
	}
	if n := len(v.Sizes); n > 0 {
		add("Size", text.Size(v.Sizes[n-1].Bytes), v.Sizes[n-1].Name)
	}
	if v.Image.VirtualSize > 0 {
		add("Disk", text.Size(v.Image.VirtualSize), "virtual size")
	}
	return all
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

// Ticks divide the whole time into four to seven parts that people count in.
func (v *view) Ticks() (all []tick) {
	step := time.Second
	for _, factor := range []time.Duration{1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 18000, 36000} {
		if step = factor * time.Second; v.Took <= 6*step {
			break
		}
	}
	if v.Took > 8*step || v.Took < time.Second {
		return nil // of no use
	}
	for at := time.Duration(0); at < v.Took-v.Took/12; at += step {
		all = append(all, tick{percent(100 * float64(at) / float64(v.Took)), axisLabel(at)})
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

// momentBar is a step of the boot: what led from the moment before to this.
type momentBar struct {
	Moment
	Step time.Duration
	Span span
}

// Moments are the steps of the boot.
func (v *view) Moments() (bars []momentBar) {
	sorted := slices.SortedStableFunc(slices.Values(v.Boot), func(a, b Moment) int { return cmp.Compare(a.At, b.At) })
	var before time.Duration
	for _, m := range sorted {
		bars = append(bars, momentBar{m, m.At - before, spanOf(before, m.At, sorted[len(sorted)-1].At)})
		before = m.At
	}
	return bars
}

// segment is a task in the strip of all tasks.
type segment struct {
	taskRow
	Span   span
	Center string
	Wide   bool // enough for its number
}

// Strip is the tasks end to end, without those too short to be seen.
func (v *view) Strip() (all []segment) {
	var at time.Duration
	for _, t := range v.Tasks {
		if share := 100 * float64(t.Took) / float64(max(v.TaskTime, 1)); share >= 0.2 {
			center := 100*float64(at)/float64(v.TaskTime) + share/2
			all = append(all, segment{t, spanOf(at, at+t.Took, v.TaskTime), percent(center), share >= 4})
		}
		at += t.Took
	}
	return all
}

// Longest are the tasks that are shown unfolded: what failed, and those that
// took longest.
func (v *view) Longest() []taskRow {
	failed := func(t taskRow) bool { return t.Status == Failed }
	worked := func(t taskRow) bool { return t.Status != Failed }
	longest := slices.Clone(v.ByTime[:min(shownTasks, len(v.ByTime))])
	return append(slices.DeleteFunc(slices.Clone(v.Tasks), worked), slices.DeleteFunc(longest, failed)...)
}

// sizeBar is a size with what changed since the one before.
type sizeBar struct {
	Size
	Change string
	Same   span // what was there before, too
	More   span // what came to it
	Less   span // what is gone
}

// SizeBars are the sizes, compared.
func (v *view) SizeBars() (bars []sizeBar) {
	for i, s := range v.Sizes {
		bar := sizeBar{Size: s, Same: spanOf(0, s.Bytes, v.Largest)}
		if i > 0 {
			before := v.Sizes[i-1].Bytes
			bar.Change = change(before, s.Bytes)
			switch {
			case s.Bytes > before:
				bar.Same, bar.More = spanOf(0, before, v.Largest), spanOf(before, s.Bytes, v.Largest)
			case s.Bytes < before:
				bar.Less = spanOf(s.Bytes, before, v.Largest)
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
