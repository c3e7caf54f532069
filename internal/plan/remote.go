package plan

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

// Target is the registry that images built elsewhere go to, and that children
// take their parents from.
type Target struct {
	Registry, Prefix string
}

// repository is an image's, REGISTRY/PREFIX/NAME.
func (t Target) repository(name string) string {
	if t.Prefix == "" {
		return t.Registry + "/" + name
	}
	return t.Registry + "/" + strings.Trim(t.Prefix, "/") + "/" + name
}

// builds are the entries to build, with their parents' by name.
func builds(entries []Entry) (build []Entry, byName map[string]Entry) {
	byName = make(map[string]Entry, len(entries))
	for _, e := range entries {
		byName[e.Name] = e
		if e.Action == Build {
			build = append(build, e)
		}
	}
	return build, byName
}

// from returns ISO_URL and ISO_CHECKSUM of an image that starts from another:
// the registry's image with exactly these inputs. A parent that is built has a
// tag (see address).
func (t Target) from(parent Entry) (url, checksum string) {
	at := "@" + parent.Found
	if parent.Action == Build {
		at = ":" + strings.Join(parent.Tags[:min(1, len(parent.Tags))], "")
	}
	return "oci://" + t.repository(parent.Name) + at, "inputs:" + parent.Inputs
}

// refusals collects why images cannot be built elsewhere, a line each.
type refusals []error

func (r *refusals) add(e Entry, what, try string) {
	*r = append(*r, failure.New(e.Name+": "+what, try))
}

func (r *refusals) err() error { return errors.Join(*r...) }

// files are the settings that name files of this host, where they are paths.
func (r *refusals) files(e Entry, where string) {
	if strings.HasPrefix(e.Settings["EXTRA_VARS"], "@") {
		r.add(e, "vars names a file, which "+where+" has not", "write the variables into the catalogue")
	}
	if local(e.Settings["ISO_URL"]) || local(listed(e.Settings["ISO_CHECKSUM"])) {
		r.add(e, "base names a file, which "+where+" has not", "give an http(s) URL")
	}
	if strings.HasPrefix(e.Settings["GIT_ANSIBLE_URL"], "file:") {
		r.add(e, "git names a folder, which "+where+" has not", "give an https URL")
	}
	if e.Settings["SPARSIFY"] == "virt-sparsify" {
		r.add(e, "the toolbox has no virt-sparsify", "sparsify: auto or trim")
	}
}

// local says whether a location is a path or a file: URL.
func local(location string) bool {
	return location != "" && (!strings.Contains(location, "://") || strings.HasPrefix(location, "file://"))
}

// listed is the path or URL of a list of checksums, or nothing.
func listed(checksum string) string {
	path, _ := strings.CutPrefix(checksum, "file:")
	if path == checksum {
		return ""
	}
	return path
}

// address checks what finding images in the registry takes.
func (r *refusals) address(e, parent Entry, t Target) {
	switch {
	case t.Registry == "":
		r.add(e, "there is no registry to push to", "set TARGET_REGISTRY, or registry in the catalogue")
	case len(e.Tags) == 0:
		r.add(e, "it has no tag", "set IMAGE_TAG, or tags in the catalogue")
	}
	if e.From == "" || parent.Action != Build {
		return
	}
	// Its child could take the old one for the new one: the inputs are the same.
	if parent.Anew && len(parent.Tags) > 0 && slices.Contains(parent.foundTags, parent.Tags[0]) {
		r.add(e, fmt.Sprintf("%s is built anew, and its tag %s is that of the image there is", parent.Name, parent.Tags[0]), "give a new tag, e.g. the date")
	}
}
