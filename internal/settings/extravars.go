package settings

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/host"
)

// Vars are variables for Ansible.
type Vars map[string]any

// UnmarshalText reads a JSON or YAML mapping as Ansible reads it: JSON first, and
// YAML in its version 1.1, where yes and on are true, 0777 is octal and 1:30 is 90.
// Go's libraries read 1.2. Errors repeat no value: it may be a secret.
func (v *Vars) UnmarshalText(text []byte) error {
	if len(text) == 0 || json.Unmarshal(text, (*map[string]any)(v)) == nil && *v != nil {
		return nil
	}
	var n yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&n); err != nil {
		return errors.New("is neither JSON nor YAML")
	}
	if d.Decode(new(yaml.Node)) != io.EOF {
		return errors.New("has more than one document, of which Ansible reads none")
	}
	read, err := value(&n, 0)
	if err != nil {
		return err
	}
	m, ok := read.(map[string]any)
	if !ok {
		return errors.New("is no mapping")
	}
	*v = m
	return nil
}

// maxVars bounds EXTRA_VARS, in bytes: it is settings, not data.
const maxVars = 1 << 20

// vars is the mapping itself, or @ and the file that has it.
func vars(v string) (string, error) {
	if path, ok := strings.CutPrefix(v, "@"); ok {
		text, err := host.ReadFile(path, maxVars)
		if err != nil {
			return "", err
		}
		v = string(text)
	}
	err := new(Vars).UnmarshalText([]byte(v))
	if err == nil && len(v) > maxVars {
		err = fmt.Errorf("is longer than %d KiB", maxVars>>10)
	}
	if err != nil {
		return "", fmt.Errorf(`%w: give a JSON or YAML mapping, e.g. {"course": "databases"}, or @FILE`, err)
	}
	return v, nil
}

// maxDepth bounds what is nested, aliases in aliases above all.
const maxDepth = 64

func value(n *yaml.Node, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("is nested deeper than %d levels", maxDepth)
	}
	switch n.Kind {
	case yaml.DocumentNode:
		return value(n.Content[0], depth+1)
	case yaml.AliasNode:
		return value(n.Alias, depth+1)
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		var err error
		for i, c := range n.Content {
			if list[i], err = value(c, depth+1); err != nil {
				return nil, err
			}
		}
		return list, nil
	case yaml.MappingNode:
		return mapping(n, depth)
	case yaml.ScalarNode:
		return Scalar(n)
	}
	return nil, errors.New("is no mapping")
}

func mapping(n *yaml.Node, depth int) (any, error) {
	m := make(map[string]any, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		v, err := value(n.Content[i+1], depth+1)
		if err != nil {
			return nil, err
		}
		if inner, isMap := v.(map[string]any); isMap && key.Tag == "!!merge" {
			for name, v := range inner {
				if _, own := m[name]; !own {
					m[name] = v
				}
			}
			continue
		}
		if key.Kind != yaml.ScalarNode || key.Tag != "!!str" && key.Tag != "!!bool" {
			return nil, fmt.Errorf("has a key in line %d that is no text", key.Line)
		}
		m[key.Value] = v
	}
	return m, nil
}

// YAML 1.1's implicit types (yaml.org/type), as PyYAML's resolver has them.
var (
	booleans = regexp.MustCompile(`^(?:(yes|Yes|YES|true|True|TRUE|on|On|ON)|no|No|NO|false|False|FALSE|off|Off|OFF)$`)
	nulls    = regexp.MustCompile(`^(?:~|null|Null|NULL|)$`)
	integers = regexp.MustCompile(`^[-+]?(?:0b[01_]+|0[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$`)
	minutes  = regexp.MustCompile(`^[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+$`)
	infinite = regexp.MustCompile(`^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$`)
	floats   = regexp.MustCompile(`^[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?$`)
)

// Scalar is what a scalar means to Ansible, in YAML 1.1, in JSON's types. A date is text:
// it is what its author wrote.
func Scalar(n *yaml.Node) (any, error) {
	const quoted = yaml.SingleQuotedStyle | yaml.DoubleQuotedStyle | yaml.LiteralStyle | yaml.FoldedStyle
	v, plain := n.Value, strings.ReplaceAll(n.Value, "_", "")
	switch {
	case n.Style&yaml.TaggedStyle != 0 && n.Tag != "!!str":
		return tagged(n)
	case n.Style&(yaml.TaggedStyle|quoted) != 0:
		return v, nil
	case booleans.MatchString(v):
		return booleans.FindStringSubmatch(v)[1] != "", nil
	case nulls.MatchString(v):
		return nil, nil
	case integers.MatchString(v):
		if i, ok := new(big.Int).SetString(plain, 0); ok { // 0777 is octal, 0b11 and 0x1f are there, too
			return json.Number(i.String()), nil
		}
	case minutes.MatchString(v):
		return sexagesimal(plain), nil
	case infinite.MatchString(v):
		return nil, fmt.Errorf("has no number that can be written in JSON in line %d", n.Line)
	case floats.MatchString(v):
		if f, err := strconv.ParseFloat(plain, 64); err == nil {
			return f, nil
		}
	}
	return v, nil
}

// tagged is a scalar that says its own type.
func tagged(n *yaml.Node) (v any, err error) {
	if strings.HasPrefix(n.Tag, "!!") && n.Decode(&v) == nil {
		if _, err = json.Marshal(v); err == nil {
			return v, nil
		}
	}
	return nil, fmt.Errorf("has the tag %s in line %d, which cannot be given to Ansible", n.Tag, n.Line)
}

// sexagesimal is a number to the base of 60, such as 1:30.
func sexagesimal(v string) any {
	sum := new(big.Int)
	for part := range strings.SplitSeq(strings.TrimLeft(v, "+-"), ":") {
		digits, _ := new(big.Int).SetString(part, 10)
		sum.Add(sum.Mul(sum, big.NewInt(60)), digits)
	}
	if strings.HasPrefix(v, "-") {
		sum.Neg(sum)
	}
	return json.Number(sum.String())
}
