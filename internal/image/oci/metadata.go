package oci

import (
	"cmp"
	"context"
	"maps"
	"regexp"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/netgroup-polito/diskforge/internal/image/disk"
)

// Annotations that diskforge itself writes and reads.
const (
	// AnnotationDisk is a manifest annotation: the digest of the disk file
	// inside the layer, so that it need not be unpacked to be known.
	AnnotationDisk = "io.github.netgroup-polito.diskforge.disk.digest"
	// AnnotationInputs is a manifest annotation: the digest of all that the disk
	// was made from.
	AnnotationInputs = "io.github.netgroup-polito.diskforge.inputs"
	// AnnotationBuilt is a manifest annotation: when the playbook had run, in
	// RFC 3339. It belongs to the disk, so that packing one again makes the same
	// digest, and is the age of the software in it.
	AnnotationBuilt = "io.github.netgroup-polito.diskforge.built"
	// AnnotationGuest is a manifest annotation: the guest's release as
	// playbook.Guest names it ("Debian 12"), for images that are built on this one.
	AnnotationGuest = "io.github.netgroup-polito.diskforge.guest"
	// AnnotationSettings is a manifest annotation: the settings, a JSON object of variables
	// and texts, that a refresh of the image needs so that it is verified for what it is.
	AnnotationSettings = "io.github.netgroup-polito.diskforge.settings"
	// AnnotationVerified stands on the manifest's descriptor in index.json
	// only, so that it does not change the manifest's digest: the digest of
	// the disk that was booted.
	AnnotationVerified = "io.github.netgroup-polito.diskforge.verified"

	// AnnotationBase is a manifest annotation: the name of what the image was
	// built on, where that is no image but a file (org.opencontainers.image.base.name
	// is an image's reference).
	AnnotationBase = "io.github.netgroup-polito.diskforge.base.name"

	// AnnotationCreated is the image's date, in RFC 3339.
	AnnotationCreated = standardPrefix + "created"

	// AnnotationTitle and AnnotationVersion are the image's name and tag.
	AnnotationTitle   = standardPrefix + "title"
	AnnotationVersion = standardPrefix + "version"

	// AnnotationSource and AnnotationRevision are where its playbook came from: a
	// URL, and a commit or a digest.
	AnnotationSource   = standardPrefix + "source"
	AnnotationRevision = standardPrefix + "revision"

	// AnnotationBaseDigest is the digest of the image that one was built on.
	AnnotationBaseDigest = standardPrefix + "base.digest"
	// AnnotationBaseName is its reference.
	AnnotationBaseName = standardPrefix + "base.name"

	// standardPrefix begins the annotations that the OCI image specification
	// names (annotations.md).
	standardPrefix = "org.opencontainers.image."
	// annotationTag and annotationName stand on the manifest's descriptor, too:
	// the tag, by which oras and skopeo take an image out of a layout, and the
	// whole reference, as containerd and BuildKit write it.
	annotationTag  = standardPrefix + "ref.name"
	annotationName = "io.containerd.image.name"
)

// BaseName is the name of what an image with these annotations was built on, or
// empty.
func BaseName(annotations map[string]string) string {
	return cmp.Or(annotations[AnnotationBaseName], annotations[AnnotationBase])
}

// Metadata is what an image says about itself besides its disk. No field is
// read from the clock: the same disk and the same metadata make the same
// digest.
type Metadata struct {
	// Created is SOURCE_DATE_EPOCH or the date of the base image. The zero
	// time stands for the Unix epoch.
	Created time.Time
	// Architecture of the guest, one of arch.KubeVirt.
	Architecture string

	// These become annotations of the manifest and labels of the config,
	// org.opencontainers.image.title and so on; an empty one is left out.
	Title, Version, Source, Revision, BaseName, BaseDigest string

	// Instance type hints, which CDI copies from the config's environment to
	// labels of the imported volume (CDI pkg/importer/util.go). Empty ones are
	// left out.
	InstanceType, Preference string

	// Original is what the image is a refresh of, or of no refreshes.
	Original Original

	// Annotations are further annotations of the manifest, the input digest
	// for example. The fields above win over them.
	Annotations map[string]string

	// Reference is where push sends the image when nobody says otherwise. It
	// stands in the layout's index and changes no digest.
	Reference string
	// VerifiedDisk is the digest ("sha256:…") of the disk that was booted, or
	// empty. Pack fails when it packs another one, and otherwise marks the
	// layout as verified; this changes no digest.
	VerifiedDisk string

	// Accept looks at the complete layout before it takes its place; with its
	// error nothing is there but what was before. It may be nil.
	Accept func(ctx context.Context, layoutDir string) error
}

// The variables of an image's config that KubeVirt's instance types take for
// hints.
const (
	HintInstanceType = "INSTANCETYPE_KUBEVIRT_IO_DEFAULT_INSTANCETYPE"
	HintPreference   = "INSTANCETYPE_KUBEVIRT_IO_DEFAULT_PREFERENCE"
)

// labelValue is what Kubernetes takes as the value of a label.
var labelValue = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

// LabelValue says whether Kubernetes takes the text as the value of a label:
// instance type hints become some.
func LabelValue(s string) bool { return labelValue.MatchString(s) }

// Preferences of KubeVirt's common instance types, by the firmware with which
// they start a machine (kubevirt/common-instancetypes, preferences/): those that
// are built on linux-efi or name components/efi, and those built on linux.
var (
	uefiPreferences = regexp.MustCompile(`^(?:debian|linux\.efi|oraclelinux|rhel\.10|windows\.(?:11|2k22|2k25)(?:\.virtio)?)$`)
	biosPreferences = regexp.MustCompile(`^(?:linux|linux\.virtiotransitional|ubuntu|fedora|alpine|cirros|centos\.stream\d+|opensuse\.\w+|rhel\.[789]|sles)$`)
)

// PreferenceStarts says whether a machine with the preference starts from a disk
// with the firmware, as far as the preference is known.
func PreferenceStarts(preference string, f disk.Firmware) (starts, known bool) {
	switch {
	case uefiPreferences.MatchString(preference):
		return f.UEFI, true
	case biosPreferences.MatchString(preference):
		return f.BIOS, true
	}
	return true, false
}

// PreferenceFor is the preference for a distribution ("debian") whose disk has
// the firmware: the distribution's own where that starts, else the general one.
func PreferenceFor(distribution string, f disk.Firmware) string {
	if starts, known := PreferenceStarts(distribution, f); known && starts {
		return distribution
	}
	if !f.BIOS && f.UEFI {
		return "linux.efi"
	}
	return "linux"
}

func (m Metadata) created() time.Time {
	if m.Created.IsZero() {
		return time.Unix(0, 0).UTC()
	}
	return m.Created.UTC().Truncate(time.Second)
}

// standard returns the org.opencontainers.image annotations that are set. The
// base has one only where its name is an image's reference.
func (m Metadata) standard() map[string]string {
	set := map[string]string{AnnotationCreated: m.created().Format(time.RFC3339)}
	for key, value := range map[string]string{
		AnnotationTitle: m.Title, AnnotationVersion: m.Version, AnnotationSource: m.Source, AnnotationRevision: m.Revision,
		AnnotationBaseDigest: m.BaseDigest,
	} {
		if value != "" {
			set[key] = value
		}
	}
	if isReference(m.BaseName) {
		set[AnnotationBaseName] = m.BaseName
	}
	return set
}

func isReference(s string) bool {
	_, err := name.ParseReference(s, name.StrictValidation)
	return err == nil
}

func (m Metadata) annotations(diskDigest string) map[string]string {
	all := map[string]string{}
	maps.Copy(all, m.Annotations)
	maps.Copy(all, m.standard())
	m.Original.annotate(all)
	all[AnnotationDisk] = diskDigest
	if m.BaseName != "" && !isReference(m.BaseName) {
		all[AnnotationBase] = m.BaseName
	}
	return all
}

func (m Metadata) config(diffID v1.Hash) v1.ConfigFile {
	var env []string
	if m.InstanceType != "" {
		env = append(env, HintInstanceType+"="+m.InstanceType)
	}
	if m.Preference != "" {
		env = append(env, HintPreference+"="+m.Preference)
	}
	return v1.ConfigFile{
		Architecture: m.Architecture,
		OS:           "linux",
		Created:      v1.Time{Time: m.created()},
		RootFS:       v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{diffID}},
		Config:       v1.Config{Env: env, Labels: m.standard()},
	}
}

// indexAnnotations are those of the manifest's descriptor in index.json.
func (m Metadata) indexAnnotations() map[string]string {
	all := map[string]string{}
	if m.Reference != "" {
		all[annotationName] = m.Reference
		if tag, err := name.NewTag(m.Reference, name.StrictValidation); err == nil {
			all[annotationTag] = tag.TagStr()
		}
	}
	if m.VerifiedDisk != "" {
		all[AnnotationVerified] = m.VerifiedDisk
	}
	return all
}
