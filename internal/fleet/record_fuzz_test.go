package fleet

import (
	"testing"

	"github.com/netgroup-polito/diskforge/internal/host"
)

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"image": "a", "inputs": "sha256:x", "time": "2026-11-23T00:00:00Z", "result": {"digest": "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}}`), "a", "sha256:x")
	f.Fuzz(func(t *testing.T, text []byte, name, inputs string) {
		r, usable, err := parseRecord(text, &Entry{Name: name, Facts: Facts{Inputs: inputs}})
		if usable && (err != nil || inputs == "" || r.Image != name || r.Inputs != inputs || !host.ValidDigest(r.Result.Digest)) {
			t.Fatalf("%+v is used for %q", r, name)
		}
	})
}
