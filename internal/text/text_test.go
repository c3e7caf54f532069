package text_test

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"

	"github.com/netgroup-polito/diskforge/internal/text"
)

func TestWhatOthersWroteIsOneHarmlessLine(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"plain text":                            "plain text",
		"  two   spaces\tand a tab ":            "two spaces and a tab",
		"line\n::error::forged\r\n##[error]too": "line ::error::forged # #[error]too",
		"a\u2028b\u2029c\u0085d\vd\fe":          "a b c d d e",
		"#\x1b[2J#[warning]hidden":              "# #[warning]hidden",
		"esc \x1b]0;pwned\a\x1b[2J end":         "esc end",
		"C1 \u009b31m and bidi \u202e\u2066":    "C1 \ufffd31m and bidi \ufffd\ufffd",
		"broken \xff\x9b31m":                    "broken \ufffd31m",
		"bell\a nul\x00 back\b del\x7f":         "bell nul back del",
		"zero\u200bwidth":                       "zero\ufffdwidth",
		"è 漢字 🙂":                                "è 漢字 🙂",
		"\x1b":                                  "",
	} {
		assert.Equal(t, want, text.Line(given), "%q", given)
	}
}

func TestLinesKeepsLineBreaksAndIndentation(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "a:\n    ^ here\nb", text.Lines("a:\r\n    ^ here\r\nb\r\n"))
	assert.Equal(t, "", text.Lines("\n\n"))
}

func TestAWriterPassesHarmlessLinesOn(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	w := text.Writer(&out)
	for _, part := range []string{"a \x1b", "[2Jb", "\nc\u202e\n\nd", "\n"} {
		n, err := w.Write([]byte(part))
		assert.NoError(t, err)
		assert.Len(t, part, n)
	}
	assert.Equal(t, "a b\nc\ufffd\n\nd\n", out.String())
}

func TestALongTextIsCutBetweenCharacters(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "abc", text.Cut("abc", 3))
	assert.Equal(t, "ab…", text.Cut("abcd", 3))
	assert.Equal(t, "èèè", text.Cut("èèè", 3))
	assert.Equal(t, "èè…", text.Cut("èèèè", 3))
}

func FuzzText(f *testing.F) {
	f.Add("esc \x1b]0;pwned\a\x1b[2J\u009b31m\u202e end", 5)
	f.Add("\x9b\xc2\x1b\xc2\x9b31m\n::error::", 3)
	f.Fuzz(func(t *testing.T, s string, most int) {
		lines := text.Lines(s)
		for _, r := range lines {
			if r != '\n' && !unicode.IsPrint(r) {
				t.Fatalf("%q holds %q", lines, r)
			}
		}
		if !utf8.ValidString(lines) || text.Lines(lines) != lines {
			t.Fatalf("%q becomes %q, which becomes %q", s, lines, text.Lines(lines))
		}
		if line := text.Line(s); strings.ContainsAny(line, "\n\r") || text.Line(line) != line {
			t.Fatalf("%q is no line", line)
		}
		if most > 0 && utf8.RuneCountInString(text.Cut(lines, most)) > most {
			t.Fatalf("%q is longer than %d", text.Cut(lines, most), most)
		}
	})
}
