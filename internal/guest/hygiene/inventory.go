package hygiene

import (
	"cmp"
	"regexp"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// inventory is what dpkg's list says, or why it says nothing. That is no finding:
// such a disk may be published.
func (t *tree) inventory() (i sbom.Inventory) {
	e, there := t.entries[dpkgStatus]
	status, kept := t.kept[dpkgStatus]
	i.System, i.Version = t.system()
	var err error
	switch {
	case !there:
		i.None = "it covers dpkg's packages alone, and the disk has no " + dpkgStatus
	case e.size > maxStatus:
		i.None = dpkgStatus + " is larger than " + text.Size(maxStatus)
	case !kept:
		i.None = dpkgStatus + " is empty, no file of its own, or a link"
	default:
		if i.Packages, err = sbom.Dpkg(status); err != nil {
			i.None = dpkgStatus + " cannot be read: " + err.Error()
		} else if len(i.Packages) == 0 {
			i.None = dpkgStatus + " lists no package"
		}
	}
	return i
}

// release is what os-release(5) has an ID and a VERSION_ID consist of.
var release = regexp.MustCompile(`^[a-z0-9._-]{1,50}$`)

// system is the ID and the VERSION_ID in os-release(5), each empty where there is none.
func (t *tree) system() (id, version string) {
	values := map[string]string{}
	for line := range strings.Lines(cmp.Or(string(t.kept[usrRelease]), string(t.kept[osRelease]))) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if value = strings.Trim(value, `"'`); release.MatchString(value) {
			values[key] = value
		}
	}
	return values["ID"], values["VERSION_ID"]
}
