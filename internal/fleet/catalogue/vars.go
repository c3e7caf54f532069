package catalogue

import (
	"encoding/json"
	"maps"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/host"
)

// checkVars checks that Ansible can be given the variables: JSON has no keys
// but text and no tags.
func (l *loader) checkVars(n *yaml.Node) {
	if n.Kind == yaml.MappingNode {
		l.value(n, nil, 0)
		return
	}
	l.scalar(n, "vars", "vars-file")
}

// variables puts the layers together, the strongest last, to EXTRA_VARS.
func (l *loader) variables(layers []*yaml.Node, x expander) string {
	all := map[string]any{}
	for _, n := range layers {
		if n.Kind == yaml.ScalarNode { // only the first can be: a file replaces
			return "@" + l.path(x.text(n, "vars", "vars-file"))
		}
		if m, ok := l.value(n, x.axes, 0).(map[string]any); ok {
			maps.Copy(all, m)
		}
	}
	text, err := json.Marshal(all)
	if err != nil {
		l.add(layers[0].Line, "vars cannot be given to Ansible: %v", err)
	}
	return string(text)
}

// value makes of a node what JSON can say. Texts are filled in from the axes;
// braces that are no axis of the image are somebody else's.
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
	return l.leaf(n, axes)
}

func (l *loader) leaf(n *yaml.Node, axes map[string]string) any {
	v, err := host.YAMLScalar(n)
	if text, ok := v.(string); ok && err == nil {
		return fill(text, axes)
	}
	if _, bad := json.Marshal(v); err != nil || bad != nil {
		l.add(n.Line, "%s %q cannot be given to Ansible: write text, a number, true, false, a list or a mapping", n.Tag, n.Value)
	}
	return v
}
