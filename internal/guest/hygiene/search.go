package hygiene

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/progress"
)

// minSecret is the length in bytes below which a secret is not searched: it
// would be found by chance.
const minSecret = 6

const (
	window  = 1 << 20 // bytes searched at a time
	overlap = 320     // bytes of a window that are looked at again with the next: a key's header and some of the key
)

// privateKey tells a key, PEM's or OpenSSH's, from the mere words PRIVATE KEY, which
// programs that read keys carry, too: behind the header stands base64, or a header of its own.
var privateKey = regexp.MustCompile(`-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[ \t]*(?:\r?\n|\\n)\s*(?:[A-Za-z0-9+/=]{40}|[A-Z][A-Za-z-]+: )`)

// hits is what was found in one file.
type hits struct {
	key     bool
	secrets []string // names
}

// search looks for all secrets and for private keys in one pass.
type search struct {
	words   [][]byte
	names   []string // the secret of each word
	overlap int
	buffer  []byte
}

func newSearch(secrets []Secret, p progress.Reporter) *search {
	s := &search{overlap: overlap}
	for _, secret := range secrets {
		value := strings.TrimSpace(secret.Value)
		if len(value) < minSecret {
			if value != "" {
				p.Warn(fmt.Sprintf("the disk is not searched for %s, which has fewer than %d characters", secret.Name, minSecret))
			}
			continue
		}
		for _, word := range spellings(value) {
			s.words, s.names = append(s.words, word), append(s.names, secret.Name)
			s.overlap = max(s.overlap, len(word))
		}
	}
	s.buffer = make([]byte, window+s.overlap)
	return s
}

// spellings are the secret itself and what base64 makes of it wherever in the
// encoded text it begins.
func spellings(secret string) [][]byte {
	all := [][]byte{[]byte(secret)}
	for shift := range 3 {
		padded := append(make([]byte, shift), secret...)
		// Only characters that hold nothing but bits of the secret.
		from, to := (8*shift+5)/6, 8*len(padded)/6
		for _, alphabet := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			word := []byte(alphabet.EncodeToString(padded))[from:to]
			if !slices.ContainsFunc(all, func(b []byte) bool { return bytes.Equal(b, word) }) {
				all = append(all, word)
			}
		}
	}
	return all
}

// in searches all that r has, up to its end.
func (s *search) in(r io.Reader) (hits, error) {
	var found hits
	fill := 0
	for {
		n, err := io.ReadFull(r, s.buffer[fill:])
		end := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !end {
			return found, err
		}
		text := s.buffer[:fill+n]
		if end && fill == 0 {
			found.key = isKeyFile(text) // all of it
		}
		for i, word := range s.words {
			if !slices.Contains(found.secrets, s.names[i]) && bytes.Contains(text, word) {
				found.secrets = append(found.secrets, s.names[i])
			}
		}
		found.key = found.key || privateKey.Match(text)
		if end {
			return found, nil
		}
		// What may go on behind the window is looked at again.
		fill = copy(s.buffer, text[len(text)-s.overlap:])
	}
}
