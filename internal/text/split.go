package text

import "bytes"

// Splitter is a Writer that calls Line with each line, without its end. Of a
// line it keeps at most Most bytes.
type Splitter struct {
	Most int
	Line func(line string)
	part []byte
}

// Write never fails.
func (s *Splitter) Write(b []byte) (int, error) {
	for rest := b; ; {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		s.part = append(s.part, line[:min(len(line), s.Most-len(s.part))]...)
		if !whole {
			return len(b), nil
		}
		s.Line(string(s.part))
		s.part, rest = s.part[:0], after
	}
}

// Part is the line that has no end yet.
func (s *Splitter) Part() string { return string(s.part) }
