package contract

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// check is one rule of the contract. Its function says what breaks the rule and
// returns what is right where nothing does, or nothing where it does not apply.
type check struct {
	name string
	find func(*subject, *findings) (right string)
}

// checks are the rules of a containerdisk. Where no source is named it is
// KubeVirt's pkg/container-disk (1.9) and CDI's pkg/importer/transport.go (1.66).
// A rule that holds for some releases only names them.
var checks = slices.Concat(imageChecks, treeChecks, diskChecks, metadataChecks)

// findings are what one check found.
type findings struct{ results []Result }

func (f *findings) note(format string, args ...any) { f.add(Note, format, args...) }
func (f *findings) warn(format string, args ...any) { f.add(Warning, format, args...) }
func (f *findings) fail(format string, args ...any) { f.add(Error, format, args...) }

const maxLine = 400 // characters of a result, which may repeat words of the image

func (f *findings) add(l Level, format string, args ...any) {
	f.results = append(f.results, Result{Level: l, Detail: text.Cut(text.Line(fmt.Sprintf(format, args...)), maxLine)})
}

// judge runs the checks.
func (s *subject) judge() {
	s.Checks = []Result{}
	for _, c := range checks {
		var f findings
		if right := c.find(s, &f); right != "" && len(f.results) == 0 {
			f.add(OK, "%s", right)
		}
		for _, r := range f.results {
			r.Check = c.name
			s.Checks = append(s.Checks, r)
		}
	}
}

const inDockers = "in Docker's format, not OCI's; KubeVirt and CDI take both"

// imageChecks are about the manifest, the config and the layers as they are
// stored.
var imageChecks = []check{
	{"manifest", func(s *subject, f *findings) string {
		switch types.MediaType(s.MediaType) {
		case types.OCIManifestSchema1:
		case types.DockerManifestSchema2:
			f.warn("it is " + inDockers)
		default:
			f.fail("%q is no manifest of an image that nodes pull", s.MediaType)
		}
		return "an OCI image"
	}},
	{"index", func(s *subject, f *findings) string {
		if s.Index == nil {
			return ""
		}
		f.note("the reference names %d images (%s); this is the one for %s, no other was inspected",
			len(s.Index.Platforms), strings.Join(s.Index.Platforms, ", "), s.Index.Taken)
		platform := strings.Split(s.Index.Taken, "/") // or "unknown"
		if len(platform) > 1 && (platform[0] != s.Config.OS || platform[1] != s.Config.Architecture) {
			f.fail("the index says that it is for %s, its config says %s/%s: nodes and CDI choose by the one and check the other",
				s.Index.Taken, s.Config.OS, s.Config.Architecture)
		}
		return ""
	}},
	{"config", func(s *subject, f *findings) string {
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
	{"platform", func(s *subject, f *findings) string {
		os, architecture := s.Config.OS, s.Config.Architecture
		switch os {
		case "linux":
		case "":
			f.warn("os is not set; it should be linux")
		default:
			f.fail("os is %q: nodes take only linux", os)
		}
		switch known := oci.Architecture(architecture); {
		case architecture == "":
			f.fail("architecture is not set: CDI 1.63 and later refuse it where one is asked for")
		case known == "":
			f.fail("architecture is %q: KubeVirt runs amd64, arm64 and s390x", architecture)
		case known != architecture:
			f.fail("architecture is %q, and images call it %s: CDI 1.63 and later refuse it where one is asked for", architecture, known)
		}
		return os + "/" + architecture
	}},
	{"layers", func(s *subject, f *findings) string {
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
			if l.Compression == oci.Zstd {
				f.fail("the layer is compressed with zstd, which nodes unpack and CDI up to 1.66 cannot read (its issue 4277); " +
					"gzip and plain layers are read by all")
			}
		}
		return "one, of type " + s.layers[0].MediaType
	}},
	{"layer content", func(s *subject, f *findings) string {
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
			if s.remote != nil && l.WholeRead == "" {
				right = "its archive can be read; its digest was not checked, as only parts were read"
			}
		}
		return right
	}},
}

// layerTypes are the media types of layers, with what they say of the
// compression.
var layerTypes = map[types.MediaType]string{
	types.OCIUncompressedLayer: oci.Plain, types.OCILayer: oci.Gzip, types.OCILayerZStd: oci.Zstd,
	types.DockerUncompressedLayer: oci.Plain, types.DockerLayer: oci.Gzip,
	"application/vnd.docker.image.rootfs.diff.tar.zstd": oci.Zstd,
}
