package base

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	a64  = strings.Repeat("a", 64)
	b64  = strings.Repeat("b", 64)
	a128 = strings.Repeat("a", 128)
)

func TestEveryFormatOfAListIsRead(t *testing.T) {
	t.Parallel()
	for name, list := range map[string]string{
		"GNU text":       b64 + "  other.qcow2\n" + a64 + "  disk.qcow2\n",
		"GNU binary":     a64 + " *disk.qcow2",
		"GNU path":       a64 + "  ./images/disk.qcow2\r\n",
		"GNU upper case": strings.ToUpper(a64) + "  disk.qcow2",
		"BSD":            "SHA256 (other.qcow2) = " + b64 + "\nSHA256 (disk.qcow2) = " + a64,
		"clear-signed":   "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n# disk.qcow2: 1 bytes\nSHA256 (disk.qcow2) = " + a64 + "\n-----BEGIN PGP SIGNATURE-----\nabc\n",
		"bare":           a64 + "\n",
		"twice the same": a64 + "  disk.qcow2\n" + a64 + " *disk.qcow2\n",
		"md5 besides":    strings.Repeat("c", 32) + "  disk.qcow2\n" + a64 + "  disk.qcow2\n",
		"one blank":      a64 + " disk.qcow2\n",
		"a tab":          a64 + "\tdisk.qcow2\n",
		"a mark":         "\xef\xbb\xbf" + a64 + "  disk.qcow2\n",
		"UTF-16":         utf16le(a64 + "  disk.qcow2\r\n"),
		"openssl":        "SHA256(disk.qcow2)= " + a64 + "\n",
		"openssl 3":      "SHA2-256(disk.qcow2)= " + a64 + "\n",
		"SHA3 besides":   "SHA3-256 (disk.qcow2) = " + b64 + "\nSHA256 (disk.qcow2) = " + a64,
	} {
		got, err := parseList([]byte(list), "disk.qcow2")
		require.NoError(t, err, name)
		assert.Equal(t, "sha256:"+a64, got, name)
	}
	got, err := parseList([]byte(a64+"  disk.qcow2\n"+a128+"  disk.qcow2\n"), "disk.qcow2")
	require.NoError(t, err)
	assert.Equal(t, "sha512:"+a128, got, "the strongest")
}

// utf16le is how PowerShell writes a text.
func utf16le(text string) string {
	b := []byte("\xff\xfe")
	for _, r := range text {
		b = append(b, byte(r), 0)
	}
	return string(b)
}

func TestAListWithoutTheDigestIsRefusedWithItsReason(t *testing.T) {
	t.Parallel()
	for list, want := range map[string]string{
		"":                                 "no list of digests",
		"<html>404</html>":                 "no list of digests",
		b64 + "  other.qcow2":              "no entry for disk.qcow2 (but for other.qcow2 …)",
		b64 + "  not-disk.qcow2":           "no entry for disk.qcow2",
		a64 + "  disk-15.6.qcow2":          "but for disk-15.6.qcow2",
		"be careful":                       "no list of digests",
		"SHA2-512/256(disk.qcow2)= " + a64: "only an md5 or sha1",
		a64[:40] + "  disk.qcow2":          "only an md5 or sha1",
		"MD5 (disk.qcow2) = " + "ab":       "only an md5 or sha1",
		a64 + "  disk.qcow2\n" + b64 + "  disk.qcow2": "different digests",
		strings.Repeat("x", 1<<20):                    "too long",
	} {
		_, err := parseList([]byte(list), "disk.qcow2")
		require.ErrorContains(t, err, want)
	}
}

func FuzzParseList(f *testing.F) {
	f.Add(a64 + "  disk.qcow2\nSHA512 (disk.qcow2) = " + a128)
	f.Add(a64)
	f.Fuzz(func(t *testing.T, list string) {
		c, err := parseList([]byte(list), "disk.qcow2")
		kind, digest, _ := strings.Cut(c, ":")
		if err == nil && (len(digest) != digits[kind] || !strings.Contains(strings.ToLower(string(decode([]byte(list)))), digest)) {
			t.Fatalf("%s is not in the list", c)
		}
	})
}

func FuzzReadOrigin(f *testing.F) {
	f.Add([]byte(`{"url":"https://h/x","etag":"\"a\"","lastModified":"Wed, 04 Mar 2026 05:06:07 GMT"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &download{dir: t.TempDir()}
		require.NoError(t, os.WriteFile(d.source(), b, 0o600))
		o := d.origin()
		_, _ = o.modified(), o.validator()
	})
}

// A subpacket without content, of exportability (4), makes go-crypto 1.4.1 panic.
func TestAMalformedSignatureDoesNotEndTheProgram(t *testing.T) {
	t.Parallel()
	keys, err := parseKeys(ubuntuKey)
	require.NoError(t, err)
	subpackets := []byte{5, 2, 0x68, 0, 0, 0, 1, 4} // the date, and that
	body := append([]byte{4, 0, 1, 8, 0, byte(len(subpackets))}, subpackets...)
	body = append(body, 0, 0, 0xAB, 0xCD, 0, 8, 0xFF)
	signature := append([]byte{0x88, byte(len(body))}, body...)
	_, err = verify(keys, []byte("text"), unarmored(signature))
	require.ErrorContains(t, err, "its OpenPGP packets are malformed")
}

func FuzzVerify(f *testing.F) {
	signature, err := os.ReadFile("testdata/jammy/SHA256SUMS.gpg")
	require.NoError(f, err)
	list, err := os.ReadFile("testdata/jammy/SHA256SUMS")
	require.NoError(f, err)
	keys, err := parseKeys(ubuntuKey)
	require.NoError(f, err)
	_, err = verify(keys, list, unarmored(signature))
	require.NoError(f, err)
	f.Add(signature)
	f.Add(ubuntuKey)
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseKeys(b)
		if _, err := verify(keys, []byte("another text"), unarmored(b)); err == nil {
			t.Fatal("it signs what it was not made for")
		}
	})
}
