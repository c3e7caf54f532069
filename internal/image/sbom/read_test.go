package sbom_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/sbom"
)

func TestWhatIsWrittenIsReadAgain(t *testing.T) {
	t.Parallel()
	want := inventory(t, strings.Join(list(), ""))
	for i := range want.Packages {
		want.Packages[i].Maintainer = ""
	}
	got, err := sbom.ReadSPDX(first(t))
	require.NoError(t, err)
	assert.Equal(t, want, got)
}

func TestOnlyDebianPackagesAreReadOfOthersDocuments(t *testing.T) {
	t.Parallel()
	ref := func(locators ...string) string {
		var all []string
		for _, l := range locators {
			all = append(all, fmt.Sprintf(`{"externalRefs":[{"referenceLocator":%q}]}`, l))
		}
		return `{"packages":[{},` + strings.Join(all, ",") + `]}`
	}
	got, err := sbom.ReadSPDX([]byte(ref("pkg:pypi/requests@2.32.0", "cpe:2.3:a:x", "pkg:deb/ubuntu/curl@7.81.0-1ubuntu1.20?arch=amd64&distro=ubuntu-22.04",
		"pkg:deb/ubuntu/none", "pkg:deb/ubuntu/two%20words@1", "pkg:deb/ubuntu/"+strings.Repeat("x", 201)+"@1")))
	require.NoError(t, err)
	assert.Equal(t, sbom.Inventory{System: "ubuntu", Version: "22.04", Packages: []sbom.Package{
		{Name: "curl", Version: "7.81.0-1ubuntu1.20", Architecture: "amd64", Source: "curl", SourceVersion: "7.81.0-1ubuntu1.20"},
	}}, got)
	for document, want := range map[string]string{
		"": "reading an SPDX document", "[]": "reading an SPDX document", "{}": "no Debian package", ref("pkg:npm/x@1"): "no Debian package",
		ref(strings.Fields(strings.Repeat("pkg:deb/debian/a@1 ", 20_001))...): "more than 20000",
	} {
		_, err := sbom.ReadSPDX([]byte(document))
		require.ErrorContains(t, err, want)
	}
}

func FuzzReadSPDX(f *testing.F) {
	f.Add(first(f))
	f.Fuzz(func(t *testing.T, document []byte) {
		got, err := sbom.ReadSPDX(document)
		if (err == nil) != (len(got.Packages) > 0) {
			t.Fatal(got, err)
		}
	})
}
