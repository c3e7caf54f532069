package ui

import (
	"fmt"
	"slices"
	"time"

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
	told     time.Time // when a plain line last told the bytes
}

// Stage begins a stage.
func (u *UI) Stage(name string) *Stage {
	s := &Stage{ui: u, name: name, began: time.Now()}
	u.print(func() {
		u.stages = append(u.stages, s)
		s.line("started")
	})
	return s
}

// Bytes reports measured progress.
func (s *Stage) Bytes(done, total int64) {
	s.ui.mu.Lock()
	defer s.ui.mu.Unlock()
	if total != s.total || done < s.done {
		s.told = time.Now() // another measure began
	}
	s.done, s.total = done, total
	if total > 0 && s.ui.screen == nil && time.Since(s.told) >= plainEvery {
		s.told = time.Now()
		s.line(fmt.Sprintf("%d%% of %s", 100*done/total, text.Size(total)))
	}
}

// plainEvery keeps plain output short: a copy that takes less than this needs
// no line about its progress.
const plainEvery = 5 * time.Second

// Activity names what is going on where there is no measure.
func (s *Stage) Activity(what string) {
	what = s.ui.say(what)
	s.ui.mu.Lock()
	defer s.ui.mu.Unlock()
	if what == s.activity {
		return
	}
	s.activity, s.done, s.total = what, 0, 0
	s.line(what)
}

// Warn tells something that the user should know and that stops nothing.
func (s *Stage) Warn(message string) {
	s.ui.print(func() { s.ui.log.Warn(s.ui.say(message), "stage", s.name) })
}

// End ends the stage: with what came out, or with the error that stopped it.
func (s *Stage) End(result string, err error) {
	result = s.ui.say(result)
	s.ui.print(func() {
		s.ui.stages = slices.DeleteFunc(s.ui.stages, func(other *Stage) bool { return other == s })
		if s.ui.image && s.ui.screen != nil {
			return // the table has no room for every stage
		}
		elapsed := s.elapsed().Round(100 * time.Millisecond)
		switch {
		case err != nil && s.ui.screen != nil:
			fmt.Fprintf(s.ui.out, "✗ %-10s %8s\n", s.name, elapsed)
		case err != nil:
			s.ui.log.Error("failed", "stage", s.name, "elapsed", elapsed)
		case s.ui.screen != nil:
			fmt.Fprintf(s.ui.out, "✓ %-10s %8s  %s\n", s.name, elapsed, result)
		default:
			s.ui.log.Info("done", "stage", s.name, "elapsed", elapsed, "result", result)
		}
	})
}

// line writes a plain line; on a terminal the live line says it.
func (s *Stage) line(what string) {
	if s.ui.screen == nil {
		s.ui.log.Info(what, "stage", s.name, "elapsed", s.elapsed().Round(100*time.Millisecond))
	}
}

func (s *Stage) elapsed() time.Duration { return time.Since(s.began) }
