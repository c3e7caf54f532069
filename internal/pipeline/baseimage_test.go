package pipeline

import (
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	memory "github.com/google/go-containerregistry/pkg/registry"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

func TestAChildStartsFromItsParentsDiskInALayoutOrARegistry(t *testing.T) {
	disk := make([]byte, 1<<20)
	copy(disk[510:], "\x55\xAA")
	file := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, os.WriteFile(file, disk, 0o600))
	parent, _ := newBuild(t)
	m := provisionedWay(t, parent, aReady().base.Created).metadata()
	inputs := m.Annotations[oci.AnnotationInputs]
	layout := filepath.Join(t.TempDir(), "parent")
	made, err := oci.Pack(t.Context(), file, layout, m, progress.Discard)
	require.NoError(t, err)
	server := httptest.NewServer(memory.New(memory.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/lab/parent:v1"
	_, err = registry.Push(t.Context(), layout, ref, registry.Options{}, progress.Discard)
	require.NoError(t, err)

	for _, c := range []struct {
		image        settings.BaseImage
		name, inputs string
	}{
		{settings.BaseImage{Layout: layout, Digest: made.Digest}, "parent@" + made.Digest, made.Digest},
		{settings.BaseImage{Reference: ref, Inputs: inputs}, ref + "@" + made.Digest, inputs},
		{settings.BaseImage{Reference: ref, Digest: made.Digest}, ref + "@" + made.Digest, made.Digest},
	} {
		child, _ := newBuild(t)
		child.Config.CacheDir, child.Config.BaseImage = t.TempDir(), c.image
		w := child.way(nil)
		_, err := w.getBase(t.Context(), progress.Discard)
		require.NoError(t, err)
		base := w.base
		content, err := os.ReadFile(base.Path)
		require.NoError(t, err)
		assert.Equal(t, disk, content)
		assert.Equal(t, "raw", base.Format)
		assert.Equal(t, c.name, base.Name)
		assert.Equal(t, made.DiskDigest, base.Digest)
		assert.Equal(t, c.inputs, base.Inputs)
		assert.Equal(t, m.Created.UTC(), base.Created)
		assert.True(t, base.Known)
		assert.Equal(t, aReady().base.Guest, base.Guest, "a child's guest is its parent's")
	}
}
