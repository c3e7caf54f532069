package hygiene

import (
	"bytes"
	"regexp"
)

// maxKeyFile bounds what is taken for a file with nothing but a key, in bytes.
const maxKeyFile = 64 << 10

// isKeyFile says whether a whole file is a private key in one of the forms
// that have no PEM header to search for: PuTTY's, a JSON Web Key (RFC 7517),
// or DER.
func isKeyFile(file []byte) bool {
	if len(file) > maxKeyFile {
		return false
	}
	start := bytes.TrimLeft(file, " \t\r\n")
	switch {
	case bytes.HasPrefix(start, []byte("PuTTY-User-Key-File-")):
		return true
	case bytes.HasPrefix(start, []byte("{")), bytes.HasPrefix(start, []byte("[")):
		return keyType.Match(file) && keyPrivate.Match(file)
	}
	return isDERKey(file)
}

// The members of a JSON Web Key: what it is, and its private part (d, or k of
// a symmetric one).
var (
	keyType    = regexp.MustCompile(`"kty"\s*:\s*"(?:EC|RSA|OKP|oct)"`)
	keyPrivate = regexp.MustCompile(`"[dk]"\s*:\s*"[A-Za-z0-9_-]{16,}"`)
)

// The beginnings of what stands in the outer SEQUENCE of a private key, as
// DER writes it; "" is a SEQUENCE of any length.
var derKeys = [][]string{
	{"\x02\x01\x00\x02"},     // PKCS#1 (RFC 8017), and OpenSSL's form of DSA: a version and a number
	{"\x02\x01\x01\x04"},     // SEC 1 (RFC 5915): a version and an octet string
	{"\x02\x01\x00", "\x06"}, // PKCS#8 (RFC 5208): a version and an algorithm
	{"\x02\x01\x01", "\x06"}, // its second version (RFC 5958)
	{"\x02\x01\x03", "\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07"}, // PKCS#12 (RFC 7292)
	{"", "\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05"},             // PKCS#8, encrypted as in PKCS#5
	{"", "\x06\x0a\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01"},         // and as in PKCS#12
}

func isDERKey(file []byte) bool {
	inner, ok := sequence(file, true)
	if !ok {
		return false
	}
	for _, form := range derKeys {
		rest, found := bytes.CutPrefix(inner, []byte(form[0]))
		if !found {
			continue
		}
		if len(form) == 1 {
			return true
		}
		if rest, ok := sequence(rest, false); ok && bytes.HasPrefix(rest, []byte(form[1])) {
			return true
		}
	}
	return false
}

// sequence returns what follows the header of a SEQUENCE, which, where it is
// the whole of der, must be as long as it says. BER's indefinite length, which
// PKCS#12 files may have, says nothing.
func sequence(der []byte, whole bool) ([]byte, bool) {
	if len(der) < 2 || der[0] != 0x30 {
		return nil, false
	}
	length, rest := int(der[1]), der[2:]
	if length == 0x80 {
		return rest, true
	}
	if length > 0x80 {
		n := length & 0x7f
		if n > 3 || len(rest) < n {
			return nil, false
		}
		length = 0
		for _, b := range rest[:n] {
			length = length<<8 | int(b)
		}
		rest = rest[n:]
	}
	return rest, !whole || length == len(rest)
}
