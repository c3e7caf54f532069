package registry

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
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

// Fetch takes the disk out of the image that ref names, REGISTRY/REPOSITORY
// with :TAG, @DIGEST or both; see oci.Image.Extract. A layer is read as it comes and
// kept nowhere, and read again from its start, at most five times in all, where
// the connection breaks. Where inputs are wanted, the image is pinned by its
// digest as soon as the tag has them. A disk in the cache is taken without more where
// the image's digest is known and, where the registry fails, one of the wanted inputs,
// fetched before from the same tag. An image that is revoked (see Session.Revoked)
// is not taken, also from the cache, as far as its registry can be asked. Errors are
// *failure.Error, except for the cause of ctx.
func Fetch(ctx context.Context, ref string, o FetchOptions, p progress.Reporter) (Fetched, error) {
	parsed, err := parseStored(ref)
	if err != nil {
		return Fetched{}, err
	}
	from, digest, _ := strings.Cut(ref, "@")
	if digest = cmp.Or(digest, o.Want.Digest); digest != "" {
		if got, ok := o.kept(ctx, from, digest, p); ok {
			return got, o.revokedMeanwhile(ctx, got.Reference, p)
		}
	}
	got, err := o.fetch(ctx, parsed, from, p)
	if err == nil || digest != "" || isRevocation(err) || ctx.Err() != nil {
		return got, err
	}
	if old, ok := o.kept(ctx, from, "", p); ok {
		why := err.Error()
		if f, ok := failure.In(err); ok {
			why = f.What
		}
		p.Warn(why + "; the disk of the same inputs that was fetched before is taken")
		return old, nil
	}
	return Fetched{}, err
}

// fetch is Fetch without what was fetched before. From is the reference without
// its digest.
func (o FetchOptions) fetch(ctx context.Context, ref name.Reference, from string, p progress.Reporter) (Fetched, error) {
	session, err := NewSession(o.Options)
	if err != nil {
		return Fetched{}, err
	}
	defer session.Close()
	if tag, ok := ref.(name.Tag); ok && o.Want.Inputs != "" {
		a := session.access(tag.Context(), fetching())
		digest, err := o.await(ctx, a, tag, p)
		if err != nil {
			return Fetched{}, err
		}
		ref = tag.Context().Digest(digest)
	}
	image, err := session.open(ctx, ref, o.Want.Architecture, fetching())
	if err != nil {
		return Fetched{}, err
	}
	if err := image.Revoked(ctx, nil); err != nil {
		return Fetched{}, err
	}
	disk, err := image.extract(ctx, from, o, p)
	if err == nil {
		err = image.keep(ctx, from, filepath.Dir(disk.Path), p)
	}
	if err != nil {
		return Fetched{}, err
	}
	return Fetched{disk, from + "@" + image.Digest}, nil
}

// extract streams the layer to where its disk is kept.
func (i *Image) extract(ctx context.Context, from string, o FetchOptions, p progress.Reporter) (disk oci.Extracted, err error) {
	want := o.Want
	if i.Index != nil && want.Digest == i.Index.Digest {
		want.Digest = i.Digest // of the image that was taken from that index
	}
	var transfer error // of which unpacking may tell only that there was one
	stored := i.Image
	stored.Name, stored.Blob = from, func(d v1.Descriptor) (oci.Blob, error) {
		return oci.Blob{Open: func() (io.ReadCloser, error) {
			rc, err := i.access.open(ctx, d)
			transfer = err
			return watched{rc, func(err error) error { transfer = err; return err }}, err
		}}, nil
	}
	err = i.access.try(ctx, p, func() error {
		transfer = nil
		disk, err = stored.Extract(ctx, want, o.CacheDir, p)
		if err != nil && transfer != nil {
			return transfer
		}
		return err
	})
	return disk, err
}

// await looks at the tag until its image has the wanted inputs, and returns
// that image's digest.
func (o FetchOptions) await(ctx context.Context, a *access, tag name.Tag, p progress.Reporter) (string, error) {
	first, longest := lookAgain, lookAtLeast
	if o.backoff != 0 {
		first, longest = o.backoff, 10*o.backoff
	}
	end := time.Now().Add(o.Wait)
	for look := 1; ; look++ {
		digest, why, err := a.hasInputs(ctx, tag, o.Want.Inputs)
		if err != nil || why == nil {
			return digest, err
		}
		pause := host.Backoff(first, longest, look)
		if time.Now().Add(pause).After(end) {
			late := *why
			if o.Wait > 0 {
				late.What += fmt.Sprintf(", after %v of waiting", o.Wait)
			}
			late.Try = "build that image first, or wait for it longer with BASE_TIMEOUT"
			return "", &late
		}
		p.Activity(fmt.Sprintf("waiting up to %v for %s: %s", time.Until(end).Round(time.Second), tag, why.What))
		if err := host.Sleep(ctx, pause); err != nil {
			return "", err
		}
	}
}

// hasInputs looks once whether the tag's image has the inputs. Why says in words
// what it has instead.
func (a *access) hasInputs(ctx context.Context, tag name.Tag, inputs string) (digest string, why *failure.Error, err error) {
	images, err := each(ctx, a, []string{tag.TagStr()}, parseImage)
	if err != nil {
		return "", nil, err
	}
	image := images[0]
	if image == nil {
		return "", failure.New(fmt.Sprintf("there is no image %s yet", tag), ""), nil
	}
	if err := (oci.Want{Inputs: inputs}).Check(tag.String(), "", image.Annotations); err != nil {
		why, _ = failure.In(err)
	}
	return image.Digest, why, nil
}

// keptFile lies beside a disk that was fetched, with the image that it came
// out of. So who has the disk needs the registry no more, nor its password.
const keptFile = "image.json"

// keptImage is an image as its registry gave it.
type keptImage struct {
	From     string // REGISTRY/REPOSITORY[:TAG] under which it was asked for
	Manifest []byte
	Config   []byte
}

// keep writes down which image a disk came out of.
func (i *Image) keep(ctx context.Context, from, dir string, p progress.Reporter) error {
	held, err := host.LockDir(ctx, dir, "waiting for another process that takes out the same disk", p)
	if err == nil {
		defer held.Close()
		err = host.WriteJSON(filepath.Join(dir, keptFile), 0o600, keptImage{from, i.Manifest, i.Config})
	}
	if err != nil && ctx.Err() == nil {
		return failure.Wrap(err, "cannot write down which image the base's disk came out of", "check CACHE_DIR")
	}
	return err
}

// kept is the disk of an image that was fetched before and is as it was: the
// one with the digest or, without one, the last from the same tag that has the
// wanted inputs.
func (o FetchOptions) kept(ctx context.Context, from, digest string, p progress.Reporter) (Fetched, bool) {
	for _, file := range lastFirst(filepath.Join(o.CacheDir, "sha256-*", keptFile)) {
		k, stored, err := readKept(file)
		if err != nil || digest != "" && stored.Digest != digest || digest == "" && (k.From != from || o.Want.Inputs == "") {
			continue
		}
		stored.Name = from
		if disk, err := stored.Extract(ctx, o.Want, o.CacheDir, p); err == nil {
			return Fetched{disk, from + "@" + stored.Digest}, true
		}
	}
	return Fetched{}, false
}

// lastFirst lists files by when they were written.
func lastFirst(pattern string) []string {
	files, _ := filepath.Glob(pattern) // it fails for a bad pattern only: then none is kept
	written := func(file string) time.Time {
		info, err := os.Stat(file)
		if err != nil {
			return time.Time{}
		}
		return info.ModTime()
	}
	slices.SortFunc(files, func(a, b string) int { return written(b).Compare(written(a)) })
	return files
}

// readKept reads what keep has written.
func readKept(file string) (k keptImage, s oci.Image, err error) {
	if err = host.ReadJSON(file, &k); err != nil {
		return k, s, err
	}
	digest, _, err := v1.SHA256(bytes.NewReader(k.Manifest))
	s = oci.Image{Digest: digest.String(), Manifest: k.Manifest, Config: k.Config}
	s.Blob = func(v1.Descriptor) (oci.Blob, error) { return oci.Blob{}, os.ErrNotExist } // only the disk is kept
	return k, s, err
}
