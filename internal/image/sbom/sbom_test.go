package sbom_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/CycloneDX/cyclonedx-go"
	"github.com/package-url/packageurl-go"
	"github.com/santhosh-tekuri/jsonschema/v6"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
	"github.com/spdx/tools-golang/spdxlib"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/sbom"
)

// paragraph is a package in dpkg's list.
func paragraph(name, state, architecture, version string, more ...string) string {
	lines := append([]string{"Package: " + name, "Status: " + state, "Maintainer: A Team <team@example.org>", "Architecture: " + architecture, "Version: " + version}, more...)
	return strings.Join(append(lines, "Description: short", " and long:", " .", " Package: none"), "\n") + "\n\n"
}

const installed = "install ok installed"

// list has all that there is in a list, in no order.
func list() []string {
	return []string{
		paragraph("openssl", installed, "amd64", "3.0.17-1~deb12u3", "Multi-Arch: foreign"),
		paragraph("libstdc++6", installed, "i386", "12.2.0-14+deb12u1", "Source: gcc-12", "Multi-Arch: same"),
		paragraph("libstdc++6", installed, "amd64", "12.2.0-14+deb12u1", "Source: gcc-12", "Multi-Arch: same"),
		paragraph("bsdutils", installed, "amd64", "1:2.38.1-5+b1", "Source: util-linux (2.38.1-5)"),
		paragraph("held", "hold ok installed", "all", "1"),
		paragraph("halfway", "install ok half-configured", "all", "2"),
		paragraph("removed", "deinstall ok config-files", "all", "3"),
		"Package: never\nStatus: unknown ok not-installed\nArchitecture: amd64\n\n",
	}
}

func disk() sbom.Disk {
	return sbom.Disk{Name: "course", Digest: "sha256:" + strings.Repeat("ab", 32), Created: time.Date(2026, 11, 23, 1, 2, 3, 0, time.FixedZone("", 3600))}
}

// inventory is a Debian's with a list.
func inventory(t testing.TB, status string) sbom.Inventory {
	t.Helper()
	packages, err := sbom.Dpkg([]byte(status))
	require.NoError(t, err)
	return sbom.Inventory{System: "debian", Version: "12", Packages: packages}
}

// save writes both documents and returns them.
func save(t testing.TB, d sbom.Disk, i sbom.Inventory) (spdxText, cdxText []byte) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, sbom.Save(dir, d, i))
	for name, to := range map[string]*[]byte{sbom.SPDXFile: &spdxText, sbom.CycloneDXFile: &cdxText} {
		var err error
		*to, err = os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
	}
	return spdxText, cdxText
}

// parse reads both documents with their libraries, which check them.
func parse(t testing.TB, spdxText, cdxText []byte) (*spdx.Document, *cyclonedx.BOM) {
	t.Helper()
	doc, err := spdxjson.Read(bytes.NewReader(spdxText))
	require.NoError(t, err)
	require.NoError(t, spdxlib.ValidateDocument(doc))
	ids := map[spdx.ElementID]bool{}
	for _, p := range doc.Packages {
		assert.Regexp(t, `^[A-Za-z0-9.-]+$`, p.PackageSPDXIdentifier)
		assert.False(t, ids[p.PackageSPDXIdentifier], "%s is there twice", p.PackageSPDXIdentifier)
		ids[p.PackageSPDXIdentifier] = true
	}
	bom := new(cyclonedx.BOM)
	require.NoError(t, cyclonedx.NewBOMDecoder(bytes.NewReader(cdxText), cyclonedx.BOMFileFormatJSON).Decode(bom))
	parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(cdxText))
	require.NoError(t, err)
	require.NoError(t, schema(t).Validate(parsed))
	return doc, bom
}

// schema is CycloneDX's own, which comes with the library.
func schema(t testing.TB) *jsonschema.Schema {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/CycloneDX/cyclonedx-go").Output()
	require.NoError(t, err)
	c := jsonschema.NewCompiler()
	for name, file := range map[string]string{"bom-1.6.schema.json": "", "spdx.schema.json": "", "jsf-0.82.schema.json": "jsf-0.82.schemax.json"} {
		if file == "" {
			file = name
		}
		text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "schema", file))
		require.NoError(t, err)
		parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		require.NoError(t, err)
		require.NoError(t, c.AddResource("http://cyclonedx.org/schema/"+name, parsed))
	}
	return c.MustCompile("http://cyclonedx.org/schema/bom-1.6.schema.json")
}

func purls(bom *cyclonedx.BOM) (all []string) {
	for _, c := range *bom.Components {
		if c.PackageURL != "" {
			all = append(all, c.PackageURL)
		}
	}
	return all
}

func TestEveryPackageWhoseFilesAreThereIsListedOnce(t *testing.T) {
	t.Parallel()
	doc, bom := parse(t, first(t), second(t))
	want := []string{
		"pkg:deb/debian/bsdutils@1:2.38.1-5%2Bb1?arch=amd64&distro=debian-12&upstream=util-linux%402.38.1-5",
		"pkg:deb/debian/halfway@2?arch=all&distro=debian-12",
		"pkg:deb/debian/held@1?arch=all&distro=debian-12",
		"pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=amd64&distro=debian-12&upstream=gcc-12",
		"pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=i386&distro=debian-12&upstream=gcc-12",
		"pkg:deb/debian/openssl@3.0.17-1~deb12u3?arch=amd64&distro=debian-12",
	}
	assert.Equal(t, want, purls(bom))
	var also, from []string
	for _, p := range doc.Packages {
		for _, r := range p.PackageExternalReferences {
			also = append(also, r.Locator)
			from = append(from, p.PackageSourceInfo)
			assert.Equal(t, "NOASSERTION", p.PackageLicenseDeclared)
			assert.Equal(t, "A Team (team@example.org)", p.PackageSupplier.Supplier)
		}
	}
	assert.Equal(t, want, also)
	assert.Equal(t, "built package from: util-linux 2.38.1-5", from[0])
	assert.Equal(t, "built package from: gcc-12 12.2.0-14+deb12u1", from[3])
	p, err := packageurl.FromString(want[0])
	require.NoError(t, err)
	assert.Equal(t, "1:2.38.1-5+b1", p.Version)
	assert.Equal(t, "A Team <team@example.org>", (*bom.Components)[1].Publisher)
}

func first(t testing.TB) []byte {
	text, _ := save(t, disk(), inventory(t, strings.Join(list(), "")))
	return text
}

func second(t testing.TB) []byte {
	_, text := save(t, disk(), inventory(t, strings.Join(list(), "")))
	return text
}

func TestTheDocumentsAreAboutTheDisk(t *testing.T) {
	t.Parallel()
	doc, bom := parse(t, first(t), second(t))
	assert.Equal(t, "2026-11-23T00:02:03Z", doc.CreationInfo.Created)
	assert.Equal(t, doc.CreationInfo.Created, bom.Metadata.Timestamp)
	id := strings.TrimPrefix(bom.SerialNumber, "urn:uuid:")
	assert.Regexp(t, `^[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`, id)
	assert.True(t, strings.HasSuffix(doc.DocumentNamespace, "/"+id))
	described, err := spdxlib.GetDescribedPackageIDs(doc)
	require.NoError(t, err)
	assert.Equal(t, []spdx.ElementID{"Image"}, described)
	assert.Equal(t, "course", doc.Packages[0].PackageName)
	assert.Equal(t, strings.Repeat("ab", 32), doc.Packages[0].PackageChecksums[0].Value)
	assert.Equal(t, strings.Repeat("ab", 32), (*bom.Metadata.Component.Hashes)[0].Value)
	// What Trivy takes the distribution from.
	assert.Equal(t, []any{"debian", "12"}, []any{doc.Packages[1].PackageName, doc.Packages[1].PackageVersion})
	system := (*bom.Components)[0]
	assert.Equal(t, []any{cyclonedx.ComponentTypeOS, "debian", "12"}, []any{system.Type, system.Name, system.Version})

	other := disk()
	other.Digest = "sha256:" + strings.Repeat("cd", 32)
	other.Created, other.Name = time.Time{}, ""
	doc, bom = parse(t, first(t), second(t))
	theirs, its := save(t, other, sbom.Inventory{Packages: inventory(t, list()[0]).Packages})
	otherDoc, otherBOM := parse(t, theirs, its)
	assert.Equal(t, "1970-01-01T00:00:00Z", otherDoc.CreationInfo.Created)
	assert.NotEqual(t, bom.SerialNumber, otherBOM.SerialNumber)
	assert.NotEqual(t, doc.DocumentNamespace, otherDoc.DocumentNamespace)
	assert.Equal(t, []string{"pkg:deb/linux/openssl@3.0.17-1~deb12u3?arch=amd64"}, purls(otherBOM), "a system without a name")
}

func TestTheSameDiskHasTheSameBytes(t *testing.T) {
	t.Parallel()
	one, two := first(t), second(t)
	turned := list()
	slices.Reverse(turned)
	turned = append(turned, turned[0]) // and once more
	again, too := save(t, disk(), inventory(t, strings.TrimSpace(strings.Join(turned, "\n\n"))))
	assert.Equal(t, string(one), string(again))
	assert.Equal(t, string(two), string(too))
}

func TestAListThatDpkgDidNotWriteIsRefusedInALine(t *testing.T) {
	t.Parallel()
	many := func(n int) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(paragraph(fmt.Sprint("p", i), installed, "all", "1"))
		}
		return b.String()
	}
	_, err := sbom.Dpkg([]byte(many(20_000)))
	require.NoError(t, err)
	for what, c := range map[string]struct{ status, want string }{
		"a million packages":   {many(1_000_000), `line 200010: there are more than 20000 packages`},
		"a line of 32 MiB":     {strings.Repeat("a", 32<<20), "line 1: it is no field"},
		"a name of 32 MiB":     {paragraph(strings.Repeat("a", 32<<20), installed, "all", "1"), "is no name"},
		"a control character":  {paragraph("a\x1b[31m", installed, "all", "1"), `line 10: "a" is no name`},
		"a space in a version": {paragraph("a", installed, "all", "1 2"), `"1 2" is no name`},
		"no version":           {paragraph("a", installed, "all", ""), `"" is no name, version`},
		"no name":              {"Status: " + installed + "\nVersion: 1\nArchitecture: all", `line 3: "" is no name`},
		"no state":             {paragraph("a", "", "all", "1"), "the package a has no state"},
		"an odd source":        {paragraph("a", installed, "all", "1", "Source: b (1"), `"b (1" is no source package`},
		"binary":               {"\x00\xff\xfe", "line 1: it is no field"},
	} {
		packages, err := sbom.Dpkg([]byte(c.status))
		require.ErrorContains(t, err, c.want, what)
		assert.Less(t, len(err.Error()), 600, what)
		assert.NotContains(t, err.Error(), "\n", what)
		assert.NotContains(t, err.Error(), "\x1b", what)
		assert.Empty(t, packages, what)
	}
}

func TestAMaintainersNameIsMadeHarmless(t *testing.T) {
	t.Parallel()
	status := strings.ReplaceAll(paragraph("a", installed, "all", "1"), "A Team <", "\x1b[31mEve \u202e\xff\"\\ </script><"+strings.Repeat("x", 1<<20))
	i := inventory(t, status)
	assert.True(t, strings.HasPrefix(i.Packages[0].Maintainer, "Eve \ufffd\ufffd\"\\ </script><x"), i.Packages[0].Maintainer)
	assert.LessOrEqual(t, utf8.RuneCountInString(i.Packages[0].Maintainer), 200)
	one, two := save(t, disk(), i)
	parse(t, one, two)
}

func TestWithoutPackagesThereIsNoDocumentNotEvenTheLastOne(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, sbom.Save(dir, disk(), inventory(t, list()[0])))
	for range 2 {
		require.NoError(t, sbom.Save(dir, disk(), sbom.Inventory{None: "it has none"}))
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		assert.Empty(t, left)
	}
}

func FuzzDpkg(f *testing.F) {
	f.Add(strings.Join(list(), ""))
	f.Add("Package: a\nStatus: install ok installed\nVersion: 1%/?#@&=\nArchitecture: \"\\\nMaintainer: \xff\n")
	compiled := schema(f)
	f.Fuzz(func(t *testing.T, status string) {
		packages, err := sbom.Dpkg([]byte(status))
		if err != nil {
			return
		}
		one, two := save(t, disk(), sbom.Inventory{System: "debian", Packages: packages})
		doc, err := spdxjson.Read(bytes.NewReader(one))
		require.NoError(t, err)
		require.NoError(t, spdxlib.ValidateDocument(doc))
		var parsed any
		require.NoError(t, json.Unmarshal(two, &parsed))
		require.NoError(t, compiled.Validate(parsed))
		for i, c := range parsed.(map[string]any)["components"].([]any)[1:] {
			p, err := packageurl.FromString(c.(map[string]any)["purl"].(string))
			require.NoError(t, err)
			require.Equal(t, packages[i].Version, p.Version)
		}
	})
}
