package base

import (
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/httpclient"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// The algorithms that are taken.
const (
	SHA256 = "sha256"
	SHA512 = "sha512"
)

// digits is how long the algorithms' digests are in hexadecimal.
var digits = map[string]int{SHA256: 64, SHA512: 128}

// Checksum says what a file must be: a digest, or a list in which its digest
// stands. The zero value is no checksum.
type Checksum struct {
	Algorithm string // SHA256 or SHA512
	Hex       string // the digest in lower case
	File      string // path or URL of a list, instead of the two others
}

// String returns the checksum in the form that ParseChecksum reads, without
// what may be secret in its URL.
func (c Checksum) String() string {
	if c.File != "" {
		return "file:" + text.URL(c.File)
	}
	return c.Algorithm + ":" + c.Hex
}

const checksumForms = "give ISO_CHECKSUM=sha256:DIGEST, sha512:DIGEST or file:PATH_OR_URL of a SHA256SUMS file"

// ParseChecksum reads a checksum: "sha256:DIGEST", "sha512:DIGEST", a bare
// digest, or "file:PATH_OR_URL" of a SHA256SUMS or SHA512SUMS file. It touches
// neither files nor the network.
func ParseChecksum(s string) (Checksum, error) {
	s = strings.TrimSpace(s)
	kind, value, prefixed := strings.Cut(s, ":")
	kind = strings.ToLower(kind)
	switch {
	case s == "":
		return Checksum{}, failure.New("a base image needs a checksum", checksumForms)
	case kind == "none":
		return Checksum{}, failure.New("a base image without a checksum is refused", checksumForms)
	case kind == "md5" || kind == "sha1" || !prefixed && isHex(s) && (len(s) == 32 || len(s) == 40):
		return Checksum{}, failure.New("md5 and sha1 can be forged", checksumForms)
	case prefixed && kind == "file":
		return parseListName(value)
	case prefixed && digits[kind] > 0:
		return parseDigest(kind, value)
	case !prefixed && algorithm(s) != "":
		return parseDigest(algorithm(s), s)
	}
	return Checksum{}, failure.New("this checksum has no known form", checksumForms)
}

// algorithm names the algorithm that makes digests of that length, or "".
func algorithm(digest string) string {
	for name, n := range digits {
		if len(digest) == n {
			return name
		}
	}
	return ""
}

func parseDigest(algorithm, value string) (Checksum, error) {
	if len(value) != digits[algorithm] || !isHex(value) {
		return Checksum{}, failure.New(fmt.Sprintf("a %s checksum has %d hexadecimal digits, this one has %d characters",
			algorithm, digits[algorithm], len(value)), checksumForms)
	}
	return Checksum{Algorithm: algorithm, Hex: strings.ToLower(value)}, nil
}

func isHex(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil
}

func parseListName(name string) (Checksum, error) {
	u, isRemote := remote(name)
	switch {
	case name == "":
		return Checksum{}, failure.New(`"file:" needs a path or URL behind it`, checksumForms)
	case isRemote && u.Scheme == "http" && !httpclient.Loopback(u.Hostname()):
		return Checksum{}, failure.New("a checksum file over plain http proves nothing: "+text.URL(name), "use https, or write the digest itself")
	case !isRemote && strings.Contains(name, "://") && !strings.HasPrefix(name, "file://"):
		return Checksum{}, failure.New("a checksum file is fetched by http or https only", checksumForms)
	}
	return Checksum{File: name}, nil
}

// remote returns the URL if name is one of http or https.
func remote(name string) (*url.URL, bool) {
	u, err := url.Parse(name)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, false
	}
	return u, true
}
