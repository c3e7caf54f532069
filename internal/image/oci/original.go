package oci

import (
	"strconv"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/host"
)

// A refresh of an image has its updates and nothing else of its own. These manifest
// annotations of it are about the image that a playbook made, and that it, by however many
// refreshes, comes from.
const (
	annotationRefreshes      = "io.github.netgroup-polito.diskforge.refreshes" // how many those were
	annotationOriginalInputs = "io.github.netgroup-polito.diskforge.original.inputs"
	annotationOriginalBuilt  = "io.github.netgroup-polito.diskforge.original.built"
	annotationOriginalDigest = "io.github.netgroup-polito.diskforge.original.digest"
	annotationOriginalBase   = "io.github.netgroup-polito.diskforge.original.base.digest"
	annotationOriginalName   = "io.github.netgroup-polito.diskforge.original.base.name"
)

// Original is the image that a playbook made, of an image or of its refreshes.
type Original struct {
	Refreshes int       `json:"refreshes,omitempty"` // since then; 0: it is the image itself
	Inputs    string    `json:"inputs,omitempty"`    // AnnotationInputs, or empty
	Built     time.Time `json:"built,omitzero"`      // AnnotationBuilt; zero where that is not known
	// Of a refresh, whose original may be gone, and empty where it was made before these were noted:
	Digest   string `json:"digest,omitempty"`   // of the original's manifest
	Base     string `json:"base,omitempty"`     // AnnotationBaseDigest
	BaseName string `json:"baseName,omitempty"` // AnnotationBaseName, or another name, unchecked
}

// OriginalOf reads what an image with these annotations says of its original.
func OriginalOf(annotations map[string]string) Original {
	var o Original
	inputs, built := AnnotationInputs, AnnotationBuilt
	if n, err := strconv.ParseUint(annotations[annotationRefreshes], 10, 16); err == nil && n > 0 {
		o.Refreshes, inputs, built = int(n), annotationOriginalInputs, annotationOriginalBuilt
		o.Digest, o.Base = digest(annotations, annotationOriginalDigest), digest(annotations, annotationOriginalBase)
		o.BaseName = strings.Clone(annotations[annotationOriginalName])
	}
	o.Inputs = digest(annotations, inputs)
	if t, err := time.Parse(time.RFC3339, annotations[built]); err == nil && t.Unix() > 0 {
		o.Built = t.UTC()
	}
	return o
}

// digest is an annotation that is one, or empty.
func digest(annotations map[string]string, name string) string {
	if host.ValidDigest(annotations[name]) {
		return strings.Clone(annotations[name]) // without the manifest that it stands in
	}
	return ""
}

// annotate has annotations of a refresh say what it comes from.
func (o Original) annotate(annotations map[string]string) {
	if o.Refreshes == 0 {
		return
	}
	annotations[annotationRefreshes] = strconv.Itoa(o.Refreshes)
	for name, value := range map[string]string{
		annotationOriginalInputs: o.Inputs, annotationOriginalDigest: o.Digest, annotationOriginalBase: o.Base, annotationOriginalName: o.BaseName,
	} {
		if value != "" {
			annotations[name] = value
		}
	}
	if !o.Built.IsZero() {
		annotations[annotationOriginalBuilt] = o.Built.UTC().Format(time.RFC3339)
	}
}

// MadeFrom says whether an image with these annotations was made from those inputs, or is
// a refresh of one that was.
func MadeFrom(inputs string, annotations map[string]string) bool {
	return inputs != "" && (annotations[AnnotationInputs] == inputs || OriginalOf(annotations).Inputs == inputs)
}
