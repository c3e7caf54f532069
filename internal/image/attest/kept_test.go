package attest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/attest"
)

// keeper puts sigstore-kms-test onto PATH, which has sigstore's own half of the protocol.
func keeper(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("go", "-C", "../../../.ci/cosign", "build", "-o", dir, "./sigstore-kms-test").CombinedOutput()
	require.NoError(t, err, string(out))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("TEST_PIN", "1234")
	t.Setenv("REGISTRY_PASS", "secret words")
}

func TestAKeyThatAProgramKeepsSignsAsAFileDoes(t *testing.T) {
	keeper(t)
	for name, args := range map[string][]string{
		"Ed25519": {"genpkey", "-algorithm", "ed25519"},
		"ECDSA":   {"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "key")
			private, public := openssl(t, args...)
			require.NoError(t, os.WriteFile(file, private, 0o600))
			key, err := attest.ReadKept(t.Context(), "test://"+file)
			require.NoError(t, err)
			require.True(t, key.Signs())
			bundle, err := key.Bundle(t.Context(), said(t))
			require.NoError(t, err)

			reader, err := attest.ReadKey(public, "")
			require.NoError(t, err)
			s, err := reader.Open(t.Context(), bundle)
			require.NoError(t, err)
			assert.True(t, s.Equal(said(t)))
		})
	}
}

func TestAProgramThatDoesNotSignIsRefusedInOneLine(t *testing.T) {
	keeper(t)
	dir := t.TempDir()
	file := func(name string, args ...string) string {
		private, _ := openssl(t, args...)
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, private, 0o600))
		return path
	}
	good, other := file("good", "genpkey", "-algorithm", "ed25519"), file("other", "genpkey", "-algorithm", "ed25519")
	rsa := file("rsa", "genpkey", "-algorithm", "RSA")
	for program, script := range map[string]string{"fails": "echo no card >&2; exit 3", "babbles": "echo yes"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "sigstore-kms-"+program), []byte("#!/bin/sh\n"+script), 0o755)) //nolint:gosec // a program
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for reference, why := range map[string]string{
		"test://" + rsa:           "the key of sigstore-kms-test: it is neither an ECDSA nor an Ed25519 key",
		"test://" + dir + "/none": "no such file",
		"fails://key":             "sigstore-kms-fails: exit status 3: no card",
		"babbles://key":           "sigstore-kms-babbles: its answer is no JSON",
		"nobody://key":            "nobody://key is a key of sigstore-kms-nobody, which is not on PATH",
		"../../tmp/x://key":       "is no reference to a key",
		"test://":                 "is no reference to a key",
	} {
		_, err := attest.ReadKept(t.Context(), reference)
		require.ErrorContains(t, err, why, reference)
		assert.NotContains(t, err.Error(), "\n", reference)
	}

	key, err := attest.ReadKept(t.Context(), "test://"+good)
	require.NoError(t, err)
	t.Setenv("TEST_SIGNS_WITH", other)
	_, err = key.Bundle(t.Context(), said(t))
	require.ErrorContains(t, err, "signed with another key than it shows")
	t.Setenv("TEST_PIN", "0000")
	_, err = key.Bundle(t.Context(), said(t))
	require.ErrorContains(t, err, "sigstore-kms-test: the PIN is wrong")
}
