package ui

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// screen draws one live line a running stage at the bottom of a terminal.
type screen struct {
	out   *os.File
	lines int // drawn and not yet cleared
	frame int
}

const spinner = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"

func (s *screen) clear() {
	if s.lines > 0 {
		fmt.Fprintf(s.out, "\x1b[%dA\x1b[J", s.lines)
		s.lines = 0
	}
}

func (s *screen) draw(stages []*Stage) {
	width, _, err := term.GetSize(int(s.out.Fd()))
	if err != nil || width < 20 {
		width = 80
	}
	var b strings.Builder
	if s.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", s.lines)
	}
	s.frame++
	frames := []rune(spinner)
	for _, stage := range stages {
		b.WriteString(clip(string(frames[s.frame%len(frames)])+" "+stage.live(), width-1))
		b.WriteByte('\n')
	}
	s.lines = len(stages)
	_, _ = s.out.WriteString(b.String())
}

// live is what a running stage shows: its name, elapsed time, and a bar where
// there is a measure or the activity where there is none.
func (s *Stage) live() string {
	head := fmt.Sprintf("%-10s %8s  ", s.name, s.elapsed().Round(time.Second))
	if s.total <= 0 {
		return head + s.activity
	}
	return head + bar(s.done, s.total) + " " + s.activity
}

const barWidth = 24

func bar(done, total int64) string {
	full := min(int(int64(barWidth)*done/total), barWidth)
	return fmt.Sprintf("[%s%s] %3d%% of %s", strings.Repeat("█", full), strings.Repeat("░", barWidth-full), min(100*done/total, 100), Size(total))
}

// clip cuts a line to the terminal's width: a wrapped line could not be
// cleared again. Control characters of guests stay out of the terminal.
func clip(line string, width int) string {
	runes := []rune(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, line))
	if len(runes) > width {
		runes = append(runes[:width-1], '…')
	}
	return string(runes)
}
