package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Referrers are images without a tag that belong to another, by OCI 1.1's referrers API
// (distribution-spec, "Listing Referrers"). Where a registry lacks it, clients keep such
// lists in tags (sha256-…): we do not, since CrownLabs takes every tag for a version.

const (
	emptyConfig = "application/vnd.oci.empty.v1+json" // image-spec, "Guidance for an empty descriptor"
	// What an image's referrers may have at most, of those that are read.
	mostReferrers     = 500
	mostReferrerPages = 50
	maxReferrer       = 32 << 20 // bytes of one; an SBOM of a desktop has 4 MiB
)

// ErrNoReferrers is the cause of the error of a registry that keeps no referrers.
var ErrNoReferrers = errors.New("the registry has no referrers API (OCI 1.1)")

// Referrer is what is attached to an image: one blob of the media type ArtifactType.
type Referrer struct {
	ArtifactType string
	Annotations  map[string]string
	Content      []byte
}

// TakesReferrers says whether the registry of ref keeps referrers: then it has an
// empty list of them even of an image that is not there.
func (s *Session) TakesReferrers(ctx context.Context, ref string) (bool, error) {
	image, err := parseStored(ref)
	if err != nil {
		return false, err
	}
	const nobody = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	_, err = s.access(image.Context(), reading).referrers(ctx, nobody)
	if errors.Is(err, ErrNoReferrers) {
		return false, nil
	}
	return err == nil, err
}

// Attach adds referrers to an image, REGISTRY/REPOSITORY@DIGEST. The error's cause is
// ErrNoReferrers where the registry keeps none.
func (s *Session) Attach(ctx context.Context, ref string, all []Referrer, p progress.Reporter) error {
	subject, a, err := s.subject(ctx, ref, pushing)
	if err != nil {
		return err
	}
	if _, err := a.referrers(ctx, subject.Digest.String()); err != nil {
		return err
	}
	for _, one := range all {
		if err := a.try(ctx, p, func() error { return a.attach(ctx, subject, one) }); err != nil {
			return err
		}
	}
	return nil
}

// subject is the image that referrers belong to.
func (s *Session) subject(ctx context.Context, ref string, what purpose) (v1.Descriptor, *access, error) {
	image, err := parseStored(ref)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	a := s.access(image.Context(), what)
	d, err := a.manifest(ctx, image)
	if err == nil && d == nil {
		err = failure.New(fmt.Sprintf("registry %s has no %s", a.repo.RegistryStr(), image), "check the reference")
	}
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	return v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, a, nil
}

func (a *access) attach(ctx context.Context, subject v1.Descriptor, one Referrer) error {
	options, err := a.remote(ctx)
	if err != nil {
		return err
	}
	manifest := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: one.ArtifactType,
		Subject: &subject, Annotations: one.Annotations,
	}
	for i, layer := range []v1.Layer{static.NewLayer([]byte("{}"), emptyConfig), static.NewLayer(one.Content, types.MediaType(one.ArtifactType))} {
		if err := remote.WriteLayer(a.repo, layer, options...); err != nil {
			return err
		}
		var d v1.Descriptor
		d.MediaType, _ = layer.MediaType() // a static layer has no errors
		d.Digest, _ = layer.Digest()
		d.Size, _ = layer.Size()
		if i == 0 {
			manifest.Config = d
		} else {
			manifest.Layers = append(manifest.Layers, d)
		}
	}
	content, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	digest, _, err := v1.SHA256(bytes.NewReader(content))
	if err != nil {
		return err
	}
	return remote.Put(a.repo.Digest(digest.String()), rawManifest{content, types.OCIManifestSchema1}, options...)
}

// rawManifest is a manifest that is sent as it is.
type rawManifest struct {
	content []byte
	is      types.MediaType
}

// RawManifest and MediaType implement remote.Taggable.
func (m rawManifest) RawManifest() ([]byte, error) { return m.content, nil }

// MediaType tells the library what it is.
func (m rawManifest) MediaType() (types.MediaType, error) { return m.is, nil }

// Referrers returns the digest of the image that ref names and what of one type is
// attached to it; what cannot be read of that is left out, and counted. The error's
// cause is ErrNoReferrers where the registry keeps none.
func (s *Session) Referrers(ctx context.Context, ref, artifactType string) (digest string, all []Referrer, broken int, err error) {
	subject, a, err := s.subject(ctx, ref, reading)
	if err != nil {
		return "", nil, 0, err
	}
	digest = subject.Digest.String()
	all, broken, err = a.attached(ctx, digest, Referrer{ArtifactType: artifactType})
	return digest, all, broken, err
}

// attached reads what is attached to an image and is as wanted: of the type, and with the
// annotations. What the registry's list tells of those is enough to leave one out.
func (a *access) attached(ctx context.Context, digest string, want Referrer) (all []Referrer, broken int, err error) {
	list, err := a.referrers(ctx, digest)
	if err != nil {
		return nil, 0, err
	}
	for _, d := range list {
		if len(d.Annotations) > 0 && !want.has(d.Annotations) {
			continue
		}
		one, err := a.referrer(ctx, d, want)
		switch {
		case ctx.Err() != nil:
			return nil, 0, context.Cause(ctx)
		case err != nil:
			broken++
		case one.Content != nil:
			all = append(all, one)
		}
	}
	return all, broken, nil
}

// has says whether annotations are as wanted.
func (want Referrer) has(annotations map[string]string) bool {
	for key, value := range want.Annotations {
		if annotations[key] != value {
			return false
		}
	}
	return true
}

// referrers lists the manifests that refer to an image. What their type is, they say
// themselves: some registries list the config's.
func (a *access) referrers(ctx context.Context, digest string) (all []v1.Descriptor, err error) {
	for at, pages := a.path("/referrers/"+digest), 0; at != ""; pages++ {
		var index v1.IndexManifest
		var next string
		there, err := a.look(ctx, func() error {
			page, links, err := a.page(ctx, at)
			if noRepository(err) { // nothing was pushed there yet
				return nil
			}
			if err != nil {
				return err
			}
			if !json.Valid(page) { // a page for people
				return errNotAList
			}
			if err := json.Unmarshal(page, &index); err != nil || index.SchemaVersion != 2 {
				return failure.New(fmt.Sprintf("registry %s answers with something else than a list of what is attached to %s@%s",
					a.repo.RegistryStr(), a.repo, digest), "its log says more")
			}
			next, err = follow(a.url(at), links)
			return err
		})
		switch {
		case errors.Is(err, errNotAList) || notOffered(err) || err == nil && !there:
			return nil, failure.Wrap(ErrNoReferrers, "registry "+a.repo.RegistryStr()+" keeps no signatures beside an image",
				"Harbor 2.9 and newer do, and Zot")
		case err != nil:
			return nil, err
		}
		if all, at = append(all, index.Manifests...), next; pages == mostReferrerPages || len(all) > mostReferrers {
			return nil, failure.New(fmt.Sprintf("more than %d manifests, or a list without an end, are attached to %s@%s", mostReferrers, a.repo, digest),
				"delete what somebody attached without need")
		}
	}
	return all, nil
}

// noRepository says whether a registry answers that it has no such repository.
func noRepository(err error) bool {
	answer := answered(err)
	return answer != nil && slices.ContainsFunc(answer.Errors, func(d transport.Diagnostic) bool { return d.Code == transport.NameUnknownErrorCode })
}

var errNotAList = errors.New("what it sends is no list of referrers")

// referrer reads a referrer, and its one blob where it is as wanted.
func (a *access) referrer(ctx context.Context, d v1.Descriptor, want Referrer) (Referrer, error) {
	stored, err := a.get(ctx, a.repo.Digest(d.Digest.String()))
	if err != nil {
		return Referrer{}, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(stored.Manifest, &m); err != nil {
		return Referrer{}, err
	}
	one := Referrer{ArtifactType: m.ArtifactType, Annotations: m.Annotations}
	if one.ArtifactType != want.ArtifactType || !want.has(one.Annotations) {
		return one, nil
	}
	if len(m.Layers) != 1 || m.Layers[0].Size > maxReferrer {
		return one, errors.New("it is not one blob of at most 32 MiB")
	}
	one.Content, err = a.read(ctx, m.Layers[0])
	return one, err
}
