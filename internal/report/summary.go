package report

import (
	"cmp"
	"slices"
	"time"
)

// What all forms of a report tell in the same way. They take clean reports.

// took is how long the build took.
func (r *Report) took() time.Duration {
	var end time.Duration
	for _, s := range r.Stages {
		end = max(end, s.Start+s.Took)
	}
	return end
}

// headline is the outcome in a few words.
func (r *Report) headline() string {
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
		if stage := r.failedStage(); stage != "" {
			return "Failed in " + stage
		}
		return "Failed"
	}
	return "Outcome unknown"
}

// failedStage is the stage that ended the build, or empty.
func (r *Report) failedStage() string {
	for _, s := range slices.Backward(r.Stages) {
		if s.Failure != "" {
			return s.Name
		}
	}
	return ""
}

// reasons are why the build failed, at least one line where it did.
func (r *Report) reasons() []string {
	if r.Outcome == Failed && len(r.Failure) == 0 {
		return []string{"No reason was recorded."}
	}
	return r.Failure
}

// title is the image's name and tag.
func (i Image) title() string {
	switch {
	case i.Name == "":
		return "unnamed image"
	case i.Tag == "":
		return i.Name
	}
	return i.Name + ":" + i.Tag
}

// byTime are the indexes of the tasks, those that took longest first.
func byTime(tasks []Task) []int {
	order := make([]int, len(tasks))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(tasks[b].Took, tasks[a].Took) })
	return order
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
	at := map[string]int{}
	for _, c := range checks {
		i, found := at[c.Group]
		if !found {
			i = len(all)
			at[c.Group] = i
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

// tally counts checks of all groups.
func tally(checks []Check) group {
	var g group
	for _, c := range checks {
		g.add(c)
	}
	return g
}
