package contract

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	reference "github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// check is one rule of the contract.
type check struct {
	name string
	// applies says of which images it is asked; nil is of all.
	applies func(*subject) bool
	// find says what breaks the rule, and returns what is right where nothing
	// does.
	find func(*subject, *findings) (right string)
}

func (s *subject) hasDisk() bool { return s.Disk != nil }

func (s *subject) isQCOW2() bool {
	return s.looked.Format == disk.FormatQCOW2 && s.looked.Damage == nil
}

// findings are what one check found.
type findings struct {
	check   string
	results []Result
}

func (f *findings) note(format string, args ...any) { f.add(Note, format, args...) }
func (f *findings) warn(format string, args ...any) { f.add(Warning, format, args...) }
func (f *findings) fail(format string, args ...any) { f.add(Error, format, args...) }

const maxLine = 400 // characters of a result, which may repeat words of the image

func (f *findings) add(l Level, format string, args ...any) {
	detail := text.Cut(text.Line(fmt.Sprintf(format, args...)), maxLine)
	f.results = append(f.results, Result{Check: f.check, Level: l, Detail: detail})
}

// judge runs the checks.
func (s *subject) judge() {
	s.Checks = []Result{}
	for _, c := range checks {
		f := findings{check: c.name}
		if c.applies != nil && !c.applies(s) {
			continue
		}
		if right := c.find(s, &f); right != "" && len(f.results) == 0 {
			f.add(OK, "%s", right)
		}
		s.Checks = append(s.Checks, f.results...)
	}
}

const inDockers = "in Docker's format, not OCI's; KubeVirt and CDI take both"

const (
	qemu      = 107            // the user that QEMU runs as in virt-launcher, and its group
	overhead  = 0.06           // the part of a file system that CDI leaves free
	labelMark = "KUBEVIRT_IO_" // in the name of a variable of which CDI makes a label (pkg/importer/util.go)
)

// checks are the rules of a containerdisk. Where no source is named it is
// KubeVirt's pkg/container-disk (1.9) and CDI's pkg/importer/transport.go (1.66).
// A rule that holds for some releases only names them.
var checks = []check{
	// The manifest, the config and the layers as they are stored.

	{"manifest", nil, func(s *subject, f *findings) string {
		switch types.MediaType(s.MediaType) {
		case types.OCIManifestSchema1:
		case types.DockerManifestSchema2:
			f.warn("it is " + inDockers)
		default:
			f.fail("%q is no manifest of an image that nodes pull", s.MediaType)
		}
		return "an OCI image"
	}},
	{"index", func(s *subject) bool { return s.Index != nil }, func(s *subject, f *findings) string {
		f.note("the reference names %d images (%s); this is the one for %s, no other was inspected",
			len(s.Index.Platforms), strings.Join(s.Index.Platforms, ", "), s.Index.Taken)
		platform := strings.Split(s.Index.Taken, "/") // or "unknown"
		if len(platform) > 1 && (platform[0] != s.Config.OS || platform[1] != s.Config.Architecture) {
			f.fail("the index says that it is for %s, its config says %s/%s: nodes and CDI choose by the one and check the other",
				s.Index.Taken, s.Config.OS, s.Config.Architecture)
		}
		return ""
	}},
	{"config", nil, func(s *subject, f *findings) string {
		switch t := types.MediaType(s.Config.MediaType); {
		case t != types.OCIConfigJSON && t != types.DockerConfigJSON:
			f.fail("CDI takes no image with a config of type %q", t)
		case s.configErr != nil:
			f.fail("it cannot be read: %v", s.configErr)
		case len(s.config.RootFS.DiffIDs) != len(s.manifest.Layers):
			f.fail("it lists %d layers, the manifest %d: nodes refuse that", len(s.config.RootFS.DiffIDs), len(s.manifest.Layers))
		case t == types.DockerConfigJSON:
			f.warn("it is " + inDockers)
		}
		return "an OCI config"
	}},
	{"platform", nil, func(s *subject, f *findings) string {
		os, architecture := s.Config.OS, s.Config.Architecture
		switch os {
		case "linux":
		case "":
			f.warn("os is not set; it should be linux")
		default:
			f.fail("os is %q: nodes take only linux", os)
		}
		switch known := arch.Known(architecture); {
		case architecture == "":
			f.fail("architecture is not set: CDI 1.63 and later refuse it where one is asked for")
		case known == "":
			f.fail("architecture is %q: KubeVirt runs %s", architecture, strings.Join(arch.KubeVirt, ", "))
		case known != architecture:
			f.fail("architecture is %q, and images call it %s: CDI 1.63 and later refuse it where one is asked for", architecture, known)
		case s.looked.firmware != nil && !s.looked.firmware.Starts(known):
			f.fail("architecture is %q, but the boot loader of its disk is for %s", known, s.looked.firmware.Architecture)
		}
		return os + "/" + architecture
	}},
	{"layers", nil, func(s *subject, f *findings) string {
		switch n := len(s.layers); {
		case n == 0:
			f.fail("there is none")
			return ""
		case n > 1:
			f.warn("there are %d, one is enough", n)
		}
		for _, l := range s.layers {
			how, known := layerTypes[types.MediaType(l.MediaType)]
			switch {
			case !known:
				f.fail("nodes do not unpack a layer of type %q", l.MediaType)
			case how != l.Compression:
				f.warn("the layer says %q, but its own bytes say compression: %s", l.MediaType, l.Compression)
			case strings.Contains(l.MediaType, "docker"):
				f.warn("the layer is " + inDockers)
			}
			if l.Compression == host.Zstd {
				f.fail("the layer is compressed with zstd, which nodes unpack and CDI up to 1.66 cannot read (its issue 4277); " +
					"gzip and plain layers are read by all")
			}
		}
		return "one, of type " + s.layers[0].MediaType
	}},
	{"layer content", nil, func(s *subject, f *findings) string {
		right := "digests are right"
		for n, l := range s.layers {
			if l.err != nil {
				f.fail("layer %s cannot be unpacked: %v", l.Digest, l.err)
				continue
			}
			if i := slices.IndexFunc(l.entries, func(e Entry) bool { return e.sparse }); i >= 0 {
				f.warn("%q leaves holes out (GNU.sparse): nodes and CDI read that, few other programs do", l.entries[i].Name)
			}
			if s.configErr == nil && n < len(s.config.RootFS.DiffIDs) {
				if want := s.config.RootFS.DiffIDs[n].String(); l.diffID != want {
					f.fail("the config says that the layer unpacks to %s, it does to %s: nodes refuse that", want, l.diffID)
				}
			}
			if s.remote() && l.WholeRead == "" {
				right = "its archive can be read; its digest was not checked, as only parts were read"
			}
		}
		return right
	}},

	// The files in the image.

	{"names", nil, func(s *subject, f *findings) string {
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
	{"one disk", nil, func(s *subject, f *findings) string {
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
			f.warn("%q lies at the root, not in %s/: KubeVirt 1.9 and later take that as an image volume, "+
				"earlier releases and CDI do not", name, diskDir)
		}
		return name
	}},
	{"nothing else", nil, func(s *subject, f *findings) string {
		if n := len(s.tree.others); n > 0 {
			f.warn("%d other paths are in the image: %s", n, some(s.tree.others))
		}
		return "in the image"
	}},
	{"readable", nil, func(s *subject, f *findings) string {
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
	{"owner and modes", nil, func(s *subject, f *findings) string {
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
	{"times", nil, func(s *subject, f *findings) string {
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

	// The disk that KubeVirt would start.

	{"format", (*subject).hasDisk, func(s *subject, f *findings) string {
		i := s.looked.Image
		switch {
		case s.Disk.FileSize == 0:
			f.fail("the disk is empty")
		case i.Unpartitioned:
			f.warn("it is data without a partition table; KubeVirt takes that for a raw disk")
		case i.Format == "":
			f.fail("the disk looks like %s, KubeVirt takes qcow2 and raw", i.Other)
		case i.Damage != nil:
			f.fail("the disk is truncated or damaged: %v", i.Damage)
		case i.Dirty:
			f.fail("the disk was not closed properly")
		case i.Corrupt:
			f.fail("the disk is marked as corrupt")
		}
		return i.Format
	}},
	{"no other files", (*subject).isQCOW2, func(s *subject, f *findings) string {
		if s.looked.BackingFile != "" {
			f.fail("the disk has a backing file, %q, which would be looked for where it is started", s.looked.BackingFile)
		}
		if s.looked.ExternalData {
			f.fail("the disk keeps its data in another file, which would be looked for where it is started")
		}
		return "neither a backing file nor external data"
	}},
	{"encryption", (*subject).isQCOW2, func(s *subject, f *findings) string {
		if s.looked.Encrypted {
			f.fail("the disk is encrypted: nobody gives KubeVirt the key")
		}
		return "none"
	}},
	{"snapshots", (*subject).isQCOW2, func(s *subject, f *findings) string {
		switch {
		case s.looked.Snapshots > 0:
			f.fail("the disk holds %d internal snapshots: earlier states that anybody can read", s.looked.Snapshots)
		case s.looked.Bitmaps:
			f.warn("the disk holds bitmaps of a backup program")
		}
		return "none"
	}},
	{"virtual size", (*subject).hasDisk, func(s *subject, f *findings) string {
		i := s.looked.Image
		switch {
		case i.Damage != nil || s.Disk.FileSize == 0:
			return ""
		case i.OutOfRange():
			f.fail("%d bytes are out of range: above 0 and at most 2 TiB is usual", i.VirtualSize)
		case i.VirtualSize%512 != 0:
			f.fail("%d bytes are no whole sectors", i.VirtualSize)
		}
		gib := float64(i.VirtualSize) / (1 << 30)
		return fmt.Sprintf("%.2f GiB; a volume that CDI imports it into needs %.2f GiB",
			gib, math.Ceil(gib/(1-overhead)*100)/100)
	}},
	{"tables", (*subject).isQCOW2, func(s *subject, f *findings) string {
		t := s.looked.tables
		switch {
		case s.looked.OutOfRange():
			return ""
		case errors.Is(s.looked.tablesErr, disk.ErrNotRead):
			f.note("none was read: they lie too far from the disk's beginning, or are too large")
		case s.looked.tablesErr != nil:
			f.fail("the disk is truncated or damaged: %v", s.looked.tablesErr)
		case t.Read < t.All:
			f.note("%d of %d were read; whether the others are whole was not checked", t.Read, t.All)
		}
		return fmt.Sprintf("all %d lie within the file", t.All)
	}},
	{"qemu-img", (*subject).hasDisk, func(s *subject, f *findings) string {
		switch {
		case s.looked.qemu != "":
			f.fail("%s", s.looked.qemu)
		case s.looked.notAsked != "":
			f.note("not asked: %s", s.looked.notAsked)
		}
		return "opens it within KubeVirt's limits"
	}},
	{"compression", (*subject).hasDisk, func(s *subject, f *findings) string {
		on, inside := s.layers[s.tree.paths[s.Disk.Name].layer].Compression, s.looked.tables.Compression
		packed := inside == disk.Zstd || inside == disk.Zlib
		level := Warning
		if s.looked.tables.Read < s.looked.tables.All {
			level = Note // the tables that were not read may say otherwise
		}
		switch {
		case packed && on != host.Plain:
			f.add(level, "a disk that is compressed inside is compressed again (%s): that saves next to nothing, "+
				"and parts of it cannot be read alone", on)
		case !packed && on == host.Plain && s.Disk.FileSize > 0 && (s.looked.Format != disk.FormatQCOW2 || s.looked.tables.Data > 0):
			f.add(level, "neither the disk nor the layer is compressed")
		}
		if inside == disk.Zstd {
			f.note("the disk is compressed with zstd, which Harvester on Longhorn cannot read; KubeVirt 1.0 and CDI can")
		}
		return fmt.Sprintf("disk: %s, layer: %s", cmp.Or(string(inside), host.Plain), on)
	}},

	// What the image says of itself, and its tag.

	{"instance type hints", nil, func(s *subject, f *findings) string {
		hints := s.Config.Hints
		if len(hints) == 0 {
			return "none"
		}
		for _, key := range slices.Sorted(maps.Keys(hints)) {
			named := strings.TrimSuffix(key, "_KIND")
			switch value := hints[key]; {
			case value != "" && !oci.LabelValue(value):
				f.fail("%s is %q, which cannot be a label's value: CDI's import fails", key, value)
			case !labelKey.MatchString(label(key)):
				f.fail("%s would be the label %q, which cannot be: CDI's import fails", key, label(key))
			// Each may have a kind, too.
			case named != oci.HintInstanceType && named != oci.HintPreference:
				f.warn("%s is a variable that KubeVirt does not know; CDI makes a label of it", key)
			case hints[named] == "" && named != key:
				f.warn("%s says a kind, but there is no name", key)
			}
		}
		if has := s.looked.firmware; has != nil && *has != (disk.Firmware{}) {
			if starts, known := oci.PreferenceStarts(hints[oci.HintPreference], *has); known && !starts {
				f.fail("the preference %s does not start this disk, which has %s: common-instancetypes gives it another firmware",
					hints[oci.HintPreference], has)
			}
		}
		return strings.Join(slices.Sorted(maps.Values(hints)), ", ")
	}},
	{"annotations", nil, func(s *subject, f *findings) string {
		for _, key := range []string{"containers.bootc", "ostree.bootable"} {
			switch {
			case s.config.Config.Labels[key] == "1":
				f.fail("the label %s=1 marks a bootable container: CDI after 1.66 refuses it", key)
			case s.Annotations[key] == "1":
				f.warn("the annotation %s=1 marks a bootable container; CDI looks at labels only", key)
			}
		}
		created, ok := s.Annotations[oci.AnnotationCreated]
		if _, err := time.Parse(time.RFC3339, created); !ok {
			f.warn("%s is missing", oci.AnnotationCreated)
		} else if err != nil {
			f.warn("%s is %q, no date as in RFC 3339", oci.AnnotationCreated, created)
		}
		return "created " + created
	}},
	{"tags", (*subject).remote, func(s *subject, f *findings) string {
		if tag, err := reference.NewTag(s.Reference); err == nil && tag.TagStr() == "latest" {
			f.warn("latest is a tag that moves: CrownLabs takes other tags for versions")
		}
		if s.tagsErr != nil {
			f.note("the other tags were not checked: %v", s.tagsErr)
		}
		n := 0
		for _, tag := range s.tags {
			if referrersTag.MatchString(tag) {
				n++
			}
		}
		if n > 0 {
			f.warn("%d tags of the repository are lists of referrers (sha256-…); CrownLabs takes them for versions", n)
		}
		return fmt.Sprintf("%d in the repository", len(s.tags))
	}},
}

// layerTypes are the media types of layers, with what they say of the
// compression.
var layerTypes = map[types.MediaType]string{
	types.OCIUncompressedLayer: host.Plain, types.OCILayer: host.Gzip, types.OCILayerZStd: host.Zstd,
	types.DockerUncompressedLayer: host.Plain, types.DockerLayer: host.Gzip,
	"application/vnd.docker.image.rootfs.diff.tar.zstd": host.Zstd,
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

// hints are the variables that CDI makes labels of.
func hints(env []string) map[string]string {
	all := map[string]string{}
	for _, e := range env {
		if key, value, ok := strings.Cut(e, "="); ok && strings.Contains(key, labelMark) {
			all[key] = value
		}
	}
	return all
}

// labelKey is what Kubernetes takes as the key of a label, with a prefix.
var labelKey = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*/[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

// label is the key of the label that CDI makes of a variable.
func label(variable string) string {
	before, after, _ := strings.Cut(variable, labelMark)
	prefix := strings.ReplaceAll(strings.TrimSuffix(before, "_"), "_", ".")
	if prefix != "" {
		prefix += "."
	}
	return strings.ToLower(prefix + "kubevirt.io/" + strings.ReplaceAll(after, "_", "-"))
}

// referrersTag is the name of a list of referrers in a registry that has no
// API for them.
var referrersTag = regexp.MustCompile(`^sha(256|512)-[0-9a-f]{64}`)
