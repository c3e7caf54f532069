//go:build nightly

package pipeline_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// What we sign, cosign verifies, and what cosign signs, we do: with a key that cosign made.
func TestCosignAndWeReadEachOther(t *testing.T) {
	program, dir := testkit.Tool(t, "../../.ci/cosign", "cosign"), t.TempDir()
	cosign := func(args ...string) (string, error) {
		c := exec.CommandContext(t.Context(), program, args...)
		c.Dir, c.Env = dir, append(os.Environ(), "COSIGN_PASSWORD=words", "HOME="+dir)
		out, err := c.CombinedOutput()
		return string(out), err
	}
	must := func(args ...string) {
		t.Helper()
		out, err := cosign(args...)
		require.NoError(t, err, out)
	}
	must("generate-key-pair")
	private, public := filepath.Join(dir, "cosign.key"), filepath.Join(dir, "cosign.pub")
	layout, _ := packedWithSBOM(t)
	ours, theirs := withReferrers(t)+"/labs/ours:v1", withReferrers(t)+"/labs/theirs:v1"

	_, err := signer(private, "words").PushLayout(t.Context(), layout, ours, true)
	require.NoError(t, err)
	offline := []string{"--key", public, "--insecure-ignore-tlog", "--allow-http-registry"}
	must(append([]string{"verify", ours}, offline...)...)
	for _, kind := range []string{"slsaprovenance1", "spdxjson", "cyclonedx"} {
		must(append([]string{"verify-attestation", ours, "--type", kind}, offline...)...)
	}
	_, stranger := keys(t, "")
	out, err := cosign("verify", ours, "--key", stranger, "--insecure-ignore-tlog", "--allow-http-registry")
	require.Error(t, err, out)

	_, err = signer("", "").PushLayout(t.Context(), layout, theirs, true)
	require.NoError(t, err)
	_, err = signer("", "").VerifySignature(t.Context(), theirs, public, nil)
	require.ErrorContains(t, err, "no signature")
	must("signing-config", "create", "--no-default-rekor", "--no-default-fulcio", "--no-default-oidc", "--no-default-tsa", "--out", "none.json")
	must("sign", theirs, "--key", private, "--yes", "--signing-config", "none.json", "--allow-http-registry")
	_, err = signer("", "").VerifySignature(t.Context(), theirs, public, nil)
	require.NoError(t, err)
}
