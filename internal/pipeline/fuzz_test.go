package pipeline

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/netgroup-polito/diskforge/internal/host"
)

// The files are in a directory of ours, but a crash or a person may have
// changed them: whatever they hold, reading them ends with a checked record
// or an error.
func FuzzJSONFiles(f *testing.F) {
	f.Add([]byte(`{"stage":"sparsify","inputs":"i","output":"disk","digest":"sha256:` + strings.Repeat("0", 64) + `","size":1,"result":{}}`))
	f.Add([]byte(`{"digest":"sha256:` + strings.Repeat("0", 64) + `","trimmed":true,"created":"2026-03-04T05:06:07Z"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &Dir{path: t.TempDir()}
		name := d.Path(recordFile("sparsify"))
		if err := os.Mkdir(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		var err error
		if d.root, err = os.OpenRoot(d.path); err != nil {
			t.Fatal(err)
		}
		defer d.root.Close()
		if r, err := d.read("sparsify"); err == nil && (!filepath.IsLocal(r.Output) || !host.ValidDigest(r.Digest)) {
			t.Fatalf("accepted %+v", r)
		}
		disk := strings.TrimSuffix(name, ".json") // beside which that lies, too
		if err := os.WriteFile(disk, []byte("disk"), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := ReadSidecar(t.Context(), disk, func(string) {}); err != nil || !host.ValidDigest(s.Digest) {
			t.Fatalf("accepted %+v: %v", s, err)
		}
	})
}
