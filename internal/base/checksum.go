package base

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/httpclient"
)

// The algorithms that are taken.
const (
	SHA256 = "sha256"
	SHA512 = "sha512"
)

// Checksum says what a file must be: a digest, or a list in which its digest
// stands. The zero value is no checksum.
type Checksum struct {
	Algorithm string // SHA256 or SHA512
	Hex       string // the digest in lower case
	File      string // path or URL of a list, instead of the two others
}

// String returns the checksum in the form that ParseChecksum reads, without
// a password.
func (c Checksum) String() string {
	if c.File != "" {
		return "file:" + redact(c.File)
	}
	return c.Algorithm + ":" + c.Hex
}

const checksumForms = "give ISO_CHECKSUM=sha256:DIGEST, sha512:DIGEST or file:PATH_OR_URL of a SHA256SUMS file"

var digits = map[string]int{SHA256: 64, SHA512: 128}

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
	case !prefixed && len(s) == digits[SHA256]:
		return parseDigest(SHA256, s)
	case !prefixed && len(s) == digits[SHA512]:
		return parseDigest(SHA512, s)
	}
	return Checksum{}, failure.New("this checksum has no known form", checksumForms)
}

func parseDigest(algorithm, value string) (Checksum, error) {
	if len(value) != digits[algorithm] || !isHex(value) {
		return Checksum{}, failure.New(fmt.Sprintf("a %s checksum has %d hexadecimal digits, this one has %d characters", algorithm, digits[algorithm], len(value)), checksumForms)
	}
	return Checksum{Algorithm: algorithm, Hex: strings.ToLower(value)}, nil
}

func isHex(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil
}

func parseListName(name string) (Checksum, error) {
	if name == "" {
		return Checksum{}, failure.New("\"file:\" needs a path or URL behind it", checksumForms)
	}
	u, ok := remote(name)
	if ok && u.Scheme == "http" && !httpclient.Loopback(u.Hostname()) {
		return Checksum{}, failure.New("a checksum file over plain http proves nothing: "+redact(name), "use https, or write the digest itself")
	}
	if !ok && strings.Contains(name, "://") && !strings.HasPrefix(name, "file://") {
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

// redact returns a URL for people: without password and without the query,
// which may hold a signature. What is no URL it returns as it is.
func redact(name string) string {
	u, err := url.Parse(name)
	if err != nil {
		scheme, _, _ := strings.Cut(name, "://")
		return scheme + "://…"
	}
	if u.Host == "" {
		return name
	}
	u.RawQuery, u.Fragment, u.ForceQuery = "", "", false
	return u.Redacted()
}

// The lines of a list: "DIGEST  NAME" or "DIGEST *NAME" (GNU), with a
// backslash before it where the name is escaped and whatever blanks between,
// and "SHA256 (NAME) = DIGEST" (BSD), which openssl writes as
// "SHA2-256(NAME)= DIGEST".
var (
	gnuLine = regexp.MustCompile(`^\\?([0-9A-Fa-f]{32,128})[ \t]+\*?(.+)$`)
	bsdLine = regexp.MustCompile(`^([A-Za-z0-9/-]+) ?\((.+)\) ?= ?([0-9A-Fa-f]+)$`)
)

// text takes the byte order mark away, and decodes what PowerShell writes.
func text(list []byte) []byte {
	var order binary.ByteOrder
	switch {
	case bytes.HasPrefix(list, []byte("\xff\xfe")):
		order = binary.LittleEndian
	case bytes.HasPrefix(list, []byte("\xfe\xff")):
		order = binary.BigEndian
	default:
		return bytes.TrimPrefix(list, []byte("\xef\xbb\xbf"))
	}
	units := make([]uint16, len(list)/2-1)
	for i := range units {
		units[i] = order.Uint16(list[2*i+2:])
	}
	return []byte(string(utf16.Decode(units)))
}

// parseList returns the digest that the list has for the file called name:
// the strongest, if there are several. A list may also be a bare digest.
func parseList(list []byte, name string) (Checksum, error) {
	list = text(list)
	if bare := strings.TrimSpace(string(list)); len(bare) == digits[SHA256] || len(bare) == digits[SHA512] {
		if c, err := ParseChecksum(bare); err == nil && c.File == "" {
			return c, nil
		}
	}
	found := map[string][]string{}
	var others []string
	lines := bufio.NewScanner(bytes.NewReader(list))
	for lines.Scan() {
		entry, digest := parseLine(strings.TrimSpace(lines.Text()))
		switch {
		case entry == "":
		case path.Base(entry) != name:
			others = append(others, path.Base(entry))
		case !slices.Contains(found[algorithm(digest)], digest):
			found[algorithm(digest)] = append(found[algorithm(digest)], digest)
		}
	}
	if err := lines.Err(); err != nil {
		return Checksum{}, err
	}
	return strongest(found, name, others)
}

func strongest(found map[string][]string, name string, others []string) (Checksum, error) {
	for _, a := range []string{SHA512, SHA256} {
		switch len(found[a]) {
		case 0:
		case 1:
			return Checksum{Algorithm: a, Hex: found[a][0]}, nil
		default:
			return Checksum{}, failure.New("it has different digests of "+name, "write the digest itself into ISO_CHECKSUM")
		}
	}
	if len(found) > 0 {
		return Checksum{}, failure.New("it has only an md5 or sha1 digest of "+name, checksumForms)
	}
	if len(others) == 0 {
		return Checksum{}, failure.New("it is no list of digests", "its lines must be DIGEST NAME or SHA256 (NAME) = DIGEST; or write the digest itself into ISO_CHECKSUM")
	}
	few := strings.Join(others[:min(3, len(others))], ", ")
	return Checksum{}, failure.New(fmt.Sprintf("it has no entry for %s (but for %s …)", name, few), "check the file's name in ISO_URL")
}

// algorithm names the algorithm that makes digests of that length, or "".
func algorithm(digest string) string {
	for a, n := range digits {
		if len(digest) == n {
			return a
		}
	}
	return ""
}

func parseLine(line string) (name, digest string) {
	if m := gnuLine.FindStringSubmatch(line); m != nil {
		return m[2], strings.ToLower(m[1])
	}
	m := bsdLine.FindStringSubmatch(line)
	if m == nil {
		return "", ""
	}
	digest = strings.ToLower(m[3])
	// SHA3-256 and SHA512/256 digests are as long as a SHA-256 one.
	kind := strings.ReplaceAll(strings.ToLower(m[1]), "sha2-", "sha")
	if strings.ReplaceAll(kind, "-", "") != algorithm(digest) {
		digest = ""
	}
	return m[2], digest
}
