package registry_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
)

// built is when the playbook of the tests' images had run.
const built = "2026-11-01T10:00:00Z"

// stored packs an image that was made from some inputs and pushes it.
func stored(t testing.TB, ref string, o registry.Options, inputs string, changes ...func(*oci.Metadata)) oci.Result {
	disk := make([]byte, 64<<10)
	copy(disk, inputs)
	copy(disk[510:], "\x55\xAA")
	path, dir := filepath.Join(t.TempDir(), "disk.raw"), filepath.Join(t.TempDir(), "layout")
	require.NoError(t, os.WriteFile(path, disk, 0o600))
	m := metadata
	m.Annotations = map[string]string{oci.AnnotationInputs: inputs, oci.AnnotationBuilt: built}
	for _, change := range changes {
		change(&m)
	}
	made, err := oci.Pack(t.Context(), path, dir, m, progress.Discard)
	require.NoError(t, err)
	_, err = registry.Push(t.Context(), dir, ref, o, progress.Discard)
	require.NoError(t, err)
	return made
}

func session(t testing.TB, o registry.Options) *registry.Session {
	s, err := registry.NewSession(o)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

func TestAnImageIsFoundByItsInputsUnderTheWantedTag(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	made := stored(t, s.ref(), alice, "sha256:one")
	s.seen()
	found, ok, err := session(t, alice).Find(t.Context(), s.ref(), "sha256:one")
	require.NoError(t, err)
	require.True(t, ok)
	assert.Equal(t, registry.Found{
		Reference: s.ref() + "@" + made.Digest, Tag: "v1", Digest: made.Digest, Built: time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC),
	}, found)
	assert.Len(t, s.seen(), 5, "the login and four requests")

	_, ok, err = session(t, alice).Find(t.Context(), s.ref(), "sha256:two")
	require.NoError(t, err)
	assert.False(t, ok)

	stored(t, s.ref(), alice, "", func(m *oci.Metadata) { m.Annotations = nil })
	_, ok, err = session(t, alice).Find(t.Context(), s.ref(), "")
	require.NoError(t, err)
	assert.False(t, ok, "no inputs are not those of an image that tells none")
}

func TestARefreshIsFoundByTheInputsOfItsOriginal(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	original := oci.Original{Refreshes: 2, Inputs: "sha256:" + strings.Repeat("0", 64), Built: time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC)}
	made := stored(t, s.ref(), alice, "sha256:refresh", func(m *oci.Metadata) { m.Original = original })
	for _, inputs := range []string{original.Inputs, "sha256:refresh"} {
		found, ok, err := session(t, alice).Find(t.Context(), s.ref(), inputs)
		require.NoError(t, err)
		require.True(t, ok, inputs)
		assert.Equal(t, made.Digest, found.Digest)
		assert.Equal(t, original.Built, found.Built, "it is as old as what a playbook made")
	}
	all, err := session(t, alice).Entries(t.Context(), s.host()+"/lab/ubuntu")
	require.NoError(t, err)
	assert.Equal(t, original, all[0].Original)
}

func TestAnImageIsFoundUnderAnotherTagAndTheWantedOneIsMoved(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	one := stored(t, s.ref(), alice, "sha256:one")
	for i := range 20 {
		stored(t, fmt.Sprintf("%s/lab/ubuntu:a%02d", s.host(), i), alice, fmt.Sprint("sha256:other", i))
	}
	wanted := s.host() + "/lab/ubuntu:v2"
	two := stored(t, wanted, alice, "sha256:two")
	in := session(t, alice)
	found, ok, err := in.Find(t.Context(), wanted, "sha256:one")
	require.NoError(t, err)
	require.True(t, ok)
	assert.Equal(t, "v1", found.Tag)
	found, ok, err = in.Find(t.Context(), wanted, "sha256:other0")
	require.NoError(t, err)
	require.True(t, ok, "at the end of the list")
	assert.Equal(t, "a00", found.Tag)

	s.seen()
	require.NoError(t, in.Tag(t.Context(), s.host()+"/lab/ubuntu@"+one.Digest, "v2", "latest"))
	for _, request := range s.seen() {
		assert.NotContains(t, request, "blobs", "the layer is not sent")
	}
	for _, tag := range []string{"v2", "latest"} {
		_, digest := pulled(t, s.host()+"/lab/ubuntu:"+tag, registry.Options{})
		assert.Equal(t, one.Digest, digest)
	}
	assert.NotEqual(t, one.Digest, two.Digest)
}

func TestAMovedTagNeedsADigestThatIsThere(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	in := session(t, alice)
	require.ErrorContains(t, in.Tag(t.Context(), s.ref(), "v2"), "has no digest")
	gone := s.host() + "/lab/ubuntu@sha256:" + strings.Repeat("0", 64)
	require.ErrorContains(t, in.Tag(t.Context(), gone, "v2"), "has no "+gone)
	require.ErrorContains(t, in.Tag(t.Context(), gone, "-"), "cannot be a tag")
}

func TestARepositoryThatDoesNotExistHasNoImage(t *testing.T) {
	t.Parallel()
	d := newDebianRegistry(t)
	_, ok, err := session(t, d.options()).Find(t.Context(), d.ref(), "sha256:one")
	require.NoError(t, err)
	assert.False(t, ok)
}

func TestToBeRefusedIsNotToFindNothing(t *testing.T) {
	t.Parallel()
	d := newDebianRegistry(t)
	wrong := d.options()
	wrong.Password = "wrong-" + password
	_, _, err := session(t, wrong).Find(t.Context(), d.ref(), "sha256:one")
	require.ErrorContains(t, err, `refuses user "alice" for lab/ubuntu (401`)
	keepsSecrets(t, err.Error())

	s := newServer(t, answer(func(r *http.Request) bool { return r.URL.Path != "/v2/" }, http.StatusForbidden))
	_, _, err = session(t, alice).Find(t.Context(), s.ref(), "sha256:one")
	require.ErrorContains(t, err, `does not let user "alice" read from lab/ubuntu (403`)

	s = newServer(t, answer(func(*http.Request) bool { return true }, http.StatusNotFound))
	_, _, err = session(t, alice).Find(t.Context(), s.ref(), "sha256:one")
	require.ErrorContains(t, err, "is no registry")
}

// GitHub's registry answers DENIED (403) for a package that does not exist, to
// the manifest's and to the token's reader.
func TestAPackageThatGitHubDeniesIsNotThere(t *testing.T) {
	t.Parallel()
	s := newRemoteServer(t, answer(func(r *http.Request) bool { return r.URL.Path != "/v2/" }, http.StatusForbidden))
	_, ok, err := session(t, s.options).Find(t.Context(), "ghcr.io/lab/ubuntu:v1", "sha256:one")
	require.NoError(t, err)
	assert.False(t, ok)
}

func TestARegistryThatLostABlobHasNotTheImage(t *testing.T) {
	t.Parallel()
	d := newDebianRegistry(t)
	made := stored(t, d.ref(), d.options(), "sha256:one")
	in := session(t, d.options())
	_, ok, err := in.Find(t.Context(), d.ref(), "sha256:one")
	require.NoError(t, err)
	require.True(t, ok)

	blob := d.stored(t, "/blobs/sha256/"+made.Layer.Digest.String()[7:9]+"/"+strings.TrimPrefix(made.Layer.Digest.String(), "sha256:")+"/data")
	require.Len(t, blob, 1)
	require.NoError(t, os.Truncate(blob[0], 100))
	found, ok, err := in.Find(t.Context(), d.ref(), "sha256:one")
	require.NoError(t, err)
	assert.False(t, ok, "half a layer is none")
	assert.Equal(t, made.Layer.Digest.String(), found.Lost)

	require.NoError(t, os.Remove(blob[0]))
	found, ok, err = in.Find(t.Context(), d.ref(), "sha256:one")
	require.NoError(t, err)
	assert.False(t, ok)
	assert.Equal(t, registry.Found{Lost: made.Layer.Digest.String()}, found)
}

func TestStorageElsewhereIsNotAsked(t *testing.T) {
	t.Parallel()
	s := newRemoteServer(t, nil)
	stored(t, remoteRef, s.options, "sha256:one")
	s.answers(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodHead || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		http.Redirect(w, r, "https://other.example/storage?signature=x", http.StatusTemporaryRedirect)
		return true
	})
	_, ok, err := session(t, s.options).Find(t.Context(), remoteRef, "sha256:one")
	require.NoError(t, err)
	assert.True(t, ok)
	assert.NotContains(t, s.dialled, "other.example:443")
}

// tagList answers a list of tags with a page and a link.
func tagList(body func(r *http.Request) (page, link string)) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/tags/list") {
			return false
		}
		page, link := body(r)
		if link != "" {
			w.Header().Set("Link", link)
		}
		_, _ = w.Write([]byte(page))
		return true
	}
}

func TestAListOfTagsIsReadPageByPage(t *testing.T) {
	t.Parallel()
	s := newServer(t, tagList(func(r *http.Request) (string, string) {
		switch r.URL.Query().Get("last") {
		case "":
			return `{"tags":["a"]}`, `</v2/lab/ubuntu/tags/list?n=100&last=a>; rel="next"`
		case "a": // a relative one, behind one to the page before
			return `{"tags":["b"]}`, `</v2/lab/ubuntu/tags/list?n=100>; rel="prev" , <list?last=b&n=100>; rel="next"`
		}
		return `{"tags":["v1"]}`, ""
	}))
	stored(t, s.host()+"/lab/ubuntu:v1", alice, "sha256:one")
	found, ok, err := session(t, alice).Find(t.Context(), s.host()+"/lab/ubuntu:v2", "sha256:one")
	require.NoError(t, err)
	require.True(t, ok)
	assert.Equal(t, "v1", found.Tag)
}

func TestAHostileListOfTagsIsLeft(t *testing.T) {
	t.Parallel()
	var pages atomic.Int32
	for name, c := range map[string]struct {
		list  func(r *http.Request) (string, string)
		words string
	}{
		"a circle": {func(r *http.Request) (string, string) {
			return `{"tags":["a"]}`, "<" + r.URL.String() + `>; rel="next"`
		}, "does not come to the end"},
		"no end":       {func(*http.Request) (string, string) { return `{}`, fmt.Sprintf(`<?n=%d>; rel="next"`, pages.Add(1)) }, "does not come to the end"},
		"another host": {func(*http.Request) (string, string) { return `{}`, `<http://169.254.169.254/v2/x>; rel="next"` }, "another host, 169.254.169.254"},
		"no URL":       {func(*http.Request) (string, string) { return `{}`, `<http://[>; rel="next"` }, "no URL"},
		"a huge page":  {func(*http.Request) (string, string) { return `{"tags":["` + strings.Repeat("a", 5<<20) + `"]}`, "" }, "more than 4 MiB"},
		"no JSON":      {func(*http.Request) (string, string) { return `<html>`, "" }, "no list"},
		"no tags":      {func(*http.Request) (string, string) { return `{"tags":["\u001b[2J"]}`, "" }, "cannot be"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, tagList(c.list))
			_, _, err := session(t, alice).Find(t.Context(), s.ref(), "sha256:one")
			require.ErrorContains(t, err, c.words)
			_, ok := failure.In(err)
			assert.True(t, ok)
			assert.NotContains(t, err.Error(), "\x1b")
		})
	}
}

func TestAListThatIsSaidToBeElsewhereIsNotFetched(t *testing.T) {
	t.Parallel()
	s := newRemoteServer(t, func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/tags/list") {
			http.Redirect(w, r, "https://other.example/list", http.StatusFound)
			return true
		}
		return false
	})
	_, _, err := session(t, s.options).Find(t.Context(), remoteRef, "sha256:one")
	require.ErrorContains(t, err, "another host, other.example")
	assert.NotContains(t, s.dialled, "other.example:443")
}

func TestNoMoreThan200TagsAreLookedAt(t *testing.T) {
	t.Parallel()
	var tags []string
	for i := range 250 {
		tags = append(tags, fmt.Sprintf("%q", fmt.Sprintf("t%03d", i)))
	}
	s := newServer(t, tagList(func(*http.Request) (string, string) {
		return `{"tags":["sha256-` + strings.Repeat("0", 64) + `",` + strings.Join(tags, ",") + `]}`, ""
	}))
	_, ok, err := session(t, alice).Find(t.Context(), s.ref(), "sha256:one")
	require.NoError(t, err)
	assert.False(t, ok)
	asked := strings.Join(s.seen(), "\n")
	assert.Equal(t, 201, strings.Count(asked, "/manifests/"), "these and the wanted tag")
	assert.Contains(t, asked, "/manifests/t249")
	assert.NotContains(t, asked, "/manifests/t049")
	assert.NotContains(t, asked, "sha256-")
}

// BenchmarkFind looks 25 images up, as a catalogue of which nothing changed
// does.
func BenchmarkFind(b *testing.B) {
	d := newDebianRegistry(b)
	for i := range 25 {
		stored(b, fmt.Sprintf("%s/lab/image-%d:v1", d.host, i), d.options(), fmt.Sprint("sha256:", i))
	}
	for b.Loop() {
		in := session(b, d.options())
		for i := range 25 {
			_, ok, err := in.Find(b.Context(), fmt.Sprintf("%s/lab/image-%d:v1", d.host, i), fmt.Sprint("sha256:", i))
			require.NoError(b, err)
			require.True(b, ok)
		}
	}
}
