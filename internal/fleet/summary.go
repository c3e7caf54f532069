package fleet

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// Schema is the version of build-all.json. It changes with a field's meaning or
// removal, not with new fields.
const Schema = 1

// Summary says how a run ended.
type Summary struct {
	Schema  int           `json:"schema"`
	Began   time.Time     `json:"began"`
	Seconds float64       `json:"seconds"`
	Counts  map[State]int `json:"counts"`
	Images  []Image       `json:"images"` // in the order of the plan
}

// Image says what came of one image.
type Image struct {
	Name    string  `json:"name"`
	Parent  string  `json:"parent,omitempty"`
	Action  Action  `json:"action"`
	State   State   `json:"state"`
	Why     string  `json:"why,omitempty"`
	Inputs  string  `json:"inputs"`
	Reused  bool    `json:"reused,omitempty"`  // an earlier run built it
	Seconds float64 `json:"seconds,omitempty"` // that this run took for it
	Result  *Result `json:"result,omitempty"`  // of a complete image
}

func (f *fleet) summary(began time.Time, outcomes map[string]Outcome) Summary {
	s := Summary{Schema: Schema, Began: began.UTC(), Seconds: seconds(time.Since(began)), Counts: map[State]int{}}
	for _, e := range f.entries {
		o := outcomes[e.Name]
		image := Image{
			Name: e.Name, Parent: e.Parent, Action: e.Action, State: o.State, Inputs: e.Inputs,
			Reused: f.recalled[e.Name], Seconds: seconds(o.Took), Why: e.Why,
		}
		switch o.State {
		case Done, Skipped:
			r := f.results[e.Name]
			image.Result = &r
		default:
			image.Why = f.why(o.Event)
		}
		s.Counts[o.State]++
		s.Images = append(s.Images, image)
	}
	return s
}

func seconds(d time.Duration) float64 { return d.Round(time.Millisecond).Seconds() }

const summaryName = "build-all."

func summaryFile(outputDir string) string { return filepath.Join(outputDir, summaryName+"json") }

func (s Summary) write(outputDir string) error {
	return writeJSON(summaryFile(outputDir), 0o644, s)
}

// Failures is the error of a run in which images failed.
type Failures struct {
	total, blocked int
	names          []string
	causes         []error
}

// Error has a line for each image that failed.
func (f *Failures) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d images failed", len(f.names), f.total)
	if f.blocked > 0 {
		fmt.Fprintf(&b, ", %d more were blocked by that", f.blocked)
	}
	for i, name := range f.names {
		fmt.Fprintf(&b, "\n%s: %s", name, oneLine(f.causes[i]))
	}
	return b.String()
}

// Unwrap returns the causes, in the order of the lines.
func (f *Failures) Unwrap() []error { return f.causes }

// failures is the error of a run: why it was stopped, and what failed.
func failures(ctx context.Context, entries []Entry, outcomes map[string]Outcome) error {
	f := &Failures{total: len(entries)}
	cancelled := false
	for _, e := range entries {
		switch o := outcomes[e.Name]; o.State {
		case Failed:
			f.names = append(f.names, e.Name)
			f.causes = append(f.causes, o.Err)
		case Blocked:
			f.blocked++
		case Cancelled:
			cancelled = true
		}
	}
	var errs []error
	if cancelled {
		errs = append(errs, context.Cause(ctx))
	}
	if len(f.names) > 0 {
		errs = append(errs, f)
	}
	return errors.Join(errs...)
}
