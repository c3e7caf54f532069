package text_test

import (
	"io"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/netgroup-polito/diskforge/internal/text"
)

func TestLinesAreWholeHoweverTheyArriveAndNoLongerThanTheyMayBe(t *testing.T) {
	t.Parallel()
	var lines []string
	s := text.Splitter{Most: 6, Line: func(line string) { lines = append(lines, line) }}
	for _, piece := range []string{"on", "e\n\ntwo\nmuch to", "o long\npa", "rt"} {
		n, err := io.WriteString(&s, piece)
		assert.NoError(t, err)
		assert.Equal(t, len(piece), n)
	}
	assert.Equal(t, []string{"one", "", "two", "much t"}, lines)
	assert.Equal(t, "part", s.Part())
}
