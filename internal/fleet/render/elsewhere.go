// Package render writes a plan down: for people, for programs, and for those
// who carry it out elsewhere, GitHub Actions and Kubernetes. There, every image
// is built by itself, and finds its parent in the registry by its inputs.
package render

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/fleet"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/text"
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
	// Signed says that BASE_KEY was asked for: the plan verified it.
	Signed bool
}

// NewTarget is what a plan for other hosts carries of this one, checked.
func NewTarget(a *fleet.All) (Target, error) {
	s := a.Settings
	if s["ANSIBLE_VAULT_PASSWORD_FILE"] != "" || s["ANSIBLE_VAULT_IDENTITY_LIST"] != "" {
		return Target{}, errors.New("a plan is for many to read and carries no vault's password: leave it out, and give it to the hosts that build")
	}
	t := Target{Host: map[string]string{}, Signed: s["BASE_KEY"] != ""}
	t.Registry, t.Prefix = a.Address()
	for _, f := range settings.Fields() {
		if f.Carried && s.Get(f.Env) != f.Default {
			t.Host[f.Env] = s.Get(f.Env)
		}
	}
	if !a.Config.RegistryInsecure {
		delete(t.Host, "REGISTRY_INSECURE")
	}
	if file := s["CA_FILE"]; file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return Target{}, fmt.Errorf("CA_FILE: %w", err)
		}
		t.CA = string(pem)
	}
	return t, t.Check()
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

// settings are an image's, with the command's own. One that starts from another
// has that as its base: the registry's image with exactly its inputs.
func (t Target) settings(e *fleet.Entry) map[string]string {
	all := map[string]string{}
	maps.Copy(all, t.Host)
	maps.Copy(all, e.Settings)
	if p := e.Parent; p != nil {
		at := ":" + strings.Join(p.Tags[:min(1, len(p.Tags))], "") // one that is built has a tag (see address)
		if p.Action != fleet.Build {
			at = "@" + p.Found.Digest
		}
		all["ISO_URL"], all["ISO_CHECKSUM"] = "oci://"+t.repository(p.ImageName())+at, "inputs:"+p.Inputs
	}
	return all
}

// reach are the settings by which any container finds the registry.
func (t Target) reach() map[string]string {
	all := map[string]string{}
	for _, name := range []string{"REGISTRY_INSECURE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		if v, ok := t.Host[name]; ok {
			all[name] = v
		}
	}
	return all
}

// repository is an image's, REGISTRY/PREFIX/NAME.
func (t Target) repository(name string) string {
	if t.Prefix == "" {
		return t.Registry + "/" + name
	}
	return t.Registry + "/" + strings.Trim(t.Prefix, "/") + "/" + name
}

// builds are the entries to build.
func builds(entries []*fleet.Entry) []*fleet.Entry {
	return slices.DeleteFunc(slices.Clone(entries), func(e *fleet.Entry) bool { return e.Action != fleet.Build })
}

// refusals collects why images cannot be built elsewhere. What is the same for
// several images is said once.
type refusals struct {
	all    int  // images to build
	signed bool // BASE_KEY is set
	list   []refusal
}

type refusal struct {
	what, try string
	images    []string
}

func (r *refusals) add(e *fleet.Entry, what, try string) {
	i := slices.IndexFunc(r.list, func(same refusal) bool { return same.what == what && same.try == try })
	if i < 0 {
		i, r.list = len(r.list), append(r.list, refusal{what: what, try: try})
	}
	r.list[i].images = append(r.list[i].images, e.Name)
}

// maxNamed bounds the images that one line names.
const maxNamed = 10

func (r *refusals) err() error {
	var all []error
	for _, one := range r.list {
		n := len(one.images)
		who := strings.Join(one.images[:min(n, maxNamed)], ", ")
		switch {
		case n > 1 && n == r.all:
			who = "all " + text.Count(n, "image")
		case n > maxNamed:
			who += fmt.Sprintf(" and %d more", n-maxNamed)
		}
		all = append(all, failure.New(who+": "+one.what, one.try))
	}
	return errors.Join(all...)
}

// files collects settings that name files of this host.
func (r *refusals) files(e *fleet.Entry, where string) {
	if strings.HasPrefix(e.Settings["EXTRA_VARS"], "@") {
		r.add(e, "vars names a file, which "+where+" does not have", "write the variables into the catalogue")
	}
	list, _ := strings.CutPrefix(e.Settings["ISO_CHECKSUM"], "file:")
	if local(e.Settings["ISO_URL"]) || list != e.Settings["ISO_CHECKSUM"] && local(list) {
		r.add(e, "base names a file, which "+where+" does not have", "give an http(s) URL")
	}
	if strings.HasPrefix(e.Settings["GIT_ANSIBLE_URL"], "file:") {
		r.add(e, "git names a folder, which "+where+" does not have", "give an https URL")
	}
	if inputs := strings.HasPrefix(e.Settings["ISO_CHECKSUM"], "inputs:"); inputs && r.signed {
		r.add(e, "with BASE_KEY "+where+" could take another image of the same inputs than the one whose signature was verified", "name the base by its digest")
	}
	if e.Settings["SPARSIFY"] == "virt-sparsify" {
		r.add(e, "the toolbox has no virt-sparsify", "sparsify: auto or trim")
	}
}

// local says whether a location is a path or a file: URL.
func local(location string) bool {
	return location != "" && (!strings.Contains(location, "://") || strings.HasPrefix(location, "file://"))
}

// address checks what finding images in the registry takes.
func (r *refusals) address(e *fleet.Entry) {
	if len(e.Tags) == 0 {
		r.add(e, "there is no tag", "set IMAGE_TAG, or tags in the catalogue")
	}
	// Its child could take the old one for the new one: the inputs are the same.
	if p := e.Parent; p != nil && p.Action == fleet.Build && p.Anew && len(p.Tags) > 0 && slices.Contains(p.Found.Tags, p.Tags[0]) {
		r.add(e, fmt.Sprintf("%s is built anew, and its tag %s is that of the image there is", p.Name, p.Tags[0]), "give a new tag, e.g. the date")
	}
}
