package hygiene

import (
	"bytes"
	"encoding/base64"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/progress"
)

const pem = "-----BEGIN RSA PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\n"

func find(t testing.TB, text string, secrets ...Secret) hits {
	t.Helper()
	found, err := newSearch(secrets, progress.Discard).in(strings.NewReader(text))
	require.NoError(t, err)
	return found
}

func TestASecretIsFoundWhereverItStands(t *testing.T) {
	t.Parallel()
	secret := Secret{"TOKEN", "s3cr3t-t0ken\n"}
	for _, at := range []int{0, 1, window - 6, window, window + overlap - 3, 3*window - 1} {
		text := strings.Repeat("x", at) + "s3cr3t-t0ken"
		assert.Equal(t, []string{"TOKEN"}, find(t, text, secret).secrets, at)
		assert.Equal(t, []string{"TOKEN"}, find(t, text+strings.Repeat("y", window), secret).secrets, at)
	}
	assert.Empty(t, find(t, strings.Repeat("s3cr3t-t0ke", 100), secret).secrets)
}

func TestASecretIsFoundInBase64WhateverStandsAroundIt(t *testing.T) {
	t.Parallel()
	for _, value := range []string{"abcdef", "hunter2", "??>>~~ÿÿ", "a longer pass phrase"} {
		for before := range 7 {
			for after := range 4 {
				text := []byte(strings.Repeat("Q", before) + value + strings.Repeat("Z", after))
				for _, coded := range []string{base64.StdEncoding.EncodeToString(text), base64.RawURLEncoding.EncodeToString(text)} {
					assert.Equal(t, []string{"S"}, find(t, "auth="+coded+";", Secret{"S", value}).secrets, "%s in %s", value, coded)
				}
			}
		}
	}
}

func TestAPrivateKeyIsToldFromWordsAboutIt(t *testing.T) {
	t.Parallel()
	for _, at := range []int{0, window - 40, window - 25, window - 10, window + 30} {
		assert.True(t, find(t, strings.Repeat(" ", at)+pem).key, at)
	}
	for _, text := range []string{
		"key: |\n    " + strings.ReplaceAll(pem, "\n", "\n    "),
		strings.ReplaceAll(pem, "\n", "\r\n"),
		strings.ReplaceAll(pem, "\n", `\n`),
		"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQOYBGPhk9QBCADJ3yX0m2n3V1pQ8cY7m7g7Qh0m9m1m2m3m\n",
		"-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n",
	} {
		assert.True(t, find(t, text).key, text)
	}
	for _, text := range []string{
		"PRIVATE KEY", "-----BEGIN RSA PRIVATE KEY-----\n<your key>\n", "-----BEGIN PRIVATE KEY-----\x00-----END PRIVATE KEY-----",
		strings.ReplaceAll(pem, "PRIVATE", "PUBLIC"),
	} {
		assert.False(t, find(t, text).key, text)
	}
}

func TestAReaderThatFailsEndsTheSearch(t *testing.T) {
	t.Parallel()
	_, err := newSearch(nil, progress.Discard).in(iotest.ErrReader(assert.AnError))
	require.ErrorIs(t, err, assert.AnError)
}

func TestGlobsMatchWithinNamesAndOverDirectories(t *testing.T) {
	t.Parallel()
	for text, paths := range map[string][2][]string{
		"/etc/ssh/ssh_host_*_key*": {{"/etc/ssh/ssh_host_rsa_key", "/etc/ssh/ssh_host_rsa_key.pub"}, {"/etc/ssh/ssh_host_/a_key", "/x/etc/ssh/ssh_host_rsa_key"}},
		"/**/.netrc":               {{"/.netrc", "/root/.netrc", "/a/b/.netrc"}, {"/root/x.netrc", "/root/.netrc/a", "partition 2:/.netrc"}},
		"/var/log/**":              {{"/var/log/a", "/var/log/a/b", "/var/log/a\nb"}, {"/var/log", "/var/logs"}},
		"/a.b?":                    {{"/a.bc"}, {"/axbc", "/a.b/", "/a.b"}},
		"/plain":                   {{"/plain"}, {"/plainer", "/"}},
		"*":                        {{"a"}, {"/a"}},
	} {
		for _, path := range paths[0] {
			assert.True(t, glob(text).match(path), "%s %q", text, path)
		}
		for _, path := range paths[1] {
			assert.False(t, glob(text).match(path), "%s %q", text, path)
		}
	}
}

// The gate runs beside the boot of a guest: what it costs matters.
func BenchmarkSearch(b *testing.B) {
	text := make([]byte, 64<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(text)
	s := newSearch([]Secret{{"A", "hunter2"}, {"B", "a longer pass phrase"}, {"C", "s3cr3t"}}, progress.Discard)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := s.in(bytes.NewReader(text)); err != nil {
			b.Fatal(err)
		}
	}
}
