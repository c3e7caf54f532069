package settings

import (
	"strings"

	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/registry"
)

// BaseImage is a base that is a containerdisk: in a registry or in a layout.
type BaseImage struct {
	Reference string // REGISTRY/REPOSITORY with :TAG, @DIGEST or both; or empty
	Layout    string // absolute path of an OCI layout; or empty
	// Digest of the manifest ("sha256:…") and input digest that the image must
	// have; at least one is set.
	Digest, Inputs string
}

// IsSet says whether the base is a containerdisk.
func (b BaseImage) IsSet() bool { return b.Reference != "" || b.Layout != "" }

// baseImage reads oci://REGISTRY/REPOSITORY:TAG, …@sha256:DIGEST and
// oci:DIR@sha256:DIGEST, with what ISO_CHECKSUM adds.
func (p *parser) baseImage(url, checksum string) BaseImage {
	var b BaseImage
	at, inRegistry := strings.CutPrefix(url, "oci://")
	if authority, _, _ := strings.Cut(at, "/"); inRegistry && strings.Contains(authority, "@") {
		p.add("ISO_URL", "has a user in it: that is REGISTRY_USER") // not quoted: it may hold a password
		return b
	}
	at = strings.TrimPrefix(at, "oci:")
	if i := strings.LastIndex(at, "@sha256:"); i >= 0 {
		b.Digest = at[i+1:]
	}
	if inRegistry {
		b.Reference = at
		p.check("ISO_URL", registry.CheckStored(at))
	} else {
		var err error
		if b.Layout = strings.TrimSuffix(at, "@"+b.Digest); b.Layout == "" {
			p.add("ISO_URL", "names no folder: give oci://REGISTRY/REPOSITORY:TAG, or oci:DIR@sha256:DIGEST as a build prints it")
		} else if b.Layout, err = folder(b.Layout); err != nil {
			p.check("ISO_URL", err)
		}
		if b.Digest != "" && !host.ValidDigest(b.Digest) {
			p.add("ISO_URL", "ends in what is no digest: give sha256: and 64 hexadecimal digits behind @")
		}
	}
	p.imageChecksum(&b, checksum)
	return b
}

// imageChecksum reads ISO_CHECKSUM of a base that is a containerdisk.
func (p *parser) imageChecksum(b *BaseImage, checksum string) {
	const forms = "give sha256: with the digest of its manifest, or inputs:sha256: with its input digest"
	inputs, ofInputs := strings.CutPrefix(checksum, "inputs:")
	switch {
	case checksum == "" && b.Digest == "":
		p.add("ISO_CHECKSUM", "is not set, and ISO_URL has no digest: %s, or write @sha256:DIGEST into ISO_URL", forms)
	case checksum == "":
	case ofInputs && host.ValidDigest(inputs):
		b.Inputs = inputs
	case !host.ValidDigest(checksum):
		p.add("ISO_CHECKSUM", "%q is none of a containerdisk: %s", checksum, forms)
	case b.Digest != "" && b.Digest != checksum:
		p.add("ISO_CHECKSUM", "is another digest than that in ISO_URL: leave out one of them")
	default:
		b.Digest = checksum
	}
}
