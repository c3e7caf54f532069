package oci

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// Part is an image of an index.
type Part struct {
	Name         string        // as it was given, for messages
	Manifest     v1.Descriptor // of its manifest
	Architecture string        // of its config
	Annotations  map[string]string
}

// IndexOf is the manifest of an index of images, one for each of several architectures, as
// nodes, CDI and KubeVirt choose among them. The same images, in whatever order, make the
// same bytes. Its errors are *failure.Error: images that are not one and the same but for
// their architecture.
func IndexOf(parts []Part) ([]byte, error) {
	parts = slices.SortedFunc(slices.Values(parts), func(a, b Part) int { return cmp.Compare(a.Architecture, b.Architecture) })
	if err := alike(parts); err != nil {
		return nil, err
	}
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Annotations: shared(parts)}
	for _, p := range parts {
		d := v1.Descriptor{
			MediaType: p.Manifest.MediaType, Digest: p.Manifest.Digest, Size: p.Manifest.Size,
			Platform: &v1.Platform{OS: "linux", Architecture: p.Architecture},
		}
		if inputs := p.inputs(); inputs != "" {
			d.Annotations = map[string]string{AnnotationInputs: inputs}
		}
		index.Manifests = append(index.Manifests, d)
	}
	return json.Marshal(index)
}

// PartOf is an image as a part of an index. That it says nothing of its architecture is an
// error.
func PartOf(i Image) (Part, error) {
	var manifest v1.Manifest
	var config v1.ConfigFile
	digest, err := v1.NewHash(i.Digest)
	if err != nil || json.Unmarshal(i.Manifest, &manifest) != nil || json.Unmarshal(i.Config, &config) != nil || config.Architecture == "" {
		return Part{}, failure.New(i.Name+" does not say which architecture it is for", "build it again")
	}
	return Part{
		Name: i.Name, Architecture: config.Architecture, Annotations: manifest.Annotations,
		Manifest: v1.Descriptor{MediaType: types.MediaType(i.MediaType), Digest: digest, Size: int64(len(i.Manifest))},
	}, nil
}

// inputs is the digest of what the image, or its original, was made from, or empty.
func (p Part) inputs() string { return OriginalOf(p.Annotations).Inputs }

// alike says where images are not of one name, or not of one playbook. A refresh has
// another playbook than its original.
func alike(parts []Part) error {
	for i, p := range parts[1:] {
		before := parts[i]
		refreshed := OriginalOf(p.Annotations).Refreshes+OriginalOf(before.Annotations).Refreshes > 0
		switch {
		case p.Architecture == before.Architecture:
			return failure.New(fmt.Sprintf("%s and %s are both for %s", before.Name, p.Name, p.Architecture), "name one image for each architecture")
		}
		for _, what := range [][2]string{{AnnotationTitle, "name"}, {AnnotationSource, "playbooks"}, {AnnotationRevision, "playbooks' revision"}} {
			if a, b := before.Annotations[what[0]], p.Annotations[what[0]]; a != b && (!refreshed || what[0] == AnnotationTitle) {
				return failure.New(fmt.Sprintf("%s and %s are not one image for two architectures: the %s is %q there, and %q here",
					before.Name, p.Name, what[1], text.Line(a), text.Line(b)), "build both from the same")
			}
		}
	}
	return nil
}

// shared are the annotations of an index: what all of its images say of themselves, as
// old as the oldest of them, and the digest of their inputs.
func shared(parts []Part) map[string]string {
	all, inputs := map[string]string{}, map[string]string{}
	for _, annotation := range []string{AnnotationTitle, AnnotationSource, AnnotationRevision, AnnotationGuest} {
		all[annotation] = parts[0].Annotations[annotation]
	}
	for _, p := range parts {
		maps.DeleteFunc(all, func(annotation, value string) bool { return p.Annotations[annotation] != value })
		inputs[p.Architecture] = p.inputs()
	}
	all[AnnotationInputs] = IndexInputs(inputs)
	all[AnnotationCreated], all[AnnotationBuilt] = oldest(parts, AnnotationCreated), oldest(parts, AnnotationBuilt)
	maps.DeleteFunc(all, func(_, value string) bool { return value == "" })
	return all
}

// oldest is the earliest time of an annotation that all images have, or empty.
func oldest(parts []Part, annotation string) (stated string) {
	var first time.Time
	for _, p := range parts {
		t, err := time.Parse(time.RFC3339, p.Annotations[annotation])
		if err != nil {
			return ""
		}
		if stated == "" || t.Before(first) {
			first, stated = t, p.Annotations[annotation]
		}
	}
	return stated
}

// IndexInputs is the digest of the inputs of an index's images, which are given by
// architecture; empty where those of one are not known.
func IndexInputs(inputs map[string]string) string {
	var all bytes.Buffer
	for _, architecture := range slices.Sorted(maps.Keys(inputs)) {
		if !host.ValidDigest(inputs[architecture]) {
			return ""
		}
		fmt.Fprintf(&all, "%s %s\n", architecture, inputs[architecture])
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256(all.Bytes()))
}
