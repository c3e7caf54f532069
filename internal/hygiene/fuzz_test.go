package hygiene

import (
	"archive/tar"
	"bufio"
	"bytes"
	"strings"
	"testing"

	"github.com/netgroup-polito/diskforge/internal/progress"
)

func FuzzAllowList(f *testing.F) {
	f.Add([]byte("- rule: logs\n  path: /var/log/**\n  reason: read by the course\n"))
	f.Add([]byte("- &a [*a]\n"))
	f.Add([]byte("- rule: ours\n  demands: x\n  find: [{what: x, paths: [/a/**], holds: (?m)^a}]\n"))
	f.Add([]byte("- {rule: logs, path: '[', reason: x}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := parsePolicy(text, rules)
		if err != nil {
			return
		}
		for _, e := range list.Excuses {
			if e.Rule == "" || e.Path == "" || e.Reason == "" {
				t.Fatalf("an excuse without rule, path or reason was taken: %+v", e)
			}
		}
		excuse([]Finding{{Rule: "logs", Path: "/var/log/a"}}, list.Excuses, progress.Discard)
	})
}

func FuzzDirectoryListing(f *testing.F) {
	f.Add("/2/040755/0/0/.//\n/12/120777/0/0/bin/7/\n/13/040755/0/0/boot//\n/14/100644/0/0/a\nb/10995116277760/\n\n")
	f.Add("/0/000000/0/0///\n/99999999999/100644/0/0/../x/-1/\n")
	f.Fuzz(func(t *testing.T, text string) {
		v := &extVolume{disk: &disk{}, seen: map[uint32]bool{}}
		dirs, err := v.directory(bufio.NewReader(strings.NewReader(text)), extEntry{path: "/srv"})
		for _, e := range append(v.found, dirs...) {
			name, ok := strings.CutPrefix(e.path, "/srv/")
			if !ok || name == "" || name == ".." || strings.Contains(name, "/") || e.size < 0 {
				t.Fatalf("%q gave %+v (%v)", text, e, err)
			}
		}
	})
}

func FuzzArchive(f *testing.F) {
	var seed bytes.Buffer
	w := tar.NewWriter(&seed)
	for _, h := range []*tar.Header{
		{Name: "./etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644, Size: 3},
		{Name: "../../etc/shadow", Typeflag: tar.TypeLink, Linkname: "./etc/passwd"},
	} {
		if err := w.WriteHeader(h); err != nil {
			f.Fatal(err)
		}
		if _, err := w.Write([]byte("a:b")[:h.Size]); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(seed.Bytes())
	f.Fuzz(func(t *testing.T, archive []byte) {
		tr := newTree(Options{BuildUser: "packer"}, progress.Discard)
		_ = (&disk{limit: 1 << 20}).untar(bytes.NewReader(archive), tr)
		for _, r := range rules {
			r.apply(tr)
		}
		for path := range tr.entries {
			if !strings.HasPrefix(path, "/") || strings.Contains(path+"/", "/../") {
				t.Fatalf("the path %q", path)
			}
		}
	})
}
