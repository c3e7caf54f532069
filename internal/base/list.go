package base

import (
	"bufio"
	"bytes"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/transform"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

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

// parseList returns the digest that the list has for the file called name:
// the strongest, if there are several. A list may also be a bare digest.
func parseList(list []byte, name string) (Checksum, error) {
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
		return Checksum{}, err
	}
	for _, a := range []string{SHA512, SHA256} {
		switch len(found[a]) {
		case 0:
		case 1:
			return Checksum{Algorithm: a, Hex: found[a][0]}, nil
		default:
			return Checksum{}, failure.New("it has different digests of "+name, "write the digest itself into ISO_CHECKSUM")
		}
	}
	switch {
	case len(found) > 0:
		return Checksum{}, failure.New("it has only an md5 or sha1 digest of "+name, checksumForms)
	case len(others) == 0:
		return Checksum{}, failure.New("it is no list of digests",
			"its lines must be DIGEST NAME or SHA256 (NAME) = DIGEST; or write the digest itself into ISO_CHECKSUM")
	}
	few := strings.Join(others[:min(3, len(others))], ", ")
	return Checksum{}, failure.New(fmt.Sprintf("it has no entry for %s (but for %s …)", name, few), "check the file's name in ISO_URL")
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
