package base

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/transform"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/httpclient"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// digits is how long the digests of the algorithms that are taken are in
// hexadecimal.
var digits = map[string]int{"sha256": 64, "sha512": 128}

const (
	checksumForms = "give ISO_CHECKSUM=sha256:DIGEST, sha512:DIGEST or file:PATH_OR_URL of a SHA256SUMS file"
	// list is how a checksum begins that is a list of them.
	list = "file:"
)

// ParseChecksum reads a checksum: "sha256:DIGEST", "sha512:DIGEST", a bare
// digest, or "file:PATH_OR_URL" of a SHA256SUMS or SHA512SUMS file. It returns
// the one form of it that this package takes: the algorithm and the digest in
// lower case, or the list as it was given. It touches neither files nor the
// network.
func ParseChecksum(s string) (string, error) {
	s = strings.TrimSpace(s)
	kind, value, prefixed := strings.Cut(s, ":")
	kind = strings.ToLower(kind)
	switch {
	case s == "":
		return "", failure.New("a base image needs a checksum", checksumForms)
	case kind == "none":
		return "", failure.New("a base image without a checksum is refused", checksumForms)
	case kind == "md5" || kind == "sha1" || !prefixed && isHex(s) && (len(s) == 32 || len(s) == 40):
		return "", failure.New("md5 and sha1 can be forged", checksumForms)
	case prefixed && kind == "file":
		return parseListName(value)
	case prefixed && digits[kind] > 0:
		return parseDigest(kind, value)
	case !prefixed && algorithm(s) != "":
		return parseDigest(algorithm(s), s)
	}
	return "", failure.New("this checksum has no known form", checksumForms)
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

func parseDigest(algorithm, value string) (string, error) {
	if len(value) != digits[algorithm] || !isHex(value) {
		return "", failure.New(fmt.Sprintf("a %s checksum has %d hexadecimal digits, this one has %d characters",
			algorithm, digits[algorithm], len(value)), checksumForms)
	}
	return algorithm + ":" + strings.ToLower(value), nil
}

func isHex(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil
}

func parseListName(name string) (string, error) {
	u, isRemote := remote(name)
	switch {
	case name == "":
		return "", failure.New(`"file:" needs a path or URL behind it`, checksumForms)
	case isRemote && provesNothing(u):
		return "", failure.New("a checksum file over plain http proves nothing: "+text.URL(name), "use https, or write the digest itself")
	case !isRemote && strings.Contains(name, "://") && !strings.HasPrefix(name, "file://"):
		return "", failure.New("a checksum file is fetched by http or https only", checksumForms)
	}
	return list + name, nil
}

// provesNothing says whether anybody on the way can change what the URL has.
func provesNothing(u *url.URL) bool { return u.Scheme == "http" && !httpclient.Loopback(u.Hostname()) }

// remote returns the URL if name is one of http or https.
func remote(name string) (*url.URL, bool) {
	u, err := url.Parse(name)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, false
	}
	return u, true
}

// The lines of a list: "DIGEST  NAME" or "DIGEST *NAME" (GNU), with a
// backslash before it where the name is escaped and whatever blanks between,
// and "SHA256 (NAME) = DIGEST" (BSD), which openssl writes as
// "SHA2-256(NAME)= DIGEST".
var (
	gnuLine = regexp.MustCompile(`^\\?([0-9A-Fa-f]{32,128})[ \t]+\*?(.+)$`)
	bsdLine = regexp.MustCompile(`^([A-Za-z0-9/-]+) ?\((.+)\) ?= ?([0-9A-Fa-f]+)$`)
)

// decode takes the byte order mark away, and decodes what PowerShell writes.
func decode(list []byte) []byte {
	decoded, _, err := transform.Bytes(unicode.BOMOverride(transform.Nop), list)
	if err != nil {
		return list
	}
	return decoded
}

// parseList returns the checksum that the list has for the file called name:
// the strongest, if there are several. A list may also be a bare digest.
func parseList(list []byte, name string) (string, error) {
	list = decode(list)
	if bare := string(bytes.TrimSpace(list)); algorithm(bare) != "" && isHex(bare) {
		return parseDigest(algorithm(bare), bare)
	}
	found := map[string][]string{} // digests by their algorithm
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
		return "", err
	}
	for _, a := range []string{"sha512", "sha256"} {
		switch len(found[a]) {
		case 0:
		case 1:
			return a + ":" + found[a][0], nil
		default:
			return "", failure.New("it has different digests of "+name, "write the digest itself into ISO_CHECKSUM")
		}
	}
	switch {
	case len(found) > 0:
		return "", failure.New("it has only an md5 or sha1 digest of "+name, checksumForms)
	case len(others) == 0:
		return "", failure.New("it is no list of digests",
			"its lines must be DIGEST NAME or SHA256 (NAME) = DIGEST; or write the digest itself into ISO_CHECKSUM")
	}
	few := strings.Join(others[:min(3, len(others))], ", ")
	return "", failure.New(fmt.Sprintf("it has no entry for %s (but for %s …)", name, few), "check the file's name in ISO_URL")
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
