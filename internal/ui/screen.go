package ui

import (
	"fmt"
	"os"

	"github.com/charmbracelet/x/ansi"
	"golang.org/x/term"
)

// screen draws the live lines at the bottom of a terminal.
type screen struct {
	out   *os.File
	drawn []int // the lines' widths, in columns; not yet cleared
	frame int
}

var spinner = []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")

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

func (s *screen) clear() { _, _ = s.out.WriteString(s.erase()) }

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
	out := s.erase()
	for _, line := range live(width-1, height-1, string(spinner[s.frame%len(spinner)])) {
		s.drawn = append(s.drawn, ansi.StringWidth(line))
		out += line + "\n"
	}
	_, _ = s.out.WriteString(out)
}
