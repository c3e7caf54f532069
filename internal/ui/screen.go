package ui

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
	"golang.org/x/term"

	"github.com/netgroup-polito/diskforge/internal/text"
)

// screen draws the live lines at the bottom of a terminal.
type screen struct {
	out   *os.File
	drawn []int // the lines' widths, in columns; not yet cleared
	frame int
}

const spinner = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"

// size returns columns and rows of the terminal: it may change at any time.
func (s *screen) size() (width, height int) {
	width, height, err := term.GetSize(int(s.out.Fd()))
	if err != nil || width < 20 {
		width = 80
	}
	if err != nil || height < 2 {
		height = 24
	}
	return width, height
}

func (s *screen) clear() {
	_, _ = s.out.WriteString(s.erase())
}

// erase returns what clears the lines that were drawn. In a terminal that has
// become narrower since, a line takes several rows.
func (s *screen) erase() string {
	if len(s.drawn) == 0 {
		return ""
	}
	width, height := s.size()
	rows := 0
	for _, w := range s.drawn {
		rows += max(1, (w+width-1)/width)
	}
	s.drawn = nil
	return fmt.Sprintf("\x1b[%dA\x1b[J", min(rows, height-1))
}

// draw draws what live returns, in place of what was drawn before. The row of
// the cursor stays free: a full screen would scroll, and could not be cleared.
func (s *screen) draw(live func(width, height int, spin string) []string) {
	width, height := s.size()
	s.frame++
	frames := []rune(spinner)
	text := s.erase()
	for _, line := range live(width-1, height-1, string(frames[s.frame%len(frames)])) {
		s.drawn = append(s.drawn, ansi.StringWidth(line))
		text += line + "\n"
	}
	_, _ = s.out.WriteString(text)
}

// live is what a running stage shows: its name, elapsed time, and a bar where
// there is a measure or the activity where there is none.
func (s *Stage) live() string {
	return fmt.Sprintf("%-10s %8s  %s", s.name, s.elapsed().Round(time.Second), s.doing())
}

func (s *Stage) doing() string {
	if s.total <= 0 {
		return s.activity
	}
	return bar(s.done, s.total) + " " + s.activity
}

const barWidth = 24

func bar(done, total int64) string {
	full := min(int(int64(barWidth)*done/total), barWidth)
	return fmt.Sprintf("[%s%s] %3d%% of %s", strings.Repeat("█", full), strings.Repeat("░", barWidth-full), min(100*done/total, 100), text.Size(total))
}

// clip cuts a line to the terminal's width in columns, of which some
// characters take two: a wrapped line could not be cleared again.
func clip(line string, width int) string { return ansi.Truncate(line, width, "…") }

// pad fills up a text to a width in columns.
func pad(text string, width int) string {
	return text + strings.Repeat(" ", max(width-ansi.StringWidth(text), 0))
}
