package contract

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// A layer is untrusted: whatever it holds, reading it ends, keeps within the
// limits, and all checks come to a result. qemu-img is not asked, as a process
// for each input would leave no time for inputs.
func FuzzLayer(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "disk/", Mode: 0o555})
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "disk/disk.img", Size: 3, Mode: 0o444})
	_, _ = w.Write([]byte("QFI"))
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "disk/.wh.x", Linkname: "../x"})
	_ = w.Close()
	f.Add(b.Bytes())
	var packed bytes.Buffer
	g := gzip.NewWriter(&packed)
	_, _ = g.Write(b.Bytes())
	_ = g.Close()
	f.Add(packed.Bytes())
	z, _ := zstd.NewWriter(nil)
	f.Add(z.EncodeAll(b.Bytes(), nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		at := bytes.NewReader(b)
		s := &subject{
			Report: &Report{}, limits: limits{unpacked: 1 << 20, entries: 100, names: 1 << 16, parts: 10, kept: 4096, tables: 1 << 20}, temp: t.TempDir(),
			image: oci.Image{Blob: func(v1.Descriptor) (oci.Blob, error) {
				return oci.Blob{ReaderAt: at, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}, nil
			}},
		}
		defer s.close()
		sum := sha256.Sum256(b)
		d := v1.Descriptor{MediaType: types.OCILayer, Size: int64(len(b)), Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}
		l, err := s.readLayer(t.Context(), d, progress.Discard)
		if err != nil {
			t.Fatalf("the source is sound, but: %v", err)
		}
		if len(l.entries) > 100 || len(s.copies) > maxKept {
			t.Fatalf("%d entries, %d temporary files", len(l.entries), len(s.copies))
		}
		s.layers = []*layer{l}
		s.tree = overlay(s.layers)
		if c := l.contents[diskDir]; c != nil {
			if c.copied == nil {
				if c.copied, err = s.create(); err != nil {
					t.Fatal(err)
				}
			}
			s.looked.Image = disk.Look(c, c.size)
			s.Disk = &Disk{Name: c.name}
		}
		s.Report.Layers = []Layer{l.Layer}
		s.judge()
		if len(s.Checks) == 0 {
			t.Fatal("no check came to a result")
		}
		if _, err := json.Marshal(s.Report); err != nil {
			t.Fatal(err)
		}
	})
}

// Nothing that an archived layout says makes reading it fail otherwise than
// with an error.
func FuzzArchive(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range map[string]string{
		"oci-layout": `{"imageLayoutVersion":"1.0.0"}`,
		"index.json": `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}]}`,
		"blobs/sha256/44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a": "{}",
	} {
		_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(text))})
		_, _ = w.Write([]byte(text))
	}
	_ = w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		path := t.TempDir() + "/layout.tar"
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if files, err := oci.OpenFiles(path); err == nil {
			_, _ = files.Image()
			files.Close()
		}
	})
}
