// Package sbom writes what is installed on a disk as software bills of
// materials (SBOM): SPDX 2.3 and CycloneDX 1.6, which scanners read without the
// disk (trivy sbom, grype, Dependency-Track).
//
// The documents depend on the disk, its image's name and its date alone: no
// clock and no random number is in them, and their ids come from the disk's digest.
package sbom

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/CycloneDX/cyclonedx-go"
	"github.com/google/uuid"
	"github.com/package-url/packageurl-go"
	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// The names of the documents.
const (
	SPDXFile      = "sbom.spdx.json"
	CycloneDXFile = "sbom.cdx.json"
)

// Inventory is what is installed on a disk.
type Inventory struct {
	System   string    `json:"system,omitempty"`  // os-release(5)'s ID: "debian"
	Version  string    `json:"version,omitempty"` // its VERSION_ID: "12"
	Packages []Package `json:"packages,omitempty"`
	None     string    `json:"none,omitempty"` // why no packages are known, in one line
}

// Architecture is the one that images are built for and the disk has packages of, or empty.
func (i Inventory) Architecture() string {
	for _, p := range i.Packages {
		if name := cmp.Or(p.Architecture, arch.Default); slices.Contains(arch.Names(), name) {
			return name
		}
	}
	return ""
}

// Package is an installed package of dpkg's.
type Package struct {
	Name          string `json:"name"`
	Version       string `json:"version"`
	Architecture  string `json:"architecture"` // "amd64", "all"
	Source        string `json:"source"`       // the source package that it was built from
	SourceVersion string `json:"sourceVersion"`
	Maintainer    string `json:"maintainer,omitempty"`
}

// Disk is what the documents are about.
type Disk struct {
	Name    string    // of its image
	Digest  string    // "sha256:…"
	Created time.Time // as the image says; zero stands for 1970
}

// Save writes both documents into dir, each in one piece or not at all. Where no
// packages are known, it removes those that an earlier image left there.
func Save(dir string, d Disk, of Inventory) error {
	spdxFile, cycloneDXFile := filepath.Join(dir, SPDXFile), filepath.Join(dir, CycloneDXFile)
	if of.None != "" {
		var failed []error
		for _, name := range []string{spdxFile, cycloneDXFile} {
			if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
				failed = append(failed, err)
			}
		}
		return errors.Join(failed...)
	}
	err := host.WriteFile(spdxFile, 0o644, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", " ")
		e.SetEscapeHTML(false)
		return e.Encode(of.spdx(d))
	})
	return errors.Join(err, host.WriteFile(cycloneDXFile, 0o644, func(w io.Writer) error {
		return cyclonedx.NewBOMEncoder(w, cyclonedx.BOMFileFormatJSON).SetPretty(true).SetEscapeHTML(false).
			EncodeVersion(of.cycloneDX(d), cyclonedx.SpecVersion1_6)
	}))
}

// home begins the URIs of documents, as SPDX recommends: they lead nowhere.
const home = "https://github.com/netgroup-polito/diskforge/sbom/"

// id is a UUID of version 5 (RFC 9562).
func (d Disk) id() uuid.UUID { return uuid.NewSHA1(uuid.NameSpaceURL, []byte(home+d.Digest)) }

func (d Disk) created() string {
	if d.Created.IsZero() {
		d.Created = time.Unix(0, 0)
	}
	return d.Created.UTC().Format(time.RFC3339)
}

func (d Disk) name() string { return cmp.Or(d.Name, "disk") }

// purl is the package's URL (package-url.github.io): the source package is named
// as Syft and Grype do, for Debian's security tracker knows no other.
func (i Inventory) purl(p Package) string {
	more := map[string]string{"arch": p.Architecture}
	if i.System != "" {
		more["distro"] = strings.Trim(i.System+"-"+i.Version, "-")
	}
	switch {
	case p.SourceVersion != p.Version:
		more["upstream"] = p.Source + "@" + p.SourceVersion
	case p.Source != p.Name:
		more["upstream"] = p.Source
	}
	// A system without a name is "linux" (os-release(5)).
	return packageurl.NewPackageURL("deb", cmp.Or(i.System, "linux"), p.Name, p.Version, packageurl.QualifiersFromMap(more), "").ToString()
}

const unknown = "NOASSERTION"

// notInIDs is what an SPDX id does not have.
var notInIDs = regexp.MustCompile(`[^A-Za-z0-9.-]`)

func (i Inventory) spdx(d Disk) *spdx.Document {
	image := pkg("Image", d.name(), d.Digest)
	image.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: strings.TrimPrefix(d.Digest, "sha256:")}}
	image.PrimaryPackagePurpose = "CONTAINER"
	doc := &spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT",
		DocumentName: d.name(), DocumentNamespace: home + d.id().String(),
		CreationInfo: &spdx.CreationInfo{Created: d.created(), Creators: []common.Creator{{CreatorType: "Tool", Creator: "diskforge"}}},
		Packages:     []*spdx.Package{image},
	}
	relate := func(a, is, b string) {
		doc.Relationships = append(doc.Relationships, &spdx.Relationship{
			RefA: common.MakeDocElementID("", a), RefB: common.MakeDocElementID("", b), Relationship: is,
		})
	}
	contain := func(p *spdx.Package) {
		doc.Packages = append(doc.Packages, p)
		relate("Image", common.TypeRelationshipContains, string(p.PackageSPDXIdentifier))
	}
	relate("DOCUMENT", common.TypeRelationshipDescribe, "Image")
	if i.System != "" {
		system := pkg("OperatingSystem", i.System, i.Version)
		system.PrimaryPackagePurpose = "OPERATING-SYSTEM"
		contain(system)
	}
	for _, installed := range i.Packages {
		purl := i.purl(installed)
		hash := sha256.Sum256([]byte(purl)) // tells libstdc++6 from libstdc--6
		p := pkg(fmt.Sprintf("Package-%s-%x", notInIDs.ReplaceAllString(installed.Name, "-"), hash[:6]), installed.Name, installed.Version)
		p.PackageSourceInfo = "built package from: " + installed.Source + " " + installed.SourceVersion
		p.PackageExternalReferences = []*spdx.PackageExternalReference{{
			Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: purl,
		}}
		if installed.Maintainer != "" {
			maintainer := strings.NewReplacer("<", "(", ">", ")").Replace(installed.Maintainer)
			p.PackageSupplier = &common.Supplier{SupplierType: "Organization", Supplier: maintainer}
		}
		contain(p)
	}
	return doc
}

// pkg is a package of which nothing more is said.
func pkg(id, name, version string) *spdx.Package {
	return &spdx.Package{
		PackageSPDXIdentifier: common.ElementID(id), PackageName: name, PackageVersion: version, PackageDownloadLocation: unknown,
		PackageLicenseConcluded: unknown, PackageLicenseDeclared: unknown, PackageCopyrightText: unknown,
	}
}

func (i Inventory) cycloneDX(d Disk) *cyclonedx.BOM {
	bom := cyclonedx.NewBOM()
	bom.SerialNumber = d.id().URN()
	bom.Metadata = &cyclonedx.Metadata{
		Timestamp: d.created(),
		Tools:     &cyclonedx.ToolsChoice{Components: &[]cyclonedx.Component{{Type: cyclonedx.ComponentTypeApplication, Name: "diskforge"}}},
		Component: &cyclonedx.Component{
			Type: cyclonedx.ComponentTypeContainer, BOMRef: "image", Name: d.name(), Version: d.Digest,
			Hashes: &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: strings.TrimPrefix(d.Digest, "sha256:")}},
		},
	}
	all := []cyclonedx.Component{}
	if i.System != "" {
		all = append(all, cyclonedx.Component{Type: cyclonedx.ComponentTypeOS, BOMRef: "system", Name: i.System, Version: i.Version})
	}
	for _, p := range i.Packages {
		purl := i.purl(p)
		all = append(all, cyclonedx.Component{
			Type: cyclonedx.ComponentTypeLibrary, BOMRef: purl, Name: p.Name, Version: p.Version, Publisher: p.Maintainer, PackageURL: purl,
		})
	}
	bom.Components = &all
	return bom
}
