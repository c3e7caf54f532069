package catalogue

import (
	"gopkg.in/yaml.v3"
)

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
