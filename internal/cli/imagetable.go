package cli

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// entriesOf are the images of all repositories that could be read.
func entriesOf(all []registry.Repository) []registry.Entry {
	var entries []registry.Entry
	for _, r := range all {
		entries = append(entries, r.Entries...)
	}
	return entries
}

// table writes rows below a header, and nothing where there are none. Columns
// end with a tab.
func table(to io.Writer, header string, rows []string) error {
	if len(rows) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, header+"\n"+strings.Join(rows, "\n"))
	return w.Flush()
}

// writeImages writes a line for each image, and for each repository without one,
// but none for what could not be read. The ages are those at now.
func writeImages(to io.Writer, all []registry.Repository, now time.Time) error {
	var rows []string
	for _, r := range all {
		if r.Err == nil && len(r.Entries) == 0 {
			rows = append(rows, r.Name+"\t-\t-\t-\t-\tno image has a tag")
		}
		for _, e := range r.Entries {
			rows = append(rows, columns(e, now)+"\t"+inputs(e))
		}
	}
	return table(to, "REPOSITORY\tTAGS\tDIGEST\tSIZE\tAGE\tINPUTS", rows)
}

// columns are what every table shows of an image.
func columns(e registry.Entry, now time.Time) string {
	age := "?"
	if !e.Built.IsZero() {
		age = registry.FormatAge(max(0, now.Sub(e.Built)))
	}
	return strings.Join([]string{e.Repository, strings.Join(e.Tags, ","), short(e.Digest), text.Size(e.Size), age}, "\t")
}

func inputs(e registry.Entry) string {
	switch {
	case e.Inputs != "":
		return short(e.Inputs)
	case e.Ours():
		return "-"
	}
	return "not by diskforge"
}

// short is enough of a digest to tell it from others.
func short(digest string) string { return digest[:min(len(digest), len("sha256:")+12)] }

// writeDecisions writes a line for each image and what becomes of it, those
// that go first.
func writeDecisions(to io.Writer, all []registry.Decision, now time.Time) error {
	var going, kept []string
	for _, d := range all {
		row := columns(d.Entry, now) + "\t" + d.Why
		if d.Delete {
			going = append(going, "delete\t"+row)
		} else {
			kept = append(kept, "keep\t"+row)
		}
	}
	return table(to, "\tREPOSITORY\tTAGS\tDIGEST\tSIZE\tAGE\tWHY", append(going, kept...))
}
