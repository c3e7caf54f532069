package oci_test

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
)

// edit changes index.json as text.
func edit(t *testing.T, dir, from, to string) {
	path := filepath.Join(dir, "index.json")
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(b), from)
	require.NoError(t, os.WriteFile(path, bytes.ReplaceAll(b, []byte(from), []byte(to)), 0o600))
}

// twice lists the layout's image a second time.
func twice(t *testing.T, dir string) {
	path := filepath.Join(dir, "index.json")
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	var index v1.IndexManifest
	require.NoError(t, json.Unmarshal(b, &index))
	index.Manifests = append(index.Manifests, index.Manifests[0])
	b, err = json.Marshal(index)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, b, 0o600))
}

func blobPath(dir, digest string) string {
	return filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))
}

func TestALayoutThatIsNotOneContainerdiskIsRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	disk := rawDisk(t, 1)
	write := func(path, content string) { require.NoError(t, os.WriteFile(path, []byte(content), 0o600)) }
	for words, damage := range map[string]func(dir string, made oci.Result){
		"no such directory": func(dir string, _ oci.Result) { require.NoError(t, os.RemoveAll(dir)) },
		"no OCI image layout: open": func(dir string, _ oci.Result) {
			require.NoError(t, os.Remove(filepath.Join(dir, "oci-layout")))
		},
		"layout of version 1.0.0": func(dir string, _ oci.Result) {
			write(filepath.Join(dir, "oci-layout"), `{"imageLayoutVersion":"2"}`)
		},
		"its index.json": func(dir string, _ oci.Result) { write(filepath.Join(dir, "index.json"), "{") },
		"has 0 images":   func(dir string, _ oci.Result) { write(filepath.Join(dir, "index.json"), "{}") },
		"has 2 images":   func(dir string, _ oci.Result) { twice(t, dir) },
		"larger than": func(dir string, _ oci.Result) {
			write(filepath.Join(dir, "index.json"), strings.Repeat(" ", 5<<20))
		},
		"not an OCI image":   func(dir string, _ oci.Result) { edit(t, dir, "image.manifest.v1", "image.index.v1") },
		"its manifest: open": func(dir string, made oci.Result) { require.NoError(t, os.Remove(blobPath(dir, made.Digest))) },
		"cannot parse hash":  func(dir string, made oci.Result) { edit(t, dir, made.Digest, "../../etc/passwd") },
		"its layer: open": func(dir string, made oci.Result) {
			require.NoError(t, os.Remove(blobPath(dir, made.Layer.Digest.String())))
		},
		"bytes, not": func(dir string, made oci.Result) {
			require.NoError(t, os.Truncate(blobPath(dir, made.Layer.Digest.String()), 9))
		},
		"path escapes from parent": func(dir string, made oci.Result) {
			path := blobPath(dir, made.Layer.Digest.String())
			require.NoError(t, os.Rename(path, path+".away"))
			require.NoError(t, os.Symlink(path+".away", path))
		},
		"the layout is damaged": func(dir string, made oci.Result) {
			b, err := os.ReadFile(blobPath(dir, made.Digest))
			require.NoError(t, err)
			write(blobPath(dir, made.Digest), strings.Replace(string(b), "ubuntu-base", "debian-base", 1))
		},
	} {
		t.Run(words, func(t *testing.T) {
			t.Parallel()
			dir, made := pack(t, disk, metadata)
			damage(dir, made)
			_, err := oci.Load(dir)
			require.ErrorContains(t, err, words)
			_, ok := failure.In(err)
			assert.True(t, ok)
		})
	}
}

func TestADirectoryThatOnlyHoldsALayoutSaysWhereItIs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	hint := func(of string) string { return oci.LayoutHint(of, "otherwise") }
	layout := func(name string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(path, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(path, "oci-layout"), []byte(`{}`), 0o644))
		return path
	}
	assert.Equal(t, "otherwise", hint(dir))
	assert.Equal(t, "otherwise", hint(filepath.Join(dir, "missing")))
	one := layout("one")
	assert.Equal(t, "the layout is "+one, hint(dir))
	_, err := oci.Load(dir)
	require.ErrorContains(t, err, "the layout is "+one)
	assert.Equal(t, "otherwise", hint(one), "it is one itself")
	layout("two")
	assert.Equal(t, "otherwise", hint(dir), "nobody can tell which")
}

func TestADamagedLayerFailsBeforeItsLastBytesAreGivenOut(t *testing.T) {
	t.Parallel()
	dir, made := pack(t, rawDisk(t, 3), metadata)
	f, err := os.OpenFile(blobPath(dir, made.Layer.Digest.String()), os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("damage"), 1000)
	require.NoError(t, err)
	require.NoError(t, f.Close())

	layout, err := oci.Load(dir)
	require.NoError(t, err)
	blobs, err := layout.Blobs()
	require.NoError(t, err)
	rc, err := blobs[0].Compressed()
	require.NoError(t, err)
	defer rc.Close()
	n, err := io.Copy(io.Discard, rc)
	require.ErrorIs(t, err, oci.ErrDamaged)
	assert.Less(t, n, made.Layer.Size)
}
