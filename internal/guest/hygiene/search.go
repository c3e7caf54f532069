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
	window = 1 << 20 // bytes searched at a time
	// before and after are how far a private key is looked at around its
	// header's last words.
	before, after = 64, 256
)

// keyWords stand in the first line of every PEM and OpenSSH private key.
const keyWords = "PRIVATE KEY"

// privateKey tells a key from the mere words, which programs that read keys
// carry, too: behind the header stands base64, or a header of its own.
var privateKey = regexp.MustCompile(`-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[ \t]*(?:\r?\n|\\n)\s*(?:[A-Za-z0-9+/=]{40}|[A-Z][A-Za-z-]+: )`)

// hits is what was found in one file.
type hits struct {
	key     bool
	secrets []string // names
}

// search looks for all secrets and for private keys in one pass.
type search struct {
	words   *matcher
	names   []string // the secret of each of the matcher's words; "" is keyWords
	overlap int
	buffer  []byte
}

func newSearch(secrets []Secret, p progress.Reporter) *search {
	s := &search{names: []string{""}, overlap: before + after}
	words := [][]byte{[]byte(keyWords)}
	for _, secret := range secrets {
		value := strings.TrimSpace(secret.Value)
		if len(value) < minSecret {
			if value != "" {
				p.Warn(fmt.Sprintf("the disk is not searched for %s, which has fewer than %d characters", secret.Name, minSecret))
			}
			continue
		}
		for _, word := range spellings(value) {
			words, s.names = append(words, word), append(s.names, secret.Name)
			s.overlap = max(s.overlap, len(word))
		}
	}
	s.words = newMatcher(words)
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
		s.words.each(text, func(word, at int) { s.note(&found, text, word, at) })
		if end {
			return found, nil
		}
		// What may go on behind the window is looked at again.
		fill = copy(s.buffer, text[len(text)-s.overlap:])
	}
}

func (s *search) note(found *hits, text []byte, word, at int) {
	if name := s.names[word]; name != "" {
		if !slices.Contains(found.secrets, name) {
			found.secrets = append(found.secrets, name)
		}
		return
	}
	found.key = found.key || privateKey.Match(text[max(0, at-before):min(len(text), at+after)])
}

// matcher finds many words at once by the method of Wu and Manber: the two
// bytes at the end of a window as long as the shortest word tell how far no
// word can begin.
type matcher struct {
	words [][]byte
	least int // the shortest word's length
	shift [1 << 16]uint8
	last  map[uint16][]int // words by the two bytes that end their first least bytes
}

func newMatcher(words [][]byte) *matcher {
	m := &matcher{words: words, least: 255, last: map[uint16][]int{}}
	for _, w := range words {
		m.least = min(m.least, len(w))
	}
	for i := range m.shift {
		m.shift[i] = uint8(m.least - 1)
	}
	for i, w := range words {
		for end := 1; end < m.least; end++ {
			pair := uint16(w[end-1])<<8 | uint16(w[end])
			m.shift[pair] = min(m.shift[pair], uint8(m.least-1-end))
			if end == m.least-1 {
				m.last[pair] = append(m.last[pair], i)
			}
		}
	}
	return m
}

// each calls found for each word and where it begins.
func (m *matcher) each(text []byte, found func(word, at int)) {
	for at := 0; at+m.least <= len(text); {
		end := at + m.least - 1
		pair := uint16(text[end-1])<<8 | uint16(text[end])
		if s := m.shift[pair]; s > 0 {
			at += int(s)
			continue
		}
		for _, i := range m.last[pair] {
			if bytes.HasPrefix(text[at:], m.words[i]) {
				found(i, at)
			}
		}
		at++
	}
}
