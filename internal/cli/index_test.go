package cli_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// layoutFor packs an image of a name for an architecture.
func layoutFor(t *testing.T, name, architecture string) (dir, digest string) {
	disk := filepath.Join(t.TempDir(), "disk.raw")
	content := make([]byte, 64<<10)
	copy(content[510:], "\x55\xaa")
	copy(content, architecture)
	require.NoError(t, os.WriteFile(disk, content, 0o600))
	dir = filepath.Join(t.TempDir(), "layout")
	made, err := oci.Pack(t.Context(), disk, dir, oci.Metadata{Architecture: architecture, Title: name, Annotations: map[string]string{
		oci.AnnotationInputs: "sha256:" + strings.Repeat(architecture[len(architecture)-1:], 64),
	}}, progress.Discard)
	require.NoError(t, err)
	return dir, made.Digest
}

func TestSeveralLayoutsArePushedAsAnIndexAndItIsSignedAndPromoted(t *testing.T) {
	t.Parallel()
	host := withReferrers(t)
	private, public := signingKey(t)
	amd64, _ := layoutFor(t, "lab", "amd64")
	arm64, digest := layoutFor(t, "lab", "arm64")
	ref := host + "/labs/lab:v1"

	other, _ := layoutFor(t, "exam", "arm64")
	code, _, errs := run(t, "push", amd64, other, ref, "--unverified")
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, `the name is "lab" there, and "exam" here: build both from the same`)
	code, _, errs = run(t, "push", amd64, arm64, ref)
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "was not verified")
	for args, says := range map[string]string{
		"push " + amd64 + " " + arm64 + " " + filepath.Dir(ref) + "/Lab:v1": "no image can be pushed to",
		"push " + amd64 + " " + arm64 + " " + ref + " --inputs x":           `--inputs: has 1 digest for 2 images: give one for each`,
		"push " + amd64 + " " + ref + " --inputs x":                         `--inputs: "x" is no digest`,
	} {
		code, _, errs := run(t, strings.Fields(args)...)
		assert.Equal(t, 2, code, args)
		assert.Contains(t, errs, says)
	}
	repositories, _, _ := run(t, "images", "list", host+"/labs")
	assert.Equal(t, 1, repositories, "nothing was sent")

	code, out, errs := run(t, "push", amd64, arm64, ref, "--unverified", "--signing-key", private)
	require.Zero(t, code, errs)
	assert.Regexp(t, `^`+ref+`@sha256:[0-9a-f]{64}\n$`, out)
	again, pushed, errs := run(t, "push", arm64, ref+"-amd64", ref, "--unverified", "--signing-key", private)
	require.Zero(t, again, errs)
	assert.Equal(t, out, pushed, "whatever the order")
	code, said, errs := run(t, "verify-signature", ref, "--key", public)
	require.Zero(t, code, errs)
	assert.Contains(t, said, "signature")
	code, _, errs = run(t, "verify-signature", host+"/labs/lab@"+digest, "--key", public)
	require.Zero(t, code, errs)
	code, _, errs = run(t, "images", "promote", ref, "--to", "stable", "--key", public)
	require.Zero(t, code, errs)
	code, list, errs := run(t, "images", "prune", host+"/labs", "--keep", "1")
	require.Zero(t, code, errs)
	assert.NotContains(t, list, "delete ")

	code, _, errs = run(t, "images", "revoke", host+"/labs/lab@"+digest, "--reason", "too old", "--signing-key", private)
	require.Zero(t, code, errs)
	code, _, errs = run(t, "images", "promote", ref, "--to", "stable")
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "is an index of "+host+"/labs/lab@"+digest+", or of what was made from it, which is revoked")
}
