package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/attest"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/text"
)

const (
	mostAncestors = 64 // of an image that are asked for
	// LongestAnswer is what a registry may take which only an image names.
	LongestAnswer = 15 * time.Second
	maxReason     = 200 // characters
)

// Revocation is the cause of the error of an image that must not be used any more. It
// says why: "is revoked: …", or "was made from …, which is revoked: …".
type Revocation string

// Error implements error.
func (r Revocation) Error() string { return string(r) }

// Revoked is the error that an image was revoked, or one that it was made from, whose
// cause is a Revocation; nil where neither was. With a key only the word of its holder
// counts; without one that of whoever may write to the repository, who could delete the
// image as well. A registry that keeps no referrers has no revocations.
//
// What an image was made from is followed as far as it is there and may be read; in
// another registry, which may be anybody's, without the Session's password.
func (s *Session) Revoked(ctx context.Context, e Entry, key *attest.Key) error {
	image, err := name.NewDigest(e.Repository + "@" + e.Digest)
	if err != nil {
		return badReference(fmt.Sprintf("%q names no image", e.Name()), err.Error())
	}
	return s.access(image.Context(), reading).revoked(ctx, s, e, key)
}

// RevokedAt is Revoked of the image that ref names, REGISTRY/REPOSITORY with :TAG, @DIGEST
// or both; nil where there is none.
func (s *Session) RevokedAt(ctx context.Context, ref string, key *attest.Key) error {
	e, there, err := s.Entry(ctx, ref)
	if err != nil || !there {
		return err
	}
	return s.Revoked(ctx, e, key)
}

func (a *access) revoked(ctx context.Context, s *Session, e Entry, key *attest.Key) error {
	revoked, why, err := a.findRevoked(ctx, s, e, key)
	if err != nil || revoked == "" {
		return err
	}
	how := "is revoked"
	if image := a.repo.Digest(e.Digest).String(); revoked != image {
		how = fmt.Sprintf("was made from %s, which is revoked", revoked)
		if len(e.Parts) > 0 {
			how = fmt.Sprintf("is an index of %s, or of what was made from it, which is revoked", revoked)
		}
	}
	if key == nil {
		how += " (by whom was not checked)"
	}
	how += ": " + why
	return &failure.Error{What: e.Name() + " " + how, Try: "take another image", Err: Revocation(how)}
}

// kin is an image that another was made from, or the image itself, and how to ask for it.
type kin struct {
	Entry
	at  *access
	by  *Session
	ctx context.Context //nolint:containedctx // shorter for a registry that only an image names
}

// findRevoked finds the image that was revoked among one, those of which it is an index, and
// those that it was made from; of these also what was deleted, as far as its registry keeps
// the revocation.
func (a *access) findRevoked(ctx context.Context, s *Session, e Entry, key *attest.Key) (image, why string, err error) {
	seen, left := map[string]bool{}, []kin{{e, a, s, ctx}}
	for len(left) > 0 {
		now := left[0]
		left = left[1:]
		why, err := now.at.revocation(now.ctx, now.Digest, key)
		none := errors.Is(err, ErrNoReferrers)
		if why != "" || err != nil && !none && !a.notForUs(ctx, now, err) {
			return now.at.repo.Digest(now.Digest).String(), why, err
		}
		for _, ref := range now.madeFrom() {
			from, err := name.NewDigest(ref)
			if err != nil || seen[ref] || none && from.Registry == now.at.repo.Registry {
				continue
			}
			if seen[ref] = true; len(seen) > mostAncestors {
				return "", "", failure.New(fmt.Sprintf("%s was made from more than %d images, one from the other: nobody knows whether it is revoked",
					e.Name(), mostAncestors), "build it anew")
			}
			next := kin{Entry{Repository: from.Context().Name(), Digest: from.DigestStr()}, now.at, now.by, now.ctx}
			if from.Registry != now.at.repo.Registry {
				limited, done := context.WithTimeout(now.ctx, LongestAnswer)
				defer done()
				next.by, next.ctx = now.by.Stranger(), limited
			}
			next.at = next.by.access(from.Context(), reading)
			if there, ok, err := next.by.Entry(next.ctx, ref); ok {
				next.Entry = there
			} else if err != nil && !a.notForUs(ctx, next, err) {
				return "", "", err
			}
			left = append(left, next)
		}
	}
	return "", "", nil
}

// madeFrom are the images that one was made from, or is an index of.
func (k kin) madeFrom() []string {
	all := slices.Clone(k.ancestors)
	for _, digest := range k.Parts {
		all = append(all, k.at.repo.Digest(digest).String())
	}
	return all
}

// notForUs says whether a registry that only an image names failed, or an image that one was
// made from may not be read: that is not for us to know.
func (a *access) notForUs(ctx context.Context, k kin, err error) bool {
	return ctx.Err() == nil && (k.at.repo.Registry != a.repo.Registry || k.at.repo != a.repo && forbidden(err))
}

// revocation is why the image with the digest was revoked, or empty.
func (a *access) revocation(ctx context.Context, digest string, key *attest.Key) (string, error) {
	all, broken, err := a.attached(ctx, digest, Referrer{
		ArtifactType: attest.BundleType, Annotations: map[string]string{attest.AnnotationKind: attest.Revocation},
	})
	for _, bundle := range all {
		said, err := attest.Read(ctx, key, bundle.Content)
		if err != nil || said.PredicateType != attest.Revocation || !said.Of(digest) {
			continue
		}
		var r attest.Revoked
		_ = json.Unmarshal(said.Predicate, &r) // revoked it is, whatever the form
		return cmp.Or(text.Cut(text.Line(r.Reason), maxReason), "no reason is given"), nil
	}
	if err == nil && broken > 0 {
		err = failure.New(fmt.Sprintf("what is attached to %s@%s cannot be read, so nobody knows whether it is revoked", a.repo, digest), "try again later")
	}
	return "", err
}

// Stranger is the session with registries that only an image names: they do not get the
// password of this one's. Logins of the Docker config are each for one registry.
func (s *Session) Stranger() *Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stranger == nil {
		o := s.options
		o.Username, o.Password = "", ""
		s.stranger = &Session{options: o, network: s.network, accesses: map[target]*access{}}
		s.stranger.stranger = s.stranger
	}
	return s.stranger
}

// Entry is the image that ref names, REGISTRY/REPOSITORY with :TAG, @DIGEST or both, as
// far as its manifest tells, if it is there. It has no tags.
func (s *Session) Entry(ctx context.Context, ref string) (e Entry, there bool, err error) {
	stored, err := parseStored(ref)
	if err != nil {
		return e, false, err
	}
	d, err := s.access(stored.Context(), reading).manifest(ctx, stored)
	if err != nil || d == nil {
		return e, false, err
	}
	e, err = entry(stored, d.Digest.String(), d.Manifest)
	return e, err == nil, err
}

// Revoked is Session.Revoked of an image that was opened.
func (i *Image) Revoked(ctx context.Context, key *attest.Key) error {
	e, err := entry(i.access.repo.Digest(i.Digest), i.Digest, i.Manifest)
	if err != nil {
		return err
	}
	return i.access.revoked(ctx, i.session, e, key)
}

// Attached are the kinds (attest.Kind) of the bundles that are attached to the image, as
// their manifests have them; none where the registry keeps none.
func (i *Image) Attached(ctx context.Context) (kinds []string) {
	list, _ := i.access.referrers(ctx, i.Digest)
	for _, d := range list {
		one, err := i.access.referrer(ctx, d, Referrer{}) // without its content
		if err == nil && one.ArtifactType == attest.BundleType {
			kinds = append(kinds, text.Line(attest.Kind(one.Annotations[attest.AnnotationKind])))
		}
	}
	slices.Sort(kinds)
	return kinds
}

// revokedMeanwhile is the error that the image of a disk that was fetched before was
// revoked since. That disk is good without its registry: no other error counts.
func (o FetchOptions) revokedMeanwhile(ctx context.Context, ref string, p progress.Reporter) error {
	session, err := NewSession(o.Options)
	if err != nil {
		return err
	}
	defer session.Close()
	err = session.RevokedAt(ctx, ref, nil)
	switch {
	case err == nil || forbidden(err): // whoever fetched it had a login, and asked
		return nil
	case isRevocation(err) || ctx.Err() != nil:
		return err
	}
	p.Warn("whether the base, which was fetched before, was revoked since is not known: " + err.Error())
	return nil
}

// forbidden says whether a registry answers that it is not for us to read.
func forbidden(err error) bool {
	answer := answered(err)
	return answer != nil && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden)
}

func isRevocation(err error) bool {
	_, is := errors.AsType[Revocation](err)
	return is
}

// parentOf is the image that one in the repository says to be made from, as
// REGISTRY/REPOSITORY@DIGEST, or empty. What was made from a layout has only the name of
// that one's folder: an image of that name is looked for beside it.
func parentOf(repo name.Repository, base, stated string) string {
	at, digest, _ := strings.Cut(stated, "@")
	switch parsed, err := parseStored(stated); {
	case base == "":
		return ""
	case err == nil:
		return parsed.Context().Name() + "@" + base
	case digest == base && pathPattern.MatchString(at) && !strings.Contains(at, "/"):
		return path.Join(path.Dir(repo.Name()), at) + "@" + base
	}
	return ""
}
