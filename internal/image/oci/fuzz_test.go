package oci

import (
	"fmt"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":1,` +
		`"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}]}`))
	f.Add([]byte(`{"manifests":[{"digest":"../../x:00","size":-1}]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		index, err := parseIndex(b)
		if (index == nil) == (err == nil) {
			t.Fatal("neither an index nor an error")
		}
		if err == nil {
			for _, d := range index.Manifests {
				refuseOutside(t, d)
			}
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"config":{"mediaType":"application/vnd.oci.image.config.v1+json"},` +
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","size":3,"digest":"sha256:00"}]}`))
	f.Add([]byte(`{"config":{"mediaType":"application/vnd.oci.image.config.v1+json"},"layers":[{"mediaType":` +
		`"application/vnd.oci.image.layer.v1.tar","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		if err == nil {
			refuseOutside(t, m.Layers[0])
		}
	})
}

// refuseOutside opens a blob of an empty folder: whatever its digest says,
// there is nothing that it may find.
func refuseOutside(t *testing.T, d v1.Descriptor) {
	if b, err := (&Files{dir: t.TempDir()}).blob(d); err == nil {
		b.Close()
		t.Fatalf("opened %v in an empty folder", d)
	}
}

func TestOfAnIndexTheImageForAmd64IsTaken(t *testing.T) {
	t.Parallel()
	entry := func(digit, platform string) string {
		if platform != "" {
			os, arch, _ := strings.Cut(platform, "/")
			platform = fmt.Sprintf(`,"platform":{"os":%q,"architecture":%q}`, os, arch)
		}
		return fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":1,"digest":"sha256:%s"%s}`, strings.Repeat(digit, 64), platform)
	}
	attestation := `{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":1,"digest":"sha256:` + strings.Repeat("f", 64) +
		`","annotations":{"vnd.docker.reference.type":"attestation-manifest"},"platform":{"os":"unknown","architecture":"unknown"}}`
	for _, c := range []struct {
		entries []string
		named   string
		want    string
	}{
		{[]string{entry("1", "linux/arm64"), entry("2", "linux/amd64"), entry("3", "linux/amd64")}, "", "2"},
		{[]string{entry("1", "linux/arm64"), entry("2", "linux/amd64")}, "arm64", "1"},
		{[]string{attestation, entry("1", "linux/arm64"), entry("2", "linux/s390x")}, "", "1"},
		{[]string{entry("1", "")}, "", "1"},
		{[]string{entry("1", "")}, "arm64", "1"},
	} {
		d, index, err := choose([]byte(`{"manifests":[`+strings.Join(c.entries, ",")+`]}`), c.named)
		require.NoError(t, err)
		assert.Equal(t, strings.Repeat(c.want, 64), d.Digest.Hex)
		assert.NotContains(t, index.Platforms, "unknown/unknown")
	}
	_, _, err := choose([]byte(`{"manifests":[`+attestation+`]}`), "")
	require.ErrorContains(t, err, "lists no image")
	_, _, err = choose([]byte(`{"manifests":[`+entry("1", "linux/amd64")+`]}`), "arm64")
	require.ErrorContains(t, err, "no image for linux and arm64, by which nodes and CDI choose, but for linux/amd64")
}

func FuzzChoose(f *testing.F) {
	f.Add([]byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":1,"digest":"sha256:00"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, index, err := choose(b, "")
		if (index == nil) == (err == nil) {
			t.Fatal("neither an image nor an error")
		}
	})
}
