package attest_test

import (
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/attest"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

const image, disk = "sha256:aa", "sha256:dd"

// openssl makes a key and its public half.
func openssl(t *testing.T, args ...string) (private, public []byte) {
	t.Helper()
	key, pub := filepath.Join(t.TempDir(), "key"), filepath.Join(t.TempDir(), "pub")
	for _, a := range [][]string{append(args, "-out", key), {"pkey", "-in", key, "-pubout", "-out", pub}} {
		out, err := exec.Command("openssl", a...).CombinedOutput()
		require.NoError(t, err, string(out))
	}
	private, err := os.ReadFile(key)
	require.NoError(t, err)
	public, err = os.ReadFile(pub)
	require.NoError(t, err)
	return private, public
}

func said(t *testing.T) attest.Statement {
	s, err := attest.New(attest.Provenance, image, disk, map[string]string{"by": "me"})
	require.NoError(t, err)
	return s
}

func TestAStatementIsReadWithThePublicKeyAlone(t *testing.T) {
	for name, args := range map[string][]string{
		"Ed25519": {"genpkey", "-algorithm", "ed25519"},
		"PKCS 8":  {"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"},
		"SEC 1":   {"ecparam", "-genkey", "-noout", "-name", "prime256v1"},
	} {
		t.Run(name, func(t *testing.T) {
			private, public := openssl(t, args...)
			key, err := attest.ReadKey(private, "")
			require.NoError(t, err)
			require.True(t, key.Signs())
			bundle, err := key.Bundle(t.Context(), said(t))
			require.NoError(t, err)

			reader, err := attest.ReadKey(public, "")
			require.NoError(t, err)
			assert.False(t, reader.Signs())
			s, err := reader.Open(t.Context(), bundle)
			require.NoError(t, err)
			assert.True(t, s.Equal(said(t)))
			assert.True(t, s.Of(image))
			assert.True(t, s.Of(disk))
			assert.False(t, s.Of("sha256:ab"))
			assert.False(t, s.Of("sha256:"))
			assert.JSONEq(t, `{"by":"me"}`, string(s.Predicate))

			_, others := openssl(t, args...)
			stranger, err := attest.ReadKey(others, "")
			require.NoError(t, err)
			_, err = stranger.Open(t.Context(), bundle)
			require.ErrorContains(t, err, "another key")
		})
	}
}

func TestAChangedBundleIsNotOpened(t *testing.T) {
	private, public := openssl(t, "genpkey", "-algorithm", "ed25519")
	key, err := attest.ReadKey(private, "")
	require.NoError(t, err)
	reader, err := attest.ReadKey(public, "")
	require.NoError(t, err)
	good, err := key.Bundle(t.Context(), said(t))
	require.NoError(t, err)
	change := func(by func(envelope map[string]any)) []byte {
		var b map[string]any
		require.NoError(t, json.Unmarshal(good, &b))
		by(b["dsseEnvelope"].(map[string]any))
		changed, err := json.Marshal(b)
		require.NoError(t, err)
		return changed
	}
	for name, bundle := range map[string][]byte{
		"empty":         {},
		"no JSON":       []byte("x"),
		"no envelope":   []byte("{}"),
		"other payload": change(func(e map[string]any) { e["payload"] = "e30=" }),
		"other type":    change(func(e map[string]any) { e["payloadType"] = "text/plain" }),
		"no signature":  change(func(e map[string]any) { e["signatures"] = []any{} }),
	} {
		_, err := reader.Open(t.Context(), bundle)
		require.Error(t, err, name)
	}
	_, err = reader.Open(t.Context(), change(func(map[string]any) {}))
	require.NoError(t, err)
}

func TestAKeyThatCannotSignIsRefusedInOneLine(t *testing.T) {
	private, _ := openssl(t, "genpkey", "-algorithm", "ed25519")
	closed, _ := testkit.CosignKey(t, "secret words")
	key, err := attest.ReadKey(closed, "secret words")
	require.NoError(t, err)
	assert.True(t, key.Signs())

	rsa, _ := openssl(t, "genpkey", "-algorithm", "RSA")
	curve, _ := openssl(t, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384")
	for name, c := range map[string]struct {
		key      []byte
		password string
		why      string
	}{
		"empty":            {nil, "", "no key in PEM form"},
		"a certificate":    {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), "", "no private key"},
		"half a key":       {private[:len(private)/2], "", "no key in PEM form"},
		"RSA":              {rsa, "", "neither an ECDSA"},
		"P-384":            {curve, "", "P-384"},
		"no password":      {closed, "", "encrypted"},
		"another password": {closed, "other", "encrypted"},
		"no public key":    {pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte("x")}), "", "no public key"},
	} {
		_, err := attest.ReadKey(c.key, c.password)
		require.ErrorContains(t, err, c.why, name)
		assert.NotContains(t, err.Error(), "\n", name)
		assert.False(t, strings.Contains(err.Error(), "other"), "%s: no password in %v", name, err)
	}
}
