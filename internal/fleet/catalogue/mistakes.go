package catalogue

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Mistake is one thing that is wrong with a catalogue.
type Mistake struct {
	File string
	Line int
	// What says what is wrong and, behind a colon, how to mend it.
	What string
}

// Mistakes are all that is wrong with a catalogue, in the order of its lines.
type Mistakes []Mistake

// maxTold bounds the mistakes that a message has: one slip in the defaults
// may be one for each of a thousand images.
const maxTold = 50

// Error has one line FILE:LINE: WHAT for each mistake.
func (m Mistakes) Error() string {
	lines := make([]string, 0, len(m))
	for _, mistake := range m[:min(len(m), maxTold)] {
		lines = append(lines, fmt.Sprintf("%s:%d: %s", mistake.File, mistake.Line, mistake.What))
	}
	if more := len(m) - maxTold; more > 0 {
		lines = append(lines, fmt.Sprintf("%s: and %d more", m[0].File, more))
	}
	return strings.Join(lines, "\n")
}

// Sorted puts them into the order of their lines.
func (m Mistakes) Sorted() Mistakes {
	slices.SortStableFunc(m, func(a, b Mistake) int { return cmp.Compare(a.Line, b.Line) })
	return m
}
