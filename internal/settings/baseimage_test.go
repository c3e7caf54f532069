package settings_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/settings"
)

var (
	digestA = "sha256:" + strings.Repeat("a", 64)
	digestB = "sha256:" + strings.Repeat("b", 64)
)

func TestABaseMayBeAContainerdisk(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		url, checksum string
		want          settings.BaseImage
	}{
		{"oci://registry.example/lab/base:v1", digestA, settings.BaseImage{Reference: "registry.example/lab/base:v1", Digest: digestA}},
		{"oci://registry.example/lab/base@" + digestA, "", settings.BaseImage{Reference: "registry.example/lab/base@" + digestA, Digest: digestA}},
		{"oci://registry.example/lab/base:v1@" + digestA, digestA, settings.BaseImage{Reference: "registry.example/lab/base:v1@" + digestA, Digest: digestA}},
		{"oci://localhost:5000/base:v1", "inputs:" + digestB, settings.BaseImage{Reference: "localhost:5000/base:v1", Inputs: digestB}},
		{"oci://registry.example/base@" + digestA, "inputs:" + digestB, settings.BaseImage{Reference: "registry.example/base@" + digestA, Digest: digestA, Inputs: digestB}},
		{"oci:" + dir + "@" + digestA, "", settings.BaseImage{Layout: dir, Digest: digestA}},
		{"oci:" + dir, "inputs:" + digestB, settings.BaseImage{Layout: dir, Inputs: digestB}},
	} {
		got, err := from(t, map[string]string{"ISO_URL": c.url, "ISO_CHECKSUM": c.checksum, "BASE_TIMEOUT": "2h"}, nil, settings.NeedBase)
		require.NoError(t, err, c.url)
		assert.Equal(t, c.want, got.BaseImage)
		assert.True(t, got.BaseImage.IsSet())
		assert.Empty(t, got.ISOURL)
		assert.Equal(t, 2*time.Hour, got.BaseTimeout)
	}
}

func TestABaseImageIsNamedBeyondDoubt(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ url, checksum, says string }{
		{"oci://registry.example/lab/base:v1", "", "ISO_CHECKSUM: is not set, and ISO_URL has no digest"},
		{"oci:" + dir, "", "ISO_CHECKSUM: is not set"},
		{"oci://registry.example/lab/base:v1", "file:SHA256SUMS", "none of a containerdisk"},
		{"oci://registry.example/lab/base:v1", "sha512:" + strings.Repeat("a", 128), "none of a containerdisk"},
		{"oci://registry.example/lab/base:v1", "inputs:" + strings.Repeat("a", 64), "none of a containerdisk"},
		{"oci://registry.example/lab/base@" + digestA, digestB, "another digest"},
		{"oci://registry.example/lab/base", digestA, "ISO_URL: "},
		{"oci://base:v1", digestA, "ISO_URL: "},
		{"oci://me:planted@registry.example/base:v1", digestA, "REGISTRY_USER"},
		{"oci:" + filepath.Join(dir, "gone") + "@" + digestA, "", "no such file"},
		{"oci:@" + digestA, "", "names no folder"},
		{"oci:" + dir + "@sha256:abc", "", "no digest"},
		{"https://example.org/x.qcow2", "inputs:" + digestA, "only a containerdisk has"},
		{"oci://registry.example/base:v1", "inputs:" + digestA, "BASE_TIMEOUT"},
	} {
		given := map[string]string{"ISO_URL": c.url, "ISO_CHECKSUM": c.checksum}
		if c.says == "BASE_TIMEOUT" {
			given["BASE_TIMEOUT"] = "soon"
		}
		_, err := from(t, given, nil, settings.NeedBase)
		require.ErrorContains(t, err, c.says, c.url)
		assert.NotContains(t, err.Error(), "\n")
		assert.NotContains(t, err.Error(), "planted")
	}
}
