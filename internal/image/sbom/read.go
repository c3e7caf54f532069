package sbom

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/package-url/packageurl-go"
)

// ReadSPDX reads the Debian packages of an SPDX document, whoever wrote it, from their
// package URLs, which name the system, too. What is no such package is left out.
func ReadSPDX(document []byte) (Inventory, error) {
	var doc struct {
		Packages []struct {
			ExternalRefs []struct {
				Locator string `json:"referenceLocator"`
			} `json:"externalRefs"`
		} `json:"packages"`
	}
	if err := json.Unmarshal(document, &doc); err != nil {
		return Inventory{}, fmt.Errorf("reading an SPDX document: %w", err)
	}
	var of Inventory
	for _, listed := range doc.Packages {
		for _, ref := range listed.ExternalRefs {
			purl, err := packageurl.FromString(ref.Locator)
			if err != nil || purl.Type != packageurl.TypeDebian || !word.MatchString(purl.Name) || !word.MatchString(purl.Version) {
				continue
			}
			if len(of.Packages) == maxPackages {
				return Inventory{}, fmt.Errorf("there are more than %d packages", maxPackages)
			}
			more := purl.Qualifiers.Map()
			from, fromVersion, _ := strings.Cut(more["upstream"], "@")
			if of.System == "" {
				of.System, of.Version, _ = strings.Cut(more["distro"], "-")
			}
			of.Packages = append(of.Packages, Package{
				Name: purl.Name, Version: purl.Version, Architecture: more["arch"],
				Source: cmp.Or(from, purl.Name), SourceVersion: cmp.Or(fromVersion, purl.Version),
			})
		}
	}
	if len(of.Packages) == 0 {
		return Inventory{}, errors.New("it lists no Debian package")
	}
	return of, nil
}
