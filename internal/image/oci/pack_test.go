package oci_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

var metadata = oci.Metadata{
	Created:      time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC),
	Architecture: "amd64",
	Title:        "ubuntu-base",
	Version:      "v1",
	BaseName:     "https://images.example/noble.img",
	BaseDigest:   "sha256:" + strings.Repeat("b", 64),
	InstanceType: "u1.medium",
	Preference:   "ubuntu",
	Annotations:  map[string]string{"example.input.digest": "sha256:1"},
}

// rawDisk writes a raw disk of n MiB with a boot sector, the same for the same
// n: a third text-like, a third random, a third zeros.
func rawDisk(t testing.TB, mib int) string {
	b := make([]byte, mib<<20)
	third := len(b) / 3
	for i := range third {
		b[i] = "containerdisk\n"[i%14]
	}
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(b[third : 2*third])
	copy(b[446:], make([]byte, 64)) // no partitions
	copy(b[510:], "\x55\xAA")
	path := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, os.WriteFile(path, b, 0o600))
	return path
}

func qemuImg(t testing.TB, args ...string) {
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// qcow2 converts a raw disk; options such as -c come first.
func qcow2(t testing.TB, raw string, options ...string) string {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	qemuImg(t, append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, options...), raw, path)...)
	return path
}

func pack(t testing.TB, disk string, m oci.Metadata) (string, oci.Result) {
	dir := filepath.Join(t.TempDir(), "layout")
	result, err := oci.Pack(t.Context(), disk, dir, m, progress.Discard)
	require.NoError(t, err)
	return dir, result
}

func TestTheImageIsWhatKubeVirtAndCDIExpect(t *testing.T) {
	t.Parallel()
	raw := rawDisk(t, 6)
	for _, c := range []struct {
		what, disk, name string
		layer            types.MediaType
	}{
		{"compressed qcow2", qcow2(t, raw, "-c", "-o", "compression_type=zstd"), "disk.qcow2", types.OCIUncompressedLayer},
		{"plain qcow2", qcow2(t, raw), "disk.qcow2", types.OCILayer},
		{"raw", raw, "disk.img", types.OCILayer},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			dir, result := pack(t, c.disk, metadata)
			loaded, err := oci.Load(dir)
			require.NoError(t, err)
			image := byOthers(t, dir, result.Digest)
			checkDigests(t, image)

			content, err := os.ReadFile(c.disk)
			require.NoError(t, err)
			assert.Equal(t, fmt.Sprintf("sha256:%x", sha256.Sum256(content)), result.DiskDigest)
			assert.EqualValues(t, 6<<20, result.VirtualSize)
			assert.Equal(t, c.layer, result.Layer.MediaType)
			checkLayer(t, image, "disk/"+c.name, content)
			checkManifest(t, image, result)
			checkConfig(t, image)
			assert.Equal(t, loaded.Digest, result.Digest)
			assert.Equal(t, loaded.Layer, result.Layer)
			assert.Equal(t, loaded.DiskDigest, result.DiskDigest)
		})
	}
}

// byOthers is the image in a layout as go-containerregistry reads it.
func byOthers(t *testing.T, dir, digest string) v1.Image {
	index, err := layout.ImageIndexFromPath(dir)
	require.NoError(t, err)
	hash, err := v1.NewHash(digest)
	require.NoError(t, err)
	image, err := index.Image(hash)
	require.NoError(t, err)
	return image
}

// checkDigests does what crane validate does, whose full check knows gzip
// layers only.
func checkDigests(t *testing.T, image v1.Image) {
	require.NoError(t, validate.Image(image, validate.Fast))
	layers, err := image.Layers()
	require.NoError(t, err)
	require.Len(t, layers, 1)
	digest, err := layers[0].Digest()
	require.NoError(t, err)
	config, err := image.ConfigFile()
	require.NoError(t, err)
	for want, open := range map[v1.Hash]func() (io.ReadCloser, error){
		digest: layers[0].Compressed, config.RootFS.DiffIDs[0]: layers[0].Uncompressed,
	} {
		rc, err := open()
		require.NoError(t, err)
		got, _, err := v1.SHA256(rc)
		require.NoError(t, errors.Join(err, rc.Close()))
		assert.Equal(t, want, got)
	}
}

func checkLayer(t *testing.T, image v1.Image, name string, disk []byte) {
	layers, err := image.Layers()
	require.NoError(t, err)
	require.Len(t, layers, 1)
	rc, err := layers[0].Uncompressed()
	require.NoError(t, err)
	defer rc.Close()
	in := tar.NewReader(rc)
	dir, err := in.Next()
	require.NoError(t, err)
	assert.Equal(t, "disk/", dir.Name)
	assert.EqualValues(t, tar.TypeDir, dir.Typeflag)
	assert.EqualValues(t, 0o555, dir.Mode)
	file, err := in.Next()
	require.NoError(t, err)
	assert.Equal(t, name, file.Name)
	assert.EqualValues(t, tar.TypeReg, file.Typeflag)
	assert.EqualValues(t, 0o444, file.Mode)
	for _, h := range []*tar.Header{dir, file} {
		assert.Equal(t, 107, h.Uid)
		assert.Equal(t, 107, h.Gid)
		assert.Zero(t, h.ModTime.Unix())
	}
	got, err := io.ReadAll(in)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(disk, got), "the disk in the layer is another")
	_, err = in.Next()
	assert.Equal(t, io.EOF, err, "nothing else may be in the layer")
}

func checkManifest(t *testing.T, image v1.Image, result oci.Result) {
	m, err := image.Manifest()
	require.NoError(t, err)
	assert.Equal(t, types.OCIManifestSchema1, m.MediaType)
	assert.Equal(t, types.OCIConfigJSON, m.Config.MediaType)
	assert.Equal(t, map[string]string{
		"org.opencontainers.image.created":     "2026-05-01T12:00:00Z",
		"org.opencontainers.image.title":       "ubuntu-base",
		"org.opencontainers.image.version":     "v1",
		oci.AnnotationBase:                     metadata.BaseName, // no image's reference
		"org.opencontainers.image.base.digest": metadata.BaseDigest,
		"example.input.digest":                 "sha256:1",
		oci.AnnotationDisk:                     result.DiskDigest,
	}, m.Annotations)
}

func checkConfig(t *testing.T, image v1.Image) {
	c, err := image.ConfigFile()
	require.NoError(t, err)
	assert.Equal(t, "linux", c.OS)
	assert.Equal(t, "amd64", c.Architecture)
	assert.Equal(t, metadata.Created, c.Created.Time)
	assert.Equal(t, "ubuntu-base", c.Config.Labels["org.opencontainers.image.title"])
	assert.Equal(t, []string{
		"INSTANCETYPE_KUBEVIRT_IO_DEFAULT_INSTANCETYPE=u1.medium",
		"INSTANCETYPE_KUBEVIRT_IO_DEFAULT_PREFERENCE=ubuntu",
	}, c.Config.Env)
}

func TestTheSameDiskAndMetadataMakeTheSameDigest(t *testing.T) {
	t.Parallel()
	disk := rawDisk(t, 6)
	_, first := pack(t, disk, metadata)
	require.NoError(t, os.Chtimes(disk, time.Now(), time.Now().Add(-time.Hour)))
	noted := metadata
	noted.Reference, noted.VerifiedDisk = "registry.example/a:1", first.DiskDigest
	_, second := pack(t, disk, noted)
	assert.Equal(t, first, second)

	// Written down, so that a library whose output changes is noticed: every
	// image packed from then on would be another than before.
	assert.Equal(t, "sha256:27e37933c3d5214ce054925038e76e657a92bdb643243d363c856196abc6c3e6", first.Digest)

	noted.Title = "another"
	_, third := pack(t, disk, noted)
	assert.Equal(t, first.Layer, third.Layer, "the layer depends on the disk alone")
	assert.NotEqual(t, first.Digest, third.Digest)
}

func TestTheLayoutRemembersItsReferenceAndWhetherItsDiskWasBooted(t *testing.T) {
	t.Parallel()
	disk := rawDisk(t, 1)
	dir, result := pack(t, disk, metadata)
	layout, err := oci.Load(dir)
	require.NoError(t, err)
	assert.False(t, layout.Verified)
	assert.Empty(t, layout.Reference)

	m := metadata
	m.Reference, m.VerifiedDisk = "registry.example/a:1", result.DiskDigest
	dir, _ = pack(t, disk, m)
	layout, err = oci.Load(dir)
	require.NoError(t, err)
	assert.True(t, layout.Verified)
	assert.Equal(t, "registry.example/a:1", layout.Reference)
	text, err := os.ReadFile(filepath.Join(dir, "index.json"))
	require.NoError(t, err)
	assert.Contains(t, string(text), `"org.opencontainers.image.ref.name": "1"`, "oras names an image of a layout by DIR:TAG")

	// The mark of another disk is no mark.
	index := filepath.Join(dir, "index.json")
	b, err := os.ReadFile(index)
	require.NoError(t, err)
	b = bytes.ReplaceAll(b, []byte(result.DiskDigest), []byte("sha256:"+strings.Repeat("0", 64)))
	require.NoError(t, os.WriteFile(index, b, 0o600))
	layout, err = oci.Load(dir)
	require.NoError(t, err)
	assert.False(t, layout.Verified)
}

// refused packs and expects an error that a person can read, and nothing left.
func refused(t *testing.T, disk string, m oci.Metadata, words string) {
	t.Helper()
	parent := t.TempDir()
	_, err := oci.Pack(t.Context(), disk, filepath.Join(parent, "layout"), m, progress.Discard)
	require.ErrorContains(t, err, words)
	_, ok := failure.In(err)
	assert.True(t, ok, "not an error for people: %v", err)
	assert.NotContains(t, err.Error(), "\n")
	left, readErr := os.ReadDir(parent)
	require.NoError(t, readErr)
	assert.Empty(t, left)
}

func TestADiskThatWasNotTheOneVerifiedIsRefused(t *testing.T) {
	t.Parallel()
	m := metadata
	m.VerifiedDisk = "sha256:" + strings.Repeat("0", 64)
	refused(t, rawDisk(t, 1), m, "not the disk that was verified")
}

func TestADiskThatNeedsAnythingButItselfIsRefused(t *testing.T) {
	t.Parallel()
	raw := rawDisk(t, 1)
	base := qcow2(t, raw)
	made := func(args ...string) string {
		path := filepath.Join(t.TempDir(), "made")
		qemuImg(t, append(append([]string{"create", "-q", "-f"}, args...), path, "1M")...)
		return path
	}
	snapshot := qcow2(t, raw)
	qemuImg(t, "snapshot", "-c", "before", snapshot)
	for words, disk := range map[string]string{
		"backing file":         made("qcow2", "-b", base, "-F", "qcow2"),
		"external data file":   made("qcow2", "-o", "data_file="+filepath.Join(t.TempDir(), "data")),
		"1 internal snapshot,": snapshot,
		"is encrypted": made("qcow2", "--object", "secret,id=s,data=abc",
			"-o", "encrypt.format=aes,encrypt.key-secret=s"),
		"a VMDK image": made("vmdk"),
		"a VDI image":  made("vdi"),
	} {
		t.Run(words, func(t *testing.T) { refused(t, disk, metadata, words) })
	}
}

func TestAFileThatIsNoDiskIsRefused(t *testing.T) {
	t.Parallel()
	file := func(content string) string {
		path := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	for _, c := range []struct{ what, disk, words string }{
		{"empty", file(""), "no disk image"},
		{"text", file(strings.Repeat("text", 128)), "no disk image"},
		{"half a sector", file(strings.Repeat("\x00", 510) + "\x55\xAA" + "half"), "ends within a sector"},
		{"magic only", file("QFI\xfb\x00\x00\x00\x03"), "truncated"},
		{"directory", t.TempDir(), "no regular file"},
		{"nothing", filepath.Join(t.TempDir(), "nothing"), "no such file"},
	} {
		t.Run(c.what, func(t *testing.T) { refused(t, c.disk, metadata, c.words) })
	}
}

func TestADamagedQcow2IsRefused(t *testing.T) {
	t.Parallel()
	for what, damage := range map[string]func(f *os.File) error{
		"truncated":         func(f *os.File) error { return f.Truncate(512 << 10) },
		"cut in the tables": func(f *os.File) error { return f.Truncate(100 << 10) },
		"not closed":        func(f *os.File) error { return write64(f, 72, 1) },
		"corrupt":           func(f *os.File) error { return write64(f, 72, 2) },
		"unknown feature":   func(f *os.File) error { return write64(f, 72, 1<<40) },
		"unknown version":   func(f *os.File) error { return write64(f, 4, 9<<32) },
		"absurd size":       func(f *os.File) error { return write64(f, 24, 1<<62) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			disk := qcow2(t, rawDisk(t, 3))
			f, err := os.OpenFile(disk, os.O_RDWR, 0)
			require.NoError(t, err)
			require.NoError(t, errors.Join(damage(f), f.Close()))
			refused(t, disk, metadata, "")
		})
	}
}

func write64(f *os.File, at int64, v uint64) error {
	_, err := f.WriteAt(binary.BigEndian.AppendUint64(nil, v), at)
	return err
}

func TestALayoutIsReplacedWhenTheNewOneIsComplete(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "out", "layout")
	require.NoError(t, os.MkdirAll(dir, 0o755)) // an empty directory is welcome
	first, err := oci.Pack(t.Context(), rawDisk(t, 1), dir, metadata, progress.Discard)
	require.NoError(t, err)
	_, err = oci.Pack(t.Context(), "/dev/null", dir, metadata, progress.Discard)
	require.Error(t, err)
	layout, err := oci.Load(dir)
	require.NoError(t, err)
	assert.Equal(t, first.Digest, layout.Digest, "a failure leaves the old one")

	second, err := oci.Pack(t.Context(), rawDisk(t, 2), dir, metadata, progress.Discard)
	require.NoError(t, err)
	layout, err = oci.Load(dir)
	require.NoError(t, err)
	assert.Equal(t, second.Digest, layout.Digest)
	assert.Equal(t, []string{"layout"}, names(t, filepath.Dir(dir)))
	assert.Len(t, names(t, filepath.Join(dir, "blobs", "sha256")), 3)
}

func names(t *testing.T, dir string) []string {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestADirectoryThatIsNoLayoutIsNeverReplaced(t *testing.T) {
	t.Parallel()
	disk := rawDisk(t, 1)
	for what, prepare := range map[string]func(t *testing.T, dir string){
		"foreign file": func(t *testing.T, dir string) {
			require.NoError(t, os.Mkdir(dir, 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o600))
		},
		"layout and a foreign file": func(t *testing.T, dir string) {
			_, err := oci.Pack(t.Context(), disk, dir, metadata, progress.Discard)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o600))
		},
		"only blobs": func(t *testing.T, dir string) { require.NoError(t, os.MkdirAll(filepath.Join(dir, "blobs"), 0o755)) },
		"several images": func(t *testing.T, dir string) {
			_, err := oci.Pack(t.Context(), disk, dir, metadata, progress.Discard)
			require.NoError(t, err)
			twice(t, dir)
		},
		"a file":        func(t *testing.T, dir string) { require.NoError(t, os.WriteFile(dir, nil, 0o600)) },
		"a broken link": func(t *testing.T, dir string) { require.NoError(t, os.Symlink("nowhere", dir)) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "layout")
			prepare(t, dir)
			before, _ := filepath.Glob(dir + "/*")
			_, err := oci.Pack(t.Context(), disk, dir, metadata, progress.Discard)
			_, ok := failure.In(err)
			require.True(t, ok, "%v", err)
			after, _ := filepath.Glob(dir + "/*")
			assert.Equal(t, before, after)
			assert.Equal(t, []string{"layout"}, names(t, filepath.Dir(dir)))
		})
	}
}

func TestWhatAKilledPackLeftIsCleared(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	left := filepath.Join(parent, ".layout.partial", "blobs", "sha256")
	require.NoError(t, os.MkdirAll(left, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(left, "layer.partial"), []byte("half a layer"), 0o600))
	dir := filepath.Join(parent, "layout")
	_, err := oci.Pack(t.Context(), rawDisk(t, 1), dir, metadata, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, []string{"layout"}, names(t, parent))
	assert.Len(t, names(t, filepath.Join(dir, "blobs", "sha256")), 3)
}

// onBytes calls itself at the first report of progress.
type onBytes func()

func (f onBytes) Bytes(int64, int64) { f() }
func (onBytes) Activity(string)      {}
func (onBytes) Warn(string)          {}

func TestTwoPacksDoNotMeetInOneDirectory(t *testing.T) {
	t.Parallel()
	dir, disk := filepath.Join(t.TempDir(), "layout"), rawDisk(t, 1)
	var second error
	_, err := oci.Pack(t.Context(), disk, dir, metadata, onBytes(func() {
		_, second = oci.Pack(t.Context(), disk, dir, metadata, progress.Discard)
	}))
	require.NoError(t, err)
	require.ErrorContains(t, second, "another diskforge is packing")
	_, err = oci.Load(dir)
	require.NoError(t, err)
}

func TestACancelledPackLeavesNothing(t *testing.T) {
	t.Parallel()
	for what, disk := range map[string]string{
		"gzip layer":  rawDisk(t, 3),
		"plain layer": qcow2(t, rawDisk(t, 3), "-c"),
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			parent, stop := t.TempDir(), errors.New("stopped by the test")
			ctx, cancel := context.WithCancelCause(t.Context())
			_, err := oci.Pack(ctx, disk, filepath.Join(parent, "layout"), metadata, onBytes(func() { cancel(stop) }))
			require.ErrorIs(t, err, stop)
			assert.Empty(t, names(t, parent))
		})
	}
}

func TestADiskThatChangesWhileItIsPackedIsRefused(t *testing.T) {
	t.Parallel()
	disk, parent := rawDisk(t, 3), t.TempDir()
	_, err := oci.Pack(t.Context(), disk, filepath.Join(parent, "layout"), metadata, onBytes(func() {
		_ = os.Chtimes(disk, time.Unix(1, 0), time.Unix(1, 0))
	}))
	require.ErrorContains(t, err, "changed while it was packed")
	assert.Empty(t, names(t, parent))
}

// TestAFullDiskIsNamedAndNothingIsLeft runs itself again with a file system of
// its own that is too small.
func TestAFullDiskIsNamedAndNothingIsLeft(t *testing.T) {
	t.Parallel()
	const inside = "DISKFORGE_TEST_SMALL_FILESYSTEM"
	if small := os.Getenv(inside); small != "" {
		for what, disk := range map[string]string{
			"gzip layer":  os.Getenv("DISKFORGE_TEST_RAW"),
			"plain layer": os.Getenv("DISKFORGE_TEST_QCOW2"),
		} {
			_, err := oci.Pack(t.Context(), disk, filepath.Join(small, "layout"), metadata, progress.Discard)
			require.ErrorContains(t, err, "no room for the layout", what)
			assert.Empty(t, names(t, small), what)
		}
		return
	}
	if exec.Command("unshare", "--map-root-user", "--mount", "true").Run() != nil {
		t.Skip("this container may not mount a small file system")
	}
	raw, small := rawDisk(t, 6), t.TempDir()
	c := exec.Command("unshare", "--map-root-user", "--mount", "sh", "-c",
		`mount -t tmpfs -o size=1M none "$1" && exec "$2" -test.run=TestAFullDiskIsNamedAndNothingIsLeft`, "sh", small, os.Args[0])
	c.Env = append(os.Environ(), inside+"="+small, "DISKFORGE_TEST_RAW="+raw, "DISKFORGE_TEST_QCOW2="+qcow2(t, raw, "-c"))
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s", out)
}
