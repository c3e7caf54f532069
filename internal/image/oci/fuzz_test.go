package oci

import (
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
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
	if b, err := (&Files{dir: t.TempDir()}).Blob(d); err == nil {
		b.Close()
		t.Fatalf("opened %v in an empty folder", d)
	}
}
