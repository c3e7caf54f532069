package report

import (
	"bytes"
	"cmp"
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
	v := r.view()
	s := &summary{}
	fmt.Fprintf(s, "## %s %s: %s\n\n", map[string]string{"good": "✅", "bad": "❌", "open": "⚠️"}[v.Mood], markdown(v.Head), markdown(v.Title))
	s.failure(v)
	if v.Image.Reference != "" {
		fmt.Fprintf(s, "<code>%s</code>\n\n", markdown(v.Image.Reference))
	}
	s.checks(v)
	var rows [][]string
	for _, stage := range v.Stages {
		sign, what := "✅", stage.Result
		switch {
		case stage.Failure != "":
			sign, what = "❌", stage.Failure
		case stage.Stopped:
			sign = "⏹️"
		}
		rows = append(rows, []string{sign + " " + stage.Name, text.Span(stage.Took), blocks(stage.Took, v.Took), what})
	}
	s.table("Stages: "+text.Span(v.Took), "Stage | Time | | Result", rows)
	rows = nil
	for _, t := range v.ByTime[:min(shownTasks, len(v.ByTime))] {
		rows = append(rows, []string{t.Name, text.Span(t.Took), blocks(t.Took, v.ByTime[0].Took), t.Status})
	}
	s.table("The longest of "+text.Count(len(v.Tasks), "task"), "Task | Time | | Status", rows)
	rows = nil
	for _, size := range v.SizeBars() {
		rows = append(rows, []string{size.Name, text.Size(size.Bytes), blocks(size.Bytes, v.Largest), size.Change})
	}
	s.table("Sizes", "What | Size | | Change", rows)
	rows = nil
	for _, file := range v.Files {
		rows = append(rows, []string{file.Name, text.Size(file.Bytes), file.Digest})
	}
	s.table("Files", "Name | Size | Digest", rows)
	rows = nil
	for _, change := range v.Changes {
		rows = append(rows, []string{change.Name, cmp.Or(change.From, "new"), cmp.Or(change.To, "removed")})
	}
	s.table("Changes since the image before", "Package | Before | Now", rows)
	if line := v.SBOM.Line(); line != "" {
		fmt.Fprintf(s, "SBOM: %s\n", markdown(line))
	}
	_, err := s.WriteTo(w)
	return err
}

// summary collects Markdown.
type summary struct{ bytes.Buffer }

func (s *summary) failure(v *view) {
	if len(v.Why) == 0 {
		return
	}
	fmt.Fprintf(s, "**%s**\n\n", markdown(v.Why[0]))
	if len(v.Why) > 1 {
		// HTML, because no fence is longer than what a guest can write.
		s.WriteString("<pre>\n")
		for _, line := range v.Why[1:min(len(v.Why), summaryRows)] {
			fmt.Fprintln(s, html.EscapeString(text.Cut(text.Line(line), summaryText)))
		}
		s.WriteString("</pre>\n\n")
	}
	if v.Log != "" {
		fmt.Fprintf(s, "Whole log: <code>%s</code>\n\n", markdown(v.Log))
	}
}

// checks counts the checks and lists those that did not pass.
func (s *summary) checks(v *view) {
	if len(v.Checks) == 0 {
		return
	}
	fmt.Fprintf(s, "### Checks: %s\n\n", v.Tally.Sum())
	var rows [][]string
	for _, g := range v.Groups {
		for _, c := range g.Remarkable() {
			result, why := "❌ failed", c.Detail
			if c.result() == checkExcused {
				result, why = "⚠️ excused", "excused: "+c.Excused
			}
			rows = append(rows, []string{result, c.Group, c.Name, why})
		}
	}
	s.table("", "Result | Group | Check | Found", rows)
}

// table writes a heading and a table, or nothing where there are no rows.
func (s *summary) table(title, head string, rows [][]string) {
	if len(rows) == 0 {
		return
	}
	if title != "" {
		fmt.Fprintf(s, "### %s\n\n", title)
	}
	fmt.Fprintf(s, "| %s |\n|%s\n", head, strings.Repeat(" --- |", len(rows[0])))
	for _, row := range rows[:min(len(rows), summaryRows)] {
		for _, cell := range row {
			fmt.Fprintf(s, "| %s ", markdown(cell))
		}
		s.WriteString("|\n")
	}
	if more := len(rows) - summaryRows; more > 0 {
		fmt.Fprintf(s, "\n… and %d more\n", more)
	}
	s.WriteString("\n")
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
