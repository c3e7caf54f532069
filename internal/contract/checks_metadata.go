package contract

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
)

// labelMark is what a variable has in its name of which CDI makes a label
// (pkg/importer/util.go).
const labelMark = "KUBEVIRT_IO_"

// metadataChecks are about what the image says of itself, and its tag.
var metadataChecks = []check{
	{"instance type hints", func(s *subject, f *findings) string {
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
	{"annotations", func(s *subject, f *findings) string {
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
	{"tags", func(s *subject, f *findings) string {
		if s.remote == nil {
			return ""
		}
		if tag, err := name.NewTag(s.Reference); err == nil && tag.TagStr() == "latest" {
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
