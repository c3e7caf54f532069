package registry

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/stretchr/testify/require"
)

// A registry's pages and manifests, and what is kept of them, hold what
// somebody else wrote: they end with a checked value or an error.
func FuzzEntry(f *testing.F) {
	tag, err := name.NewTag("registry.example.org/labs/course:1")
	require.NoError(f, err)
	f.Add([]byte(`{"config":{"size":2},"layers":[{"size":9223372036854775807},{"size":9223372036854775807}],"annotations":{"a":"b"}}`))
	f.Add([]byte(`{"manifests":[{"digest":"sha256:x","size":-1}]}`))
	f.Fuzz(func(t *testing.T, manifest []byte) {
		e, err := entry(tag, "", manifest)
		if err == nil {
			require.GreaterOrEqual(t, e.Size, int64(0))
		}
	})
}

func FuzzNames(f *testing.F) {
	f.Add([]byte(`{"repositories":["labs/course","../x"]}`))
	f.Add([]byte(`[{"name":"labs/course"}]`))
	f.Fuzz(func(t *testing.T, page []byte) {
		all, err := parseNames(page, checkPath)
		if err != nil {
			return
		}
		for _, name := range all {
			require.NoError(t, checkPath(name))
		}
	})
}

func FuzzKeptImage(f *testing.F) {
	f.Add([]byte(`{"manifest":{"config":{"digest":"sha256:x"}},"config":{}}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		file := filepath.Join(t.TempDir(), "image.json")
		require.NoError(t, os.WriteFile(file, content, 0o600))
		if _, s, err := readKept(file); err == nil {
			require.Len(t, s.Digest, 71)
		}
	})
}
