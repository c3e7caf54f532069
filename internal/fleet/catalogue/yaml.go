package catalogue

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"slices"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/settings"
)

// document parses the text, which must be one YAML document.
func (l *loader) document(text []byte) *yaml.Node {
	if len(text) > maxFile {
		l.add(1, "the file is larger than %d KiB: a catalogue is settings, not data", maxFile>>10)
		return nil
	}
	docs, err := documents(bytes.NewReader(text))
	switch {
	case err != nil:
		l.add(syntaxLine(text), "this is no YAML: %s", syntax.ReplaceAllString(err.Error(), ""))
	case len(docs) == 0 || docs[0].Kind != yaml.DocumentNode:
		l.add(1, "the file is empty: it takes images, a list")
	case len(docs) > 1:
		l.add(max(docs[1].Line, 1), "there is a second document: a catalogue is one, remove the line ---")
	default:
		return docs[0].Content[0]
	}
	return nil
}

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
	lines := bytes.SplitAfter(text, []byte("\n"))
	r := &lineReader{rest: slices.Clone(lines)}
	_, _ = documents(r)
	for n, work := r.begun, 0; n > 0 && work < maxWork; n-- {
		before := bytes.Join(lines[:n-1], nil)
		work += len(before)
		if _, err := documents(bytes.NewReader(before)); err == nil {
			return n
		}
	}
	return max(r.begun, 1)
}

// lineReader hands out a line at a time, so that one sees how far the parser
// has read.
type lineReader struct {
	rest  [][]byte
	begun int // lines
	amid  bool
}

func (r *lineReader) Read(p []byte) (n int, err error) {
	if len(r.rest) == 0 || len(r.rest[0]) == 0 { // the last has no line break, and may be empty
		return 0, io.EOF
	}
	if !r.amid {
		r.begun++
	}
	n = copy(p, r.rest[0])
	r.rest[0] = r.rest[0][n:]
	if r.amid = len(r.rest[0]) > 0; !r.amid {
		r.rest = r.rest[1:]
	}
	return n, nil
}

// pair is a key of a mapping and its value, aliases followed.
type pair struct {
	key   string
	line  int
	value *yaml.Node
}

// mapping reads a mapping: keys are text, and none stands there twice.
func (l *loader) mapping(n *yaml.Node, name string) ([]pair, bool) {
	if n = follow(n); n.Kind != yaml.MappingNode {
		l.add(n.Line, "%s must be a mapping of keys and values", name)
		return nil, false
	}
	first := map[string]int{}
	pairs := make([]pair, 0, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := follow(n.Content[i])
		switch line := n.Content[i].Line; {
		case key.Tag == "!!merge":
			l.add(line, "<< is not supported: use defaults, or a matrix")
		case key.Kind != yaml.ScalarNode || key.Value == "" || key.Tag == "!!null":
			l.add(line, "a key of %s is no text", name)
		case first[key.Value] != 0:
			l.add(line, "%q is set twice, first in line %d: remove one", key.Value, first[key.Value])
		default:
			first[key.Value] = line
			pairs = append(pairs, pair{key.Value, line, follow(n.Content[i+1])})
			continue
		}
		return nil, false
	}
	return pairs, true
}

// items reads a list that is not empty.
func (l *loader) items(n *yaml.Node, name string) []*yaml.Node {
	if n.Kind != yaml.SequenceNode || len(n.Content) == 0 {
		l.add(n.Line, "%s must be a list with something in it", name)
		return nil
	}
	out := make([]*yaml.Node, len(n.Content))
	for i := range n.Content {
		out[i] = follow(n.Content[i])
	}
	return out
}

// follow returns what an alias stands for. YAML has no alias of an alias.
func follow(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// value makes of a node of vars what JSON can say: it has no keys but text and
// no tags. Texts are filled in from the axes; braces that are no axis of the
// image are somebody else's.
func (l *loader) value(n *yaml.Node, axes map[string]string, depth int) any {
	if depth > maxDepth {
		l.add(n.Line, "vars is deeper than %d levels: put it into a file, and give its path", maxDepth)
		return nil
	}
	if n = follow(n); !l.spend(16 + len(n.Value)) {
		return nil
	}
	switch n.Kind {
	case yaml.MappingNode:
		pairs, _ := l.mapping(n, "vars")
		m := make(map[string]any, len(pairs))
		for _, p := range pairs {
			m[p.key] = l.value(p.value, axes, depth+1)
		}
		return m
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i := range n.Content {
			list[i] = l.value(n.Content[i], axes, depth+1)
		}
		return list
	}
	v, err := settings.Scalar(n)
	if s, ok := v.(string); ok && err == nil {
		return fill(s, axes)
	}
	if _, bad := json.Marshal(v); err != nil || bad != nil {
		l.add(n.Line, "%s %q cannot be given to Ansible: write text, a number, true, false, a list or a mapping", n.Tag, n.Value)
	}
	return v
}
