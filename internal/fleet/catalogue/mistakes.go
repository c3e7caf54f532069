package catalogue

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Mistake is one thing that is wrong with a catalogue.
type Mistake struct {
	File string
	Line int
	// What says what is wrong and, behind a colon, what to do about it.
	What string
}

// Mistakes are all that is wrong with a catalogue, in the order of its lines.
type Mistakes []Mistake

// maxShown bounds the mistakes that a message has: one slip in the defaults
// may be one for each of a thousand images.
const maxShown = 50

// Error has one line FILE:LINE: WHAT for each mistake.
func (m Mistakes) Error() string {
	lines := make([]string, 0, len(m))
	for _, mistake := range m[:min(len(m), maxShown)] {
		lines = append(lines, fmt.Sprintf("%s:%d: %s", mistake.File, mistake.Line, mistake.What))
	}
	if more := len(m) - maxShown; more > 0 {
		lines = append(lines, fmt.Sprintf("%s: and %d more", m[0].File, more))
	}
	return strings.Join(lines, "\n")
}

// Sorted is the error of those mistakes in the order of their lines, or nil where
// there are none.
func (m Mistakes) Sorted() error {
	if len(m) == 0 {
		return nil
	}
	slices.SortStableFunc(m, func(a, b Mistake) int { return cmp.Compare(a.Line, b.Line) })
	return m
}

// nearest returns at most n of the known words that may have been meant, the
// nearest first. With half of the letters wrong it is another word.
func nearest(word string, known []string, n int) []string {
	far := make(map[string]int, len(known))
	for _, k := range known {
		if d := distance(word, k); d <= min(3, len(word)/2) {
			far[k] = d
		}
	}
	near := slices.SortedFunc(maps.Keys(far), func(a, b string) int { return cmp.Or(cmp.Compare(far[a], far[b]), cmp.Compare(a, b)) })
	return near[:min(n, len(near))]
}

// distance is Levenshtein's: the least number of bytes to insert, delete or
// replace to make one word of the other.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
