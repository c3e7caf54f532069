package registry

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
)

// errNoList is the cause of what ought to be a page of a list and is something
// else.
var errNoList = errors.New("what it sends is no list")

// mostTags is how many tags of a repository Find looks at.
const mostTags = 200

// Found is an image that a registry has.
type Found struct {
	Reference string    // REGISTRY/REPOSITORY:TAG@DIGEST
	Tag       string    // a tag that it has: the wanted one, or another
	Digest    string    // of the manifest, "sha256:…"
	Built     time.Time // when its playbook had run; zero where that is not known
	// Lost is the digest of a blob that the registry should have and has not,
	// where it was for this that no image was found.
	Lost string
	// Other says that the wanted tag names an image of other inputs, where no
	// image was found.
	Other bool
}

// Find looks for an image that was made from these inputs
// (containerdisk.AnnotationInputs): under the tag of ref,
// REGISTRY/REPOSITORY:TAG, then under the other tags of the repository, of
// which it looks at no more than 200, the highest names first. An image whose
// config or layer the registry has lost does not count.
//
// In the usual case that is one login a repository and three requests. A
// repository that does not exist has no such image; to be refused is an error.
func (s *Session) Find(ctx context.Context, ref, inputs string) (Found, bool, error) {
	tag, err := parse(ref, s.options.Insecure)
	if err != nil {
		return Found{}, false, err
	}
	w, err := s.to(ctx, tag.Context(), reading, transport.PullScope)
	if err != nil {
		return Found{}, false, err
	}
	wanted, ok, err := w.find(ctx, []name.Tag{tag}, inputs)
	if ok || err != nil {
		return wanted, ok, err
	}
	others, err := w.otherTags(ctx, tag)
	if err != nil {
		return Found{}, false, err
	}
	for some := range slices.Chunk(others, parallel) {
		other, ok, err := w.find(ctx, some, inputs)
		if ok || err != nil {
			return other, ok, err
		}
		wanted.Lost = cmp.Or(wanted.Lost, other.Lost)
	}
	return Found{Lost: wanted.Lost, Other: wanted.Other}, false, nil
}

// find looks for the image under some tags, in their order.
func (w *way) find(ctx context.Context, tags []name.Tag, inputs string) (Found, bool, error) {
	manifests, err := w.manifests(ctx, tags)
	if err != nil {
		return Found{}, false, err
	}
	lost, other := "", false
	for i, d := range manifests {
		m, ok := parseImage(d)
		if !ok {
			continue
		}
		if inputs == "" || m.Annotations[oci.AnnotationInputs] != inputs {
			other = true
			continue
		}
		missing, err := w.missing(ctx, m)
		if err != nil {
			return Found{}, false, err
		}
		if missing != "" {
			lost = cmp.Or(lost, missing)
			continue
		}
		return Found{
			Reference: tags[i].String() + "@" + d.Digest.String(), Tag: tags[i].TagStr(), Digest: d.Digest.String(),
			Built: moment(m.Annotations[oci.AnnotationBuilt]),
		}, true, nil
	}
	return Found{Lost: lost, Other: other}, false, nil
}

// manifests reads the manifests of tags; one that is not there is nil.
func (w *way) manifests(ctx context.Context, tags []name.Tag) ([]*remote.Descriptor, error) {
	all := make([]*remote.Descriptor, len(tags))
	return all, w.each(ctx, tags, func(i int, d *remote.Descriptor) error { all[i] = d; return nil })
}

// each gives out the manifests of tags, some at a time.
func (w *way) each(ctx context.Context, tags []name.Tag, use func(i int, d *remote.Descriptor) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i, tag := range tags {
		group.Go(func() error {
			d, err := w.manifest(ctx, tag)
			if err != nil {
				return err
			}
			return use(i, d)
		})
	}
	return group.Wait()
}

// parseImage reads a manifest that is an image's, not an index's.
func parseImage(d *remote.Descriptor) (*v1.Manifest, bool) {
	if d == nil || !d.MediaType.IsImage() {
		return nil, false
	}
	m, err := v1.ParseManifest(bytes.NewReader(d.Manifest))
	return m, err == nil && m.Config.Digest != v1.Hash{}
}

// missing returns the digest of a blob of the image that the registry has not,
// or nothing.
func (w *way) missing(ctx context.Context, m *v1.Manifest) (string, error) {
	for _, blob := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		there, err := w.hasBlob(ctx, blob)
		if err != nil {
			return "", err
		}
		if !there {
			return blob.Digest.String(), nil
		}
	}
	return "", nil
}

// hasBlob asks for a blob without reading it. One of another size is not the
// one. A redirect is a yes: the registry has looked before it sends us to its
// storage, and that often takes no HEAD.
func (w *way) hasBlob(ctx context.Context, blob v1.Descriptor) (bool, error) {
	size := int64(-1)
	there, err := w.look(ctx, func(signed http.RoundTripper) error {
		client := &http.Client{Transport: signed, CheckRedirect: noRedirect}
		resp, err := ask(ctx, client, http.MethodHead, w.address("/v2/"+w.repo.RepositoryStr()+"/blobs/"+blob.Digest.String()).String())
		if err != nil {
			return err
		}
		if resp.StatusCode == http.StatusOK {
			size = resp.ContentLength
		}
		return transport.CheckError(resp, http.StatusOK, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect)
	})
	return there && (size < 0 || size == blob.Size), err
}

// otherTags returns the tags of the repository but one, the highest names
// first: of dates and versions these are the newest.
func (w *way) otherTags(ctx context.Context, but name.Tag) ([]name.Tag, error) {
	names, _, err := w.tags(ctx)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	slices.Reverse(names)
	names = slices.DeleteFunc(names, func(tag string) bool { return tag == but.TagStr() })
	return w.named(names[:min(len(names), mostTags)]), nil
}

func (w *way) named(names []string) []name.Tag {
	tags := make([]name.Tag, len(names))
	for i, tag := range names {
		tags[i] = w.repo.Tag(tag)
	}
	return tags
}

// tags lists the tags of images: those of referrers are no images' names. A
// repository that does not exist has none and is not there.
func (w *way) tags(ctx context.Context) (tags []string, there bool, err error) {
	first := w.address("/v2/" + w.repo.RepositoryStr() + "/tags/list")
	first.RawQuery = fmt.Sprintf("n=%d", pageSize)
	there, err = w.pages(ctx, first, func(page []byte) error {
		var list struct {
			Tags []string `json:"tags"`
		}
		if err := json.Unmarshal(page, &list); err != nil {
			return errNoList
		}
		tags, err = addNames(tags, list.Tags, checkTagForm)
		return err
	})
	tags = slices.DeleteFunc(tags, referrersTag.MatchString)
	return tags, there, err
}

// addNames adds a page of names to those of the pages before.
func addNames(all, page []string, check func(string) error) ([]string, error) {
	for _, n := range page {
		if err := check(n); err != nil {
			return nil, fmt.Errorf("its list has the name %q, which cannot be", n)
		}
	}
	if len(all)+len(page) > mostNames {
		return nil, fmt.Errorf("its list has more than %d names", mostNames)
	}
	return append(all, page...), nil
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

// Tag gives further tags to an image that is in the registry,
// REGISTRY/REPOSITORY@DIGEST, or moves them to it. Only the manifest is sent.
func (s *Session) Tag(ctx context.Context, ref string, tags ...string) error {
	image, err := parseStored(ref, s.options.Insecure)
	if err != nil {
		return err
	}
	if _, ok := image.(name.Digest); !ok {
		repository, _, _ := cutLast(ref, ":")
		return badReference(fmt.Sprintf("%q has no digest, and a tag may move meanwhile", ref),
			fmt.Sprintf("find it with diskforge images list %s --json, and name the image as %s@sha256:…", repository, repository))
	}
	for _, tag := range tags {
		if err := checkTag(tag); err != nil {
			return badReference(fmt.Sprintf("%q cannot be a tag", tag), err.Error())
		}
	}
	w, err := s.to(ctx, image.Context(), pushing, transport.PushScope)
	if err != nil {
		return err
	}
	d, err := w.manifest(ctx, image)
	if err != nil {
		return err
	}
	if d == nil {
		return failure.New(fmt.Sprintf("registry %s has no %s", image.Context().RegistryStr(), ref), "build it again")
	}
	for _, tag := range w.named(tags) {
		err := w.do(ctx, func(signed http.RoundTripper) error {
			if err := remote.Tag(tag, d, w.over(ctx, signed)...); err != nil {
				return err
			}
			return w.confirm(ctx, tag, d.Digest.String(), w.over(ctx, signed))
		})
		if err != nil {
			return err
		}
	}
	return nil
}
