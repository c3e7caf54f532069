package render

import (
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/fleet"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// width is what a table may take, in columns, where its names allow it.
const width = 100

// Text writes the plan for people: a line an image, parents first, and why. The
// images of a level start from those of the levels before.
func Text(w io.Writer, entries []*fleet.Entry) error {
	name, from := len("IMAGE"), len("FROM")
	for _, e := range entries {
		name, from = max(name, len(e.Name)), max(from, len(origin(e)))
	}
	var b strings.Builder
	row := func(level, action, n, f, why string) {
		lead := fmt.Sprintf("%-5s  %-7s  %-*s  %-*s  ", level, action, name, n, from, f)
		for _, part := range wrap(why, max(width-len(lead), 30)) {
			b.WriteString(strings.TrimRight(lead+part, " ") + "\n")
			lead = strings.Repeat(" ", len(lead))
		}
	}
	row("LEVEL", "ACTION", "IMAGE", "FROM", "WHY")
	for _, e := range entries {
		row(strconv.Itoa(e.Level), string(e.Action), e.Name, origin(e), e.Why)
		for _, note := range e.Notes {
			row("", "", "", "", text.Line(note))
		}
	}
	for _, x := range fleet.Indexes(entries) {
		row("", string(x.Action), x.Name, "", "index of "+strings.Join(x.Images, ", "))
	}
	b.WriteString(Summary(entries) + "\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// origin is what the image starts from, in short: another image, the name of a
// file or of a repository, or the release that packages are of.
func origin(e *fleet.Entry) string {
	switch {
	case e.From != "":
		return e.From
	case e.Settings["BASE_FROM_PACKAGES"] == "true":
		return "packages: " + e.Settings["SUITE"]
	case e.Settings["ISO_URL"] == "":
		return ""
	}
	location, _, _ := strings.Cut(e.Settings["ISO_URL"], "?")
	location, _, _ = strings.Cut(location, "@sha256:")
	return path.Base(location)
}

// wrap breaks a text between words.
func wrap(s string, columns int) (lines []string) {
	current := ""
	for _, word := range strings.Fields(s) {
		switch {
		case current == "":
			current = word
		case len(current)+1+len(word) > columns:
			lines = append(lines, current)
			current = word
		default:
			current += " " + word
		}
	}
	return append(lines, current)
}

// Summary counts the actions in a line.
func Summary(entries []*fleet.Entry) string {
	count := map[fleet.State]int{}
	for _, e := range entries {
		count[e.Action]++
	}
	line := fmt.Sprintf("%s: %d to build", text.Count(len(entries), "image"), count[fleet.Build])
	for _, kind := range []struct {
		action fleet.State
		name   string
	}{{fleet.Tag, "to tag"}, {fleet.Skip, "to leave"}, {fleet.Blocked, "blocked"}} {
		if n := count[kind.action]; n > 0 {
			line += fmt.Sprintf(", %d %s", n, kind.name)
		}
	}
	return line
}

// JSON writes the plan for programs: {"images": […]}, an Entry each, parents
// first, and "indexes", an Index each, where there are some.
func JSON(w io.Writer, entries []*fleet.Entry) error {
	if entries == nil {
		entries = []*fleet.Entry{}
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(struct {
		Images  []*fleet.Entry `json:"images"`
		Indexes []*fleet.Index `json:"indexes,omitempty"`
	}{entries, fleet.Indexes(entries)})
}
