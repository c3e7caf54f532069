package ui

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/log"

	"github.com/netgroup-polito/diskforge/internal/text"
)

// Stage is one step of the work as it is shown. It implements
// progress.Reporter.
type Stage struct {
	ui       *UI
	name     string
	began    time.Time
	activity string
	done     int64 // bytes
	total    int64
	measured time.Time // when a plain line last gave the bytes
}

// Stage begins a stage.
func (u *UI) Stage(name string) *Stage {
	s := &Stage{ui: u, name: name, began: time.Now()}
	u.print(func() {
		u.stages = append(u.stages, s)
		s.log(log.InfoLevel, "started")
	})
	return s
}

// plainEvery keeps plain output short: a copy that takes less than this needs
// no line about its progress.
const plainEvery = 5 * time.Second

// Bytes reports measured progress.
func (s *Stage) Bytes(done, total int64) {
	s.ui.mu.Lock()
	defer s.ui.mu.Unlock()
	if total != s.total || done < s.done {
		s.measured = time.Now() // another measure began
	}
	s.done, s.total = done, total
	if total > 0 && time.Since(s.measured) >= plainEvery {
		s.measured = time.Now()
		s.log(log.InfoLevel, fmt.Sprintf("%d%% of %s", 100*done/total, text.Size(total)))
	}
}

// Activity names what is going on where there is no measure.
func (s *Stage) Activity(what string) {
	what = s.ui.line(what)
	s.ui.mu.Lock()
	defer s.ui.mu.Unlock()
	if what != s.activity {
		s.activity, s.done, s.total = what, 0, 0
		s.log(log.InfoLevel, what)
	}
}

// Warn shows something that the user should know and that stops nothing.
func (s *Stage) Warn(message string) {
	s.ui.print(func() { s.ui.log.Warn(s.ui.line(message), "stage", s.name) })
}

// End ends the stage: with what came out, or with the error that stopped it.
func (s *Stage) End(result string, err error) {
	result = s.ui.line(result)
	s.ui.print(func() {
		s.ui.stages = slices.DeleteFunc(s.ui.stages, func(other *Stage) bool { return other == s })
		mark := "✓"
		if err != nil {
			mark, result = "✗", ""
			s.log(log.ErrorLevel, "failed")
		} else {
			s.log(log.InfoLevel, "done", "result", result)
		}
		if s.ui.screen != nil && !s.ui.image { // a table has no room for every stage
			fmt.Fprintln(s.ui.out, mark, strings.TrimRight(s.row(tenth, result), " "))
		}
	})
}

const tenth = 100 * time.Millisecond

// log writes a plain line; on a terminal the live line says it.
func (s *Stage) log(level log.Level, what string, keyvals ...any) {
	if s.ui.screen == nil {
		s.ui.log.Log(level, what, append([]any{"stage", s.name, "elapsed", time.Since(s.began).Round(tenth)}, keyvals...)...)
	}
}

// row is the stage's line on a terminal.
func (s *Stage) row(precision time.Duration, what string) string {
	return fmt.Sprintf("%-10s %8s  %s", s.name, time.Since(s.began).Round(precision), what)
}

// doing is a bar where there is a measure, and the activity.
func (s *Stage) doing() string {
	if s.total <= 0 {
		return s.activity
	}
	const width = 24
	full := min(int(width*s.done/s.total), width)
	bar := strings.Repeat("█", full) + strings.Repeat("░", width-full)
	return fmt.Sprintf("[%s] %3d%% of %s %s", bar, min(100*s.done/s.total, 100), text.Size(s.total), s.activity)
}
