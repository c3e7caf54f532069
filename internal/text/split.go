package text

import (
	"bytes"
	"cmp"
)

// Splitter is a Writer that calls Line with each line, without its end. Of a
// line it keeps at most Most bytes.
type Splitter struct {
	Most int
	Ends string // the characters that end a line; empty means \n
	Line func(line string)
	part []byte
}

// Write never fails.
func (s *Splitter) Write(b []byte) (int, error) {
	for rest := b; ; {
		end := bytes.IndexAny(rest, cmp.Or(s.Ends, "\n"))
		line := rest
		if end >= 0 {
			line = rest[:end]
		}
		s.part = append(s.part, line[:min(len(line), s.Most-len(s.part))]...)
		if end < 0 {
			return len(b), nil
		}
		s.Line(string(s.part))
		s.part, rest = s.part[:0], rest[end+1:]
	}
}

// Part is the line that has no end yet.
func (s *Splitter) Part() string { return string(s.part) }
