package base

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/image/sbom"
)

// Update is a package of which its release has a newer version.
type Update struct {
	Source    string `json:"source"` // the source package
	Package   string `json:"package"`
	Installed string `json:"installed"`
	Available string `json:"available"`
}

// Updates are those of a disk, by source package.
type Updates struct{ Security, Others []Update }

// FindUpdates asks the archives of the release that the disks have what is newer than
// what is installed on each. See Newest.
func FindUpdates(ctx context.Context, disks []sbom.Inventory, aptMirror, caFile string) ([]Updates, error) {
	names := map[string]bool{}
	for _, has := range disks {
		for _, p := range has.Packages {
			names[p.Name] = true
		}
	}
	newest, err := Newest(ctx, Release{disks[0].System, disks[0].Version, disks[0].Architecture()}, names, aptMirror, caFile)
	if err != nil {
		return nil, err
	}
	all := make([]Updates, len(disks))
	for i, has := range disks {
		for _, p := range has.Packages {
			u := Update{Source: p.Source, Package: p.Name, Installed: p.Version}
			switch v := newest[p.Name]; {
			case Newer(v.Security, p.Version):
				u.Available = v.Security
				all[i].Security = append(all[i].Security, u)
			case Newer(v.Other, p.Version):
				u.Available = v.Other
				all[i].Others = append(all[i].Others, u)
			}
		}
		for _, some := range []*[]Update{&all[i].Security, &all[i].Others} {
			slices.SortFunc(*some, func(a, b Update) int {
				return cmp.Or(strings.Compare(a.Source, b.Source), strings.Compare(a.Package, b.Package), strings.Compare(a.Installed, b.Installed))
			})
			*some = slices.Compact(*some) // of several architectures
		}
	}
	return all, nil
}

// Sources are the source packages of updates, each once.
func Sources(all []Update) (names []string) {
	for _, u := range all {
		names = append(names, u.Source)
	}
	return slices.Compact(names)
}
