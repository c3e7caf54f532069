package base_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/base"
)

var (
	hex64  = strings.Repeat("0123456789abcdef", 4)
	hex128 = hex64 + hex64
)

func TestEveryFormOfAChecksumIsRead(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"sha256:" + hex64:                  "sha256:" + hex64,
		"SHA256:" + strings.ToUpper(hex64): "sha256:" + hex64,
		"sha512:" + hex128:                 "sha512:" + hex128,
		hex64 + "\n":                       "sha256:" + hex64,
		hex128:                             "sha512:" + hex128,
		"file:SHA256SUMS":                  "file:SHA256SUMS",
		"file:/srv/SHA256SUMS":             "file:/srv/SHA256SUMS",
		"file:file:///srv/SHA256SUMS":      "file:file:///srv/SHA256SUMS",
		"file:https://host/SHA256SUMS":     "file:https://host/SHA256SUMS",
		"file:http://127.0.0.1/SHA256SUMS": "file:http://127.0.0.1/SHA256SUMS",
		"file:http://localhost:80/SUMS":    "file:http://localhost:80/SUMS",
		"file:http://[::1]/SUMS":           "file:http://[::1]/SUMS",
	} {
		got, err := base.ParseChecksum(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got)
		again, err := base.ParseChecksum(got)
		require.NoError(t, err)
		assert.Equal(t, got, again)
	}
}

func TestAForbiddenOrMisspeltChecksumIsOneClearLine(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                            "a base image needs a checksum",
		"none":                        "without a checksum is refused",
		"none:x":                      "without a checksum is refused",
		"md5:" + hex64[:32]:           "md5 and sha1 can be forged",
		"SHA1:" + hex64[:40]:          "md5 and sha1 can be forged",
		hex64[:32]:                    "md5 and sha1 can be forged",
		hex64[:40]:                    "md5 and sha1 can be forged",
		"sha256:" + hex64[:63]:        "64 hexadecimal digits, this one has 63 characters",
		"sha256:" + hex64[:63] + "g":  "64 hexadecimal digits",
		"sha512:" + hex64:             "128 hexadecimal digits, this one has 64 characters",
		hex64[:63] + "-":              "64 hexadecimal digits",
		"sha384:" + hex64:             "no known form",
		"hello":                       "no known form",
		"file:":                       "needs a path or URL",
		"file:ftp://host/SUMS":        "http or https only",
		"file:http://u:pw@host/SUMS":  "over plain http proves nothing: http://host/SUMS",
		"file:http://127.0.0.1.nip/S": "over plain http proves nothing",
	} {
		_, err := base.ParseChecksum(text)
		require.ErrorContains(t, err, want, "%q", text)
		assert.NotContains(t, err.Error(), "pw@")
		assert.NotContains(t, err.Error(), "\n")
	}
}

func FuzzParseChecksum(f *testing.F) {
	for _, s := range []string{"", "none", "md5:x", "sha256:" + hex64, hex128, "file:http://u:p@h/x?y", "file://", "file:%zz://"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := base.ParseChecksum(s)
		if again, same := base.ParseChecksum(c); err == nil && (same != nil || again != c) {
			t.Fatalf("%q became %q, and that %q: %v", s, c, again, same)
		}
	})
}
