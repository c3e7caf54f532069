package disk

import (
	"bytes"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// seed returns the first bytes of a small image that qemu-img made.
func seed(f *testing.F, args ...string) []byte {
	path := filepath.Join(f.TempDir(), "seed")
	if out, err := exec.Command("qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, args...), path, "64k")...).CombinedOutput(); err != nil {
		f.Fatalf("%s", out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// The tables of an image are untrusted: whatever they say, walking them ends,
// and what it accepts lies within the file.
func FuzzQCOW2Tables(f *testing.F) {
	f.Add(seed(f, "-o", "cluster_size=512"))
	f.Add(seed(f, "-o", "cluster_size=512,compat=0.10,preallocation=full"))
	f.Add(seed(f, "-o", "cluster_size=16k,extended_l2=on"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		i := Look(r, int64(len(b)))
		if i.Damage != nil || i.VirtualSize > 1<<30 {
			return
		}
		tables, err := i.Tables(t.Context(), r, math.MaxInt64)
		if err == nil && (tables.end > int64(len(b)) || tables.end < 0 || tables.Data < 0) {
			t.Fatalf("accepted %+v of %d bytes", tables, len(b))
		}
		some, err := i.Tables(t.Context(), r, 4096)
		if err == nil && (some.Read > some.All || int64(some.Read)*i.ClusterSize > 4096) {
			t.Fatalf("read %+v for 4096 bytes", some)
		}
	})
}

// Whatever a file holds, its kind is told without a crash.
func FuzzRecognise(f *testing.F) {
	for _, s := range append(signatures, footers...) {
		f.Add(append(make([]byte, s.offset), s.magic...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		format, other := recognise(r, int64(len(b)))
		if (format == "") == (other.what == "") {
			t.Fatalf("format %q and %q", format, other.what)
		}
		if rawNeeds(r) < 0 {
			t.Fatal("a disk cannot need less than nothing")
		}
	})
}
