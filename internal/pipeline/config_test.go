package pipeline

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

const ofBase = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// from reads and parses settings that come from this environment alone.
func from(t *testing.T, environment map[string]string, needs ...Need) (settings.Config, error) {
	t.Helper()
	s, err := settings.Read(nil, func(key string) (string, bool) { v, ok := environment[key]; return v, ok })
	require.NoError(t, err)
	return Parse(s, needs...)
}

var (
	digestA = "sha256:" + strings.Repeat("a", 64)
	digestB = "sha256:" + strings.Repeat("b", 64)
)

func TestABaseMayBeAContainerdisk(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		url, checksum string
		want          settings.BaseImage
	}{
		{"oci://registry.example/lab/base:v1", digestA, settings.BaseImage{Reference: "registry.example/lab/base:v1", Digest: digestA}},
		{"oci://registry.example/lab/base@" + digestA, "", settings.BaseImage{Reference: "registry.example/lab/base@" + digestA, Digest: digestA}},
		{"oci://registry.example/lab/base:v1@" + digestA, digestA, settings.BaseImage{Reference: "registry.example/lab/base:v1@" + digestA, Digest: digestA}},
		{"oci://localhost:5000/base:v1", "inputs:" + digestB, settings.BaseImage{Reference: "localhost:5000/base:v1", Inputs: digestB}},
		{"oci://registry.example/base@" + digestA, "inputs:" + digestB, settings.BaseImage{Reference: "registry.example/base@" + digestA, Digest: digestA, Inputs: digestB}},
		{"oci:" + dir + "@" + digestA, "", settings.BaseImage{Layout: dir, Digest: digestA}},
		{"oci:" + dir, "inputs:" + digestB, settings.BaseImage{Layout: dir, Inputs: digestB}},
	} {
		got, err := from(t, map[string]string{"ISO_URL": c.url, "ISO_CHECKSUM": c.checksum, "BASE_TIMEOUT": "2h"}, NeedBase)
		require.NoError(t, err, c.url)
		assert.Equal(t, c.want, got.BaseImage)
		assert.True(t, got.BaseImage.IsSet())
		assert.Empty(t, got.ISOURL)
		assert.Equal(t, 2*time.Hour, got.BaseTimeout)
	}
}

func TestAKeyringIsForAListThatIsSigned(t *testing.T) {
	list, keys := "file:https://example.org/SHA256SUMS", "../base/keys/ubuntu-cloud-images.asc"
	none := filepath.Join(t.TempDir(), "none.asc")
	for _, c := range []struct{ url, checksum, keyring, says string }{
		{"https://example.org/x.img", list, keys, ""},
		{"https://example.org/x.img", "file:SHA256SUMS", keys, ""},
		{"https://example.org/x.img", digestA, keys, "BASE_KEYRING: is set, but there is no ISO_CHECKSUM that is a list and signed: give file: with the list that is signed, or leave out BASE_KEYRING"},
		{"oci://registry.example/lab/base@" + digestA, "", keys, "BASE_KEYRING: is set, but there is no ISO_CHECKSUM"},
		{"https://example.org/x.img", list, none, "BASE_KEYRING: stat " + none + ": no such file or directory"},
		{"https://example.org/x.img", list, "config_test.go", "config_test.go has no OpenPGP public key in it: give what gpg --export"},
	} {
		got, err := from(t, map[string]string{"ISO_URL": c.url, "ISO_CHECKSUM": c.checksum, "BASE_KEYRING": c.keyring}, NeedBase)
		if c.says == "" {
			require.NoError(t, err)
			assert.True(t, filepath.IsAbs(got.BaseKeyring))
			assert.Equal(t, got.BaseKeyring, downloads(got).Keyring)
			continue
		}
		require.ErrorContains(t, err, c.says)
		assert.NotContains(t, err.Error(), "\n")
	}
}

func TestAPlanReadsAListOnceAndKeepsWhatItSaid(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, strings.TrimPrefix(digestA, "sha256:")+"  x.img")
	}))
	c := settings.Config{ISOURL: server.URL + "/x.img", Checksum: "file:" + server.URL + "/SHA256SUMS", CacheDir: t.TempDir()}
	l := &Planner{lists: map[string]func() (base.Stated, error){}, p: progress.Discard}
	for range 2 {
		pinned := c
		fixed, err := l.fix(t.Context(), &pinned, nil)
		require.NoError(t, err)
		assert.Equal(t, map[string]string{"ISO_CHECKSUM": digestA}, fixed)
		assert.Equal(t, []string{digestA, base.Nobody}, []string{pinned.Checksum, pinned.SignedBy})
		server.Close()
	}
}

func TestABaseImageIsNamedBeyondDoubt(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ url, checksum, says string }{
		{"oci://registry.example/lab/base:v1", "", "ISO_CHECKSUM: is not set, and ISO_URL has no digest"},
		{"oci:" + dir, "", "ISO_CHECKSUM: is not set"},
		{"oci://registry.example/lab/base:v1", "file:SHA256SUMS", "none of a containerdisk"},
		{"oci://registry.example/lab/base:v1", "sha512:" + strings.Repeat("a", 128), "none of a containerdisk"},
		{"oci://registry.example/lab/base:v1", "inputs:" + strings.Repeat("a", 64), "none of a containerdisk"},
		{"oci://registry.example/lab/base@" + digestA, digestB, "another digest"},
		{"oci://registry.example/lab/base", digestA, "ISO_URL: "},
		{"oci://base:v1", digestA, "ISO_URL: "},
		{"oci://me:planted@registry.example/base:v1", digestA, "REGISTRY_USER"},
		{"oci:" + filepath.Join(dir, "gone") + "@" + digestA, "", "no such file"},
		{"oci:@" + digestA, "", "names no folder"},
		{"oci:" + dir + "@sha256:abc", "", "no digest"},
		{"https://example.org/x.qcow2", "inputs:" + digestA, "only a containerdisk has"},
		{"oci://registry.example/base:v1", "inputs:" + digestA, "BASE_TIMEOUT"},
	} {
		given := map[string]string{"ISO_URL": c.url, "ISO_CHECKSUM": c.checksum}
		if c.says == "BASE_TIMEOUT" {
			given["BASE_TIMEOUT"] = "soon"
		}
		_, err := from(t, given, NeedBase)
		require.ErrorContains(t, err, c.says, c.url)
		assert.NotContains(t, err.Error(), "\n")
		assert.NotContains(t, err.Error(), "planted")
	}
}

func TestEitherGitSettingBringsTheOthersDefault(t *testing.T) {
	c, err := from(t, map[string]string{"GIT_ANSIBLE_BRANCH": "v2"})
	require.NoError(t, err)
	assert.Equal(t, "https://github.com/netgroup-polito/CrownLabs.git", c.GitURL)
	assert.Equal(t, "v2", c.GitBranch)
	assert.Equal(t, "provisioning/virtual-machines/ansible", c.GitPath)

	c, err = from(t, map[string]string{"GIT_ANSIBLE_URL": "https://example.org/x.git", "GIT_ANSIBLE_BRANCH": ""})
	require.NoError(t, err)
	assert.Equal(t, "master", c.GitBranch, "an empty variable is one that is not set")
}

func TestAllMistakesAreReportedAtOnce(t *testing.T) {
	_, err := from(t, map[string]string{
		"MEMORY": "lots", "DISK_SIZE": "10X", "ACCELERATOR": "hvf", "INSTALL_DESKTOP_ENVIRONMENT": "maybe",
		"ISO_URL": "https://example.org/x.qcow2", "TARGET_REGISTRY": "harbor.example.org", "IMAGE_NAME": "Bad Name", "IMAGE_TAG": "1",
	}, NeedBase, NeedPlaybook, NeedTarget)
	require.Error(t, err)
	for _, name := range []string{"MEMORY", "DISK_SIZE", "ACCELERATOR", "INSTALL_DESKTOP_ENVIRONMENT", "ISO_CHECKSUM", "ANSIBLE_PLAYBOOK", "IMAGE_NAME"} {
		assert.Contains(t, err.Error(), name)
	}
	assert.Equal(t, 7, len(strings.Split(err.Error(), "\n")), "one line each:\n%v", err)
}

func TestABuildWithoutABaseNamesTheWayOut(t *testing.T) {
	_, err := from(t, nil, NeedBase)
	require.ErrorContains(t, err, "--base-from-packages")
	_, err = from(t, map[string]string{"BASE_FROM_PACKAGES": "true", "ISO_URL": "https://example.org/x"}, NeedBase)
	require.ErrorContains(t, err, "choose one")
	_, err = from(t, map[string]string{"ISO_URL": "https://example.org/x", "ISO_CHECKSUM": "none"}, NeedBase)
	require.ErrorContains(t, err, "ISO_CHECKSUM")
}

func TestTheReferenceIsPutTogether(t *testing.T) {
	c, err := from(t, map[string]string{
		"TARGET_REGISTRY": "harbor.example.org", "REGISTRY_PREFIX": "labs", "IMAGE_NAME": "base", "IMAGE_TAG": "2026-11",
		"REGISTRY_USER": "me", "REGISTRY_PASS": "planted", "ISO_URL": "https://example.org/x", "ISO_CHECKSUM": ofBase,
	}, NeedBase, NeedTarget)
	require.NoError(t, err)
	assert.Equal(t, "harbor.example.org/labs/base:2026-11", c.Reference)
	for _, form := range []string{"%v", "%+v", "%#v", "%s"} {
		assert.NotContains(t, fmt.Sprintf(form, c), "planted", form)
	}
}

func TestWhatIsBuiltOrCapturedHasTheDaysTag(t *testing.T) {
	env := map[string]string{"TARGET_REGISTRY": "harbor.example.org", "IMAGE_NAME": "course"}
	c, err := from(t, env, NeedTarget)
	require.NoError(t, err)
	assert.True(t, c.TagOfDay)
	assert.Regexp(t, `^harbor.example.org/course:20\d{6}$`, c.Reference)
	_, err = from(t, env, NeedReference)
	assert.ErrorContains(t, err, "IMAGE_TAG", "of a layout that lies there nobody knows the day")
}

func TestANameIsCheckedAndFoundWhereNothingIsPushed(t *testing.T) {
	c, err := from(t, map[string]string{"ANSIBLE_PLAYBOOK": "playbooks/debian-base.yml"}, NeedReference)
	require.NoError(t, err)
	assert.Equal(t, "debian-base", c.ImageName)
	assert.Empty(t, c.Reference)
	_, err = from(t, map[string]string{"IMAGE_NAME": "../up"}, NeedReference)
	require.ErrorContains(t, err, "IMAGE_NAME")
	_, err = from(t, map[string]string{"REGISTRY_PREFIX": "labs"}, NeedReference)
	require.ErrorContains(t, err, "TARGET_REGISTRY")
}

func TestABuildThatLeavesThePushToAnotherNeedsTheWholeAddress(t *testing.T) {
	env := map[string]string{"PUSH": "false", "BASE_FROM_PACKAGES": "true"}
	_, err := from(t, env, NeedBase, NeedTarget)
	for _, name := range []string{"TARGET_REGISTRY: is not set", "IMAGE_NAME", "IMAGE_TAG"} {
		require.ErrorContains(t, err, name)
	}
	_, err = from(t, env, NeedReference)
	require.NoError(t, err, "push itself has the address from the layout")

	env["TARGET_REGISTRY"], env["IMAGE_NAME"], env["IMAGE_TAG"] = "harbor.example.org", "base", "1"
	c, err := from(t, env, NeedBase, NeedTarget)
	require.NoError(t, err)
	assert.Equal(t, "harbor.example.org/base:1", c.Reference)
	assert.False(t, c.Push)
}

func TestWhatTheRoomsRefuseIsRefused(t *testing.T) {
	for _, bad := range []struct{ name, value, says string }{
		{"GIT_ANSIBLE_URL", "ext::sh -c id", "GIT_ANSIBLE_URL"},
		{"GIT_ANSIBLE_URL", "https://u:secret@example.org/x", "GIT_ANSIBLE_URL"},
		{"GIT_ANSIBLE_BRANCH", "--upload-pack=id", "GIT_ANSIBLE_BRANCH"},
		{"INSTANCE_TYPE", "two words", "no name of Kubernetes"},
		{"PREFERENCE", "-x", "no name of Kubernetes"},
	} {
		_, err := from(t, map[string]string{bad.name: bad.value})
		require.ErrorContains(t, err, bad.says, "%s=%s", bad.name, bad.value)
		assert.NotContains(t, err.Error(), "secret")
	}
}

func TestAnAddressInOneIsTakenApartForTheUser(t *testing.T) {
	_, err := from(t, map[string]string{"IMAGE_NAME": "harbor.example.org:8443/labs/deep/base:1"}, NeedReference)
	require.ErrorContains(t, err, "IMAGE_NAME: harbor.example.org:8443/labs/deep/base:1 is a whole address: set TARGET_REGISTRY=harbor.example.org:8443 REGISTRY_PREFIX=labs/deep IMAGE_NAME=base IMAGE_TAG=1")
	_, err = from(t, map[string]string{"IMAGE_NAME": "localhost/base"}, NeedReference)
	require.ErrorContains(t, err, "TARGET_REGISTRY=localhost REGISTRY_PREFIX= IMAGE_NAME=base IMAGE_TAG=TAG")
}

func TestTheNewestSuiteThatAnsibleCanManageIsChosen(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]string{
		"2.14.18": "bookworm", "2.15.0": "bookworm", "1.9.6": "bookworm", "": "bookworm", "unknown": "bookworm",
		"2.16.0": "trixie", "2.19.4": "trixie", "2.16.0rc1": "trixie", "3.0.1": "trixie",
	} {
		assert.Equal(t, want, newestSuite(version), version)
	}
}

func TestPackagesAreGivenToThePlaybookThatTakesThem(t *testing.T) {
	t.Parallel()
	c, err := Parse(settings.Settings{"PACKAGES": "octave, gnuplot-nox", "LOGIN_GROUPS": "dialout", "EXTRA_VARS": `{"a": 1}`}, NeedPlaybook)
	require.NoError(t, err)
	assert.Equal(t, "packages", c.Playbook)
	assert.Equal(t, settings.Vars{"a": 1.0, "packages": []any{"octave", "gnuplot-nox"}, "login_groups": []any{"dialout"}}, c.ExtraVars)

	c, err = Parse(settings.Settings{"PACKAGES": "octave", "ANSIBLE_PLAYBOOK": "course", "ANSIBLE_DIR": t.TempDir()}, NeedPlaybook)
	require.NoError(t, err)
	assert.Equal(t, "course", c.Playbook, "a playbook of one's own gets them, too")
	assert.Equal(t, []any{"octave"}, c.ExtraVars["packages"])

	none := func(context.Context, base.Options, []string, progress.Reporter) error { return base.ErrNoPackage }
	require.NoError(t, checkPackages(t.Context(), c, "bookworm", none, progress.Discard), "its repositories may have them")
	c.AnsibleDir = ""
	require.ErrorIs(t, checkPackages(t.Context(), c, "bookworm", none, progress.Discard), base.ErrNoPackage)

	for want, s := range map[string]settings.Settings{
		`PACKAGES: "Octave" is no package's name`:           {"PACKAGES": "Octave"},
		`LOGIN_GROUPS: "a/b" cannot be the name`:            {"PACKAGES": "octave", "LOGIN_GROUPS": "a/b"},
		"PACKAGES: is nothing that the playbook java takes": {"PACKAGES": "octave", "ANSIBLE_PLAYBOOK": "playbooks/java.yml"},
		"LOGIN_GROUPS: is nothing that the playbook java":   {"LOGIN_GROUPS": "dialout", "ANSIBLE_PLAYBOOK": "java"},
		"PACKAGES: EXTRA_VARS has packages, too":            {"PACKAGES": "octave", "EXTRA_VARS": `{"packages": []}`},
		"ANSIBLE_PLAYBOOK: is not set":                      {"PACKAGES": "octave", "ANSIBLE_DIR": t.TempDir()},
	} {
		_, err := Parse(s, NeedPlaybook)
		assert.ErrorContains(t, err, want)
	}
}

func TestModeAndKeyboardAreGivenToThePlaybook(t *testing.T) {
	t.Parallel()
	c, err := Parse(settings.Settings{"ANSIBLE_PLAYBOOK": "x", "KEYBOARD": "us, it"}, NeedPlaybook)
	require.NoError(t, err)
	assert.True(t, c.CrownLabsMode)
	assert.Equal(t, settings.Vars{"keyboard": "us,it"}, c.ExtraVars)

	for _, vanilla := range []settings.Settings{
		{"CROWNLABS_MODE": "false"}, {"EXTRA_VARS": "{crownlabs_mode: no}"}, {"EXTRA_VARS": `{"crownlabs_mode": "false"}`},
	} {
		vanilla["ANSIBLE_PLAYBOOK"] = "x"
		c, err := Parse(vanilla, NeedPlaybook)
		require.NoError(t, err)
		assert.False(t, c.CrownLabsMode, "what the playbook makes is what verify looks for: %v", vanilla)
		assert.Contains(t, []any{false, "false"}, c.ExtraVars["crownlabs_mode"])
	}
	_, err = Parse(settings.Settings{"ANSIBLE_PLAYBOOK": "x", "KEYBOARD": "italian layout!"}, NeedPlaybook)
	assert.ErrorContains(t, err, `KEYBOARD: "layout!" is no keyboard layout`)
}

func TestAShippedPlaybookIsForTheReleasesThatItNames(t *testing.T) {
	t.Parallel()
	require.NoError(t, CheckShipped(t.Context(), "java", "bookworm"))
	require.NoError(t, CheckShipped(t.Context(), "kubernetes-lab", "trixie"))
	require.ErrorContains(t, CheckShipped(t.Context(), "kubernetes-lab", "bookworm"), "is for Debian 13, and the base is Debian 12")
}
