package render

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

// Target is the registry that images built elsewhere go to, and that children
// take their parents from.
type Target struct {
	Registry, Prefix string
	// Host are the command's own settings that hold wherever the images are
	// built, by their variables; an image's own win over them.
	Host map[string]string
	// CA is what CA_FILE holds, certificates in PEM, or empty.
	CA string
}

// settings are an image's, with the command's own.
func (t Target) settings(e Entry) map[string]string {
	all := map[string]string{}
	maps.Copy(all, t.Host)
	maps.Copy(all, e.Settings)
	return all
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

// maxCA bounds CA_FILE, in bytes: it becomes an annotation of each Job, which
// takes 256 KiB with all others.
const maxCA = 200 << 10

// Check says whether there is a registry, where what is built elsewhere meets,
// and whether the settings can be shown to all who may read a plan.
func (t Target) Check() error {
	if t.Registry == "" {
		return failure.New("there is no registry to push to", "set TARGET_REGISTRY, or registry in the catalogue")
	}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY"} {
		if u, err := url.Parse(t.Host[name]); err != nil || u.User != nil {
			return failure.New(name+" names a user, and a plan is for many to read", "give a proxy that asks for no login")
		}
	}
	switch {
	case strings.Contains(t.CA, "PRIVATE KEY"):
		return failure.New("CA_FILE holds a private key, and a plan is for many to read", "give a file with the certificates alone")
	case len(t.CA) > maxCA:
		return failure.New(fmt.Sprintf("CA_FILE has %d KiB, and a plan takes %d", len(t.CA)>>10, maxCA>>10), "give the further authorities alone")
	}
	return nil
}

// refusals collects why images cannot be built elsewhere. What is the same for
// several images is told once.
type refusals struct {
	all  int // images to build
	list []refusal
}

type refusal struct {
	what, try string
	images    []string
}

func (r *refusals) add(e Entry, what, try string) {
	for i, same := range r.list {
		if same.what == what && same.try == try {
			r.list[i].images = append(same.images, e.Name)
			return
		}
	}
	r.list = append(r.list, refusal{what, try, []string{e.Name}})
}

func (r *refusals) err() error {
	var all []error
	for _, one := range r.list {
		all = append(all, failure.New(one.who(r.all)+": "+one.what, one.try))
	}
	return errors.Join(all...)
}

// maxNamed bounds the images that one line names.
const maxNamed = 10

// who names the images that a refusal is about, of so many.
func (r refusal) who(all int) string {
	n := len(r.images)
	switch {
	case n > 1 && n == all:
		return fmt.Sprintf("all %s", Images(n))
	case n > maxNamed:
		return fmt.Sprintf("%s and %d more", strings.Join(r.images[:maxNamed], ", "), n-maxNamed)
	}
	return strings.Join(r.images, ", ")
}

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
func (r *refusals) address(e, parent Entry) {
	if len(e.Tags) == 0 {
		r.add(e, "there is no tag", "set IMAGE_TAG, or tags in the catalogue")
	}
	if e.From == "" || parent.Action != Build {
		return
	}
	// Its child could take the old one for the new one: the inputs are the same.
	if parent.Anew && len(parent.Tags) > 0 && slices.Contains(parent.foundTags, parent.Tags[0]) {
		r.add(e, fmt.Sprintf("%s is built anew, and its tag %s is that of the image there is", parent.Name, parent.Tags[0]), "give a new tag, e.g. the date")
	}
}
