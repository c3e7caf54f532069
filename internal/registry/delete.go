package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// ErrNoDeletion is the cause of the error of a registry that deletes nothing,
// whatever it is asked to delete.
var ErrNoDeletion = errors.New("the registry does not delete images")

// Delete deletes the image REGISTRY/REPOSITORY@DIGEST with all its tags, or
// takes the tag REGISTRY/REPOSITORY:TAG away: with the image where no other tag
// names it, else the tag alone, which not every registry can do. An image that
// an index of the repository names is not deleted. The space is free when the
// registry has collected its garbage. Kept are the tags that still name the
// image; none where it is gone.
func (s *Session) Delete(ctx context.Context, ref string) (kept []string, err error) {
	stored, err := parseStored(ref)
	if err != nil {
		return nil, err
	}
	entries, err := s.Entries(ctx, stored.Context().String())
	if err != nil {
		return nil, err
	}
	tag, ok := stored.(name.Tag)
	if !ok {
		_, there, unknown := s.Entry(ctx, stored.String())
		if err = s.deleteImage(ctx, stored, stored.Identifier(), entries); err == nil && unknown == nil && !there {
			err = notThere(stored)
		}
		return nil, err
	}
	i := slices.IndexFunc(entries, func(e Entry) bool { return slices.Contains(e.Tags, tag.TagStr()) })
	if i < 0 {
		return nil, notThere(tag)
	}
	if len(entries[i].Tags) == 1 {
		return nil, s.deleteImage(ctx, tag, entries[i].Digest, entries)
	}
	kept = slices.DeleteFunc(entries[i].Tags, func(t string) bool { return t == tag.TagStr() })
	return kept, s.untag(ctx, tag, entries[i].Digest, kept)
}

func notThere(ref name.Reference) error {
	return failure.New(fmt.Sprintf("registry %s has no %s", ref.Context().RegistryStr(), ref), "diskforge images list shows what it has")
}

// DeleteListed deletes an image that Entries listed, as Delete does, unless it
// has got a tag since: whoever decided that it may go did not know of that one.
// The repository is read again for this. What happens between that and the
// deletion goes unseen, as the distribution API has no deletion on condition.
func (s *Session) DeleteListed(ctx context.Context, e Entry) error {
	image, err := parseStored(e.Repository + "@" + e.Digest)
	if err != nil {
		return err
	}
	entries, err := s.Entries(ctx, e.Repository)
	if err != nil {
		return err
	}
	for _, now := range entries {
		for _, tag := range now.Tags {
			if now.Digest == e.Digest && !slices.Contains(e.Tags, tag) {
				return failure.New(fmt.Sprintf("%s has got the tag %s since it was listed", image, tag), "prune again, which decides anew")
			}
		}
	}
	return s.deleteImage(ctx, image, e.Digest, entries)
}

// deleteImage deletes the manifest that ref names, unless an index among the
// entries of its repository names it, too; the registry then drops its tags.
func (s *Session) deleteImage(ctx context.Context, ref name.Reference, digest string, entries []Entry) error {
	repo := ref.Context()
	var tags []string
	for _, e := range entries {
		if slices.Contains(e.Parts, digest) {
			return failure.New(fmt.Sprintf("%s is a part of the index %s:%s, which would break", ref, repo, strings.Join(e.Tags, ",")),
				fmt.Sprintf("delete the index first, %s@%s, or leave both", repo, e.Digest))
		}
		if e.Digest == digest {
			tags = e.Tags
		}
	}
	a := s.access(repo, deleting)
	if err := a.delete(ctx, a.path("/manifests/"+digest)); err != nil {
		return a.noDeletion(err)
	}
	if err := a.gone(ctx, repo.Digest(digest), digest); err != nil {
		return err
	}
	// go-containerregistry's own registry drops the digest alone.
	for _, tag := range tags {
		left, err := a.manifest(ctx, repo.Tag(tag))
		if err == nil && left != nil && left.Digest.String() == digest {
			if err = a.delete(ctx, a.path("/manifests/"+tag)); err == nil {
				err = a.gone(ctx, repo.Tag(tag), digest)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// gone looks whether what was deleted is gone.
func (a *access) gone(ctx context.Context, ref name.Reference, digest string) error {
	left, err := a.manifest(ctx, ref)
	if err == nil && left != nil && left.Digest.String() == digest {
		err = failure.New(fmt.Sprintf("registry %s accepted the deletion of %s, but still has it", a.repo.RegistryStr(), ref),
			"its log says more; some delete only when they collect garbage")
	}
	return err
}

// delete asks for a deletion; what is gone already is deleted.
func (a *access) delete(ctx context.Context, path string) error {
	return a.try(ctx, progress.Discard, func() error {
		resp, err := a.send(ctx, http.MethodDelete, a.url(path), nil, noRedirect,
			http.StatusOK, http.StatusAccepted, http.StatusNoContent, http.StatusNotFound)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
}

// notOffered says whether a registry answers that it does no such thing.
func notOffered(err error) bool {
	answer := answered(err)
	return answer != nil && (answer.StatusCode == http.StatusMethodNotAllowed || answer.StatusCode == http.StatusBadRequest)
}

// noDeletion explains the answer of a registry that deletes nothing.
func (a *access) noDeletion(err error) error {
	if !notOffered(err) {
		return err
	}
	answer := answered(err)
	f := failure.New(fmt.Sprintf("registry %s does not delete images (%d%s)", a.repo.RegistryStr(), answer.StatusCode, a.words(answer)),
		"where it is docker-registry, start it with REGISTRY_STORAGE_DELETE_ENABLED=true")
	if a.repo.RegistryStr() == ghcr {
		owner, image, _ := strings.Cut(a.repo.RepositoryStr(), "/")
		f.Try = fmt.Sprintf("GitHub deletes on the package's page, or by gh api --method DELETE "+
			"/orgs/%s/packages/container/%s/versions/ID (/users/… for a person's)", owner, url.PathEscape(image))
	}
	f.Err = ErrNoDeletion
	return f
}

// untag takes a tag alone away: by the distribution API or, as Harbor takes
// only digests there, by Harbor's.
func (s *Session) untag(ctx context.Context, tag name.Tag, digest string, kept []string) error {
	harbor, err := s.harbor(ctx, tag.Context(), deleting)
	if err != nil {
		return err
	}
	if harbor != nil {
		project, repository, _ := strings.Cut(tag.RepositoryStr(), "/")
		// A slash in a repository's name is encoded twice (swagger.yaml,
		// repositoryName).
		return harbor.delete(ctx, fmt.Sprintf("/api/v2.0/projects/%s/repositories/%s/artifacts/%s/tags/%s",
			url.PathEscape(project), url.PathEscape(url.PathEscape(repository)), digest, url.PathEscape(tag.TagStr())))
	}
	a := s.access(tag.Context(), deleting)
	refused := false
	if err = a.delete(ctx, a.path("/manifests/"+tag.TagStr())); err == nil {
		left, errLeft := a.manifest(ctx, tag) // old docker-registries may accept it and do nothing
		refused, err = left != nil, errLeft
	}
	if refused || notOffered(err) {
		return failure.New(fmt.Sprintf("registry %s deletes no tag alone, and the image of %s has others: %s",
			tag.RegistryStr(), tag, strings.Join(kept, ", ")),
			fmt.Sprintf("delete the image with all its tags, %s@%s, or leave it", tag.Context(), digest))
	}
	return err
}
