// Package text is how things are shown to people, decided once.
//
// What others wrote is made harmless by Line, Lines and Writer: guests,
// playbooks, registries and images may call things whatever they like, and what
// they say ends up in terminals, in logs that a CI system reads commands from
// (::error::), in reports. Cut shortens it. URL and Redactor keep secrets out.
// Size, Span and Count write numbers: 1.5 GiB, 7 min 47 s, 3 images.
package text

import (
	"bytes"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
)

// Line makes one line of a text, with single spaces, and of each character
// what Lines makes of it.
func Line(s string) string { return strings.Join(strings.Fields(Lines(s)), " ") }

// Lines makes a text of one or more lines harmless: valid UTF-8 without a
// terminal's escape sequences; a space for a tab, nothing for other controls
// of ASCII, and U+FFFD for each other character that cannot be seen, those
// that turn the reading direction among them (CVE-2021-42574). GitHub's runner
// takes ##[error] and the like for commands wherever in a line they stand.
func Lines(s string) string {
	s = strings.ReplaceAll(s, "##[", "# #[")
	if plain(s) {
		return s
	}
	// Strip takes bytes: before, 0x9b is no part of a character, and behind,
	// what it left may be none.
	s = strings.ToValidUTF8(ansi.Strip(strings.ToValidUTF8(s, string(utf8.RuneError))), string(utf8.RuneError))
	s = strings.TrimRightFunc(strings.Map(visible, strings.ReplaceAll(s, "\r\n", "\n")), unicode.IsSpace)
	return strings.ReplaceAll(s, "##[", "# #[") // what stood apart before
}

func visible(r rune) rune {
	switch {
	case r == '\n' || unicode.IsPrint(r):
		return r
	case r == '\t' || unicode.IsSpace(r):
		return ' '
	case r < utf8.RuneSelf:
		return -1 // serial consoles are full of them
	}
	return utf8.RuneError
}

// plain says whether there is nothing to do, as there mostly is.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return !strings.HasSuffix(s, " ")
}

// Writer passes lines on to w, each as Lines makes it harmless.
func Writer(w io.Writer) io.Writer { return &writer{to: w} }

type writer struct {
	to   io.Writer
	part []byte // of a line
}

// Write keeps what comes behind the last line break: an escape sequence may go
// on in the next call.
func (w *writer) Write(b []byte) (int, error) {
	end := bytes.LastIndexByte(b, '\n') + 1
	if end == 0 {
		w.part = append(w.part, b...)
		return len(b), nil
	}
	var out strings.Builder
	for line := range strings.Lines(string(append(w.part, b[:end]...))) {
		out.WriteString(Lines(line) + "\n")
	}
	w.part = append(w.part[:0], b[end:]...)
	_, err := io.WriteString(w.to, out.String())
	return len(b), err
}

// Cut shortens a text to so many characters, the last of which then is "…".
func Cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for i := range s {
		if most--; most == 0 {
			if rest := s[i:]; utf8.RuneCountInString(rest) > 1 {
				return s[:i] + "…"
			}
			break
		}
	}
	return s
}
