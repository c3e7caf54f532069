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
		list.excuse([]Finding{{Rule: "logs", Path: "/var/log/a"}}, progress.Discard)
	})
}

func FuzzDirectoryListing(f *testing.F) {
	f.Add("/2/040755/0/0/.//\n/12/120777/0/0/bin/7/\n/13/040755/0/0/boot//\n/14/100644/0/0/a\nb/10995116277760/\n\n")
	f.Add("/0/000000/0/0///\n/99999999999/100644/0/0/../x/-1/\n")
	f.Fuzz(func(t *testing.T, text string) {
		v := &extVolume{volume: &volume{}, disk: &rawDisk{}, seen: map[uint32]bool{}}
		dirs, err := v.directory(bufio.NewReader(strings.NewReader(text)), entry{path: "/srv"})
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
		_ = (&rawDisk{limit: 1 << 20}).untar(bytes.NewReader(archive), tr)
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

func FuzzPartitionTable(f *testing.F) {
	f.Add([]byte(`{"partitiontable": {"label": "gpt", "sectorsize": 512, "partitions": [{"node": "disk.raw1", "start": 2048, "size": 8192, "type": "0FC6", "uuid": "A", "name": "root"}]}}`))
	f.Add([]byte(`{"partitiontable": {"label": "dos", "sectorsize": -9223372036854775808, "partitions": [{"node": "disk.raw5", "start": 9223372036854775807, "size": 1, "type": "5"}]}}`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		const size = 1 << 30
		volumes, err := parseTable(answer, size)
		if err != nil {
			return
		}
		for _, v := range volumes {
			if v.start < 0 || v.size <= 0 || v.start > size-v.size {
				t.Fatalf("%+v lies outside the disk", v)
			}
		}
	})
}

func FuzzFstab(f *testing.F) {
	f.Add([]byte("UUID=aa-bb / ext4 defaults 0 1\nLABEL=\"home\" /home/../home ext4\n/dev/vda2 /srv\n# /dev/sda1 /boot\n"))
	f.Fuzz(func(t *testing.T, fstab []byte) {
		volumes := []volume{
			{partition: 1, tags: map[string]string{"UUID": "aa-bb", "LABEL": "home", "PARTUUID": "x", "PARTLABEL": "y"}},
			{partition: 2, tags: map[string]string{"LABEL": "home"}},
		}
		taken := map[string]bool{}
		for _, mount := range mounts(fstab, volumes) {
			if taken[mount] || !strings.HasPrefix(mount, "/") || strings.Contains(mount+"/", "/../") {
				t.Fatalf("a volume is mounted at %q", mount)
			}
			taken[mount] = true
		}
	})
}

func FuzzExtents(f *testing.F) {
	f.Add([]byte("Level Entries       Logical          Physical Length Flags\n 0/ 0   1/  1     0 -     1   1000 -   1001      2 \n"), int64(4096))
	f.Add([]byte(" 0/ 0   1/  1     0 -     1   140737488355327 -   1      2147483647 \n"), int64(65536))
	f.Fuzz(func(t *testing.T, list []byte, block int64) {
		if block <= 0 || block > maxBlock {
			return
		}
		v := &extVolume{volume: &volume{size: 1 << 30}, block: block}
		spans, err := v.parseExtents(bytes.NewReader(list), entry{})
		if err != nil {
			return
		}
		for _, s := range spans {
			if s.start < 0 || s.length <= 0 || s.start > v.size-s.length {
				t.Fatalf("%+v lies outside the volume", s)
			}
		}
	})
}

func FuzzKeyFile(f *testing.F) {
	f.Add([]byte("\x30\x82\x00\x04\x02\x01\x00\x02"))
	f.Add([]byte("\x30\x80\x02\x01\x03\x30\x80\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07"))
	f.Fuzz(func(_ *testing.T, file []byte) { isKeyFile(file) })
}
