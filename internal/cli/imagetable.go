package cli

import (
	"encoding/json"
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

// writeImages writes a line for each image, and for each repository without one.
// What could not be read has none, and where there is no line there is no
// header. The ages are those at now.
func writeImages(to io.Writer, all []registry.Repository, now time.Time) error {
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	header := "REPOSITORY\tTAGS\tDIGEST\tSIZE\tAGE\tINPUTS\n"
	for _, r := range all {
		if r.Err != nil {
			continue
		}
		fmt.Fprint(table, header)
		header = ""
		if len(r.Entries) == 0 {
			fmt.Fprintf(table, "%s\t-\t-\t-\t-\tno image has a tag\n", r.Name)
		}
		for _, e := range r.Entries {
			fmt.Fprintf(table, "%s\t%s\n", columns(e, now), inputs(e))
		}
	}
	return table.Flush()
}

// columns are what every table tells of an image.
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

// writeLines writes one JSON object a line for each image.
func writeLines[T any](to io.Writer, all []T) error {
	lines := json.NewEncoder(to)
	for _, e := range all {
		if err := lines.Encode(e); err != nil {
			return err
		}
	}
	return nil
}

// writeDecisions writes a line for each image and what becomes of it, those
// that go first; nothing where there is no image.
func writeDecisions(to io.Writer, all []registry.Decision, now time.Time) error {
	if len(all) == 0 {
		return nil
	}
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\tREPOSITORY\tTAGS\tDIGEST\tSIZE\tAGE\tWHY")
	for _, goes := range []bool{true, false} {
		for _, d := range all {
			if d.Delete == goes {
				fmt.Fprintf(table, "%s\t%s\t%s\n", map[bool]string{true: "delete", false: "keep"}[goes], columns(d.Entry, now), d.Why)
			}
		}
	}
	return table.Flush()
}
