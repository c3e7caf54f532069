package contract

import (
	"path"
	"slices"
	"strings"
)

// tree is the file system that the layers make together.
type tree struct {
	paths map[string]placed // by clean path
	// disks are the names in disk/, sorted: what KubeVirt counts.
	disks []string
	// others are the paths outside, sorted; implied folders are not among them.
	others []string
	// again are paths in disk/ that are written more than once: who unpacks
	// takes the last, CDI the first.
	again []string
	// atRoot says that the disk is the only file of the image, outside of disk/.
	atRoot bool
	// deleted says that a layer deletes what a lower one has in disk/.
	deleted bool
}

// placed is an entry with the layer that it is from.
type placed struct {
	Entry
	layer int
}

const (
	whiteout = ".wh."         // deletes a path of lower layers
	opaque   = ".wh..wh..opq" // deletes all that lower layers have in a folder
)

// overlay puts the layers onto each other, as the OCI image specification
// says (layer.md, "Applying changesets").
func overlay(layers []*layer) tree {
	t := tree{paths: map[string]placed{}}
	for n, l := range layers {
		t.deleteLower(l)
		for _, e := range l.entries {
			name := clean(e.Name)
			if strings.HasPrefix(path.Base(name), whiteout) {
				continue
			}
			if _, known := t.paths[name]; known && under(name, diskDir) && name != diskDir {
				t.again = append(t.again, name)
			}
			t.paths[name] = placed{e, n}
		}
	}
	for name := range t.paths {
		switch rest, in := strings.CutPrefix(name, diskDir+"/"); {
		case in:
			first, _, _ := strings.Cut(rest, "/")
			t.disks = append(t.disks, diskDir+"/"+first)
		case name != diskDir && name != "":
			t.others = append(t.others, name)
		}
	}
	t.disks = slices.Compact(slices.Sorted(slices.Values(t.disks)))
	slices.Sort(t.others)
	if len(t.disks) == 0 && len(t.others) == 1 && !strings.Contains(t.others[0], "/") && t.paths[t.others[0]].Type == "file" {
		t.disks, t.others, t.atRoot = t.others, nil, true
	}
	return t
}

// deleteLower applies the whiteouts of a layer to what lies below it.
func (t *tree) deleteLower(l *layer) {
	gone, emptied := map[string]bool{}, map[string]bool{}
	for _, e := range l.entries {
		dir, base := path.Split(clean(e.Name))
		dir = strings.TrimSuffix(dir, "/")
		switch {
		case base == opaque:
			emptied[dir] = true
		case strings.HasPrefix(base, whiteout):
			gone[path.Join(dir, strings.TrimPrefix(base, whiteout))] = true
		}
	}
	if len(gone)+len(emptied) == 0 {
		return
	}
	for name := range t.paths {
		if deleted(name, gone, emptied) {
			t.deleted = t.deleted || under(name, diskDir)
			delete(t.paths, name)
		}
	}
}

// deleted says whether a path is gone, or lies in a folder that is gone or was
// emptied.
func deleted(name string, gone, emptied map[string]bool) bool {
	if gone[name] {
		return true
	}
	for up := name; up != ""; {
		up = up[:max(strings.LastIndexByte(up, '/'), 0)]
		if gone[up] || emptied[up] {
			return true
		}
	}
	return false
}

// under says whether name is dir or lies in it.
func under(name, dir string) bool {
	return name == dir || dir == "" || strings.HasPrefix(name, dir+"/")
}
