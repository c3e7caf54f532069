package catalogue

import (
	"cmp"
	"slices"
)

// nearest returns at most n of the known words that may have been meant, the
// nearest first.
func nearest(word string, known []string, n int) []string {
	type candidate struct {
		word string
		far  int
	}
	var near []candidate
	for _, k := range known {
		// With half of the letters wrong it is another word.
		if d := distance(word, k); d <= min(3, len(word)/2) {
			near = append(near, candidate{k, d})
		}
	}
	slices.SortStableFunc(near, func(a, b candidate) int { return cmp.Compare(a.far, b.far) })
	var words []string
	for _, c := range near[:min(n, len(near))] {
		words = append(words, c.word)
	}
	return words
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
