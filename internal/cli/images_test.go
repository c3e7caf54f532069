package cli_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
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

	"github.com/netgroup-polito/diskforge/internal/cli"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// run runs diskforge and returns its exit code and what it wrote.
func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = cli.Main(args, &out, &errs)
	return code, out.String(), errs.String()
}

// publish pushes an image of ours that is some days old under its tags.
func publish(t *testing.T, repository string, days int, base string, tags ...string) (digest string) {
	dir := t.TempDir()
	disk := make([]byte, 4<<10)
	copy(disk, fmt.Sprint(repository, days))
	copy(disk[510:], "\x55\xAA")
	require.NoError(t, os.WriteFile(dir+"/disk.raw", disk, 0o600))
	layout := filepath.Join(dir, "layout")
	made, err := oci.Pack(t.Context(), dir+"/disk.raw", layout, oci.Metadata{
		Architecture: "amd64", BaseDigest: base,
		Annotations: map[string]string{
			oci.AnnotationBuilt:  time.Now().AddDate(0, 0, -days).UTC().Format(time.RFC3339),
			oci.AnnotationInputs: "sha256:" + strings.Repeat("1", 64),
		},
	}, progress.Discard)
	require.NoError(t, err)
	for _, tag := range tags {
		_, err = registry.Push(t.Context(), layout, repository+":"+tag, registry.Options{}, progress.Discard)
		require.NoError(t, err)
	}
	return made.Digest
}

// theirs pushes an image that diskforge did not make.
func theirs(t *testing.T, ref string) {
	image, err := random.Image(100, 1)
	require.NoError(t, err)
	tag, err := name.NewTag(ref)
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag, image))
}

// tagsOf lists the tags that a repository still has.
func tagsOf(t *testing.T, repository string) []string {
	repo, err := name.NewRepository(repository)
	require.NoError(t, err)
	tags, err := remote.List(repo)
	require.NoError(t, err)
	return tags
}

func TestThePageOfARegistryShowsTheNewestImages(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	base := publish(t, host+"/lab/base", 9, "", "v1")
	publish(t, host+"/lab/java", 5, base, "v1")
	newest := publish(t, host+"/lab/java", 2, base, "v2", "latest")
	theirs(t, host+"/lab/nginx:1")
	out := t.TempDir()
	saved := report.Report{Schema: report.Schema, Outcome: report.Packed, Image: report.Image{Name: "java", Digest: newest}, Playbook: report.Playbook{File: "playbooks/java.yml"}}
	require.NoError(t, os.Mkdir(filepath.Join(out, "java"), 0o755))
	_, err := saved.Save(filepath.Join(out, "java"))
	require.NoError(t, err)
	code, said, errs := run(t, "site", host+"/lab", "--output-dir", out)
	require.Zero(t, code, errs)
	assert.Equal(t, filepath.Join(out, "index.html")+"\n", said)
	b, err := os.ReadFile(filepath.Join(out, "index.html"))
	require.NoError(t, err)
	page := string(b)
	for _, part := range []string{
		">base</h2>", ">java</h2>", "<dd>latest, v2</dd>", "<dt>Starts from</dt><dd>base</dd>", "playbooks/java.yml", `href="java/report.html"`,
		"virtctl create vm --volume-containerdisk=src:" + host + "/lab/java@" + newest,
	} {
		assert.Contains(t, page, part)
	}
	assert.Equal(t, 2, strings.Count(page, "<article"))
	assert.NotContains(t, page, "not pushed", "it is there, whoever pushed it")

	code, said, errs = run(t, "site", host+"/none", "--output-dir", out)
	assert.Equal(t, 1, code)
	assert.Empty(t, said)
	assert.Contains(t, errs, host+"/none")
	after, err := os.ReadFile(filepath.Join(out, "index.html"))
	require.NoError(t, err)
	assert.Equal(t, page, string(after), "a registry that does not answer leaves the page as it was")
}

func TestPruneShowsWhatGoesAndDeletesItOnlyWithYes(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{Deletes: true})
	ubuntu := host + "/lab/ubuntu"
	parent := publish(t, host+"/lab/base", 90, "", "v1")
	publish(t, host+"/lab/base", 1, "", "v2")
	publish(t, ubuntu, 60, "", "v1", "old-1")
	publish(t, ubuntu, 50, "", "v2")
	publish(t, ubuntu, 2, parent, "v3", "latest")
	theirs(t, ubuntu+":theirs")

	prune := []string{"images", "prune", host + "/lab", "--keep", "1", "--keep-younger", "30d"}
	code, out, errs := run(t, prune...)
	require.Equal(t, 0, code, errs)
	assert.Regexp(t, `delete +`+ubuntu+` +old-1,v1 .*60d +not among the newest 1, and older than 30d\n`, out)
	assert.Regexp(t, `delete +`+ubuntu+` +v2 `, out)
	assert.Regexp(t, `keep +`+ubuntu+` +latest,v3 .* among the newest 1\n`, out)
	assert.Regexp(t, `keep +`+ubuntu+` +theirs .* diskforge did not make it\n`, out)
	assert.Regexp(t, `keep +`+host+`/lab/base +v1 .* needed by `+ubuntu+`:latest\n`, out)
	assert.Contains(t, errs, "dry run: nothing was deleted; --yes deletes 2 of 6 images")
	assert.Len(t, tagsOf(t, ubuntu), 6)

	code, out, errs = run(t, append(prune, "--keep-tag", "old-1", "--keep-tag", "v2")...)
	require.Equal(t, 0, code, errs)
	assert.Regexp(t, `keep +`+ubuntu+` +old-1,v1 .* tag old-1\n`, out)
	assert.Regexp(t, `keep +`+ubuntu+` +v2 .* tag v2\n`, out)
	assert.Contains(t, errs, "--yes deletes 0 of 6 images")

	code, _, errs = run(t, append(prune, "--yes")...)
	require.Equal(t, 0, code, errs)
	assert.Contains(t, errs, "deleted "+ubuntu+":old-1")
	assert.Contains(t, errs, "garbage")
	assert.ElementsMatch(t, []string{"v3", "latest", "theirs"}, tagsOf(t, ubuntu))
	assert.ElementsMatch(t, []string{"v1", "v2"}, tagsOf(t, host+"/lab/base"))

	code, _, errs = run(t, append(prune, "--yes")...)
	require.Equal(t, 0, code, errs)
	assert.NotContains(t, errs, "deleted")
}

// indexOf pushes an image that diskforge did not make, and an index of it that is
// some days old.
func indexOf(t *testing.T, repository string, days int) {
	made := func(daysAgo int) string { return time.Now().AddDate(0, 0, -daysAgo).UTC().Format(time.RFC3339) }
	image, err := random.Image(100, 1)
	require.NoError(t, err)
	image = mutate.Annotations(image, map[string]string{"org.opencontainers.image.created": made(days - 1)}).(v1.Image)
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: image})
	index = mutate.Annotations(index, map[string]string{"org.opencontainers.image.created": made(days)}).(v1.ImageIndex)
	repo, err := name.NewRepository(repository)
	require.NoError(t, err)
	require.NoError(t, remote.Write(repo.Tag("one-1"), image))
	require.NoError(t, remote.WriteIndex(repo.Tag("many-1"), index))
}

func TestPruneDeletesAnIndexBeforeItsParts(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{Deletes: true})
	indexOf(t, host+"/lab/theirs", 60)
	code, _, errs := run(t, "images", "prune", host+"/lab", "--keep-younger", "30d", "--all", "--yes")
	require.Equal(t, 0, code, errs)
	assert.Less(t, strings.Index(errs, "deleted "+host+"/lab/theirs:many-1"), strings.Index(errs, "deleted "+host+"/lab/theirs:one-1"))
	assert.Empty(t, tagsOf(t, host+"/lab/theirs"))
}

func TestPruneKeepsWhatGotATagSinceItDecided(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{Deletes: true})
	publish(t, host+"/lab/ubuntu", 50, "", "v2")
	older := publish(t, host+"/lab/ubuntu", 60, "", "v1")
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodDelete { // of the first
			code, _, errs := run(t, "images", "tag", host+"/lab/ubuntu@"+older, "latest")
			assert.Zero(t, code, errs)
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	code, _, errs := run(t, "images", "prune", s.Listener.Addr().String()+"/lab", "--keep-younger", "1d", "--yes")
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, older+" has got the tag latest since it was listed: prune again")
	assert.Contains(t, errs, "1 of 2 were not deleted")
	assert.ElementsMatch(t, []string{"v1", "latest"}, tagsOf(t, host+"/lab/ubuntu"))
}

func TestPruneStopsAtARegistryThatDoesNotDelete(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	publish(t, host+"/lab/ubuntu", 60, "", "v1")
	publish(t, host+"/lab/ubuntu", 50, "", "v2")
	code, _, errs := run(t, "images", "prune", host+"/lab", "--keep-younger", "1d", "--yes")
	assert.Equal(t, 1, code)
	assert.Equal(t, 1, strings.Count(errs, "REGISTRY_STORAGE_DELETE_ENABLED=true"), errs)
	assert.Len(t, tagsOf(t, host+"/lab/ubuntu"), 2)
}

func TestPruneRefusesToKeepNothing(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{}, {"--keep", "-1"}, {"--keep", "0"}, {"--keep-younger", "soon"}, {"--keep-younger", "0d"}, {"--keep-younger", "6m"}, {"--keep-tag", "latest"}, {"--keep", "1", "--keep-tag", "[a"}} {
		code, _, errs := run(t, append([]string{"images", "prune", "127.0.0.1:1/lab", "--yes"}, args...)...)
		assert.Equal(t, 2, code, errs)
	}
}

func TestAListGoesOnWhereARepositoryCannotBeRead(t *testing.T) {
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	digest := publish(t, host+"/lab/ubuntu", 3, "", "v1", "latest")
	publish(t, host+"/lab/secret", 3, "", "v1")
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/secret/") {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	front := s.Listener.Addr().String()
	t.Setenv("TARGET_REGISTRY", front)
	t.Setenv("REGISTRY_PREFIX", "/lab/")

	code, out, errs := run(t, "images", "list")
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "1 of 2 could not be read")
	assert.Regexp(t, front+`/lab/ubuntu +latest,v1 +`+digest[:19]+` +\d+ KiB +3d +sha256:1{12}\n`, out)
	assert.NotContains(t, out, "secret", "an error is no image")
	assert.Regexp(t, `WARN .*does not let somebody without a login read from lab/secret`, errs)

	_, out, errs = run(t, "images", "list", "--json")
	assert.Regexp(t, `"level":"warn","msg":".*does not let somebody without a login read from lab/secret`, errs)
	var lines []map[string]any
	for line := range strings.Lines(out) {
		var object map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &object))
		lines = append(lines, object)
	}
	require.Len(t, lines, 1)
	assert.Equal(t, digest, lines[0]["digest"])
	assert.Equal(t, []any{"latest", "v1"}, lines[0]["tags"])

	_, _, errs = run(t, "images", "list", front+"/lab/secret")
	assert.Equal(t, 1, strings.Count(errs, "does not let"), errs)
	assert.NotContains(t, errs, "1 of 1")
}

func TestAPrefixWithNothingAtOrBelowItIsAMistake(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	publish(t, host+"/labs/ubuntu", 3, "", "v1")
	nothing := "no repository at or below " + host + "/lab\n"
	for _, args := range [][]string{{"list", host + "/lab"}, {"prune", host + "/lab", "--keep", "1"}} {
		code, out, errs := run(t, append([]string{"images"}, args...)...)
		assert.Equal(t, 1, code)
		assert.Empty(t, out, "no header without rows")
		assert.Equal(t, 1, strings.Count(errs, nothing), errs)
	}
	code, out, errs := run(t, "images", "list", host+"/lab", host+"/labs")
	assert.Equal(t, 1, code)
	assert.Contains(t, out, host+"/labs/ubuntu", "the other one is listed")
	assert.Contains(t, errs, "WARN "+nothing)
	assert.Contains(t, errs, "1 of 2 could not be read")
}

func TestDeleteGoesOnAfterWhatIsNotThere(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{Deletes: true})
	publish(t, host+"/lab/ubuntu", 3, "", "v1")
	code, out, errs := run(t, "images", "delete", host+"/lab/ubuntu:v0", host+"/lab/ubuntu:v1")
	assert.Equal(t, 1, code)
	assert.Equal(t, host+"/lab/ubuntu:v1: deleted\n", out)
	assert.Contains(t, errs, "has no "+host+"/lab/ubuntu:v0")
	assert.Contains(t, errs, "1 of 2 were not deleted")

	code, _, errs = run(t, "images", "delete", host+"/lab/ubuntu:v0")
	assert.Equal(t, 1, code)
	assert.Equal(t, 1, strings.Count(errs, "\n"), "of one image it is said once: "+errs)
}

func TestTagAddsTagsToAnImageNamedByDigest(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	digest := publish(t, host+"/lab/ubuntu", 3, "", "v1")
	code, out, errs := run(t, "images", "tag", host+"/lab/ubuntu@"+digest, "v2", "latest")
	require.Zero(t, code, errs)
	assert.Equal(t, host+"/lab/ubuntu@"+digest+"\n", out)
	assert.ElementsMatch(t, []string{"v1", "v2", "latest"}, tagsOf(t, host+"/lab/ubuntu"))
	code, _, errs = run(t, "images", "tag", host+"/lab/ubuntu:v1", "v3")
	assert.Equal(t, 2, code)
	assert.Contains(t, errs, "diskforge images list "+host+"/lab/ubuntu --json")
}

func TestImagesWantsToKnowWhatToDo(t *testing.T) {
	t.Parallel()
	code, _, errs := run(t, "images", "polish")
	assert.Equal(t, 2, code)
	assert.Contains(t, errs, "list, tag, promote, revoke, delete or prune")
	code, _, errs = run(t, "images", "list")
	assert.Equal(t, 2, code)
	assert.Contains(t, errs, "TARGET_REGISTRY")
}
