package oci_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

func TestADiskComesOutOfItsLayoutAsItWentIn(t *testing.T) {
	t.Parallel()
	raw := rawDisk(t, 6)
	for what, disk := range map[string]string{"raw": raw, "qcow2": qcow2(t, raw), "compressed": qcow2(t, raw, "-c")} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			m := metadata
			m.Annotations = map[string]string{oci.AnnotationInputs: "sha256:" + strings.Repeat("c", 64), oci.AnnotationGuest: "Ubuntu 24.04"}
			dir, made := pack(t, disk, m)
			cache := filepath.Join(t.TempDir(), "cache")
			got, err := oci.Extract(t.Context(), dir, oci.Want{Digest: made.Digest}, cache, progress.Discard)
			require.NoError(t, err)
			want, err := os.ReadFile(disk)
			require.NoError(t, err)
			content, err := os.ReadFile(got.Path)
			require.NoError(t, err)
			assert.True(t, bytes.Equal(want, content))
			assert.Equal(t, made.DiskDigest, got.Digest)
			assert.Equal(t, made.Digest, got.Manifest)
			assert.Equal(t, map[bool]string{true: "raw", false: "qcow2"}[what == "raw"], got.Format)
			assert.Equal(t, int64(len(want)), got.Size)
			assert.Equal(t, metadata.Created, got.Created)
			assert.Equal(t, []string{"Ubuntu 24.04", metadata.BaseName, "ubuntu-base"}, got.Hints)
			assert.Equal(t, m.Annotations[oci.AnnotationInputs], got.Inputs)
			assert.False(t, got.Cached)

			again, err := oci.Extract(t.Context(), dir, oci.Want{Inputs: got.Inputs}, cache, progress.Discard)
			require.NoError(t, err)
			assert.True(t, again.Cached)
			again.Cached = false
			assert.Equal(t, got, again)
			assert.Equal(t, []string{"disk", "disk.json"}, in(t, filepath.Dir(got.Path)))
		})
	}
}

// in lists a directory.
func in(t *testing.T, dir string) []string {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestZerosOfARawDiskTakeNoRoom(t *testing.T) {
	t.Parallel()
	disk := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, os.WriteFile(disk, make([]byte, 64<<20), 0o600))
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{0x55, 0xAA}, 510)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	dir, made := pack(t, disk, metadata)
	got, err := oci.Extract(t.Context(), dir, oci.Want{Digest: made.Digest}, t.TempDir(), progress.Discard)
	require.NoError(t, err)
	var st syscall.Stat_t
	require.NoError(t, syscall.Stat(got.Path, &st))
	assert.EqualValues(t, 64<<20, st.Size)
	assert.Less(t, st.Blocks*512, int64(1<<20))
}

func TestACachedDiskThatWasChangedIsTakenOutAgain(t *testing.T) {
	t.Parallel()
	dir, made := pack(t, qcow2(t, rawDisk(t, 3)), metadata)
	cache := t.TempDir()
	got, err := oci.Extract(t.Context(), dir, oci.Want{}, cache, progress.Discard)
	require.NoError(t, err)
	for what, spoil := range map[string]func() error{
		"its content": func() error {
			return os.WriteFile(got.Path, []byte("something else"), 0o600)
		},
		"its record": func() error { return os.WriteFile(got.Path+".json", []byte("{}"), 0o600) },
		"a link": func() error {
			return errors.Join(os.Rename(got.Path, got.Path+".moved"), os.Symlink(got.Path+".moved", got.Path))
		},
		"a beginning": func() error { return os.WriteFile(got.Path+".part", []byte("QFI"), 0o600) },
	} {
		require.NoError(t, spoil(), what)
		again, err := oci.Extract(t.Context(), dir, oci.Want{}, cache, progress.Discard)
		require.NoError(t, err, what)
		assert.Equal(t, made.DiskDigest, again.Digest)
		assert.Equal(t, what == "a beginning", again.Cached, what)
		info, err := os.Lstat(got.Path)
		require.NoError(t, err)
		assert.True(t, info.Mode().IsRegular())
	}
}

func TestAnotherImageThanTheWantedOneIsNotTaken(t *testing.T) {
	t.Parallel()
	dir, _ := pack(t, rawDisk(t, 3), metadata)
	other := "sha256:" + strings.Repeat("d", 64)
	for _, c := range []struct {
		want oci.Want
		says string
	}{{oci.Want{Digest: other}, "has the digest"}, {oci.Want{Inputs: other}, "does not say from which inputs"}} {
		cache := t.TempDir()
		_, err := oci.Extract(t.Context(), dir, c.want, cache, progress.Discard)
		require.ErrorContains(t, err, c.says)
		assert.Empty(t, in(t, cache))
	}
	_, err := oci.Extract(t.Context(), t.TempDir(), oci.Want{}, t.TempDir(), progress.Discard)
	require.ErrorContains(t, err, "has no containerdisk")
}

// file is an entry of a hostile layer.
type file struct {
	name string
	kind byte
	body []byte
	size int64 // where it is not that of the body
}

func tarOf(t testing.TB, files ...file) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: f.kind, Mode: 0o644, Size: int64(len(f.body))}
		if f.kind == tar.TypeSymlink || f.kind == tar.TypeLink {
			h.Linkname = "/etc/passwd"
		}
		if f.size != 0 {
			h.Size = f.size
		}
		require.NoError(t, w.WriteHeader(h))
		_, err := w.Write(f.body)
		require.NoError(t, err)
	}
	if len(files) > 0 && files[len(files)-1].size == 0 {
		require.NoError(t, w.Close())
	}
	return b.Bytes()
}

// stored is an image with this layer.
func stored(layer []byte, annotations string) oci.Image {
	sum := fmt.Sprintf("sha256:%x", sha256.Sum256(layer))
	return oci.Image{
		Name: "registry.example/x:1", Digest: "sha256:" + strings.Repeat("e", 64), Config: []byte(`{}`),
		Manifest: fmt.Appendf(nil, `{"layers":[{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","size":%d,"digest":%q}],"annotations":{%s}}`, len(layer), sum, annotations),
		Blob: func(v1.Descriptor) (oci.Blob, error) {
			return oci.Blob{Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil }}, nil
		},
	}
}

func smallDisk(t testing.TB) []byte {
	b, err := os.ReadFile(rawDisk(t, 1))
	require.NoError(t, err)
	return b
}

func TestOtherPeoplesLayersAreRead(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t)
	plain := tarOf(t, file{name: "./", kind: tar.TypeDir}, file{name: "./disk/", kind: tar.TypeDir}, file{name: "./disk/fedora.img", kind: tar.TypeReg, body: disk})
	var packed, modern bytes.Buffer
	g := gzip.NewWriter(&packed)
	_, _ = g.Write(plain)
	require.NoError(t, g.Close())
	z, err := zstd.NewWriter(&modern)
	require.NoError(t, err)
	_, _ = z.Write(plain)
	require.NoError(t, z.Close())
	for what, layer := range map[string][]byte{
		"plain": plain, "gzip": packed.Bytes(), "zstd": modern.Bytes(), "with a slash": tarOf(t, file{name: "/disk/disk.img", kind: tar.TypeReg, body: disk}),
	} {
		got, err := stored(layer, "").Extract(t.Context(), oci.Want{}, t.TempDir(), progress.Discard)
		require.NoError(t, err, what)
		content, err := os.ReadFile(got.Path)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(disk, content), what)
		assert.True(t, got.Created.IsZero())
		assert.Empty(t, got.Hints)
	}
}

// sparse is a layer as GNU tar -S writes it with PAX headers, of a disk of so
// many bytes that begins with head.
func sparse(t testing.TB, head []byte, size int64) []byte {
	records := ""
	for _, r := range [][2]string{{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.name", "disk/disk.img"}, {"GNU.sparse.realsize", fmt.Sprint(size)}} {
		n := len(r[0]) + len(r[1]) + 3
		n += len(fmt.Sprint(n + 2))
		records += fmt.Sprintf("%d %s=%s\n", n, r[0], r[1])
	}
	segments := fmt.Appendf(nil, "1\n0\n%d\n", len(head))
	body := append(append(segments, make([]byte, 512-len(segments))...), head...)
	layer := tarOf(t, file{name: "x", kind: tar.TypeReg, body: []byte(records)}, file{name: "disk/disk.img", kind: tar.TypeReg, body: body})
	layer[156] = tar.TypeXHeader
	sum := 0
	copy(layer[148:], "        ")
	for _, b := range layer[:512] {
		sum += int(b)
	}
	copy(layer[148:], fmt.Sprintf("%06o\x00 ", sum))
	return layer
}

func TestASparseLayerIsReadAndOneThatClaimsTerabytesIsNot(t *testing.T) {
	t.Parallel()
	head := smallDisk(t)[:512]
	got, err := stored(sparse(t, head, 1<<20), "").Extract(t.Context(), oci.Want{}, t.TempDir(), progress.Discard)
	require.NoError(t, err)
	assert.EqualValues(t, 1<<20, got.Size)

	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(tarOf(t, file{name: "disk/disk.img", kind: tar.TypeReg, body: head, size: 50 << 30}))
	require.NoError(t, z.Close())
	for what, layer := range map[string][]byte{"sparse": sparse(t, head, 2<<40), "gzip": packed.Bytes()} {
		_, err := stored(layer, "").Extract(t.Context(), oci.Want{}, t.TempDir(), progress.Discard)
		require.ErrorContains(t, err, "claims to hold a disk of", what+": its header alone is enough")
	}
}

func TestAHostileLayerIsRefusedAndLeavesNothing(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t)
	good := file{name: "disk/disk.img", kind: tar.TypeReg, body: disk}
	backed := qcow2(t, rawDisk(t, 1))
	qemuImg(t, "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", backed)
	evil, err := os.ReadFile(backed)
	require.NoError(t, err)
	many := make([]file, 40)
	for i := range many {
		many[i] = file{name: "disk/", kind: tar.TypeDir}
	}
	cases := map[string]struct {
		layer       []byte
		annotations string
		says        string
	}{
		"two disks":           {layer: tarOf(t, good, file{name: "disk/b", kind: tar.TypeReg, body: disk}), says: "a second file"},
		"no disk":             {layer: tarOf(t, file{name: "disk/", kind: tar.TypeDir}), says: "no file in its disk/"},
		"not a tar":           {layer: []byte(strings.Repeat("x", 2000)), says: "unpacking its layer"},
		"empty":               {layer: nil, says: "no file in its disk/"},
		"a way out":           {layer: tarOf(t, file{name: "disk/../../etc/x", kind: tar.TypeReg, body: disk}), says: "a file of the name"},
		"a way up":            {layer: tarOf(t, file{name: "../disk/x", kind: tar.TypeReg, body: disk}), says: "a file of the name"},
		"a link":              {layer: tarOf(t, file{name: "disk/disk.img", kind: tar.TypeSymlink}), says: "which is no file in disk/"},
		"a hard link":         {layer: tarOf(t, file{name: "disk/disk.img", kind: tar.TypeLink}), says: "which is no file in disk/"},
		"a device":            {layer: tarOf(t, file{name: "disk/disk.img", kind: tar.TypeBlock}), says: "which is no file in disk/"},
		"a folder deeper":     {layer: tarOf(t, file{name: "disk/a/disk.img", kind: tar.TypeReg, body: disk}), says: "which is no file in disk/"},
		"another file":        {layer: tarOf(t, good, file{name: "etc/passwd", kind: tar.TypeReg, body: disk}), says: "which is no file in disk/"},
		"many entries":        {layer: tarOf(t, many...), says: "more than 16 files"},
		"an absurd size":      {layer: tarOf(t, file{name: "disk/disk.img", kind: tar.TypeReg, size: 3 << 40}), says: "claims to hold a disk of 3072 GiB"},
		"cut short":           {layer: tarOf(t, file{name: "disk/disk.img", kind: tar.TypeReg, body: disk, size: 2 << 20}), says: "unexpected EOF"},
		"a broken gzip":       {layer: append([]byte{0x1f, 0x8b}, make([]byte, 40)...), says: "gzip"},
		"no disk image":       {layer: tarOf(t, file{name: "disk/disk.img", kind: tar.TypeReg, body: []byte("#!/bin/sh")}), says: "cannot be used"},
		"a backing file":      {layer: tarOf(t, file{name: "disk/disk.qcow2", kind: tar.TypeReg, body: evil}), says: "backing file"},
		"another disk":        {layer: tarOf(t, good), annotations: fmt.Sprintf(`%q:"sha256:%064d"`, oci.AnnotationDisk, 0), says: "its disk has the digest"},
		"no digest of a disk": {layer: tarOf(t, good), annotations: fmt.Sprintf(`%q:"x"`, oci.AnnotationDisk), says: "is no digest"},
	}
	for what, c := range cases {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			cache := t.TempDir()
			_, err := stored(c.layer, c.annotations).Extract(t.Context(), oci.Want{}, cache, progress.Discard)
			require.ErrorContains(t, err, c.says)
			_, ok := failure.In(err)
			assert.True(t, ok, "not an error for people")
			assert.NotContains(t, err.Error(), "\n")
			assert.NotContains(t, err.Error(), cache)
			assert.Empty(t, in(t, cache))
		})
	}
	for what, manifest := range map[string]string{"no layers": `{}`, "two layers": `{"layers":[{},{}]}`, "a digest that is a path": `{"layers":[{"digest":"sha256:../../x"}]}`, "no JSON": `[`} {
		s := stored(nil, "")
		s.Manifest = []byte(manifest)
		cache := t.TempDir()
		_, err := s.Extract(t.Context(), oci.Want{}, cache, progress.Discard)
		require.ErrorContains(t, err, "is no containerdisk", what)
		assert.Empty(t, in(t, cache))
	}
}

func TestADamagedLayerOfALayoutIsNotTaken(t *testing.T) {
	t.Parallel()
	dir, made := pack(t, rawDisk(t, 3), metadata)
	layer := filepath.Join(dir, "blobs/sha256", strings.TrimPrefix(made.Layer.Digest.String(), "sha256:"))
	b, err := os.ReadFile(layer)
	require.NoError(t, err)
	b[len(b)/2] ^= 1
	require.NoError(t, os.WriteFile(layer, b, 0o600))
	cache := t.TempDir()
	_, err = oci.Extract(t.Context(), dir, oci.Want{}, cache, progress.Discard)
	require.Error(t, err)
	assert.Empty(t, in(t, cache))
}

// stopper cancels as soon as something was read.
type stopper struct{ cancel context.CancelCauseFunc }

func (s stopper) Bytes(done, _ int64) {
	if done > 1<<20 {
		s.cancel(errors.New("stopped by the test"))
	}
}
func (stopper) Activity(string) {}
func (stopper) Warn(string)     {}

func TestTheEndOfTheContextLeavesNoDisk(t *testing.T) {
	t.Parallel()
	dir, _ := pack(t, qcow2(t, rawDisk(t, 24), "-c"), metadata)
	ctx, cancel := context.WithCancelCause(t.Context())
	cache := t.TempDir()
	_, err := oci.Extract(ctx, dir, oci.Want{}, cache, stopper{cancel})
	require.EqualError(t, err, "stopped by the test")
	assert.Empty(t, in(t, cache))
}

func FuzzExtract(f *testing.F) {
	disk := bytes.Repeat([]byte{1}, 512)
	f.Add(tarOf(f, file{name: "disk/x", kind: tar.TypeReg, body: disk}), "")
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0}, `"`+oci.AnnotationDisk+`":""`)
	f.Add([]byte{0x1f, 0x8b}, `"org.opencontainers.image.created":"x"`)
	f.Fuzz(func(t *testing.T, layer []byte, annotations string) {
		cache := t.TempDir()
		got, err := stored(layer, annotations).Extract(t.Context(), oci.Want{}, cache, progress.Discard)
		if err != nil {
			require.Empty(t, in(t, cache))
			return
		}
		require.FileExists(t, got.Path)
		require.Equal(t, []string{"disk", "disk.json"}, in(t, filepath.Dir(got.Path)))
	})
}
