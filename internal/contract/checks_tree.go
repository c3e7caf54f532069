package contract

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/image/oci"
)

// qemu is the user that QEMU runs as in virt-launcher, and its group.
const qemu = 107

// treeChecks are about the files in the image.
var treeChecks = []check{
	{"names", func(s *subject, f *findings) string {
		for _, l := range s.layers {
			for _, e := range l.entries {
				relative := strings.TrimPrefix(e.Name, "./")
				switch {
				case len(f.results) == 3:
					return ""
				case slices.Contains(strings.Split(e.Name, "/"), ".."):
					f.fail("%q leads out of the image", e.Name)
				case strings.HasPrefix(e.Name, "/"):
					f.fail("%q begins with a slash: CDI does not find it", e.Name)
				case s.tree.atRoot:
				case e.Type != "directory" && strings.HasPrefix(relative, diskDir) && !strings.HasPrefix(relative, diskDir+"/"):
					f.fail("CDI takes %q for the disk, as its name begins with %q", e.Name, diskDir)
				}
			}
		}
		return "as CDI expects them"
	}},
	{"one disk", func(s *subject, f *findings) string {
		switch disks := s.tree.disks; {
		case len(disks) == 0:
			f.fail("there is nothing in %s/, where KubeVirt and CDI look for the disk", diskDir)
			return ""
		case len(disks) > 1:
			f.fail("there are %d files in %s/ (%s): KubeVirt takes one only", len(disks), diskDir, some(disks))
			return ""
		case len(s.tree.again) > 0:
			f.fail("%s is written more than once: CDI takes the first, KubeVirt the last", some(s.tree.again))
			return ""
		case s.tree.deleted:
			f.fail("a layer deletes a disk of a lower one: CDI takes the deleted")
			return ""
		}
		name := s.tree.disks[0]
		switch e, ok := s.tree.paths[name]; {
		case !ok:
			f.fail("%s is a directory, not a disk", name)
		case e.Type != "file":
			f.fail("%s is a %s, not a regular file", name, e.Type)
		case s.tree.atRoot:
			f.warn("%q lies at the root, not in %s/: KubeVirt 1.9 and later take that as an image volume, earlier releases and CDI do not", name, diskDir)
		}
		return name
	}},
	{"nothing else", func(s *subject, f *findings) string {
		if n := len(s.tree.others); n > 0 {
			f.warn("%d other paths are in the image: %s", n, some(s.tree.others))
		}
		return "in the image"
	}},
	{"readable", func(s *subject, f *findings) string {
		if dir, ok := s.tree.paths[diskDir]; ok && dir.Type == "directory" && !(dir.may(4) && dir.may(1)) {
			f.fail("%s/ (%s, %d:%d) cannot be entered by user %d, as whom QEMU runs", diskDir, dir.Mode, dir.UID, dir.GID, qemu)
		}
		for _, name := range s.tree.disks {
			if e, ok := s.tree.paths[name]; ok && e.Type == "file" && !e.may(4) {
				f.fail("%q (%s, %d:%d) cannot be read by user %d, as whom QEMU runs", name, e.Mode, e.UID, e.GID, qemu)
			}
		}
		return fmt.Sprintf("by user %d", qemu)
	}},
	{"owner and modes", func(s *subject, f *findings) string {
		usual := func(name string, mode string) {
			if e, ok := s.tree.paths[name]; ok && len(f.results) < 3 && (e.UID != qemu || e.GID != qemu || e.Mode != mode) {
				f.warn("%q is %s, %d:%d; %s, %d:%d is usual", name, e.Mode, e.UID, e.GID, mode, qemu, qemu)
			}
		}
		if _, ok := s.tree.paths[diskDir]; !ok && len(s.tree.disks) > 0 && !s.tree.atRoot {
			f.warn("there is no entry for %s/, so that its mode is left to who unpacks it", diskDir)
		}
		usual(diskDir, "0555")
		for _, name := range s.tree.disks {
			usual(name, "0444")
		}
		return "107:107, 0555 and 0444"
	}},
	// Fixed times are the Unix epoch and the date of the image.
	{"times", func(s *subject, f *findings) string {
		created, _ := time.Parse(time.RFC3339, s.Annotations[oci.AnnotationCreated])
		for _, name := range append([]string{diskDir}, s.tree.disks...) {
			e, ok := s.tree.paths[name]
			if ok && e.ModTime.Unix() != 0 && !e.ModTime.Equal(created) {
				f.warn("%q is of %s, neither 1970 nor the image's own date: packed again, the image would get another digest",
					name, e.ModTime.Format(time.RFC3339))
				break
			}
		}
		return "fixed"
	}},
}

// some quotes the first names.
func some(names []string) string {
	var quoted []string
	for _, n := range names[:min(len(names), 3)] {
		quoted = append(quoted, strconv.Quote(n))
	}
	if len(names) > 3 {
		quoted = append(quoted, "…")
	}
	return strings.Join(quoted, ", ")
}

// may says whether QEMU's user has a right (4 to read, 1 to enter).
func (e Entry) may(right uint64) bool {
	mode, _ := strconv.ParseUint(e.Mode, 8, 32)
	switch {
	case e.UID == qemu:
		mode >>= 6
	case e.GID == qemu:
		mode >>= 3
	}
	return mode&right != 0
}
