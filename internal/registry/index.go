package registry

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Part is an image that an index shall have.
type Part struct {
	Reference string // REGISTRY/REPOSITORY with :TAG, @DIGEST or both
	Inputs    string // what it, or its original, must have been made from, or empty
}

// Index gives ref, REGISTRY/REPOSITORY:TAG, to an index (oci.IndexOf) of images of the same
// repository, and returns REGISTRY/REPOSITORY:TAG@DIGEST. A tag that is not there yet, or
// not of the wanted inputs, is waited for. What was revoked gets into no index. Where ref is
// that index already, nothing is sent.
func (s *Session) Index(ctx context.Context, ref string, parts []Part, wait time.Duration, p progress.Reporter) (string, error) {
	tag, err := parse(ref)
	if err != nil {
		return "", err
	}
	images := make([]oci.Part, len(parts))
	for i, part := range parts {
		if images[i], err = s.part(ctx, tag.Context(), part, wait, p); err != nil {
			return "", err
		}
	}
	raw, err := oci.IndexOf(images)
	if err != nil {
		return "", err
	}
	digest, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return "", err
	}
	a := s.access(tag.Context(), pushing)
	err = a.try(ctx, p, func() error {
		if stored, err := a.get(ctx, tag); err == nil && stored.Digest == digest {
			return nil
		}
		options, err := a.remote(ctx)
		if err != nil {
			return err
		}
		if err := remote.Put(tag, rawManifest{raw, types.OCIImageIndex}, options...); err != nil {
			return a.noIndex(err)
		}
		return a.confirm(ctx, tag, digest.String())
	})
	return ref + "@" + digest.String(), err
}

// noIndex explains the answer of a registry that has the images of an index, and does not
// take it.
func (a *access) noIndex(err error) error {
	answer := answered(err)
	if answer == nil || answer.StatusCode/100 != 4 || passes(answer) || forbidden(err) {
		return err
	}
	return failure.Wrap(&cause{a.guard.clean(err.Error()), err},
		fmt.Sprintf("registry %s takes no index of images (%d%s)", a.repo.RegistryStr(), answer.StatusCode, a.words(answer)),
		"use each image by its own tag, or another registry")
}

// part reads an image of an index, and what that says of it.
func (s *Session) part(ctx context.Context, repo name.Repository, part Part, wait time.Duration, p progress.Reporter) (oci.Part, error) {
	ref, err := parseStored(part.Reference)
	if err != nil {
		return oci.Part{}, err
	}
	if ref.Context() != repo {
		return oci.Part{}, failure.New(fmt.Sprintf("an index in %s has images of that repository alone, and not %s", repo, part.Reference),
			"push the image there, with a tag of its own")
	}
	a := s.access(repo, fetching())
	if tag, ok := ref.(name.Tag); ok && part.Inputs != "" {
		digest, err := FetchOptions{Options: s.options, Want: oci.Want{Inputs: part.Inputs}, Wait: wait}.await(ctx, a, tag, p)
		if err != nil {
			return oci.Part{}, err
		}
		ref = repo.Digest(digest)
	}
	opened, err := s.open(ctx, ref, "", fetching())
	if err != nil {
		return oci.Part{}, err
	}
	if opened.Index != nil {
		return oci.Part{}, failure.New(part.Reference+" is an index itself", "name its images by their digests")
	}
	if err := opened.Revoked(ctx, nil); err != nil {
		return oci.Part{}, err
	}
	opened.Name = part.Reference
	return oci.PartOf(opened.Image)
}
