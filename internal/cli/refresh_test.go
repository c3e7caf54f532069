package cli_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

func TestWhatLacksNoUpdateIsNotEvenFetchedToRefreshIt(t *testing.T) {
	t.Parallel()
	host := withReferrers(t)
	private, _ := signingKey(t)
	mirror, _ := apt(t, bookworm)
	cache := t.TempDir()
	refresh := func(where string, more ...string) (code int, out, errs string) {
		return run(t, append([]string{"refresh", host + where, "--apt-mirror", mirror, "--cache-dir", cache, "--output-dir", t.TempDir()}, more...)...)
	}
	image := course{key: private, system: "debian", version: "12", packages: []sbom.Package{installed("git", "1:2.39.5-0+deb12u3", "git")}}
	image.publish(t, host+"/lab/git:v1")
	code, out, errs := refresh("/lab")
	require.Zero(t, code, errs)
	assert.Empty(t, out)
	assert.Contains(t, errs, host+"/lab/git: no update is pending")

	image.packages = []sbom.Package{installed("tzdata", "2026a-0+deb12u1", "tzdata")}
	image.publish(t, host+"/lab/times:v1")
	code, _, errs = refresh("/lab", "--security")
	require.Zero(t, code, errs)
	assert.Contains(t, errs, host+"/lab/times: no update is pending", "but a security update")

	image.original = oci.Original{Refreshes: 3}
	image.publish(t, host+"/old/times:v1")
	code, _, errs = refresh("/old", "--most", "3")
	assert.Equal(t, 1, code)
	assert.Regexp(t, `/old/times@sha256:\S+ was refreshed 3 times since a playbook made it: build it anew, or raise --most`, errs)
	left, err := os.ReadDir(filepath.Join(cache, "images"))
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	assert.Empty(t, left)

	// Its disk is none: that is found when it is read, and the others are not stopped.
	image.original = oci.Original{}
	image.publish(t, host+"/lab/broken:v1")
	code, _, errs = refresh("/lab")
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "lab/git: no update is pending")
	assert.Contains(t, errs, "2 of 3 were not refreshed: the warnings say why")

	// What nobody signed with BASE_KEY is neither believed nor taken.
	_, stranger := signingKey(t)
	code, _, errs = refresh("/lab/git", "--base-key", stranger)
	assert.Equal(t, 1, code)
	assert.Regexp(t, `/lab/git: .* has no signature by the key `+stranger, errs)

	theirs(t, host+"/theirs/nginx:1")
	code, _, errs = refresh("/theirs")
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "there is no image by diskforge: check the prefix")
}

func TestAPasswordThatComesByAPipeServesForAllThatIsRefreshed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	users, pipe := filepath.Join(dir, "users"), filepath.Join(dir, "pipe")
	line, err := exec.Command("htpasswd", "-Bbn", "me", "word-of-mine").Output()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(users, line, 0o600))
	closed, _ := testkit.StartRegistry(t, testkit.RegistryOptions{Htpasswd: users})
	password := filepath.Join(dir, "password")
	require.NoError(t, os.WriteFile(password, []byte("word-of-mine"), 0o600))
	login := []string{"--registry-user", "me", "--registry-pass-file"}
	for _, name := range []string{"a", "b"} {
		layout := filepath.Join(dir, name)
		disk := make([]byte, 4<<10)
		copy(disk, name)
		copy(disk[510:], "\x55\xAA")
		require.NoError(t, os.WriteFile(layout+".raw", disk, 0o600))
		_, err := oci.Pack(t.Context(), layout+".raw", layout, oci.Metadata{Architecture: "amd64"}, progress.Discard)
		require.NoError(t, err)
		code, _, errs := run(t, append([]string{"push", layout, closed + "/lab/" + name + ":v1", "--unverified"}, append(login, password)...)...)
		require.Zero(t, code, errs)
	}
	require.NoError(t, unix.Mkfifo(pipe, 0o600))
	go func() { _ = os.WriteFile(pipe, []byte("word-of-mine\n"), 0o600) }()
	code, _, errs := run(t, append([]string{"refresh", closed + "/lab", "--cache-dir", t.TempDir(), "--output-dir", t.TempDir()}, append(login, pipe)...)...)
	assert.Equal(t, 1, code)
	for _, name := range []string{"a", "b"} { // they were fetched, and their disks are none
		assert.Regexp(t, `/lab/`+name+`: updates: `, errs)
	}
	assert.NotContains(t, errs, "word-of-mine")
}

func TestWhatRefreshCannotUnderstandIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"--most: give a number of refreshes": {"127.0.0.1:1/lab", "--most", "0"},
		"--tag: ":                            {"127.0.0.1:1/lab", "--tag", "a b"},
		"BASE_KEY: ":                         {"127.0.0.1:1/lab", "--base-key", "/nowhere.pub"},
		`"extra" is no registry and prefix`:  {"127.0.0.1:1/lab", "extra"},
		"name a registry":                    {},
		"is no registry and prefix":          {"UPPER/lab"},
		"FAIL_ON_UPDATES":                    {"127.0.0.1:1/lab", "--fail-on-updates", "some"},
	} {
		code, _, errs := run(t, append([]string{"refresh"}, args...)...)
		assert.Equal(t, 2, code, errs)
		assert.Contains(t, errs, want)
	}
}
