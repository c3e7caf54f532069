package playbook

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// gossFile is a file of goss: kinds of resources, their names, their properties.
type gossFile map[string]map[string]any

// checks are a file's checks with those of the files that its gossfile: names
// (goss' manual, "gossfile"), in one file: a guest is given one. A file's own win
// over those that it takes in, which goss would merely warn of. A file that takes
// none in stays as it is, with templates and all.
func (s Source) checks(name string) ([]byte, error) {
	own, err := os.ReadFile(s.companion(name))
	if err != nil {
		return nil, err
	}
	var g gossFile
	if yaml.Unmarshal(own, &g) != nil || len(g["gossfile"]) == 0 {
		return own, nil //nolint:nilerr // goss says what is wrong with it
	}
	all := gossFile{}
	if err := s.takeIn(all, name, nil); err != nil {
		return nil, err
	}
	return yaml.Marshal(all)
}

// takeIn adds what the file has, and what the files have that it takes in, to all,
// where it is not there yet.
func (s Source) takeIn(all gossFile, name string, by []string) error {
	if slices.Contains(by, name) {
		return failure.New(name+" takes itself in", "end the circle of gossfile: in the playbook's checks")
	}
	content, err := os.ReadFile(s.companion(name))
	if err != nil {
		return failure.New(fmt.Sprintf("%s takes in %s, which the playbook tree does not have", by[len(by)-1], name),
			"name a file relative to the one that takes it in; patterns and URLs are not taken")
	}
	var g gossFile
	if err := yaml.Unmarshal(content, &g); err != nil {
		return failure.New(fmt.Sprintf("%s is no file of goss: %s", name, text.Line(err.Error())),
			"write it as goss' manual has it; a file with templates can neither take in others nor be taken in")
	}
	for kind, resources := range g {
		if kind == "gossfile" {
			continue
		}
		if all[kind] == nil {
			all[kind] = map[string]any{}
		}
		for id, properties := range resources {
			if _, there := all[kind][id]; !there {
				all[kind][id] = properties
			}
		}
	}
	for _, file := range slices.Sorted(maps.Keys(g["gossfile"])) {
		if m, _ := g["gossfile"][file].(map[string]any); m["file"] != nil {
			file = fmt.Sprint(m["file"])
		}
		at := path.Join(path.Dir(name), file)
		if !fs.ValidPath(at) {
			at = file // it is not in the tree, and is said not to be
		}
		if err := s.takeIn(all, at, append(slices.Clone(by), name)); err != nil {
			return err
		}
	}
	return nil
}
