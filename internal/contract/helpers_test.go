package contract_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

const mib = 1 << 20

func qemuImg(t testing.TB, args ...string) {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// rawDisk is a raw disk of 8 MiB with a partition table, 3 MiB of text and half
// a MiB of noise in it.
func rawDisk() []byte {
	b := make([]byte, 8*mib)
	copy(b[446:], []byte{0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0})
	b[0], b[510], b[511] = 0xeb, 0x55, 0xaa // boot code
	copy(b[mib:], strings.Repeat("the guest's own data\n", 3*mib/21))
	_, _ = rand.NewChaCha8([32]byte{}).Read(b[5*mib : 5*mib+mib/2])
	return b
}

// converted are the disks of qcow2Disk by their arguments, each made once.
var converted sync.Map

// qcow2Disk converts rawDisk.
func qcow2Disk(t testing.TB, args ...string) []byte {
	t.Helper()
	if b, ok := converted.Load(strings.Join(args, " ")); ok {
		return bytes.Clone(b.([]byte))
	}
	dir := t.TempDir()
	raw, out := filepath.Join(dir, "raw"), filepath.Join(dir, "disk.qcow2")
	require.NoError(t, os.WriteFile(raw, rawDisk(), 0o600))
	qemuImg(t, append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), raw, out)...)
	b, err := os.ReadFile(out)
	require.NoError(t, err)
	converted.Store(strings.Join(args, " "), bytes.Clone(b))
	return b
}

// item is an entry of a layer.
type item struct {
	tar.Header
	content []byte
}

func dir(name string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o555, Uid: 107, Gid: 107, ModTime: time.Unix(0, 0)}}
}

func file(name string, content []byte) item {
	return item{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o444, Uid: 107, Gid: 107, ModTime: time.Unix(0, 0), Size: int64(len(content))}, content}
}

func archived(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		require.NoError(t, w.WriteHeader(&i.Header))
		_, err := w.Write(i.content)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// stored is a layer as a registry has it.
type stored struct {
	raw, packed []byte
	mediaType   types.MediaType
}

func plainLayer(raw []byte) stored { return stored{raw, raw, types.OCIUncompressedLayer} }

func gzipLayer(t testing.TB, raw []byte) stored {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	require.NoError(t, err)
	_, err = w.Write(raw)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return stored{raw, b.Bytes(), types.OCILayer}
}

func zstdLayer(t testing.TB, raw []byte) stored {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	return stored{raw, w.EncodeAll(raw, nil), types.OCILayerZStd}
}

// made is an image to write; the zero value of a field is as diskforge makes it.
type made struct {
	layers                   []stored
	manifestType, configType types.MediaType
	config                   v1.ConfigFile
	annotations              map[string]string
	platform                 *v1.Platform
}

// contract is an image that keeps all rules.
func keepsRules(layers ...stored) made {
	m := made{
		layers: layers, manifestType: types.OCIManifestSchema1, configType: types.OCIConfigJSON,
		config:      v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers"}},
		annotations: map[string]string{"org.opencontainers.image.created": "2026-05-01T00:00:00Z"},
	}
	for _, l := range layers {
		m.config.RootFS.DiffIDs = append(m.config.RootFS.DiffIDs, digestOf(l.raw))
	}
	return m
}

func digestOf(b []byte) v1.Hash {
	sum := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// blobs returns the image's blobs by digest, and its descriptor.
func (m made) blobs(t testing.TB) (map[v1.Hash][]byte, v1.Descriptor) {
	t.Helper()
	all := map[v1.Hash][]byte{}
	add := func(mediaType types.MediaType, b []byte) v1.Descriptor {
		d := v1.Descriptor{MediaType: mediaType, Size: int64(len(b)), Digest: digestOf(b)}
		all[d.Digest] = b
		return d
	}
	config, err := json.Marshal(m.config)
	require.NoError(t, err)
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: m.manifestType, Config: add(m.configType, config), Layers: []v1.Descriptor{}, Annotations: m.annotations}
	for _, l := range m.layers {
		manifest.Layers = append(manifest.Layers, add(l.mediaType, l.packed))
	}
	raw, err := json.Marshal(manifest)
	require.NoError(t, err)
	d := add(m.manifestType, raw)
	d.Platform = m.platform
	return all, d
}

// layout writes images as an OCI layout and returns its directory.
func layout(t testing.TB, images ...made) string {
	t.Helper()
	out := t.TempDir()
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	require.NoError(t, os.MkdirAll(filepath.Join(out, "blobs", "sha256"), 0o755))
	for _, m := range images {
		blobs, d := m.blobs(t)
		for digest, b := range blobs {
			require.NoError(t, os.WriteFile(filepath.Join(out, "blobs", "sha256", digest.Hex), b, 0o600))
		}
		index.Manifests = append(index.Manifests, d)
	}
	raw, err := json.Marshal(index)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(out, "index.json"), raw, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(out, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600))
	return out
}

// TestMain looks for what inspections left behind.
func TestMain(m *testing.M) {
	temp, err := os.MkdirTemp("", "")
	if err != nil {
		panic(err)
	}
	os.Setenv("TMPDIR", temp)
	code := m.Run()
	if left, _ := filepath.Glob(temp + "/diskforge-inspect-*"); len(left) > 0 {
		fmt.Println("temporary files are left:", left)
		code = 1
	}
	os.RemoveAll(temp)
	os.Exit(code)
}

// inspected inspects a layout of the image.
func inspected(t testing.TB, m made) *contract.Report {
	t.Helper()
	r, err := contract.Layout(t.Context(), layout(t, m), progress.Discard)
	require.NoError(t, err)
	return r
}

// says returns the worst of what a check says.
func says(t testing.TB, r *contract.Report, check string) (contract.Level, string) {
	t.Helper()
	worst, detail := contract.Level(""), ""
	for _, c := range r.Checks {
		require.NotContains(t, c.Detail, "\n")
		if c.Check == check && (worst == "" || worst == contract.OK || worst == contract.Note || c.Level == contract.Error) {
			worst, detail = c.Level, c.Detail
		}
	}
	require.NotEmpty(t, worst, "there is no check %q in %+v", check, r.Checks)
	return worst, detail
}

// worse returns the results that are warnings or errors.
func worse(r *contract.Report) []contract.Result {
	found := []contract.Result{}
	for _, c := range r.Checks {
		if c.Level == contract.Warning || c.Level == contract.Error {
			found = append(found, c)
		}
	}
	return found
}

// good is a layer that keeps all rules, with the disk in it.
func good(t testing.TB, disk []byte) stored {
	return plainLayer(archived(t, dir("disk/"), file("disk/disk.qcow2", disk)))
}

// archiveOf writes a layout as a tar archive.
func archiveOf(t testing.TB, from, prefix string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "layout.tar")
	f, err := os.Create(out)
	require.NoError(t, err)
	w := tar.NewWriter(f)
	require.NoError(t, filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, _ := filepath.Rel(from, path)
		info, _ := e.Info()
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: prefix + name, Size: info.Size(), Mode: 0o644}); err != nil {
			return err
		}
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		defer in.Close()
		_, err = io.Copy(w, in)
		return err
	}))
	require.NoError(t, w.Close())
	require.NoError(t, f.Close())
	return out
}

// sparse is a layer as GNU tar -S writes it with PAX headers, of a disk of so
// many bytes that begins with head.
func sparse(t testing.TB, head []byte, size int64) []byte {
	t.Helper()
	records := ""
	for _, r := range [][2]string{{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.name", "disk/disk.img"}, {"GNU.sparse.realsize", fmt.Sprint(size)}} {
		n := len(r[0]) + len(r[1]) + 3
		records += fmt.Sprintf("%d %s=%s\n", n+len(fmt.Sprint(n+2)), r[0], r[1])
	}
	segments := fmt.Appendf(nil, "1\n0\n%d\n", len(head))
	body := append(append(segments, make([]byte, 512-len(segments))...), head...)
	layer := archived(t, file("x", []byte(records)), file("disk/disk.img", body))
	layer[156] = tar.TypeXHeader
	sum := 0
	copy(layer[148:], "        ")
	for _, b := range layer[:512] {
		sum += int(b)
	}
	copy(layer[148:], fmt.Sprintf("%06o\x00 ", sum))
	return append(archived(t, dir("disk/"))[:512], layer...)
}
