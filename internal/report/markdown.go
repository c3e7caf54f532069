package report

import (
	"bytes"
	"fmt"
	"html"
	"io"
	"regexp"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/text"
)

// GitHub takes a job summary of at most 1 MiB for a step: what is shown is
// bounded to less than half of it.
const (
	summaryRows = 50  // failed checks, stages and lines of evidence
	summaryText = 500 // characters of one cell or line
)

// WriteMarkdown writes the report as a job summary of GitHub Actions: what
// came out, what failed, how long the stages and the longest tasks took, and
// the sizes. It is less than 1 MiB.
func (r *Report) WriteMarkdown(w io.Writer) error {
	c := r.clean()
	var b bytes.Buffer
	fmt.Fprintf(&b, "## %s %s: %s\n\n", outcomeSign(c.Outcome), markdown(c.headline()), markdown(c.Image.title()))
	c.markdownFailure(&b)
	if c.Image.Reference != "" {
		fmt.Fprintf(&b, "<code>%s</code>\n\n", markdown(c.Image.Reference))
	}
	c.markdownChecks(&b)
	c.markdownStages(&b)
	c.markdownTasks(&b)
	c.markdownSizes(&b)
	_, err := b.WriteTo(w)
	return err
}

func outcomeSign(outcome string) string {
	switch mood(outcome) {
	case "good":
		return "✅"
	case "bad":
		return "❌"
	}
	return "⚠️"
}

func (r *Report) markdownFailure(b *bytes.Buffer) {
	why := r.reasons()
	if len(why) == 0 {
		return
	}
	fmt.Fprintf(b, "**%s**\n\n", markdown(why[0]))
	if len(why) > 1 {
		// HTML, because no fence is longer than what a guest can write.
		b.WriteString("<pre>\n")
		for _, line := range why[1:min(len(why), summaryRows)] {
			// An empty line would not end the block, but reads like its end.
			fmt.Fprintln(b, html.EscapeString(text.Cut(text.Line(line), summaryText)))
		}
		b.WriteString("</pre>\n\n")
	}
	if r.Log != "" {
		fmt.Fprintf(b, "Whole log: <code>%s</code>\n\n", markdown(r.Log))
	}
}

func (r *Report) markdownChecks(b *bytes.Buffer) {
	if len(r.Checks) == 0 {
		return
	}
	n := tally(r.Checks)
	fmt.Fprintf(b, "### Checks: %d of %d passed", n.Passed, len(r.Checks))
	if n.Excused > 0 {
		fmt.Fprintf(b, ", %d excused", n.Excused)
	}
	b.WriteString("\n\n")
	var rows [][]string
	for _, g := range groups(r.Checks) {
		for _, c := range g.Remarkable() {
			why := c.Detail
			if c.result() == checkExcused {
				why = "excused: " + c.Excused
			}
			rows = append(rows, []string{map[string]string{checkFailed: "❌ failed", checkExcused: "⚠️ excused"}[c.result()], c.Group, c.Name, why})
		}
	}
	markdownTable(b, []string{"Result", "Group", "Check", "Found"}, rows)
}

func (r *Report) markdownStages(b *bytes.Buffer) {
	var rows [][]string
	for _, s := range r.Stages {
		sign := "✅"
		what := s.Result
		if s.Stopped {
			sign = "⏹️"
		}
		if s.Failure != "" {
			sign, what = "❌", s.Failure
		}
		rows = append(rows, []string{sign + " " + s.Name, text.Span(s.Took), blocks(s.Took, r.took()), what})
	}
	if len(rows) > 0 {
		fmt.Fprintf(b, "### Stages: %s\n\n", text.Span(r.took()))
	}
	markdownTable(b, []string{"Stage", "Time", "", "Result"}, rows)
}

func (r *Report) markdownTasks(b *bytes.Buffer) {
	var rows [][]string
	order := byTime(r.Tasks)
	for _, i := range order[:min(shownTasks, len(order))] {
		t := r.Tasks[i]
		rows = append(rows, []string{t.Name, text.Span(t.Took), blocks(t.Took, r.Tasks[order[0]].Took), t.Status})
	}
	if len(rows) > 0 {
		fmt.Fprintf(b, "### The longest of %s\n\n", plural(len(r.Tasks), "task"))
	}
	markdownTable(b, []string{"Task", "Time", "", "Status"}, rows)
}

func (r *Report) markdownSizes(b *bytes.Buffer) {
	var rows [][]string
	var largest int64
	for _, s := range r.Sizes {
		largest = max(largest, s.Bytes)
	}
	for _, s := range sizeRows(r.Sizes) {
		rows = append(rows, []string{s.Name, text.Size(s.Bytes), blocks(s.Bytes, largest), s.Change})
	}
	if len(rows) > 0 {
		b.WriteString("### Sizes\n\n")
	}
	markdownTable(b, []string{"What", "Size", "", "Change"}, rows)
}

// markdownTable writes nothing where there are no rows.
func markdownTable(b *bytes.Buffer, head []string, rows [][]string) {
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(b, "| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat(" --- |", len(head)))
	for _, row := range rows[:min(len(rows), summaryRows)] {
		for _, cell := range row {
			fmt.Fprintf(b, "| %s ", markdown(cell))
		}
		b.WriteString("|\n")
	}
	if more := len(rows) - summaryRows; more > 0 {
		fmt.Fprintf(b, "\n… and %d more\n", more)
	}
	b.WriteString("\n")
}

// special are the characters that GitHub's Markdown gives a meaning inside a
// line: CommonMark's, tables, links that it makes by itself, mentions, issues,
// emoji and formulas.
var special = regexp.MustCompile("[\\\\`*_\\[\\]<>()#|~:@&$!.]")

// markdown returns text that is shown as it is.
func markdown(s string) string {
	return special.ReplaceAllString(text.Cut(text.Line(s), summaryText), `\$0`)
}

// blocks draws a bar in text.
func blocks[T ~int64](part, whole T) string {
	const width = 20
	if whole <= 0 || part <= 0 {
		return ""
	}
	return strings.Repeat("█", max(1, int(width*float64(part)/float64(whole)+0.5)))
}
