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
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

// ErrNoDeletion is the cause of the error of a registry that deletes nothing,
// whatever it is asked to delete.
var ErrNoDeletion = errors.New("the registry does not delete images")

// Deleted says what Delete took away.
type Deleted struct {
	Digest string   // of the image, "sha256:…"
	Tags   []string // that are gone
	Kept   []string // tags that still name the image; none where it is gone
}

var deleting = purpose{
	doing: "deleting from", do: "delete from",
	right:   "ask for the right to delete there: in Harbor a role or a robot account that may delete artifacts",
	missing: "check the reference",
	where:   "check the reference",
}

// Delete deletes the image REGISTRY/REPOSITORY@DIGEST with all its tags, or
// takes the tag REGISTRY/REPOSITORY:TAG away: with the image where no other tag
// names it, else the tag alone, which not every registry can do. An image that
// an index of the repository names is not deleted. The space is free when the
// registry has collected its garbage.
func (s *Session) Delete(ctx context.Context, ref string) (Deleted, error) {
	stored, err := parseStored(ref, s.options.Insecure)
	if err != nil {
		return Deleted{}, err
	}
	entries, err := s.Entries(ctx, stored.Context().String())
	if err != nil {
		return Deleted{}, err
	}
	if tag, ok := stored.(name.Tag); ok {
		return s.deleteTag(ctx, tag, entries)
	}
	return Deleted{Digest: stored.Identifier()}, s.deleteImage(ctx, stored, stored.Identifier(), entries)
}

// DeleteListed deletes an image that Entries listed, as Delete does, unless it
// has got a tag since: whoever decided that it may go did not know of that one.
// The repository is read again for this. What happens between that and the
// deletion goes unseen, as the distribution API has no deletion on condition.
func (s *Session) DeleteListed(ctx context.Context, e Entry) error {
	image, err := parseStored(e.Repository+"@"+e.Digest, s.options.Insecure)
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

// deleteTag takes a tag away and leaves an image that has others.
func (s *Session) deleteTag(ctx context.Context, tag name.Tag, entries []Entry) (Deleted, error) {
	i := slices.IndexFunc(entries, func(e Entry) bool { return slices.Contains(e.Tags, tag.TagStr()) })
	if i < 0 {
		return Deleted{}, failure.New(fmt.Sprintf("registry %s has no %s", tag.RegistryStr(), tag), "diskforge images list shows what it has")
	}
	e := entries[i]
	d := Deleted{Digest: e.Digest, Tags: []string{tag.TagStr()}}
	if len(e.Tags) == 1 {
		return d, s.deleteImage(ctx, tag, e.Digest, entries)
	}
	d.Kept = slices.DeleteFunc(e.Tags, func(t string) bool { return t == tag.TagStr() })
	return d, s.untag(ctx, tag, e.Digest, d.Kept)
}

// deleteImage deletes the manifest that ref names, unless an index among the
// entries of its repository names it, too; the registry then drops its tags.
func (s *Session) deleteImage(ctx context.Context, ref name.Reference, digest string, entries []Entry) error {
	repo := ref.Context()
	for _, index := range entries {
		if slices.Contains(index.Parts, digest) {
			return failure.New(fmt.Sprintf("%s is a part of the index %s:%s, which would break", ref, repo, strings.Join(index.Tags, ",")),
				fmt.Sprintf("delete the index first, %s@%s, or leave both", repo, index.Digest))
		}
	}
	w, err := s.to(ctx, repo, deleting, transport.DeleteScope)
	if err != nil {
		return err
	}
	err = w.delete(ctx, "/v2/"+repo.RepositoryStr()+"/manifests/"+digest, func(answer *transport.Error) *failure.Error {
		if answer.StatusCode != http.StatusMethodNotAllowed && answer.StatusCode != http.StatusBadRequest {
			return nil
		}
		f := failure.New(fmt.Sprintf("registry %s does not delete images (%d%s)", repo.RegistryStr(), answer.StatusCode, w.words(answer)),
			"where it is docker-registry, start it with REGISTRY_STORAGE_DELETE_ENABLED=true")
		if repo.RegistryStr() == ghcr {
			owner, image, _ := strings.Cut(repo.RepositoryStr(), "/")
			f.Try = fmt.Sprintf("GitHub deletes on the package's page, or by gh api --method DELETE /orgs/%s/packages/container/%s/versions/ID (/users/… for a person's)", owner, url.PathEscape(image))
		}
		f.Err = ErrNoDeletion
		return f
	})
	if err != nil {
		return err
	}
	return w.gone(ctx, digest, entries)
}

// gone looks whether a deleted image is gone, and takes away the tags that the
// registry has left: go-containerregistry's own drops the digest alone.
func (w *way) gone(ctx context.Context, digest string, entries []Entry) error {
	refs := []name.Reference{w.repo.Digest(digest)}
	for _, e := range entries {
		if e.Digest == digest {
			for _, tag := range w.named(e.Tags) {
				refs = append(refs, tag)
			}
		}
	}
	for _, ref := range refs {
		left, err := w.manifest(ctx, ref)
		if tag, ok := ref.(name.Tag); ok && left != nil && left.Digest.String() == digest {
			err = w.delete(ctx, "/v2/"+w.repo.RepositoryStr()+"/manifests/"+tag.TagStr(), func(*transport.Error) *failure.Error { return nil })
			if err == nil {
				left, err = w.manifest(ctx, ref)
			}
		}
		if err != nil {
			return err
		}
		if left != nil && left.Digest.String() == digest {
			return failure.New(fmt.Sprintf("registry %s said that it has deleted %s, and has it still", w.repo.RegistryStr(), ref), "its log says more; some delete only when they collect garbage")
		}
	}
	return nil
}

// delete asks for a deletion; what is gone already is deleted. Special explains
// answers that mean something else here than elsewhere, or returns nil.
func (w *way) delete(ctx context.Context, path string, special func(*transport.Error) *failure.Error) error {
	return w.do(ctx, func(signed http.RoundTripper) error {
		to := w.address("")
		to.Path, _ = url.PathUnescape(path)
		to.RawPath = path
		resp, err := ask(ctx, &http.Client{Transport: signed, CheckRedirect: noRedirect}, http.MethodDelete, to.String())
		if err != nil {
			return err
		}
		err = transport.CheckError(resp, http.StatusOK, http.StatusAccepted, http.StatusNoContent)
		answer := answered(err)
		switch {
		case answer == nil:
			return err
		case answer.StatusCode == http.StatusNotFound:
			return nil
		case answer.StatusCode == http.StatusPreconditionFailed:
			return failure.New(fmt.Sprintf("registry %s protects %s (412%s)", w.repo.RegistryStr(), w.repo.RepositoryStr(), w.words(answer)),
				"change the project's rule of tag immutability (Harbor: project, Policy), or keep the image")
		}
		if f := special(answer); f != nil {
			return f
		}
		return err
	})
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
		return harbor.delete(ctx, "/api/v2.0/projects/"+url.PathEscape(project)+"/repositories/"+url.PathEscape(url.PathEscape(repository))+
			"/artifacts/"+digest+"/tags/"+url.PathEscape(tag.TagStr()), func(*transport.Error) *failure.Error { return nil })
	}
	w, err := s.to(ctx, tag.Context(), deleting, transport.DeleteScope)
	if err != nil {
		return err
	}
	refusal := failure.New(fmt.Sprintf("registry %s deletes no tag alone, and the image of %s has others: %s", tag.RegistryStr(), tag, strings.Join(kept, ", ")),
		fmt.Sprintf("delete the image with all its tags, %s@%s, or leave it", tag.Context(), digest))
	err = w.delete(ctx, "/v2/"+tag.RepositoryStr()+"/manifests/"+tag.TagStr(), func(answer *transport.Error) *failure.Error {
		if answer.StatusCode == http.StatusMethodNotAllowed || answer.StatusCode == http.StatusBadRequest {
			return refusal
		}
		return nil
	})
	if err != nil {
		return err
	}
	// Old docker-registries may accept it and do nothing.
	left, err := w.manifest(ctx, tag)
	if err == nil && left != nil {
		return refusal
	}
	return err
}
