package registry_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

func digestOf(n int) string { return "sha256:" + fmt.Sprintf("%064x", n) }

func TestARepositorysImagesAreListedWithAllTheirTagsTheNewestFirst(t *testing.T) {
	t.Parallel()
	d := newDebianRegistry(t)
	repository := d.host + "/lab/ubuntu"
	one := stored(t, repository+":v1", d.options(), digestOf(1), func(m *oci.Metadata) { m.BaseDigest = digestOf(7) })
	stored(t, repository+":latest", d.options(), digestOf(1), func(m *oci.Metadata) { m.BaseDigest = digestOf(7) })
	two := stored(t, repository+":v0", d.options(), digestOf(2), func(m *oci.Metadata) {
		m.Annotations[oci.AnnotationBuilt] = "2026-11-02T10:00:00+01:00"
	})
	old := stored(t, repository+":a", d.options(), digestOf(3), func(m *oci.Metadata) {
		delete(m.Annotations, oci.AnnotationBuilt)
		m.Created = time.Unix(1700000000, 0)
	})
	in := session(t, d.options())
	entries, err := in.Entries(t.Context(), repository)
	require.NoError(t, err)
	require.Len(t, entries, 3)
	assert.Equal(t, two.Digest, entries[0].Digest)
	assert.Equal(t, time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC), entries[0].Built)
	assert.Equal(t, old.Digest, entries[2].Digest)
	assert.Equal(t, time.Unix(1700000000, 0).UTC(), entries[2].Built, "when it was made, where nothing better is known")
	e := entries[1]
	assert.Equal(t, []string{"latest", "v1"}, e.Tags)
	assert.Equal(t, one.Digest, e.Digest)
	assert.Equal(t, repository, e.Repository)
	assert.Equal(t, digestOf(1), e.Inputs)
	assert.Equal(t, digestOf(7), e.Base)
	assert.Equal(t, one.DiskDigest, e.Disk)
	assert.True(t, e.Ours())
	assert.Greater(t, e.Size, one.Layer.Size)
	assert.Less(t, e.Size, one.Layer.Size+10_000)

	stored(t, d.host+"/lab/epoch:v1", d.options(), digestOf(4), func(m *oci.Metadata) { m.Annotations = nil })
	epoch, err := in.Entries(t.Context(), d.host+"/lab/epoch")
	require.NoError(t, err)
	require.Len(t, epoch, 1)
	assert.True(t, epoch[0].Built.IsZero(), "1970 is no age")

	none, err := in.Entries(t.Context(), d.host+"/lab/missing")
	require.NoError(t, err)
	assert.Empty(t, none)
	_, err = in.Entries(t.Context(), d.host)
	require.ErrorContains(t, err, "no repository")
}

// foreign pushes an image of another maker, and an index of it.
func foreign(t *testing.T, repository string) (image, index v1.Hash) {
	img, err := random.Image(100, 2)
	require.NoError(t, err)
	img, err = mutate.CreatedAt(img, v1.Time{Time: time.Unix(1600000000, 0)})
	require.NoError(t, err)
	idx := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img})
	repo, err := name.NewRepository(repository)
	require.NoError(t, err)
	require.NoError(t, remote.Write(repo.Tag("one"), img))
	require.NoError(t, remote.WriteIndex(repo.Tag("many"), idx))
	image, err = img.Digest()
	require.NoError(t, err)
	index, err = idx.Digest()
	require.NoError(t, err)
	return image, index
}

func TestOthersImagesAreListedAsTheirs(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	image, index := foreign(t, s.host()+"/other/app")
	entries, err := session(t, alice).Entries(t.Context(), s.host()+"/other/app")
	require.NoError(t, err)
	require.Len(t, entries, 2)
	assert.Equal(t, image.String(), entries[0].Digest)
	assert.Equal(t, time.Unix(1600000000, 0).UTC(), entries[0].Built, "from its config")
	assert.Equal(t, index.String(), entries[1].Digest)
	assert.Equal(t, []string{image.String()}, entries[1].Parts)
	assert.True(t, entries[1].Built.IsZero())
	assert.False(t, entries[0].Ours() || entries[1].Ours())
}

func TestAManifestThatIsNothingKnownIsListedAndHarmless(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	stored(t, s.ref(), alice, digestOf(1))
	for _, manifest := range []string{
		`[]`, `{}`, `nonsense`, `{"config":{},"layers":[{"size":-5}]}`,
		`{"config":{"digest":"sha256:xyz"}}`, `{"config":{"digest":"` + digestOf(9) + `","size":5}}`,
		`{"config":{"digest":"` + digestOf(9) + `","size":99999999999}}`,
		`{"annotations":{"` + oci.AnnotationDisk + `":"\u001b[2J","` + oci.AnnotationBuilt + `":"soon"}}`,
	} {
		s.answers(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			_, _ = w.Write([]byte(manifest))
			return true
		})
		entries, err := session(t, alice).Entries(t.Context(), s.host()+"/lab/ubuntu")
		require.NoError(t, err, manifest)
		require.Len(t, entries, 1)
		assert.GreaterOrEqual(t, entries[0].Size, int64(len(manifest)))
		assert.False(t, entries[0].Ours())
		_, ok, err := session(t, alice).Find(t.Context(), s.ref(), digestOf(1))
		require.NoError(t, err, manifest)
		assert.False(t, ok)
	}
}

func TestDebiansRegistryListsWhatIsBelowAPrefix(t *testing.T) {
	t.Parallel()
	d := newDebianRegistry(t)
	for _, path := range []string{"lab", "lab/a", "lab/b/c", "labs/d", "e"} {
		stored(t, d.host+"/"+path+":v1", d.options(), digestOf(1))
	}
	in := session(t, d.options())
	for prefix, want := range map[string][]string{
		"":        {"e", "lab", "lab/a", "lab/b/c", "labs/d"},
		"/lab/":   {"lab", "lab/a", "lab/b/c"},
		"/lab/b":  {"lab/b/c"},
		"/lab/a":  {"lab/a"},
		"/nobody": {},
	} {
		got, err := in.Repositories(t.Context(), d.host+prefix)
		require.NoError(t, err, prefix)
		for i := range want {
			want[i] = d.host + "/" + want[i]
		}
		assert.ElementsMatch(t, want, got, prefix)
		assert.True(t, slices.IsSorted(got))
	}
	wrong := d.options()
	wrong.Password = "wrong-" + password
	_, err := session(t, wrong).Repositories(t.Context(), d.host)
	require.ErrorContains(t, err, `refuses user "alice"`)
	keepsSecrets(t, err.Error())
}

func TestACatalogIsReadPageByPage(t *testing.T) {
	t.Parallel()
	d := newDebianRegistry(t)
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/v2/_catalog" {
			return false
		}
		last := r.URL.Query().Get("last")
		if last == "" {
			w.Header().Set("Link", `</v2/_catalog?last=lab%2Fa&n=100>; rel="next"`)
		}
		_ = json.NewEncoder(w).Encode(map[string][]string{"repositories": {map[string]string{"": "lab/a", "lab/a": "lab/b"}[last]}})
		return true
	})
	got, err := session(t, alice).Repositories(t.Context(), s.host()+"/lab")
	require.NoError(t, err)
	assert.Equal(t, []string{s.host() + "/lab/a", s.host() + "/lab/b"}, got)

	// The real one, which has more than a page of them: copies of one.
	stored(t, d.host+"/lab/i000:v1", d.options(), digestOf(1))
	for i := range 100 {
		lab := filepath.Join(d.data, "docker/registry/v2/repositories/lab")
		require.NoError(t, os.CopyFS(filepath.Join(lab, fmt.Sprintf("i%03d", i+1)), os.DirFS(filepath.Join(lab, "i000"))))
	}
	got, err = session(t, d.options()).Repositories(t.Context(), d.host+"/lab")
	require.NoError(t, err)
	assert.Len(t, got, 101)
}

func TestAListThatBreaksOffIsNotTakenForTheWhole(t *testing.T) {
	t.Parallel()
	for list, page := range map[string]string{"/v2/lab/ubuntu/tags/list": `{"tags":["v1"]}`, "/v2/_catalog": `{"repositories":["lab/ubuntu/b"]}`} {
		for _, status := range []int{http.StatusNotFound, http.StatusBadGateway} {
			s := newServer(t, func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case r.URL.Path != list:
					return false
				case r.URL.Query().Has("last"):
					w.WriteHeader(status)
				default:
					w.Header().Set("Link", "<"+list+`?last=x>; rel="next"`)
					_, _ = w.Write([]byte(page))
				}
				return true
			})
			stored(t, s.ref(), alice, digestOf(1))
			in := session(t, alice)
			_, err := in.Repositories(t.Context(), s.host()+"/lab/ubuntu")
			require.Error(t, err, "%s %d", list, status)
			if list != "/v2/_catalog" {
				_, err = in.Entries(t.Context(), s.host()+"/lab/ubuntu")
				require.Error(t, err, "%s %d", list, status)
			}
			if status == http.StatusNotFound {
				require.ErrorContains(t, err, "breaks off: a page of it is not there")
			}
		}
	}
	// GitHub's registry denies what is not there.
	s := newRemoteServer(t, func(w http.ResponseWriter, r *http.Request) bool {
		return answer(func(r *http.Request) bool { return r.URL.Query().Has("last") }, http.StatusForbidden)(w, r) ||
			tagList(func(*http.Request) (string, string) { return `{"tags":["v1"]}`, `<?last=v1>; rel="next"` })(w, r)
	})
	_, err := session(t, s.options).Entries(t.Context(), "ghcr.io/lab/ubuntu")
	require.ErrorContains(t, err, "breaks off")
}

func TestARegistryWithoutACatalogAsksForNames(t *testing.T) {
	t.Parallel()
	for _, status := range []int{401, 403, 404} {
		s := newServer(t, answer(func(r *http.Request) bool { return r.URL.Path == "/v2/_catalog" }, status))
		stored(t, s.ref(), alice, digestOf(1))
		_, err := session(t, alice).Repositories(t.Context(), s.host()+"/lab")
		require.Error(t, err)
		if status != 401 {
			require.ErrorContains(t, err, "name the repositories")
		}
		got, err := session(t, alice).Repositories(t.Context(), s.host()+"/lab/ubuntu")
		require.NoError(t, err)
		assert.Equal(t, []string{s.host() + "/lab/ubuntu"}, got, "one that is named is found")
	}
	s := newRemoteServer(t, nil)
	_, err := session(t, s.options).Repositories(t.Context(), "ghcr.io/lab")
	require.ErrorContains(t, err, "name them: ghcr.io/OWNER/NAME")
	_, err = session(t, alice).Repositories(t.Context(), "https://example.org/lab")
	require.ErrorContains(t, err, "leave out http")
	_, err = session(t, alice).Repositories(t.Context(), "example.org/LAB")
	require.ErrorContains(t, err, "lower-case")
}

// harbor answers as goharbor/harbor does (api/v2.0/swagger.yaml: getPing,
// listRepositories, deleteTag; src/lib/link.go; src/server/registry/manifest.go
// and src/server/middleware/v2auth/auth.go): its catalog is its
// administrators', a manifest is deleted by its digest only.
func harbor(repositories []string, deleted *[]string) func(http.ResponseWriter, *http.Request) bool {
	const project = "/api/v2.0/projects/lab/repositories"
	return func(w http.ResponseWriter, r *http.Request) bool {
		refuse := func(status int, code string) bool {
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"no"}]}`, code)
			return true
		}
		name, word, _ := r.BasicAuth()
		path := r.URL.EscapedPath()
		switch {
		case path == "/api/v2.0/ping":
			_, _ = w.Write([]byte("Pong"))
		case path == "/v2/_catalog", strings.HasPrefix(path, "/api/") && (name != user || word != password):
			return refuse(401, "UNAUTHORIZED")
		case path == project:
			q := r.URL.Query()
			page := 1
			_, _ = fmt.Sscan(q.Get("page"), &page)
			link := fmt.Sprintf("<%s?page=%d&page_size=100>; rel=\"next\"", path, page+1)
			if page > 1 {
				link = fmt.Sprintf("<%s?page=%d&page_size=100>; rel=\"prev\" , %s", path, page-1, link)
			}
			if page < len(repositories) {
				w.Header().Set("Link", link)
			}
			_ = json.NewEncoder(w).Encode([]map[string]any{{"name": repositories[page-1], "artifact_count": 1}})
		case strings.HasPrefix(path, "/api/v2.0/projects/") && r.Method == http.MethodGet:
			return refuse(404, "NOT_FOUND")
		case strings.HasSuffix(path, "/tags/fixed") && r.Method == http.MethodDelete:
			return refuse(412, "PRECONDITION")
		case r.Method == http.MethodDelete && strings.HasPrefix(path, "/v2/") && !strings.Contains(path, "sha256:"):
			return refuse(400, "UNSUPPORTED")
		case r.Method == http.MethodDelete:
			*deleted = append(*deleted, path)
		case deleted != nil && strings.Contains(path, "/manifests/") && slices.ContainsFunc(*deleted, func(d string) bool { return strings.HasPrefix(d, "/v2/") }):
			return refuse(404, "MANIFEST_UNKNOWN") // with all its tags
		default:
			return false
		}
		return true
	}
}

func TestHarborListsAProjectByItsOwnAPI(t *testing.T) {
	t.Parallel()
	s := newRemoteServer(t, harbor([]string{"lab/a", "lab/b/c", "lab/ubuntu"}, nil))
	in := session(t, s.options)
	got, err := in.Repositories(t.Context(), "registry.example/lab")
	require.NoError(t, err)
	assert.Equal(t, []string{"registry.example/lab/a", "registry.example/lab/b/c", "registry.example/lab/ubuntu"}, got)
	got, err = in.Repositories(t.Context(), "registry.example/lab/b")
	require.NoError(t, err)
	assert.Equal(t, []string{"registry.example/lab/b/c"}, got)
	_, err = in.Repositories(t.Context(), "registry.example/nobody")
	require.ErrorContains(t, err, `no project nobody for user "alice"`)

	wrong := s.options
	wrong.Password = "wrong"
	_, err = session(t, wrong).Repositories(t.Context(), "registry.example/lab")
	require.ErrorContains(t, err, `refuses user "alice"`)
}

func TestHarborsPasswordStaysAtHarbor(t *testing.T) {
	t.Parallel()
	s := newRemoteServer(t, nil)
	s.answers(func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/api/v2.0/ping":
			_, _ = w.Write([]byte("Pong"))
		case strings.HasPrefix(r.URL.Path, "/api/"):
			w.Header().Set("Link", `<https://other.example/next>; rel="next"`)
			_, _ = w.Write([]byte("[]"))
		default:
			return false
		}
		return true
	})
	_, err := session(t, s.options).Repositories(t.Context(), "registry.example/lab")
	require.ErrorContains(t, err, "another host, other.example")
	assert.NotContains(t, s.dialled, "other.example:443")
}

func TestATagAloneIsDeletedWhereOthersNameTheImage(t *testing.T) {
	t.Parallel()
	var deleted []string
	s := newRemoteServer(t, harbor(nil, &deleted))
	in := session(t, s.options)
	made := stored(t, "registry.example/lab/b/c:v1", s.options, digestOf(1))
	stored(t, "registry.example/lab/b/c:v2", s.options, digestOf(1))
	stored(t, "registry.example/lab/b/c:fixed", s.options, digestOf(1))
	got, err := in.Delete(t.Context(), "registry.example/lab/b/c:v1")
	require.NoError(t, err)
	assert.Equal(t, []string{"fixed", "v2"}, got)
	assert.Equal(t, []string{"/api/v2.0/projects/lab/repositories/b%252Fc/artifacts/" + made.Digest + "/tags/v1"}, deleted)

	_, err = in.Delete(t.Context(), "registry.example/lab/b/c:fixed")
	require.ErrorContains(t, err, "immutability")

	_, err = in.Delete(t.Context(), "registry.example/lab/b/c@"+made.Digest)
	require.NoError(t, err)
	assert.Equal(t, "/v2/lab/b/c/manifests/"+url.PathEscape(made.Digest), deleted[1])
}

func TestDebiansRegistryDeletesWhereItIsAllowedTo(t *testing.T) {
	t.Parallel()
	d := newDebianRegistry(t, func(o *testkit.RegistryOptions) { o.Deletes = true })
	repository := d.host + "/lab/ubuntu"
	one := stored(t, repository+":v1", d.options(), digestOf(1))
	stored(t, repository+":latest", d.options(), digestOf(1))
	stored(t, repository+":v2", d.options(), digestOf(2))
	in := session(t, d.options())

	_, err := in.Delete(t.Context(), repository+":v1")
	require.ErrorContains(t, err, "deletes no tag alone, and the image of "+repository+":v1 has others: latest")
	require.ErrorContains(t, err, repository+"@"+one.Digest)
	got, err := in.Delete(t.Context(), repository+":v2")
	require.NoError(t, err)
	assert.Empty(t, got)
	_, err = in.Delete(t.Context(), repository+":v2")
	require.ErrorContains(t, err, "has no "+repository+":v2")

	entries, err := in.Entries(t.Context(), repository)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	assert.Equal(t, []string{"latest", "v1"}, entries[0].Tags)
	_, err = in.Delete(t.Context(), repository+"@"+one.Digest)
	require.NoError(t, err)
	_, err = in.Delete(t.Context(), repository+"@"+one.Digest)
	require.ErrorContains(t, err, "has no "+repository+"@"+one.Digest)
	entries, err = in.Entries(t.Context(), repository)
	require.NoError(t, err)
	assert.Empty(t, entries)
	assert.Empty(t, d.stored(t, "_manifests/tags/"))
}

func TestATagThatIsStillThereWasNotDeleted(t *testing.T) {
	t.Parallel()
	s := newServer(t, answer(method("DELETE"), http.StatusAccepted))
	stored(t, s.host()+"/lab/ubuntu:v1", alice, digestOf(1))
	stored(t, s.host()+"/lab/ubuntu:v2", alice, digestOf(1))
	_, err := session(t, alice).Delete(t.Context(), s.host()+"/lab/ubuntu:v1")
	require.ErrorContains(t, err, "deletes no tag alone")
}

func FuzzALinkNeverLeavesTheRegistry(f *testing.F) {
	for _, link := range []string{
		`</v2/_catalog?n=1&last=a>; rel="next"`, `<//other.example/>; rel=next`, `<https://u:p@registry.example/x#y>;rel="next"`,
		`<?n=2>; title="a,b"; rel="next", <x>; rel="prev"`, `<<>>; rel="next"`, `<http://[::1%25>; rel="next"`, "<\x7f>; rel=next",
	} {
		f.Add(link)
	}
	f.Fuzz(func(t *testing.T, link string) {
		next, err := registry.Next("https://registry.example/v2/_catalog", link)
		if err != nil || next == nil {
			return
		}
		if next.Host != "registry.example" || next.Scheme != "https" || next.User != nil {
			t.Fatalf("%q leads to %s", link, next)
		}
	})
}

func TestARegistryThatDoesNotDeleteSaysHowItWould(t *testing.T) {
	t.Parallel()
	d := newDebianRegistry(t)
	one := stored(t, d.ref(), d.options(), digestOf(1))
	_, err := session(t, d.options()).Delete(t.Context(), d.ref())
	require.ErrorContains(t, err, "REGISTRY_STORAGE_DELETE_ENABLED=true")
	require.ErrorIs(t, err, registry.ErrNoDeletion)
	layer, _ := pulled(t, d.ref(), d.options())
	assert.NotEmpty(t, layer, "it is still there")

	// GitHub's answers so (skopeo#1880).
	s := newRemoteServer(t, nil)
	s.answers(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodDelete {
			return false
		}
		w.WriteHeader(http.StatusMethodNotAllowed)
		_, _ = w.Write([]byte(`{"errors":[{"code":"UNSUPPORTED","message":"The operation is unsupported."}]}`))
		return true
	})
	_, err = session(t, s.options).Delete(t.Context(), "ghcr.io/lab/ubuntu@"+one.Digest)
	require.ErrorContains(t, err, "/orgs/lab/packages/container/ubuntu/versions/ID")
	s.answers(answer(method("DELETE"), http.StatusForbidden))
	_, err = session(t, s.options).Delete(t.Context(), "ghcr.io/lab/ubuntu@"+one.Digest)
	require.ErrorContains(t, err, "does not let user \"alice\" delete from lab/ubuntu (403")
	_, err = session(t, s.options).Delete(t.Context(), "registry.example/lab/ubuntu@"+one.Digest)
	require.ErrorContains(t, err, "in Harbor a role or a robot account")
}
