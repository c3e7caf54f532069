package registry

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"

	"github.com/netgroup-polito/diskforge/internal/image/oci"
)

const (
	parallel = 8   // manifests of a repository that are read at a time
	mostTags = 200 // of a repository that Find looks at
)

// Found is an image that a registry has.
type Found struct {
	Reference string    // REGISTRY/REPOSITORY:TAG@DIGEST
	Tag       string    // a tag that it has: the wanted one, or another
	Digest    string    // of the manifest, "sha256:…"
	Built     time.Time // when its playbook, or its original's, had run; zero where that is not known
	// Revoked says why the image must not be used (see Revocation), where it is no other
	// than that which was found.
	Revoked string
	// Lost is the digest of a blob that the registry should have and has not,
	// where it was for this that no image was found.
	Lost string
	// Other says that the wanted tag names an image of other inputs, where no
	// image was found.
	Other bool
}

// Find looks for an image that was made from these inputs, or a refresh of one
// (oci.MadeFrom): under the tag of ref, REGISTRY/REPOSITORY:TAG, then
// under the other tags of the repository, of which it looks at no more than
// 200, the highest names first. An image whose config or layer the registry has
// lost, or that is revoked, does not count.
//
// In the usual case that is one login a repository and four requests, and two for each
// image that it was made from, the one from the other. A repository that does not exist has
// no such image; to be refused is an error.
func (s *Session) Find(ctx context.Context, ref, inputs string) (Found, bool, error) {
	tag, err := parse(ref)
	if err != nil {
		return Found{}, false, err
	}
	a := s.access(tag.Context(), reading)
	found, ok, err := a.find(ctx, s, []string{tag.TagStr()}, inputs)
	if ok || err != nil {
		return found, ok, err
	}
	others, _, err := a.tags(ctx)
	if err != nil {
		return Found{}, false, err
	}
	others = slices.DeleteFunc(others, func(other string) bool { return other == tag.TagStr() })
	slices.SortFunc(others, func(a, b string) int { return cmp.Compare(b, a) }) // of dates and versions: the newest first
	for some := range slices.Chunk(others[:min(len(others), mostTags)], parallel) {
		other, ok, err := a.find(ctx, s, some, inputs)
		if ok || err != nil {
			return other, ok, err
		}
		if found.Revoked == "" && other.Revoked != "" {
			found = other
		}
		found.Lost = cmp.Or(found.Lost, other.Lost)
	}
	return found, false, nil
}

// find looks for the image under some tags, in their order.
func (a *access) find(ctx context.Context, s *Session, tags []string, inputs string) (found Found, ok bool, err error) {
	images, err := each(ctx, a, tags, parseImage)
	if err != nil {
		return Found{}, false, err
	}
	for i, tag := range tags {
		image := images[i]
		if image == nil {
			continue
		}
		if !oci.MadeFrom(inputs, image.Annotations) {
			found.Other = true
			continue
		}
		lost, err := a.lost(ctx, image.Manifest)
		if err != nil {
			return Found{}, false, err
		}
		if lost != "" {
			found.Lost = cmp.Or(found.Lost, lost)
			continue
		}
		one := Found{
			Reference: a.repo.Tag(tag).String() + "@" + image.Digest,
			Tag:       tag,
			Digest:    image.Digest,
			Built:     oci.OriginalOf(image.Annotations).Built,
		}
		err = a.revoked(ctx, s, image.Entry, nil)
		if why, revoked := errors.AsType[Revocation](err); revoked {
			one.Revoked = why.Error()
			found = one
			continue
		}
		return one, err == nil, err
	}
	return found, false, nil
}

// each makes something of the manifest of each tag, some at a time, and nothing
// of a tag that is not there.
func each[T any](ctx context.Context, a *access, tags []string, use func(name.Tag, *remote.Descriptor) (T, error)) ([]T, error) {
	all := make([]T, len(tags))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i, tag := range tags {
		group.Go(func() error {
			tag := a.repo.Tag(tag)
			d, err := a.manifest(ctx, tag)
			if err == nil && d != nil {
				all[i], err = use(tag, d)
			}
			return err
		})
	}
	return all, group.Wait()
}

// manifest is an image's, with what it tells.
type manifest struct {
	*v1.Manifest
	Entry
}

// parseImage reads a manifest, or returns nil where it is not an image's.
func parseImage(tag name.Tag, d *remote.Descriptor) (*manifest, error) {
	if !d.MediaType.IsImage() {
		return nil, nil
	}
	if m, err := v1.ParseManifest(bytes.NewReader(d.Manifest)); err == nil && m.Config.Digest != (v1.Hash{}) {
		e, err := entry(tag, d.Digest.String(), d.Manifest)
		return &manifest{m, e}, err
	}
	return nil, nil
}

// lost returns the digest of a blob of the image that the registry has not, or
// nothing.
func (a *access) lost(ctx context.Context, m *v1.Manifest) (string, error) {
	for _, blob := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if there, err := a.hasBlob(ctx, blob); err != nil || !there {
			return blob.Digest.String(), err
		}
	}
	return "", nil
}

// hasBlob asks for a blob without reading it. One of another size is not the
// one. A redirect is a yes: the registry has looked before it sends us to its
// storage, and that often takes no HEAD.
func (a *access) hasBlob(ctx context.Context, blob v1.Descriptor) (bool, error) {
	size := int64(-1)
	there, err := a.look(ctx, func() error {
		resp, err := a.send(ctx, http.MethodHead, a.url(a.path("/blobs/"+blob.Digest.String())), nil, noRedirect,
			http.StatusOK, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect)
		if err != nil {
			return err
		}
		if resp.StatusCode == http.StatusOK {
			size = resp.ContentLength
		}
		return resp.Body.Close()
	})
	return there && (size < 0 || size == blob.Size), err
}

// moment reads a time of an annotation. Whoever has no time writes the Unix
// epoch or the year 1; neither is known.
func moment(text string) time.Time {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil || t.Unix() <= 0 {
		return time.Time{}
	}
	return t.UTC()
}
