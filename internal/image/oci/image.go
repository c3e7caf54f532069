package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/netgroup-polito/diskforge/internal/arch"
)

const (
	// maxJSON bounds what is read into memory of an image that others made, in
	// bytes. Registries refuse manifests above 4 MiB.
	maxJSON = 4 << 20
	// maxDepth bounds how many indexes lead to an image, index.json among them.
	maxDepth = 3
)

// ErrNoRanges is the error of a blob of which a registry gives no parts.
var ErrNoRanges = errors.New("the registry answers range requests with the whole layer")

// Image is an image where it is stored: in a layout or in a registry.
type Image struct {
	Name             string // as it was given
	Digest           string // of the manifest, "sha256:…"
	MediaType        string // of the manifest
	Manifest, Config []byte // whose digests were checked
	Index            *Index // set where the name is that of several images
	// Blob opens a blob of the image.
	Blob func(v1.Descriptor) (Blob, error)

	// Of an image in a registry there are besides:

	Tags      func() ([]string, error) // all tags of its repository
	BytesRead func() int64             // what came over the wire, in the bodies of answers
}

// Index tells which of several images was taken.
type Index struct {
	Digest    string   `json:"digest"`    // empty for that of a layout
	Taken     string   `json:"taken"`     // platform, "linux/amd64"
	Platforms []string `json:"platforms"` // all that there are
}

// Blob is a blob where it is stored.
type Blob struct {
	// ReaderAt gives out parts, of which no digest is checked. It fails with
	// ErrNoRanges where a registry gives the whole only.
	io.ReaderAt
	// Open reads all of the blob. Its last bytes are not given out where it has
	// another digest or size than its descriptor says.
	Open func() (io.ReadCloser, error)
}

// Resolve finds the image that a descriptor leads to, through indexes (see
// choose), the one for an architecture where that is named. Raw is what the descriptor
// names; manifest and config read what others do, and their errors are passed on as they are.
func Resolve(d v1.Descriptor, raw []byte, architecture string, manifest, config func(v1.Descriptor) ([]byte, error)) (i Image, err error) {
	for depth := 0; d.MediaType.IsIndex(); depth++ {
		if depth == maxDepth {
			return i, errors.New("it is an index of indexes")
		}
		chosen, index, err := choose(raw, architecture)
		if err != nil {
			return i, err
		}
		if d.Digest != (v1.Hash{}) {
			index.Digest = d.Digest.String()
		}
		if index.Digest != "" || len(index.Platforms) > 1 {
			i.Index = index
		}
		d = chosen
		if raw, err = manifest(d); err != nil {
			return i, err
		}
	}
	i.Digest, i.MediaType, i.Manifest = d.Digest.String(), string(d.MediaType), raw
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return i, fmt.Errorf("it has no manifest of an image: %w", err)
	}
	if m.Config.Size > maxJSON {
		return i, fmt.Errorf("it has a config of %d bytes: no registry takes that", m.Config.Size)
	}
	i.Config, err = config(m.Config)
	return i, err
}

// choose takes an image out of an OCI index or a Docker manifest list as nodes
// and CDI choose it, by OS, architecture and no variant: the one for the named architecture
// or, where none is named, for arch.Default, one that says no platform, or one for another
// architecture that KubeVirt runs. An index without any is refused as they refuse it.
func choose(raw []byte, architecture string) (v1.Descriptor, *Index, error) {
	var list v1.IndexManifest
	if err := json.Unmarshal(raw, &list); err != nil {
		return v1.Descriptor{}, nil, fmt.Errorf("its index: %w", err)
	}
	var chosen *v1.Descriptor
	platforms := platforms(architecture)
	index, best := &Index{Platforms: []string{}}, len(platforms)
	for _, d := range list.Manifests {
		// BuildKit lists its attestations as if they were images.
		_, attestation := d.Annotations["vnd.docker.reference.type"]
		if attestation || !d.MediaType.IsImage() && !d.MediaType.IsIndex() {
			continue
		}
		platform := platformOf(d)
		index.Platforms = append(index.Platforms, platform)
		if rank := slices.Index(platforms, strings.TrimSuffix(platform, "/v8")); rank >= 0 && rank < best {
			chosen, best, index.Taken = &d, rank, platform
		}
	}
	switch {
	case len(index.Platforms) == 0:
		return v1.Descriptor{}, nil, errors.New("its index lists no image")
	case chosen == nil:
		return v1.Descriptor{}, nil, fmt.Errorf("its index has no image for linux and %s, "+
			"by which nodes and CDI choose, but for %s", strings.Join(architectures(architecture), ", "),
			strings.Join(index.Platforms[:min(len(index.Platforms), 5)], ", "))
	}
	return *chosen, index, nil
}

// architectures are those that are taken, the best first.
func architectures(named string) []string {
	if named != "" {
		return []string{named}
	}
	return arch.KubeVirt
}

// platforms are theirs; one may be unknown.
func platforms(named string) (all []string) {
	for _, name := range architectures(named) {
		all = append(all, "linux/"+name)
	}
	return slices.Insert(all, 1, "unknown")
}

// platformOf is OS/ARCHITECTURE[/VARIANT] of an image in an index.
func platformOf(d v1.Descriptor) string {
	if d.Platform == nil {
		return "unknown"
	}
	return strings.TrimSuffix(d.Platform.OS+"/"+d.Platform.Architecture+"/"+d.Platform.Variant, "/")
}
