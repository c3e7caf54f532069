package sbom

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/text"
)

const (
	// maxPackages bounds what one disk is believed to have; a full desktop has
	// 3,000 packages, all of a Debian release are 60,000.
	maxPackages = 20_000
	// maxValue bounds a name or a version, which are refused where they are longer, and
	// a maintainer, who is cut, in bytes.
	maxValue = 200
)

// known are the fields that count (deb-control(5), dpkg(1)).
var known = []string{"Package", "Status", "Version", "Architecture", "Source", "Maintainer"}

var (
	word = regexp.MustCompile(`^[!-~]{1,200}$`)
	// source is a source package's name, with its version where that is another than the package's.
	source = regexp.MustCompile(`^([!-~]{1,200})(?: \(([!-~]{1,200})\))?$`)
)

// Dpkg reads /var/lib/dpkg/status: the packages whose files are on the disk,
// sorted. What was removed but for its configuration is none. A list that dpkg
// cannot have written is an error in one line: half a bill would pass for a whole one.
func Dpkg(status []byte) ([]Package, error) {
	var all []Package
	fields := map[string]string{}
	number := 0
	for line := range bytes.Lines(status) {
		number++
		line = bytes.TrimRight(line, "\n")
		if len(line) == 0 {
			var err error
			if all, err = install(all, fields); err != nil {
				return nil, fmt.Errorf("line %d: %w", number, err)
			}
			clear(fields)
			continue
		}
		if line[0] == ' ' || line[0] == '\t' {
			continue // goes on with a field; those that count have one line
		}
		key, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			return nil, fmt.Errorf("line %d: it is no field", number)
		}
		if !slices.Contains(known, string(key)) {
			continue
		}
		value = bytes.TrimSpace(value)
		fields[string(key)] = string(value[:min(len(value), 2*maxValue)])
	}
	all, err := install(all, fields)
	if err != nil {
		return nil, fmt.Errorf("line %d: %w", number, err)
	}
	slices.SortFunc(all, func(a, b Package) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Architecture, b.Architecture), cmp.Compare(a.Version, b.Version))
	})
	return slices.CompactFunc(all, func(a, b Package) bool {
		return a.Name == b.Name && a.Architecture == b.Architecture && a.Version == b.Version
	}), nil
}

// install adds the package that a paragraph is about, if it is there.
func install(all []Package, fields map[string]string) ([]Package, error) {
	state := strings.Fields(fields["Status"]) // what is wanted, an error, what is
	if len(fields) == 0 || len(state) == 3 && slices.Contains([]string{"not-installed", "config-files"}, state[2]) {
		return all, nil
	}
	p := Package{Name: fields["Package"], Version: fields["Version"], Architecture: fields["Architecture"]}
	for _, value := range []string{p.Name, p.Version, p.Architecture} {
		if !word.MatchString(value) {
			return nil, fmt.Errorf("%q is no name, version or architecture", text.Line(value))
		}
	}
	if len(state) != 3 {
		return nil, fmt.Errorf("the package %s has no state", p.Name)
	}
	if len(all) == maxPackages {
		return nil, fmt.Errorf("there are more than %d packages", maxPackages)
	}
	from := source.FindStringSubmatch(cmp.Or(fields["Source"], p.Name))
	if from == nil {
		return nil, fmt.Errorf("%q is no source package", text.Line(fields["Source"]))
	}
	p.Source, p.SourceVersion = from[1], cmp.Or(from[2], p.Version)
	p.Maintainer = text.Cut(text.Line(fields["Maintainer"]), maxValue)
	return append(all, p), nil
}
