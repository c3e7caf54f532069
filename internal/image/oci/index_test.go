package oci_test

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/oci"
)

// part is an image for an architecture, whose digests end in a letter.
func part(architecture, letter, built string, more map[string]string) oci.Part {
	annotations := map[string]string{
		oci.AnnotationTitle: "lab", oci.AnnotationSource: "https://example.org/playbooks.git", oci.AnnotationRevision: "c0ffee",
		oci.AnnotationVersion: "v1-" + architecture, oci.AnnotationDisk: "sha256:" + strings.Repeat(letter, 64),
		oci.AnnotationInputs: "sha256:" + strings.Repeat(letter, 64), oci.AnnotationBuilt: built, oci.AnnotationCreated: built,
	}
	maps.Copy(annotations, more)
	digest, _ := v1.NewHash("sha256:" + strings.Repeat(letter, 64))
	return oci.Part{
		Name: "registry.example.org/lab:v1-" + architecture, Architecture: architecture, Annotations: annotations,
		Manifest: v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: digest, Size: 500},
	}
}

func TestAnIndexIsTheSameWhateverTheOrderOfItsImages(t *testing.T) {
	t.Parallel()
	amd64, arm64 := part("amd64", "a", "2026-11-02T00:00:00Z", nil), part("arm64", "b", "2026-11-01T00:00:00Z", nil)
	raw, err := oci.IndexOf([]oci.Part{arm64, amd64})
	require.NoError(t, err)
	again, err := oci.IndexOf([]oci.Part{amd64, arm64})
	require.NoError(t, err)
	assert.Equal(t, string(raw), string(again))
	var index v1.IndexManifest
	require.NoError(t, json.Unmarshal(raw, &index))
	assert.Equal(t, types.OCIImageIndex, index.MediaType)
	require.Len(t, index.Manifests, 2)
	assert.Equal(t, &v1.Platform{OS: "linux", Architecture: "amd64"}, index.Manifests[0].Platform)
	assert.Equal(t, map[string]string{oci.AnnotationInputs: arm64.Annotations[oci.AnnotationInputs]}, index.Manifests[1].Annotations)
	assert.Equal(t, map[string]string{
		oci.AnnotationTitle: "lab", oci.AnnotationSource: "https://example.org/playbooks.git", oci.AnnotationRevision: "c0ffee",
		oci.AnnotationBuilt: "2026-11-01T00:00:00Z", oci.AnnotationCreated: "2026-11-01T00:00:00Z",
		oci.AnnotationInputs: oci.IndexInputs(map[string]string{"amd64": "sha256:" + strings.Repeat("a", 64), "arm64": "sha256:" + strings.Repeat("b", 64)}),
	}, index.Annotations)
	assert.NotEqual(t, index.Annotations[oci.AnnotationInputs], oci.IndexInputs(map[string]string{"arm64": "sha256:" + strings.Repeat("a", 64), "amd64": "sha256:" + strings.Repeat("b", 64)}))
}

func TestImagesThatAreNotTheSameButForTheirArchitectureMakeNoIndex(t *testing.T) {
	t.Parallel()
	amd64 := part("amd64", "a", "2026-11-02T00:00:00Z", nil)
	for says, other := range map[string]oci.Part{
		"are both for amd64":                       part("amd64", "b", "", nil),
		`the name is "lab" there, and "exam" here`: part("arm64", "b", "", map[string]string{oci.AnnotationTitle: "exam"}),
		`the playbooks' revision is "c0ffee" there, and "decaf" here: build both from the same`: part("arm64", "b", "", map[string]string{oci.AnnotationRevision: "decaf"}),
	} {
		_, err := oci.IndexOf([]oci.Part{amd64, other})
		require.ErrorContains(t, err, says)
	}
	refreshed := part("arm64", "b", "", map[string]string{
		oci.AnnotationRevision: "of the refresh", "io.github.netgroup-polito.diskforge.refreshes": "1",
		"io.github.netgroup-polito.diskforge.original.inputs": "sha256:" + strings.Repeat("c", 64),
	})
	raw, err := oci.IndexOf([]oci.Part{amd64, refreshed})
	require.NoError(t, err, "a refresh has another playbook")
	assert.Contains(t, string(raw), strings.Repeat("c", 64), "and the inputs of its original")
}
