package cli_test

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/ulikunitz/xz"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/fleet/outdated"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// signingKey is a key pair of openssl's.
func signingKey(t *testing.T) (private, public string) {
	t.Helper()
	dir := t.TempDir()
	private, public = filepath.Join(dir, "key"), filepath.Join(dir, "pub")
	for _, line := range []string{"genpkey -algorithm ed25519 -out " + private, "pkey -pubout -in " + private + " -out " + public} {
		out, err := exec.Command("openssl", strings.Fields(line)...).CombinedOutput()
		require.NoError(t, err, string(out))
	}
	return private, public
}

// course is an image that a build would publish.
type course struct {
	days             int
	original         oci.Original
	base, baseDigest string
	key              string // signs its SBOM; none: no SBOM
	system, version  string
	packages         []sbom.Package
}

// publish pushes it, as push does where SIGNING_KEY is set, and returns its digest.
func (c course) publish(t *testing.T, ref string) string {
	t.Helper()
	dir := t.TempDir()
	disk := make([]byte, 4<<10)
	copy(disk, ref)
	copy(disk[510:], "\x55\xAA")
	require.NoError(t, os.WriteFile(dir+"/disk.raw", disk, 0o600))
	made, err := oci.Pack(t.Context(), dir+"/disk.raw", dir+"/layout", oci.Metadata{
		Original:     c.original,
		Architecture: "amd64", BaseName: c.base, BaseDigest: c.baseDigest,
		Annotations: map[string]string{oci.AnnotationBuilt: time.Now().Add(-time.Hour).AddDate(0, 0, -c.days).UTC().Format(time.RFC3339)},
	}, progress.Discard)
	require.NoError(t, err)
	args := []string{"push", dir + "/layout", ref, "--unverified"}
	if c.key != "" {
		require.NoError(t, sbom.Save(dir, sbom.Disk{Name: "course", Digest: made.DiskDigest}, sbom.Inventory{System: c.system, Version: c.version, Packages: c.packages}))
		args = append(args, "--signing-key", c.key)
	}
	code, _, errs := run(t, args...)
	require.Zero(t, code, errs)
	return made.Digest
}

func installed(name, version, source string) sbom.Package {
	return sbom.Package{Name: name, Version: version, Architecture: "amd64", Source: source, SourceVersion: version}
}

// apt is an archive of Debian, in memory, which serves lists by their folders.
func apt(t *testing.T, lists map[string]string) (mirror string, asked *atomic.Int32) {
	asked = new(atomic.Int32)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		list, there := lists[strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/"), "/main/binary-amd64/Packages.xz")]
		if !there {
			http.NotFound(w, r)
			return
		}
		var b bytes.Buffer
		packed, err := xz.NewWriter(&b)
		assert.NoError(t, err)
		_, _ = packed.Write([]byte(list))
		assert.NoError(t, packed.Close())
		_, _ = w.Write(b.Bytes())
	}))
	t.Cleanup(server.Close)
	return server.URL + "/debian", asked
}

// bookworm is what Debian 12 has.
var bookworm = map[string]string{
	"debian/dists/bookworm":         "Package: openssl\nVersion: 3.0.17-1~deb12u2\n\nPackage: libssl3\nSource: openssl\nVersion: 3.0.17-1~deb12u2\n\nPackage: bash\nVersion: 5.2.15-2+b9\n\nPackage: vim\nVersion: 2:9.0.1378-2+deb12u2\n",
	"debian/dists/bookworm-updates": "Package: tzdata\nVersion: 2026b-0+deb12u1\n",
	"debian-security/dists/bookworm-security": "Package: openssl\nVersion: 3.0.17-1~deb12u3\n\nPackage: libssl3\nSource: openssl\nVersion: 3.0.17-1~deb12u3\n\n" +
		"Package: vim\nVersion: 2:9.0.1378-2+deb12u1\n\nPackage: curl\nVersion: 7.88.1-10+deb12u14\n\nPackage: git\nVersion: 1:2.39.5-0+deb12u3\n",
}

func withReferrers(t *testing.T) string {
	server := httptest.NewServer(ggcr.New(ggcr.WithReferrersSupport(true), ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func objects(t *testing.T, lines string) map[string]outdated.Image {
	t.Helper()
	all := map[string]outdated.Image{}
	for line := range strings.Lines(lines) {
		var i outdated.Image
		require.NoError(t, json.Unmarshal([]byte(line), &i), line)
		all[i.Repository[strings.LastIndex(i.Repository, "/")+1:]] = i
	}
	return all
}

func TestEachImageIsToldItsAgeItsParentAndItsUpdates(t *testing.T) {
	t.Parallel()
	host := withReferrers(t)
	private, public := signingKey(t)
	mirror, asked := apt(t, bookworm)
	was := course{days: 40, base: "debian-bookworm from packages", baseDigest: "sha256:" + strings.Repeat("b", 64)}.publish(t, host+"/lab/base:v1")
	pinned := host + "/lab/base:v1@" + was
	course{days: 35, base: pinned, baseDigest: was, key: private, system: "debian", version: "12", packages: []sbom.Package{
		installed("openssl", "3.0.17-1~deb12u2", "openssl"), installed("libssl3", "3.0.17-1~deb12u2", "openssl"),
		installed("bash", "5.2.15-2+b2", "bash"),                // a rebuild
		installed("vim", "2:9.0.1378-2+deb12u1", "vim"),         // its security update is in, a later one of main is not
		installed("curl", "7.88.1-10+deb12u14", "curl"),         // as it should be
		installed("git", "1:2.39.5-0+deb12u2", "git"),           // an epoch
		installed("tzdata", "2026a-0+deb12u1", "tzdata"),        // no security update
		installed("docker-ce", "5:29.1.1-1~debian.12", "other"), // of no archive of Debian's
	}}.publish(t, host+"/lab/java:v1")
	// The second looks like nothing on earth, but has all updates.
	course{days: 1, base: pinned, baseDigest: was, key: private, system: "debian", version: "12", packages: []sbom.Package{
		installed("openssl", "3.0.17-1~deb12u3", "openssl"), installed("git", "1:2.47.3-0+deb13u1", "git"),
	}}.publish(t, host+"/lab/python:v1")
	course{days: 3, key: private, system: "fedora", version: "44", packages: []sbom.Package{installed("openssl", "1", "openssl")}}.publish(t, host+"/lab/rpm:v1")
	theirs(t, host+"/lab/nginx:1")
	course{key: private, system: "debian", version: "12", packages: []sbom.Package{
		{Name: "openssl", Version: "1", Architecture: "s390x", Source: "openssl", SourceVersion: "1"},
	}}.publish(t, host+"/arm/java:v1")
	code, out, errs := run(t, "outdated", host+"/arm", "--json", "--apt-mirror", mirror)
	require.Zero(t, code, errs)
	assert.Contains(t, objects(t, out)["java"].Unknown, "not of amd64 or arm64")
	assert.Zero(t, asked.Load())

	code, out, errs = run(t, "outdated", host+"/lab", "--json", "--apt-mirror", mirror)
	require.Zero(t, code, errs)
	all := objects(t, out)
	require.Len(t, all, 4, "what diskforge did not make is left out")
	java := all["java"]
	assert.Equal(t, []base.Update{
		{Source: "git", Package: "git", Installed: "1:2.39.5-0+deb12u2", Available: "1:2.39.5-0+deb12u3"},
		{Source: "openssl", Package: "libssl3", Installed: "3.0.17-1~deb12u2", Available: "3.0.17-1~deb12u3"},
		{Source: "openssl", Package: "openssl", Installed: "3.0.17-1~deb12u2", Available: "3.0.17-1~deb12u3"},
	}, java.Security)
	assert.Equal(t, 3, java.Others, "bash, vim, tzdata")
	require.NotNil(t, java.Days)
	assert.Equal(t, 35, *java.Days)
	assert.Equal(t, outdated.Current, java.Parent)
	assert.Equal(t, pinned, java.ParentName)
	assert.Equal(t, []string{"v1"}, java.Tags)
	assert.Empty(t, java.Unknown+java.Error)
	assert.Empty(t, all["python"].Security)
	assert.Zero(t, all["python"].Others)
	assert.Equal(t, "the archive of the release is not known: fedora 44", all["rpm"].Unknown)
	assert.Equal(t, outdated.Unknown, all["base"].Parent)
	assert.Contains(t, all["base"].Unknown, "no SBOM")
	assert.EqualValues(t, 3, asked.Load(), "the lists are read once for all images")

	original := oci.Original{Refreshes: 1, Digest: java.Digest, Base: pinned[strings.Index(pinned, "@")+1:], BaseName: pinned}
	again := course{original: original, base: host + "/lab/java:v1@" + java.Digest, baseDigest: java.Digest}.publish(t, host+"/lab/java:v1-1")
	code, out, errs = run(t, "outdated", host+"/lab/java", "--json", "--apt-mirror", mirror)
	require.Zero(t, code, errs)
	refreshed := objects(t, out)["java"]
	assert.Equal(t, []any{again, 1, outdated.Current}, []any{refreshed.Digest, refreshed.Refreshes, refreshed.Parent}, "a refresh has its original's parent")
	code, _, errs = run(t, "images", "delete", host+"/lab/java@"+again)
	require.Zero(t, code, errs)

	now := course{days: 2}.publish(t, host+"/lab/base:v2")
	code, out, errs = run(t, "outdated", host+"/lab", "--apt-mirror", mirror)
	require.Zero(t, code, errs)
	for _, row := range []string{
		`(?m)^REPOSITORY +TAGS +DAYS +PARENT +UPDATES +SECURITY UPDATES$`,
		`(?m)^\S+/lab/base +v2 +2 +\? +\? +not known: no SBOM: rebuild it, or push it again, with SIGNING_KEY$`,
		`(?m)^\S+/lab/java +v1 +35 +superseded +3 +2: git, openssl$`,
		`(?m)^\S+/lab/python +v1 +1 +superseded +0 +none$`,
		`(?m)^\S+/lab/rpm +v1 +3 +\? +\? +not known: .*fedora 44$`,
	} {
		assert.Regexp(t, row, out)
	}
	assert.NotContains(t, out, "nginx")
	assert.NotEqual(t, was, now)

	// The parent's repository is asked where it is not below the prefix.
	code, out, errs = run(t, "outdated", host+"/lab/java", "--json", "--apt-mirror", mirror)
	require.Zero(t, code, errs)
	assert.Equal(t, outdated.Superseded, objects(t, out)["java"].Parent)

	for args, want := range map[string]struct {
		code int
		says string
	}{
		"":                              {0, ""},
		"--max-days 35":                 {0, ""},
		"--max-days 34":                 {1, "1 of 4 images are outdated"},
		"--max-days 0":                  {1, "4 of 4 images are outdated: rebuild them"},
		"--security":                    {1, "1 of 4 images are outdated"},
		"--security --max-days 2":       {1, "2 of 4 images are outdated"},
		"--superseded":                  {1, "2 of 4 images are outdated"},
		"--max-days -3":                 {2, "--max-days"},
		"--max-days some":               {2, "--max-days"},
		"--security --key " + public:    {1, "1 of 4 images are outdated"},
		"--key " + host:                 {2, "--key"},
		"--key " + private:              {2, "is a private key"},
		"--security --apt-mirror ftp:x": {2, "APT_MIRROR"},
	} {
		code, out, errs := run(t, append([]string{"outdated", host + "/lab", "--apt-mirror", mirror}, strings.Fields(args)...)...)
		assert.Equal(t, want.code, code, "%s: %s", args, errs)
		if want.says == "" {
			assert.Empty(t, errs, args)
		} else {
			assert.Contains(t, errs, want.says, args)
			assert.Equal(t, 1, strings.Count(strings.TrimSpace(errs), "\n")+1, errs)
		}
		if want.code == 1 {
			assert.Contains(t, out, "/lab/rpm", "all are shown before it fails")
		}
	}

	_, stranger := signingKey(t)
	code, out, errs = run(t, "outdated", host+"/lab", "--json", "--apt-mirror", mirror, "--security", "--key", stranger)
	require.Zero(t, code, errs)
	assert.Contains(t, objects(t, out)["java"].Unknown, "no SBOM by that key")
}

func TestWhatCannotBeReadIsToldAndFails(t *testing.T) {
	t.Parallel()
	host := withReferrers(t)
	private, _ := signingKey(t)
	for _, name := range []string{"c", "java"} {
		course{key: private, system: "debian", version: "12", packages: []sbom.Package{installed("bash", "5", "bash")}}.publish(t, host+"/lab/"+name+":v1")
	}
	mirror := "http://" + testkit.FreeAddress(t) + "/debian"
	code, out, errs := run(t, "outdated", host+"/lab", "--apt-mirror", mirror)
	assert.Equal(t, 1, code)
	assert.Equal(t, 2, strings.Count(out, "error: the archive of debian 12 cannot be read"), out)
	assert.Equal(t, 1, strings.Count(errs, mirror), errs)
	assert.Contains(t, errs, "connection refused")
	assert.Contains(t, errs, "2 of 2 images are not known in full")
	assert.Equal(t, 2, strings.Count(errs, "\n"), errs)

	mirror, _ = apt(t, bookworm)
	none := testkit.FreeAddress(t)
	code, out, errs = run(t, "outdated", host+"/lab", none+"/lab", "--json", "--apt-mirror", mirror)
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "1 of 3 images are not known in full")
	all := objects(t, out)
	assert.Contains(t, all["lab"].Error, none)
	assert.Empty(t, all["java"].Error)

	for args, want := range map[string]int{none + "/lab": 1, "http://a.b": 2, host + "/none": 1, "": 2} {
		code, out, errs := run(t, append([]string{"outdated", "--apt-mirror", mirror}, strings.Fields(args)...)...)
		assert.Equal(t, want, code, errs)
		assert.Empty(t, out)
		assert.Equal(t, 1, strings.Count(errs, "\n"), errs)
	}
	theirs(t, host+"/theirs/nginx:1")
	code, _, errs = run(t, "outdated", host+"/theirs")
	assert.Equal(t, 1, code, "an alert that watches nothing says so")
	assert.Contains(t, errs, "no image by diskforge")
}

// Whoever alerts must not take an SBOM that does not come for one that is not there.
func TestAnSBOMThatCannotBeReadIsNoImageWithoutOne(t *testing.T) {
	t.Parallel()
	inner := ggcr.New(ggcr.WithReferrersSupport(true), ggcr.Logger(log.New(io.Discard, "", 0)))
	var broken atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if broken.Load() && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			http.Error(w, "the disk is gone", http.StatusInternalServerError)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	private, _ := signingKey(t)
	course{key: private, system: "debian", version: "12", packages: []sbom.Package{installed("bash", "5", "bash")}}.publish(t, host+"/lab/java:v1")
	broken.Store(true)
	code, out, errs := run(t, "outdated", host+"/lab", "--security")
	assert.Equal(t, 1, code)
	assert.Contains(t, out, "error: what is attached to it cannot be read")
	assert.Contains(t, errs, "1 of 1 image is not known in full")
}

func TestARegistryWithoutReferrersHasNoSBOM(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	base := publish(t, host+"/lab/base", 9, "", "v1")
	publish(t, host+"/lab/java", 5, base, "v1")
	code, out, errs := run(t, "outdated", host+"/lab", "--json", "--security")
	require.Zero(t, code, errs)
	java := objects(t, out)["java"]
	assert.Contains(t, java.Unknown, "the registry keeps none")
	assert.Equal(t, outdated.Current, java.Parent, "known by its digest, though it was not named")
	assert.NotNil(t, java.Security, "machines get a list")
}

// A parent that others made has many releases in its repository.
func TestOthersParentIsCurrentAsLongAsItHasItsTag(t *testing.T) {
	t.Parallel()
	host := withReferrers(t)
	theirs(t, host+"/os/debian:12")
	theirs(t, host+"/os/debian:13")
	tag, err := name.NewTag(host + "/os/debian:12")
	require.NoError(t, err)
	d, err := remote.Head(tag)
	require.NoError(t, err)
	was := d.Digest.String()
	course{base: host + "/os/debian:12@" + was, baseDigest: was}.publish(t, host+"/lab/java:v1")
	parent := func() string {
		code, out, errs := run(t, "outdated", host+"/lab", "--json")
		require.Zero(t, code, errs)
		return objects(t, out)["java"].Parent
	}
	assert.Equal(t, outdated.Current, parent())
	theirs(t, host+"/os/debian:13")
	assert.Equal(t, outdated.Current, parent())
	theirs(t, host+"/os/debian:12")
	assert.Equal(t, outdated.Superseded, parent())
}
