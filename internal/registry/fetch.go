package registry

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// FetchOptions say which image Fetch takes and where its disk is kept.
type FetchOptions struct {
	Options
	// Want is what the image must be.
	Want oci.Want
	// Wait is how long to wait for a tag that is not there yet, or holds an
	// image of other inputs than Want.Inputs. Zero: not at all.
	Wait     time.Duration
	CacheDir string // of disks, by the digests of their layers
}

// Fetched is the disk of an image in a registry.
type Fetched struct {
	oci.Extracted
	Reference string // REGISTRY/REPOSITORY[:TAG]@DIGEST of the image that was taken
}

// Between two looks at a tag: builds take minutes.
const (
	lookAgain   = 2 * time.Second  // twice as long each time, until
	lookAtLeast = 30 * time.Second // then each time
)

// CheckStored says whether ref can name an image in a registry:
// REGISTRY/REPOSITORY with :TAG, @DIGEST or both. Nobody is asked.
func CheckStored(ref string) error {
	_, err := parseStored(ref, false)
	return err
}

// Fetch takes the disk out of the image that ref names, REGISTRY/REPOSITORY
// with :TAG, @DIGEST or both; see containerdisk.Stored. A layer is read as it
// comes and kept nowhere, and read again from its start, at most five times in
// all, where the connection breaks. Where inputs are wanted, the image is
// pinned by its digest as soon as the tag has them. Nobody is asked for an
// image with a known digest whose disk is in the cache; one of the wanted
// inputs, fetched before from the same tag, is taken where the registry fails.
// Errors are *failure.Error, except for the cause of ctx.
func Fetch(ctx context.Context, ref string, o FetchOptions, p progress.Reporter) (Fetched, error) {
	parsed, err := parseStored(ref, o.Insecure)
	if err != nil {
		return Fetched{}, err
	}
	at, digest, _ := strings.Cut(ref, "@")
	if digest = cmp.Or(digest, o.Want.Digest); digest != "" {
		if got, ok := o.kept(ctx, at, digest, p); ok {
			return got, nil
		}
	}
	got, err := o.fetch(ctx, parsed, ref, p)
	if err == nil || digest != "" || ctx.Err() != nil {
		return got, err
	}
	if old, ok := o.kept(ctx, at, "", p); ok {
		why := err.Error()
		if f, ok := failure.In(err); ok {
			why = f.What
		}
		p.Warn(why + "; the disk of the same inputs that was fetched before is taken")
		return old, nil
	}
	return Fetched{}, err
}

// fetch is Fetch without what was fetched before.
func (o FetchOptions) fetch(ctx context.Context, parsed name.Reference, ref string, p progress.Reporter) (Fetched, error) {
	if tag, ok := parsed.(name.Tag); ok && o.Want.Inputs != "" {
		digest, err := o.await(ctx, tag, p)
		if err != nil {
			return Fetched{}, err
		}
		ref += "@" + digest
	}
	image, err := open(ctx, ref, fetching, o.Options)
	if err != nil {
		return Fetched{}, err
	}
	defer image.Close()
	at, _, _ := strings.Cut(ref, "@")
	disk, err := image.extract(ctx, at, o, p)
	if err == nil {
		err = image.keep(ctx, at, filepath.Dir(disk.Path), p)
	}
	if err != nil {
		return Fetched{}, err
	}
	return Fetched{disk, at + "@" + image.Digest}, nil
}

// extract streams the layer to where its disk is kept.
func (i *Image) extract(ctx context.Context, ref string, o FetchOptions, p progress.Reporter) (disk oci.Extracted, err error) {
	want := o.Want
	if i.Index != nil && want.Digest == i.Index.Digest {
		want.Digest = i.Digest // of the image that was taken from that index
	}
	var layer *checked
	var refusal error
	stored := oci.Stored{Name: ref, Digest: i.Digest, Manifest: i.Manifest, Config: i.Config}
	stored.Open = func(d v1.Descriptor) (io.ReadCloser, error) {
		rc, err := i.Blob(d).get()
		if err != nil {
			refusal = err
			return nil, err
		}
		layer = rc.(*checked)
		return rc, nil
	}
	err = i.c.try(ctx, p, func() error {
		layer, refusal = nil, nil
		disk, err = stored.Extract(ctx, want, o.CacheDir, p)
		switch { // what try explains must be the registry's own error
		case err == nil:
			return nil
		case refusal != nil:
			return refusal
		case layer != nil && layer.cause != nil:
			return layer.cause
		}
		return err
	})
	return disk, err
}

// await looks at the tag until its image has the wanted inputs, and returns
// that image's digest.
func (o FetchOptions) await(ctx context.Context, tag name.Tag, p progress.Reporter) (string, error) {
	session, err := NewSession(o.Options)
	if err != nil {
		return "", err
	}
	defer session.Close()
	way, err := session.to(ctx, tag.Context(), fetching, transport.PullScope)
	if err != nil {
		return "", err
	}
	pause, longest := lookAgain, lookAtLeast
	if o.backoff != 0 {
		pause, longest = o.backoff, 10*o.backoff
	}
	for end := time.Now().Add(o.Wait); ; pause = min(2*pause, longest) {
		digest, why, err := way.has(ctx, tag, o.Want.Inputs)
		if err != nil || why == nil {
			return digest, err
		}
		if time.Now().Add(pause).After(end) {
			return "", o.late(why)
		}
		p.Activity(fmt.Sprintf("waiting up to %v for %s: %s", time.Until(end).Round(time.Second), tag, why.What))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// late says what is wrong with the tag when the time is over.
func (o FetchOptions) late(why *failure.Error) error {
	late := *why
	if o.Wait > 0 {
		late.What += fmt.Sprintf(", after %v of waiting", o.Wait)
	}
	late.Try = "build that image first, or wait for it longer with BASE_TIMEOUT"
	return &late
}

// has looks once whether the tag's image has the inputs. Why says in words
// what it has instead.
func (w *way) has(ctx context.Context, tag name.Tag, inputs string) (digest string, why *failure.Error, err error) {
	d, err := w.manifest(ctx, tag)
	if err != nil {
		return "", nil, err
	}
	m, ok := parseImage(d)
	if !ok {
		return "", failure.New(fmt.Sprintf("there is no image %s yet", tag), ""), nil
	}
	if err := (oci.Want{Inputs: inputs}).Check(tag.String(), "", m.Annotations[oci.AnnotationInputs]); err != nil {
		f, _ := failure.In(err)
		return "", f, nil
	}
	return d.Digest.String(), nil, nil
}
