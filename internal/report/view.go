package report

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// view is a clean report with what all its forms show beside its fields.
type view struct {
	*Report
	Mood     string // good, open or bad: what the colours say
	Title    string // the image's name and tag
	Head     string // the outcome in a few words
	Why      []string
	Took     time.Duration
	TaskTime time.Duration
	Largest  int64     // of the sizes, in bytes
	Tasks    []taskRow // in the order in which they ran
	ByTime   []taskRow // likewise, those that took longest first
	Groups   []group
	Tally    group // of all checks
}

type taskRow struct {
	Task
	Number int  // in the order in which they ran
	Top    bool // among the three longest
}

// How many of the longest tasks stand out, and how many are shown unfolded.
const (
	topTasks   = 3
	shownTasks = 10
)

func (r *Report) view() *view {
	c := r.clean()
	v := &view{
		Report: c, Mood: "open", Title: cmp.Or(c.Image.Name, "unnamed image"), Head: headline(c), Why: c.Failure,
		Groups: groups(c.Checks),
	}
	for _, check := range c.Checks {
		v.Tally.add(check)
	}
	if c.Image.Name != "" && c.Image.Tag != "" {
		v.Title += ":" + c.Image.Tag
	}
	switch c.Outcome {
	case Published, Packed, Verified:
		v.Mood = "good"
	case Failed:
		v.Mood = "bad"
		if len(v.Why) == 0 {
			v.Why = []string{"No reason was recorded."}
		}
	}
	for _, s := range c.Stages {
		v.Took = max(v.Took, s.Start+s.Took)
	}
	for _, s := range c.Sizes {
		v.Largest = max(v.Largest, s.Bytes)
	}
	for i, t := range c.Tasks {
		v.Tasks = append(v.Tasks, taskRow{Task: t, Number: i + 1})
		v.TaskTime += t.Took
	}
	byTime := func(a, b taskRow) int { return cmp.Compare(b.Took, a.Took) }
	v.ByTime = slices.SortedStableFunc(slices.Values(v.Tasks), byTime)
	for i := range v.ByTime[:min(topTasks, len(v.ByTime))] {
		v.ByTime[i].Top = true
		v.Tasks[v.ByTime[i].Number-1].Top = true
	}
	return v
}

// headline is the outcome in a few words.
func headline(r *Report) string {
	switch r.Outcome {
	case Published:
		return "Published"
	case Packed:
		return "Packed, not pushed"
	case Verified:
		return "Verified, not packed"
	case Built:
		return "Built, not verified"
	case Failed:
		for _, s := range slices.Backward(r.Stages) {
			if s.Failure != "" {
				return "Failed in " + s.Name
			}
		}
		return "Failed"
	}
	return "Outcome unknown"
}

// The three ways in which a check ends.
const (
	checkFailed  = "failed"
	checkExcused = "excused"
	checkPassed  = "passed"
)

func (c Check) result() string {
	switch {
	case c.OK:
		return checkPassed
	case c.Excused != "":
		return checkExcused
	}
	return checkFailed
}

// group is the checks of one group, failures first, then what is excused.
type group struct {
	Name                    string
	Checks                  []Check
	Failed, Excused, Passed int
}

// groups are the checks by their group, those with failures first.
func groups(checks []Check) []group {
	var all []group
	for _, c := range checks {
		i := slices.IndexFunc(all, func(g group) bool { return g.Name == c.Group })
		if i < 0 {
			i = len(all)
			all = append(all, group{Name: c.Group})
		}
		all[i].add(c)
	}
	order := map[string]int{checkFailed: 0, checkExcused: 1, checkPassed: 2}
	for _, g := range all {
		slices.SortStableFunc(g.Checks, func(a, b Check) int { return order[a.result()] - order[b.result()] })
	}
	slices.SortStableFunc(all, func(a, b group) int { return cmp.Compare(min(1, b.Failed), min(1, a.Failed)) })
	return all
}

// Remarkable are the checks that did not pass.
func (g group) Remarkable() []Check { return g.Checks[:g.Failed+g.Excused] }

// Unremarkable are those that did.
func (g group) Unremarkable() []Check { return g.Checks[g.Failed+g.Excused:] }

func (g *group) add(c Check) {
	g.Checks = append(g.Checks, c)
	switch c.result() {
	case checkFailed:
		g.Failed++
	case checkExcused:
		g.Excused++
	default:
		g.Passed++
	}
}

// Sum says how many checks there are, and how they ended.
func (g group) Sum() string {
	sum := fmt.Sprintf("%d of %d passed", g.Passed, len(g.Checks))
	if g.Failed > 0 {
		sum += fmt.Sprintf(", %d failed", g.Failed)
	}
	if g.Excused > 0 {
		sum += fmt.Sprintf(", %d excused", g.Excused)
	}
	return sum
}
