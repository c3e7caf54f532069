package fleet

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/host"
)

// schema is the version of build-all.json. It changes with a field's meaning or
// removal, not with new fields.
const schema = 1

// Summary says how a run ended.
type Summary struct {
	Schema  int           `json:"schema"`
	Began   time.Time     `json:"began"`
	Seconds float64       `json:"seconds"`
	Counts  map[State]int `json:"counts"`
	Images  []Ended       `json:"images"` // in the order of the plan
}

// Ended says what came of one image.
type Ended struct {
	Name    string  `json:"name"`
	Parent  string  `json:"parent,omitempty"`
	Action  State   `json:"action"` // Build, Tag or Skip
	State   State   `json:"state"`
	Why     string  `json:"why,omitempty"`
	Inputs  string  `json:"inputs"`
	Seconds float64 `json:"seconds,omitempty"` // that this run took for it
	Result  *Result `json:"result,omitempty"`  // of a complete image
}

func (f *fleet) summary(began time.Time, outcomes map[*Entry]Event) Summary {
	s := Summary{Schema: schema, Began: began.UTC(), Seconds: seconds(time.Since(began)), Counts: map[State]int{}}
	for _, e := range f.entries {
		o := outcomes[e]
		i := Ended{Name: e.Name, Action: e.Action, State: o.State, Why: e.Why, Inputs: e.Inputs, Seconds: seconds(o.Took)}
		if e.Parent != nil {
			i.Parent = e.Parent.Name
		}
		if e.Action == Blocked {
			i.Action = Build // it would be built
		}
		if o.State == Done || o.State == Skipped {
			r := f.results[e]
			i.Result = &r
		} else {
			i.Why = f.why(e, o)
		}
		s.Counts[o.State]++
		s.Images = append(s.Images, i)
	}
	return s
}

func seconds(d time.Duration) float64 { return d.Round(time.Millisecond).Seconds() }

const summaryName = "build-all."

func summaryFile(outputDir string) string { return filepath.Join(outputDir, summaryName+"json") }

// write leaves build-all.json, and index.html, which shows the same to people.
func (s Summary) write(outputDir string) error {
	_, err := s.site(outputDir).Save(outputDir)
	return errors.Join(host.WriteJSON(summaryFile(outputDir), 0o644, s), err)
}

// failed is the error of a run in which images failed. Its message has a line
// for each; its causes are in the order of the lines.
type failed struct {
	message string
	causes  []error
}

func (f *failed) Error() string   { return f.message }
func (f *failed) Unwrap() []error { return f.causes }

// failures is the error of a run: why it was stopped, and what failed.
func failures(ctx context.Context, entries []*Entry, outcomes map[*Entry]Event) error {
	var causes []error
	var lines strings.Builder
	count := map[State]int{}
	for _, e := range entries {
		o := outcomes[e]
		count[o.State]++
		if o.State == Failed {
			causes = append(causes, o.Err)
			fmt.Fprintf(&lines, "\n%s: %s", e.Name, oneLine(o.Err))
		}
	}
	var stopped error
	if count[Cancelled] > 0 {
		stopped = context.Cause(ctx)
	}
	if causes == nil {
		return stopped
	}
	message := fmt.Sprintf("%d of %d images failed", len(causes), len(entries))
	if count[Blocked] > 0 {
		message += fmt.Sprintf(", %d more were blocked by that", count[Blocked])
	}
	return errors.Join(stopped, &failed{message + lines.String(), causes})
}
