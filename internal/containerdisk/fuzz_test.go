package containerdisk

import (
	"encoding/binary"
	"testing"
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
				refuseOutside(t, blob{t.TempDir(), d})
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
			refuseOutside(t, blob{t.TempDir(), m.Layers[0]})
		}
	})
}

// refuseOutside opens a blob of an empty folder: whatever its digest says,
// there is nothing that it may find.
func refuseOutside(t *testing.T, b blob) {
	if rc, err := b.Compressed(); err == nil {
		rc.Close()
		t.Fatalf("opened %v in an empty folder", b.desc)
	}
}

func FuzzDiskHeader(f *testing.F) {
	qcow2 := append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 104)...)
	f.Add(qcow2, int64(1<<20))
	f.Add(binary.BigEndian.AppendUint64([]byte("QFI\xfb\x00\x00\x00\x02"), 1), int64(512))
	f.Add(append(make([]byte, 510), 0x55, 0xAA), int64(512))
	f.Add([]byte("# Disk DescriptorFile\n"), int64(22))
	f.Fuzz(func(t *testing.T, head []byte, size int64) {
		format, err := recognise(head, size)
		switch {
		case err != nil:
		case format == "qcow2" && binary.BigEndian.Uint64(head[atBackingFile:]) != 0:
			t.Fatal("a backing file was accepted")
		case format == "raw" && size%512 != 0:
			t.Fatal("half a sector was accepted")
		}
	})
}
