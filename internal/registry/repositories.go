// Repositories is the house-keeping of what was published: what is there, and
// what of it may go.

package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// parallel is how many repositories are read at a time.
const parallelLists = 4

// Repository is a repository with its images, or why it could not be read.
type Repository struct {
	Name    string // REGISTRY/PATH; the prefix where that could not be listed
	Entries []Entry
	Err     error
}

// List reads the repositories at and below the prefixes, by name. What cannot be
// read, and a prefix without any, says so in its Err and stops nothing; List's
// own error is that of the context.
func ListRepositories(ctx context.Context, s *Session, prefixes []string) ([]Repository, error) {
	var all []Repository
	for _, prefix := range prefixes {
		names, err := s.Repositories(ctx, prefix)
		if err == nil && len(names) == 0 {
			err = failure.New("no repository at or below "+prefix, "")
		}
		if err != nil {
			all = append(all, Repository{Name: prefix, Err: err})
		}
		for _, name := range names {
			all = append(all, Repository{Name: name})
		}
	}
	slices.SortStableFunc(all, func(a, b Repository) int { return strings.Compare(a.Name, b.Name) })
	all = slices.CompactFunc(all, func(a, b Repository) bool { return a.Name == b.Name })
	var group errgroup.Group
	group.SetLimit(parallelLists)
	for i := range all {
		if all[i].Err != nil {
			continue
		}
		group.Go(func() error {
			all[i].Entries, all[i].Err = s.Entries(ctx, all[i].Name)
			return nil
		})
	}
	_ = group.Wait() // each error has its place
	return all, context.Cause(ctx)
}

// Entries are the images of all repositories that could be read.
func Entries(all []Repository) []Entry {
	var entries []Entry
	for _, r := range all {
		entries = append(entries, r.Entries...)
	}
	return entries
}

// WriteTable writes a line for each image, and for each repository without one.
// What could not be read has none, and where there is no line there is no
// header. The ages are those at now.
func WriteTable(to io.Writer, all []Repository, now time.Time) error {
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
func columns(e Entry, now time.Time) string {
	age := "?"
	if !e.Built.IsZero() {
		age = FormatAge(max(0, now.Sub(e.Built)))
	}
	return strings.Join([]string{e.Repository, strings.Join(e.Tags, ","), short(e.Digest), text.Size(e.Size), age}, "\t")
}

func inputs(e Entry) string {
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

// WriteJSON writes one object (registry.Entry) a line for each image.
func WriteJSON(to io.Writer, all []Repository) error {
	lines := json.NewEncoder(to)
	for _, e := range Entries(all) {
		if err := lines.Encode(e); err != nil {
			return err
		}
	}
	return nil
}

// WriteDecisions writes a line for each image and what becomes of it, those
// that go first; nothing where there is no image.
func WriteDecisions(to io.Writer, all []Decision, now time.Time) error {
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
