package catalogue

import (
	"bytes"
	"errors"
	"io"
	"regexp"

	"gopkg.in/yaml.v3"
)

// documents reads the first two YAML documents: a catalogue is one.
func documents(text io.Reader) (docs []yaml.Node, err error) {
	d := yaml.NewDecoder(text)
	for len(docs) < 2 {
		var doc yaml.Node
		if err := d.Decode(&doc); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		docs = append(docs, doc)
	}
	return docs, nil
}

// syntax is what the parser puts before what is wrong. Its line is that of the
// block that the error is in, and one too low for some errors.
var syntax = regexp.MustCompile(`^yaml: (line \d+: )?`)

// syntaxLine is the line of a text's first syntax error: the first line with
// which the text before it is no YAML any more. Of a quote or a bracket that
// is never closed it is the line where that stands.
func syntaxLine(text []byte) int {
	r := &lineReader{rest: text}
	_, _ = documents(r)
	lines := bytes.SplitAfter(text, []byte("\n"))
	for n, work := r.lines, 0; n > 0 && work < maxWork; n-- {
		before := bytes.Join(lines[:n-1], nil)
		work += len(before)
		if _, err := documents(bytes.NewReader(before)); err == nil {
			return n
		}
	}
	return max(r.lines, 1)
}

// lineReader hands out a line at a time, so that one sees how far the parser
// has read.
type lineReader struct {
	rest  []byte
	lines int // that were begun
	amid  bool
}

func (r *lineReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		return 0, io.EOF
	}
	if !r.amid {
		r.lines++
	}
	line, _, ended := bytes.Cut(r.rest, []byte("\n"))
	if ended {
		line = r.rest[:len(line)+1]
	}
	n := copy(p, line)
	r.amid, r.rest = n < len(line), r.rest[n:]
	return n, nil
}
