package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// target opens a session for a reference to push to.
func (o Options) target(ref string) (*Session, name.Tag, error) {
	tag, err := parse(ref)
	if err != nil {
		return nil, tag, err
	}
	session, err := NewSession(o)
	return session, tag, err
}

// Push uploads the image in layoutDir to ref, REGISTRY/REPOSITORY:TAG, and
// returns REGISTRY/REPOSITORY:TAG@DIGEST. What the registry has already is not
// sent again; the manifest goes last, so that a tag never points to half an
// image. Answers that promise to pass (429, 5xx) and broken connections are
// tried again, at most five times in all. What a broken upload leaves, the
// registry clears by itself: nobody else can (docker-registry refuses to cancel
// an upload that was cut). Errors are *failure.Error, except for the cause of
// ctx.
func Push(ctx context.Context, layoutDir, ref string, o Options, p progress.Reporter) (string, error) {
	session, tag, err := o.target(ref)
	if err != nil {
		return "", err
	}
	defer session.Close()
	a := session.access(tag.Context(), pushing)
	layout, err := oci.Load(layoutDir)
	if err != nil {
		return "", err
	}
	a.later = fmt.Sprintf("later, diskforge push %s %s sends what is missing", layoutDir, ref)
	err = a.try(ctx, p, func() error {
		p.Activity("pushing to " + ref)
		if err := a.write(ctx, tag, layout, p); err != nil {
			return err
		}
		return a.confirm(ctx, tag, layout.Digest)
	})
	if err != nil {
		return "", err
	}
	p.Bytes(layout.Layer.Size, layout.Layer.Size)
	return ref + "@" + layout.Digest, nil
}

// write sends what the registry has not. It asks for every blob: one may be
// lost though the manifest is there, with which the library would be content.
func (a *access) write(ctx context.Context, tag name.Tag, layout *oci.Layout, p progress.Reporter) error {
	options, err := a.remote(ctx)
	if err != nil {
		return err
	}
	pusher, err := remote.NewPusher(options...)
	if err != nil {
		return err
	}
	blobs, err := layout.Blobs()
	if err != nil {
		return err
	}
	blobs[0] = observed{blobs[0], layout.Layer.Size, p}
	for _, blob := range blobs {
		if err := pusher.Upload(ctx, tag.Context(), blob); err != nil {
			return err
		}
	}
	return pusher.Push(ctx, tag, layout)
}

// observed is a layer that reports how much of it has been sent.
type observed struct {
	v1.Layer
	size int64
	to   progress.Reporter
}

// Compressed opens the layer; each call begins to count anew.
func (o observed) Compressed() (io.ReadCloser, error) {
	rc, err := o.Layer.Compressed()
	if err != nil {
		return nil, err
	}
	return readCloser{progress.Reader(rc, o.size, o.to), rc}, nil
}

// looks is how often a registry is asked for what it has taken: some need a
// moment.
const looks = 3

// confirm asks for what was sent, as whoever pulls it will. A tag that somebody
// else has moved meanwhile is theirs; the image must be there all the same. Who
// may push and not pull has the registry's word alone.
func (a *access) confirm(ctx context.Context, ref name.Reference, digest string) error {
	for look := 1; ; look++ {
		stored, err := a.get(ctx, ref)
		if err == nil && stored.Digest.String() == digest {
			return nil
		}
		if err == nil {
			ref = a.repo.Digest(digest)
			continue
		}
		answer := answered(err)
		switch {
		case answer == nil:
			return err
		case forbidden(err):
			return nil
		case answer.StatusCode != http.StatusNotFound:
			return err
		case look >= looks:
			return failure.New(fmt.Sprintf("registry %s accepted %s, but does not have it", a.repo.RegistryStr(), ref), "its log says more")
		}
		if err := host.Sleep(ctx, time.Duration(look)*a.backoff()); err != nil {
			return err
		}
	}
}

// CheckAccess asks the registry, before a long build, whether the credentials
// may push to ref: it begins an upload and takes it back. Nothing stays there.
// The library's CheckPushPermission ends with no context, and may leave the
// upload.
func CheckAccess(ctx context.Context, ref string, o Options) error {
	session, tag, err := o.target(ref)
	if err != nil {
		return err
	}
	defer session.Close()
	a := session.access(tag.Context(), pushing)
	return a.try(ctx, progress.Discard, func() error {
		resp, err := a.send(ctx, http.MethodPost, a.url(a.path("/blobs/uploads/")), nil, nil, http.StatusAccepted)
		if err != nil {
			return err
		}
		resp.Body.Close()
		// Out of courtesy only: a token for pushing may not be one for deleting.
		if location, err := resp.Location(); err == nil {
			if resp, err := a.send(ctx, http.MethodDelete, location.String(), nil, nil, http.StatusNoContent); err == nil {
				resp.Body.Close()
			}
		}
		return nil
	})
}

// FreeTag is ref, REGISTRY/REPOSITORY:TAG, where the repository has no such tag, else
// that with -2, -3 and so on behind the tag. Who may push may not be allowed to list:
// that is an error, for which IMAGE_TAG is the way out.
func FreeTag(ctx context.Context, ref string, o Options) (string, error) {
	session, err := NewSession(o)
	if err != nil {
		return "", err
	}
	defer session.Close()
	return session.FreeTag(ctx, ref)
}

// FreeTag is what the function of that name says.
func (s *Session) FreeTag(ctx context.Context, ref string) (string, error) {
	tag, err := parse(ref)
	if err != nil {
		return "", err
	}
	there, err := s.access(tag.Context(), reading).allTags(ctx)
	free := ref
	for n := 2; slices.Contains(there, free[len(ref)-len(tag.TagStr()):]); n++ {
		free = fmt.Sprintf("%s-%d", ref, n)
	}
	if forbidden(err) {
		if f, ok := failure.In(err); ok {
			f.Try += "; where the login may push and not read, set IMAGE_TAG"
		}
	}
	return free, err
}

// Tag gives further tags to an image that is in the registry,
// REGISTRY/REPOSITORY@DIGEST, or moves them to it. Only the manifest is sent.
func (s *Session) Tag(ctx context.Context, ref string, tags ...string) error {
	image, err := parseStored(ref)
	if err != nil {
		return err
	}
	repo := image.Context()
	if _, ok := image.(name.Digest); !ok {
		return badReference(fmt.Sprintf("%q has no digest, and a tag may move meanwhile", ref),
			fmt.Sprintf("find it with diskforge images list %s --json, and name the image as %s@sha256:…", repo, repo))
	}
	for _, tag := range tags {
		if err := checkTag(tag); err != nil {
			return badReference(fmt.Sprintf("%q cannot be a tag", tag), err.Error())
		}
	}
	a := s.access(repo, pushing)
	d, err := a.manifest(ctx, image)
	if err != nil {
		return err
	}
	if d == nil {
		return failure.New(fmt.Sprintf("registry %s has no %s", repo.RegistryStr(), ref), "build it again")
	}
	for _, tag := range tags {
		err := a.try(ctx, progress.Discard, func() error {
			options, err := a.remote(ctx)
			if err != nil {
				return err
			}
			if err := remote.Tag(repo.Tag(tag), d, options...); err != nil {
				return err
			}
			return a.confirm(ctx, repo.Tag(tag), d.Digest.String())
		})
		if err != nil {
			return err
		}
	}
	return nil
}
