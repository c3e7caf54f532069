package contract

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// Level is how a check ended.
type Level string

const (
	// OK is a check that found nothing.
	OK Level = "ok"
	// Note is something to know: a choice with a price, or what was not
	// checked.
	Note Level = "note"
	// Warning breaks a convention, but KubeVirt and CDI take the image.
	Warning Level = "warning"
	// Error is what KubeVirt or CDI refuses, or what is dangerous.
	Error Level = "error"
)

func (l Level) rank() int { return slices.Index([]Level{OK, Note, Warning, Error}, l) }

// Result is what one check found.
type Result struct {
	Check  string `json:"check"`
	Level  Level  `json:"level"`
	Detail string `json:"detail"` // one line
}

// check is one rule of the contract. Its function returns what it found, or,
// where that is nothing, what is right.
type check struct {
	name string
	find func(*subject) (right string, found []finding)
}

type finding struct {
	level  Level
	detail string
}

func found(level Level, format string, args ...any) []finding {
	return []finding{{level, fmt.Sprintf(format, args...)}}
}

// checks are the rules of a containerdisk. Where no source is named it is
// KubeVirt's pkg/container-disk (1.9) and CDI's pkg/importer/transport.go (1.66).
// A rule that holds for some releases only names them.
var checks = []check{
	{"manifest", checkManifest},
	{"index", checkIndex},
	{"config", checkConfig},
	{"platform", checkPlatform},
	{"layers", checkLayers},
	{"layer content", checkContent},
	{"names", checkNames},
	{"one disk", checkOneDisk},
	{"nothing else", checkNothingElse},
	{"readable", checkReadable},
	{"owner and modes", checkOwner},
	{"times", checkTimes},
	{"format", checkFormat},
	{"no other files", checkOtherFiles},
	{"encryption", checkEncryption},
	{"snapshots", checkSnapshots},
	{"virtual size", checkVirtualSize},
	{"tables", checkTables},
	{"qemu-img", checkQemuImg},
	{"compression", checkCompression},
	{"instance type hints", checkHints},
	{"annotations", checkAnnotations},
	{"tags", checkTags},
}

// judge runs the checks.
func (s *subject) judge() {
	for _, c := range checks {
		right, found := c.find(s)
		for _, f := range found {
			s.Checks = append(s.Checks, Result{c.name, f.level, line(f.detail)})
		}
		if len(found) == 0 && right != "" {
			s.Checks = append(s.Checks, Result{c.name, OK, line(right)})
		}
	}
}

const maxLine = 400 // characters of a result

// line makes one line of a result, which may repeat words of the image.
func line(detail string) string { return text.Cut(text.Line(detail), maxLine) }

func checkManifest(s *subject) (string, []finding) {
	switch types.MediaType(s.MediaType) {
	case types.OCIManifestSchema1:
		return "an OCI image", nil
	case types.DockerManifestSchema2:
		return "", found(Warning, "it is in Docker's format, not OCI's; KubeVirt and CDI take both")
	}
	return "", found(Error, "%q is no manifest of an image that nodes pull", s.MediaType)
}

func checkIndex(s *subject) (string, []finding) {
	if s.Index == nil {
		return "", nil
	}
	all := found(Note, "the reference names %d images (%s); this is the one for %s, no other was inspected",
		len(s.Index.Platforms), strings.Join(s.Index.Platforms, ", "), s.Index.Taken)
	os, architecture, _ := strings.Cut(s.Index.Taken, "/")
	architecture, _, _ = strings.Cut(architecture, "/")
	if architecture != "" && (os != s.Config.OS || architecture != s.Config.Architecture) {
		all = append(all, found(Error, "the index says that it is for %s, its config says %s/%s: nodes and CDI choose by the one and check the other", s.Index.Taken, s.Config.OS, s.Config.Architecture)...)
	}
	return "", all
}

func checkConfig(s *subject) (string, []finding) {
	switch t := types.MediaType(s.Config.MediaType); {
	case t != types.OCIConfigJSON && t != types.DockerConfigJSON:
		return "", found(Error, "CDI takes no image with a config of type %q", t)
	case s.configErr != nil:
		return "", found(Error, "it cannot be read: %v", s.configErr)
	case len(s.config.RootFS.DiffIDs) != len(s.manifest.Layers):
		return "", found(Error, "it lists %d layers, the manifest %d: nodes refuse that", len(s.config.RootFS.DiffIDs), len(s.manifest.Layers))
	case t == types.DockerConfigJSON:
		return "", found(Warning, "it is in Docker's format, not OCI's; KubeVirt and CDI take both")
	}
	return "an OCI config", nil
}

func checkPlatform(s *subject) (string, []finding) {
	var all []finding
	switch s.Config.OS {
	case "linux":
	case "":
		all = found(Warning, "os is not set; it should be linux")
	default:
		all = found(Error, "os is %q: nodes take only linux", s.Config.OS)
	}
	switch a, known := s.Config.Architecture, oci.Architecture(s.Config.Architecture); {
	case a == "":
		all = append(all, found(Error, "architecture is not set: CDI 1.63 and later refuse it where one is asked for")...)
	case known == "":
		all = append(all, found(Error, "architecture is %q: KubeVirt runs amd64, arm64 and s390x", a)...)
	case known != a:
		all = append(all, found(Error, "architecture is %q, and images call it %s: CDI 1.63 and later refuse it where one is asked for", a, known)...)
	}
	return s.Config.OS + "/" + s.Config.Architecture, all
}

// layerTypes are the media types of layers, with what they say of the
// compression.
var layerTypes = map[types.MediaType]string{
	types.OCIUncompressedLayer: plain, types.OCILayer: gzipped, types.OCILayerZStd: zstandard,
	types.DockerUncompressedLayer: plain, types.DockerLayer: gzipped,
	"application/vnd.docker.image.rootfs.diff.tar.zstd": zstandard,
}

func checkLayers(s *subject) (string, []finding) {
	if len(s.layers) == 0 {
		return "", found(Error, "there is none")
	}
	var all []finding
	if n := len(s.layers); n > 1 {
		all = found(Warning, "there are %d, one is enough", n)
	}
	for _, l := range s.layers {
		t := types.MediaType(l.MediaType)
		how, known := layerTypes[t]
		switch {
		case !known:
			all = append(all, found(Error, "nodes do not unpack a layer of type %q", t)...)
		case how != l.Compression:
			all = append(all, found(Warning, "the layer says %q, but its own bytes say compression: %s", t, l.Compression)...)
		case strings.Contains(string(t), "docker"):
			all = append(all, found(Warning, "the layer is in Docker's format, not OCI's; KubeVirt and CDI take both")...)
		}
		if l.Compression == zstandard {
			all = append(all, found(Error, "the layer is compressed with zstd, which nodes unpack and CDI up to 1.66 cannot read (its issue 4277); gzip and plain layers are read by all")...)
		}
	}
	return fmt.Sprintf("one, of type %s", s.layers[0].MediaType), all
}

func checkContent(s *subject) (string, []finding) {
	var all []finding
	right := "digests are right"
	for n, l := range s.layers {
		if l.err != nil {
			all = append(all, found(Error, "layer %s cannot be unpacked: %v", l.Digest, l.err)...)
			continue
		}
		if i := slices.IndexFunc(l.entries, func(e Entry) bool { return e.sparse }); i >= 0 {
			all = append(all, found(Warning, "%q leaves holes out (GNU.sparse): nodes and CDI read that, few other programs do", l.entries[i].Name)...)
		}
		if s.configErr == nil && n < len(s.config.RootFS.DiffIDs) {
			if want := s.config.RootFS.DiffIDs[n].String(); l.diffID != want {
				all = append(all, found(Error, "the config says that the layer unpacks to %s, it does to %s: nodes refuse that", want, l.diffID)...)
			}
		}
		if s.image.remote && l.WholeRead == "" {
			right = "its archive can be read; its digest was not checked, as only parts were read"
		}
	}
	return right, all
}

func checkNames(s *subject) (string, []finding) {
	var all []finding
	for _, l := range s.layers {
		for _, e := range l.entries {
			relative := strings.TrimPrefix(e.Name, "./")
			switch {
			case len(all) == 3:
				return "", all
			case slices.Contains(strings.Split(e.Name, "/"), ".."):
				all = append(all, found(Error, "%q leads out of the image", e.Name)...)
			case strings.HasPrefix(e.Name, "/"):
				all = append(all, found(Error, "%q begins with a slash: CDI does not find it", e.Name)...)
			case s.tree.atRoot:
			case e.Type != "directory" && strings.HasPrefix(relative, diskDir) && !strings.HasPrefix(relative, diskDir+"/"):
				all = append(all, found(Error, "CDI takes %q for the disk, as its name begins with %q", e.Name, diskDir)...)
			}
		}
	}
	return "as CDI expects them", all
}

func checkOneDisk(s *subject) (string, []finding) {
	switch disks := s.tree.disks; {
	case len(disks) == 0:
		return "", found(Error, "there is nothing in %s/, where KubeVirt and CDI look for the disk", diskDir)
	case len(disks) > 1:
		return "", found(Error, "there are %d files in %s/ (%s): KubeVirt takes one only", len(disks), diskDir, some(disks))
	case len(s.tree.again) > 0:
		return "", found(Error, "%s is written more than once: CDI takes the first, KubeVirt the last", some(s.tree.again))
	case s.tree.deleted:
		return "", found(Error, "a layer deletes a disk of a lower one: CDI takes the deleted")
	}
	name := s.tree.disks[0]
	switch e, ok := s.tree.paths[name]; {
	case !ok:
		return "", found(Error, "%s is a directory, not a disk", name)
	case e.Type != "file":
		return "", found(Error, "%s is a %s, not a regular file", name, e.Type)
	case s.tree.atRoot:
		return "", found(Warning, "%q lies at the root, not in %s/: KubeVirt 1.9 and later take that as an image volume, earlier releases and CDI do not", name, diskDir)
	}
	return name, nil
}

func checkNothingElse(s *subject) (string, []finding) {
	if n := len(s.tree.others); n > 0 {
		return "", found(Warning, "%d other paths are in the image: %s", n, some(s.tree.others))
	}
	return "in the image", nil
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

// qemu is the user that QEMU runs as in virt-launcher, and its group.
const qemu = 107

// may says whether QEMU's user has a right (4 to read, 1 to enter).
func (e Entry) may(right int64) bool {
	switch {
	case e.UID == qemu:
		return e.mode>>6&right != 0
	case e.GID == qemu:
		return e.mode>>3&right != 0
	}
	return e.mode&right != 0
}

func checkReadable(s *subject) (string, []finding) {
	var all []finding
	if dir, ok := s.tree.paths[diskDir]; ok && dir.Type == "directory" && !(dir.may(4) && dir.may(1)) {
		all = found(Error, "%s/ (%s, %d:%d) cannot be entered by user %d, as whom QEMU runs", diskDir, dir.Mode, dir.UID, dir.GID, qemu)
	}
	for _, name := range s.tree.disks {
		if e, ok := s.tree.paths[name]; ok && e.Type == "file" && !e.may(4) {
			all = append(all, found(Error, "%q (%s, %d:%d) cannot be read by user %d, as whom QEMU runs", name, e.Mode, e.UID, e.GID, qemu)...)
		}
	}
	return fmt.Sprintf("by user %d", qemu), all
}

func checkOwner(s *subject) (string, []finding) {
	var all []finding
	unusual := func(name string, mode string) {
		if e, ok := s.tree.paths[name]; ok && (e.UID != qemu || e.GID != qemu || e.Mode != mode) {
			all = append(all, found(Warning, "%q is %s, %d:%d; %s, %d:%d is usual", name, e.Mode, e.UID, e.GID, mode, qemu, qemu)...)
		}
	}
	if _, ok := s.tree.paths[diskDir]; !ok && len(s.tree.disks) > 0 && !s.tree.atRoot {
		all = found(Warning, "there is no entry for %s/, so that its mode is left to who unpacks it", diskDir)
	}
	unusual(diskDir, "0555")
	for _, name := range s.tree.disks {
		unusual(name, "0444")
	}
	return "107:107, 0555 and 0444", all[:min(len(all), 3)]
}

// checkTimes takes the Unix epoch and the date of the image for fixed times.
func checkTimes(s *subject) (string, []finding) {
	created, _ := time.Parse(time.RFC3339, s.Annotations[annotationCreated])
	for _, name := range append([]string{diskDir}, s.tree.disks...) {
		e, ok := s.tree.paths[name]
		if ok && e.ModTime.Unix() != 0 && !e.ModTime.Equal(created) {
			return "", found(Warning, "%q is of %s, neither 1970 nor the image's own date: packed again, the image would get another digest",
				name, e.ModTime.Format(time.RFC3339))
		}
	}
	return "fixed", nil
}

func checkFormat(s *subject) (string, []finding) {
	i := s.looked.Image
	switch {
	case s.Disk == nil:
		return "", nil
	case s.Disk.FileSize == 0:
		return "", found(Error, "the disk is empty")
	case i.Unpartitioned:
		return "", found(Warning, "it is data without a partition table; KubeVirt takes that for a raw disk")
	case i.Format == "":
		return "", found(Error, "the disk looks like %s, KubeVirt takes qcow2 and raw", i.Other)
	case i.Damage != nil:
		return "", found(Error, "the disk is truncated or damaged: %v", i.Damage)
	case i.Dirty:
		return "", found(Error, "the disk was not closed properly")
	case i.Corrupt:
		return "", found(Error, "the disk is marked as corrupt")
	}
	return i.Format, nil
}

func checkOtherFiles(s *subject) (string, []finding) {
	var all []finding
	if s.looked.BackingFile != "" {
		all = found(Error, "the disk has a backing file, %q, which would be looked for where it is started", s.looked.BackingFile)
	}
	if s.looked.ExternalData {
		all = append(all, found(Error, "the disk keeps its data in another file, which would be looked for where it is started")...)
	}
	return s.onlyQCOW2("neither a backing file nor external data"), all
}

// onlyQCOW2 is what is right with a qcow2 disk, and nothing for others.
func (s *subject) onlyQCOW2(right string) string {
	if s.looked.Format != disk.FormatQCOW2 || s.looked.Damage != nil {
		return ""
	}
	return right
}

func checkEncryption(s *subject) (string, []finding) {
	if s.looked.Encrypted {
		return "", found(Error, "the disk is encrypted: nobody gives KubeVirt the key")
	}
	return s.onlyQCOW2("none"), nil
}

func checkSnapshots(s *subject) (string, []finding) {
	switch {
	case s.looked.Snapshots > 0:
		return "", found(Error, "the disk holds %d internal snapshots: earlier states that anybody can read", s.looked.Snapshots)
	case s.looked.Bitmaps:
		return "", found(Warning, "the disk holds bitmaps of a backup program")
	}
	return s.onlyQCOW2("none"), nil
}

const gib = 1 << 30

func checkVirtualSize(s *subject) (string, []finding) {
	i := s.looked.Image
	switch {
	case s.Disk == nil || i.Damage != nil || s.Disk.FileSize == 0:
		return "", nil
	case i.Absurd():
		return "", found(Error, "%d bytes are absurd: above 0 and at most 2 TiB is usual", i.VirtualSize)
	case i.VirtualSize%512 != 0:
		return "", found(Error, "%d bytes are no whole sectors", i.VirtualSize)
	}
	size := float64(i.VirtualSize) / gib
	return fmt.Sprintf("%.2f GiB; a volume that CDI imports it into needs %.2f GiB", size, math.Ceil(size/(1-overhead)*100)/100), nil
}

// overhead is the part of a file system that CDI leaves free.
const overhead = 0.06

func checkTables(s *subject) (string, []finding) {
	t := s.looked.tables
	switch {
	case s.looked.Format != disk.FormatQCOW2 || s.looked.Damage != nil || s.looked.Absurd():
		return "", nil
	case s.looked.tablesErr == disk.ErrNotRead:
		return "", found(Note, "none was read: they lie too far from the disk's beginning, or are too large")
	case s.looked.tablesErr != nil:
		return "", found(Error, "the disk is truncated or damaged: %v", s.looked.tablesErr)
	case t.Read < t.All:
		return "", found(Note, "%d of %d were read; whether the others are whole was not checked", t.Read, t.All)
	}
	return fmt.Sprintf("all %d lie within the file", t.All), nil
}

func checkQemuImg(s *subject) (string, []finding) {
	switch {
	case s.Disk == nil:
		return "", nil
	case s.looked.qemu != "":
		return "", found(Error, "%s", s.looked.qemu)
	case s.looked.notAsked != "":
		return "", found(Note, "not asked: %s", s.looked.notAsked)
	}
	return "opens it within KubeVirt's limits", nil
}

func checkCompression(s *subject) (string, []finding) {
	if s.Disk == nil || len(s.layers) == 0 {
		return "", nil
	}
	on := s.layers[s.tree.paths[s.Disk.Name].layer].Compression
	inside := s.looked.tables.Compression
	packed := inside == disk.Zstd || inside == disk.Zlib
	level := Warning
	if s.looked.tables.Read < s.looked.tables.All {
		level = Note // the tables that were not read may say otherwise
	}
	var all []finding
	switch {
	case packed && on != plain:
		all = found(level, "a disk that is compressed inside is compressed again (%s): that saves next to nothing, and parts of it cannot be read alone", on)
	case !packed && on == plain && s.Disk.FileSize > 0 && (s.looked.Format != disk.FormatQCOW2 || s.looked.tables.Data):
		all = found(level, "neither the disk nor the layer is compressed")
	}
	if inside == disk.Zstd {
		all = append(all, found(Note, "the disk is compressed with zstd, which Harvester on Longhorn cannot read; KubeVirt 1.0 and CDI can")...)
	}
	return fmt.Sprintf("disk: %s, layer: %s", orNone(string(inside)), on), all
}

func orNone(s string) string {
	if s == "" {
		return plain
	}
	return s
}

// What CDI makes labels of (pkg/importer/util.go): every variable with labelMark
// in it. hintPrefix begins those that KubeVirt knows.
const (
	labelMark  = "KUBEVIRT_IO_"
	hintPrefix = "INSTANCETYPE_" + labelMark
)

func hints(env []string) map[string]string {
	var all map[string]string
	for _, e := range env {
		if key, value, ok := strings.Cut(e, "="); ok && strings.Contains(key, labelMark) {
			if all == nil {
				all = map[string]string{}
			}
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

func checkHints(s *subject) (string, []finding) {
	const name, preference = hintPrefix + "DEFAULT_INSTANCETYPE", hintPrefix + "DEFAULT_PREFERENCE"
	known := []string{name, name + "_KIND", preference, preference + "_KIND"}
	if len(s.Config.Hints) == 0 {
		return "none", nil
	}
	var all []finding
	var right []string
	for key, value := range s.Config.Hints {
		switch {
		case value != "" && !oci.LabelValue(value):
			all = append(all, found(Error, "%s is %q, which cannot be a label's value: CDI's import fails", key, value)...)
		case !labelKey.MatchString(label(key)):
			all = append(all, found(Error, "%s would be the label %q, which cannot be: CDI's import fails", key, label(key))...)
		case !slices.Contains(known, key):
			all = append(all, found(Warning, "%s is a variable that KubeVirt does not know; CDI makes a label of it", key)...)
		case strings.HasSuffix(key, "_KIND") && s.Config.Hints[strings.TrimSuffix(key, "_KIND")] == "":
			all = append(all, found(Warning, "%s says a kind, but there is no name", key)...)
		}
		right = append(right, value)
	}
	if f, prefers := s.looked.firmware, s.Config.Hints[preference]; f != nil && *f != (disk.Firmware{}) {
		if starts, known := oci.PreferenceStarts(prefers, *f); known && !starts {
			all = append(all, found(Error, "the preference %s does not start this disk, which has %s: common-instancetypes gives it another firmware", prefers, f)...)
		}
	}
	slices.Sort(right)
	slices.SortFunc(all, func(a, b finding) int { return strings.Compare(a.detail, b.detail) })
	return strings.Join(right, ", "), all
}

const annotationCreated = "org.opencontainers.image.created"

func checkAnnotations(s *subject) (string, []finding) {
	var all []finding
	for _, key := range []string{"containers.bootc", "ostree.bootable"} {
		switch {
		case s.config.Config.Labels[key] == "1":
			all = append(all, found(Error, "the label %s=1 marks a bootable container: CDI after 1.66 refuses it", key)...)
		case s.Annotations[key] == "1":
			all = append(all, found(Warning, "the annotation %s=1 marks a bootable container; CDI looks at labels only", key)...)
		}
	}
	created, ok := s.Annotations[annotationCreated]
	if _, err := time.Parse(time.RFC3339, created); !ok {
		all = append(all, found(Warning, "%s is missing", annotationCreated)...)
	} else if err != nil {
		all = append(all, found(Warning, "%s is %q, no date as in RFC 3339", annotationCreated, created)...)
	}
	return "created " + created, all
}

// referrersTag is the name of a list of referrers in a registry that has no
// API for them.
var referrersTag = regexp.MustCompile(`^sha(256|512)-[0-9a-f]{64}`)

func checkTags(s *subject) (string, []finding) {
	if s.image.tags == nil {
		return "", nil
	}
	var all []finding
	if s.image.tag == "latest" {
		all = found(Warning, "latest is a tag that moves: CrownLabs takes other tags for versions")
	}
	if s.tagsErr != nil {
		return "", append(all, found(Note, "the other tags were not checked: %v", s.tagsErr)...)
	}
	n := 0
	for _, tag := range s.tags {
		if referrersTag.MatchString(tag) {
			n++
		}
	}
	if n > 0 {
		all = append(all, found(Warning, "%d tags of the repository are lists of referrers (sha256-…); CrownLabs takes them for versions", n)...)
	}
	return fmt.Sprintf("%d in the repository", len(s.tags)), all
}
