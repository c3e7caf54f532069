package cli_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/fleet/outdated"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

func TestAnImageIsPromotedKeptAndRevoked(t *testing.T) {
	t.Parallel()
	host := withReferrers(t)
	private, public := signingKey(t)
	old, image := publish(t, host+"/lab/base", 60, "", "v1"), host+"/lab/base:v2"
	digest := publish(t, host+"/lab/base", 50, "", "v2")
	publish(t, host+"/lab/base", 1, "", "v3")

	code, out, errs := run(t, "images", "promote", host+"/lab/base@"+old, "--to", "stable")
	require.Zero(t, code, errs)
	assert.Equal(t, host+"/lab/base:stable@"+old+"\n", out)
	assert.Contains(t, errs, "stable is new")
	code, _, errs = run(t, "images", "promote", image, "--to", "stable", "--key", public)
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "no signature by the key")
	code, _, errs = run(t, "sign", image, "--signing-key", private)
	require.Zero(t, code, errs)
	code, out, errs = run(t, "images", "promote", image, "--to", "stable", "--key", public)
	require.Zero(t, code, errs)
	assert.Equal(t, host+"/lab/base:stable@"+digest+"\n", out)
	assert.Contains(t, errs, "the way back: diskforge images promote "+host+"/lab/base@"+old+" --to stable")
	assert.NotContains(t, errs, "not checked")

	code, out, errs = run(t, "images", "prune", host+"/lab", "--keep", "1")
	require.Zero(t, code, errs)
	assert.Regexp(t, `keep +`+host+`/lab/base +stable,v2 .* channel stable\n`, out)
	assert.Regexp(t, `delete +`+host+`/lab/base +v1 `, out)

	course{base: host + "/lab/base:v2@" + digest, baseDigest: digest, key: private}.publish(t, host+"/lab/java:v1")
	code, out, errs = run(t, "images", "revoke", image, "--reason", "a password is in it", "--signing-key", private)
	require.Zero(t, code, errs)
	assert.Equal(t, image+"@"+digest+"\n", out)
	const why = "is revoked (by whom was not checked): a password is in it"
	code, out, errs = run(t, "inspect", image)
	assert.Equal(t, 1, code)
	assert.Regexp(t, `error +revocation +`+regexp.QuoteMeta(why), out)
	assert.Contains(t, errs, why)
	page := t.TempDir()
	code, _, errs = run(t, "site", host+"/lab", "--output-dir", page)
	require.Zero(t, code, errs)
	html, err := os.ReadFile(page + "/index.html")
	require.NoError(t, err)
	assert.Contains(t, string(html), "a password is in it")
	for _, args := range []string{"run " + image, "manifest " + image, "export --outputs raw.zst -o " + t.TempDir() + " " + image, "images promote --to testing " + image} {
		code, _, errs := run(t, strings.Fields(args)...)
		assert.Equal(t, 1, code, args)
		assert.Contains(t, errs, why, args)
	}
	code, _, errs = run(t, "images", "promote", host+"/lab/java:v1", "--to", "testing", "--key", public)
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "was made from "+host+"/lab/base@"+digest+", which is revoked: a password is in it")
	code, _, errs = run(t, "verify-signature", image, "--key", public)
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "is revoked: a password is in it")

	code, out, errs = run(t, "outdated", host+"/lab/java", "--json")
	assert.Equal(t, 1, code, "whatever the thresholds")
	assert.Contains(t, errs, "1 of 1 image is outdated")
	assert.Contains(t, objects(t, out)["java"].Revoked, "which is revoked (by whom was not checked): a password is in it")
	code, out, errs = run(t, "outdated", host+"/lab/java", "--key", public)
	assert.Equal(t, 1, code, errs)
	assert.Contains(t, out, "which is revoked: a password is in it")
	_, stranger := signingKey(t)
	code, out, errs = run(t, "outdated", host+"/lab/java", "--json", "--key", stranger)
	require.Zero(t, code, errs)
	assert.Empty(t, objects(t, out)["java"].Revoked)

	for args, says := range map[string]string{
		"promote " + image + " --to 20261130":                "--to: a channel has no digits",
		"promote " + image + " --to":                         "--to",
		"promote " + image:                                   "to",
		"promote nothing --to stable":                        "names no image",
		"promote " + image + " --to a --key " + old:          "--key",
		"revoke " + image:                                    "reason",
		"revoke " + image + " --reason x":                    "SIGNING_KEY",
		"revoke nothing --reason x --signing-key " + private: "names no image",
	} {
		code, _, errs := run(t, append([]string{"images"}, strings.Fields(args)...)...)
		assert.Equal(t, 2, code, "%s: %s", args, errs)
		assert.Contains(t, errs, says, args)
	}
	code, _, errs = run(t, "images", "revoke", image, "--reason", " \n", "--signing-key", private)
	assert.Equal(t, 2, code)
	assert.Contains(t, errs, "--reason says nothing")
	theirs(t, host+"/lab/nginx:1")
	code, _, errs = run(t, "images", "promote", host+"/lab/nginx:1", "--to", "stable")
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "was not made by diskforge: name --key")
}

// Whoever can push an image can have it name any registry as where its parent is.
func TestARegistryThatAnImageNamesDoesNotGetThePassword(t *testing.T) {
	t.Setenv("REGISTRY_USER", "alice")
	t.Setenv("REGISTRY_PASS", "PLANTED")
	var asked, told atomic.Int32
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.Header.Get("Authorization") != "" {
			told.Add(1)
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer evil.Close()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	digest := "sha256:" + strings.Repeat("0", 64)
	course{base: strings.TrimPrefix(evil.URL, "http://") + "/a/b:1@" + digest, baseDigest: digest}.publish(t, host+"/lab/java:v1")
	for _, args := range []string{"inspect " + host + "/lab/java:v1", "outdated --json " + host + "/lab"} {
		asked.Store(0)
		code, out, errs := run(t, strings.Fields(args)...)
		require.Zero(t, code, errs)
		assert.Positive(t, asked.Load(), args)
		assert.Zero(t, told.Load(), args)
		if strings.HasPrefix(args, "outdated") {
			assert.Equal(t, outdated.Unknown, objects(t, out)["java"].Parent)
		}
	}
}
