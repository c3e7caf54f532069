package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/attest"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

// Revoke says of an image in a registry, signed with SIGNING_KEY, that nobody may use it
// any more, nor what was made from it. That it was said before is no error.
func (b *Build) Revoke(ctx context.Context, reference, reason string) (revoked string, err error) {
	revoked, err = b.attest(ctx, "revoke", reference, func(digest string, _ map[string]string) ([]attest.Statement, error) {
		s, err := attest.New(attest.Revocation, digest, "", attest.Revoked{Reason: reason, Time: time.Now().UTC().Truncate(time.Second)})
		return []attest.Statement{s}, err
	})
	if errors.Is(err, registry.ErrNoReferrers) {
		err = &failure.Error{
			What: reference + " cannot be revoked: its registry keeps no referrers (OCI 1.1)",
			Try:  "delete it, and what was made from it: diskforge images delete", Err: err,
		}
	}
	return revoked, err
}

// Promote gives an image in a registry the tag of a channel, and takes that from the image
// that had it. The holder of the public key, where one is named, must have signed the
// image; without a key it must be one of diskforge's. One that is revoked gets none.
func (b *Build) Promote(ctx context.Context, reference, channel, publicKey string) (promoted string, err error) {
	wrong := settings.Mistakes{}
	wrong.Check("--to", registry.CheckChannel(channel))
	if publicKey != "" {
		_, err := PublicKey(ctx, publicKey)
		wrong.Check("--key", err)
	}
	if len(wrong) > 0 {
		return "", wrong
	}
	w := b.way(nil)
	err = w.show(ctx, "promote", func(ctx context.Context, p progress.Reporter) (string, error) {
		session, err := w.session()
		if err != nil {
			return "", err
		}
		defer session.Close()
		e, err := imageAt(ctx, session, reference)
		if err != nil {
			return "", err
		}
		image := e.Repository + "@" + e.Digest
		if publicKey != "" {
			_, err = b.VerifySignature(ctx, image, publicKey, nil)
		} else if p.Warn("whose image it is was not checked: name --key, that of the one who must have signed it"); !e.Ours() {
			err = failure.New(image+" was not made by diskforge", "name --key, that of the one who must have signed it")
		} else {
			err = session.Revoked(ctx, e, nil)
		}
		if err != nil {
			return "", err
		}
		before, there, err := session.Entry(ctx, e.Repository+":"+channel)
		if err == nil {
			err = session.Tag(ctx, image, channel)
		}
		promoted = e.Repository + ":" + channel + "@" + e.Digest
		switch {
		case err != nil || !there:
			return channel + " is new", err
		case before.Digest == e.Digest:
			return "it had " + channel + " before", nil
		}
		back := fmt.Sprintf("the way back: diskforge images promote %s@%s --to %s", before.Repository, before.Digest, channel)
		if publicKey != "" {
			back += " --key " + publicKey
		}
		return back, nil
	})
	return promoted, err
}

// imageAt is the image, or the index, that a reference names.
func imageAt(ctx context.Context, s *registry.Session, reference string) (registry.Entry, error) {
	e, there, err := s.Entry(ctx, reference)
	switch {
	case err == nil && !there:
		err = failure.New("there is no image "+reference, "diskforge images list shows what there is")
	}
	return e, err
}
