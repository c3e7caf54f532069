package pipeline

import (
	"context"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/attest"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// PushIndex pushes layouts, of one architecture each, and gives reference to an index of
// them. Images that are in its repository already are given by their references. The images,
// or their originals, must have been made from the inputs, where these are given.
func (b *Build) PushIndex(ctx context.Context, images, inputs []string, reference string, unverified bool) (string, error) {
	if err := registry.CheckTarget(reference); err != nil {
		return "", err
	}
	wrong := settings.Mistakes{}
	if len(inputs) > 0 && len(inputs) != len(images) {
		wrong.Add("--inputs", "has %s for %s: give one for each", text.Count(len(inputs), "digest"), text.Count(len(images), "image"))
	}
	for _, digest := range inputs {
		if !host.ValidDigest(digest) {
			wrong.Add("--inputs", "%q is no digest: give sha256: and 64 hexadecimal digits", digest)
		}
	}
	parts := make([]registry.Part, len(images))
	layouts, described := make([]bool, len(images)), []oci.Part{}
	for i, image := range images { // all is looked at before anything is sent
		if parts[i].Reference = image; len(wrong) == 0 && len(inputs) > 0 {
			parts[i].Inputs = inputs[i]
		}
		if registry.CheckStored(image) == nil {
			continue
		}
		layout, err := oci.Load(image)
		if err != nil {
			return "", err
		}
		part, err := oci.PartOf(layout.Image)
		if err != nil {
			return "", err
		}
		described = append(described, part)
		layouts[i], parts[i].Reference = true, reference+"-"+part.Architecture
	}
	if len(wrong) > 0 {
		return "", wrong
	}
	if len(described) > 0 { // as far as it can be known before anything is sent
		if _, err := oci.IndexOf(described); err != nil {
			return "", err
		}
	}
	for i, layout := range layouts {
		if !layout {
			continue
		}
		one := *b
		if _, err := one.PushLayout(ctx, images[i], parts[i].Reference, unverified); err != nil {
			return "", err
		}
	}
	return b.Index(ctx, reference, parts)
}

// Index gives reference, REGISTRY/REPOSITORY:TAG, to an index of images of its repository,
// and signs it where SIGNING_KEY is set. It returns REGISTRY/REPOSITORY:TAG@DIGEST. An image
// that is not there yet is waited for as long as BASE_TIMEOUT says.
func (b *Build) Index(ctx context.Context, reference string, parts []registry.Part) (string, error) {
	w := b.way(nil)
	made := ""
	err := w.show(ctx, "index", func(ctx context.Context, p progress.Reporter) (string, error) {
		session, err := w.session()
		if err != nil {
			return "", err
		}
		defer session.Close()
		made, err = session.Index(ctx, reference, parts, b.Config.BaseTimeout, p)
		return made, err
	})
	if err != nil || !w.signs() {
		return made, err
	}
	repository := reference[:strings.LastIndex(reference, ":")]
	_, digest, _ := strings.Cut(made, "@")
	signature, err := attest.New(attest.Signature, digest, "", struct{}{})
	if err != nil {
		return made, err
	}
	return made, w.show(ctx, "sign", func(ctx context.Context, p progress.Reporter) (string, error) {
		return w.say(ctx, repository+"@"+digest, []attest.Statement{signature}, "", p)
	})
}
