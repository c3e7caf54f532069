package text_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/netgroup-polito/diskforge/internal/text"
)

func TestSizesAreReadable(t *testing.T) {
	t.Parallel()
	assert.Equal(t, []string{"1 KiB", "200 MiB", "1.5 GiB"}, []string{text.Size(1), text.Size(200 << 20), text.Size(3 << 29)})
}

func TestSpansOfTimeAreReadable(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0:                        "0 ms",
		350 * time.Millisecond:   "350 ms",
		3540 * time.Millisecond:  "3.5 s",
		9960 * time.Millisecond:  "10 s",
		59700 * time.Millisecond: "1 min 0 s",
		467 * time.Second:        "7 min 47 s",
		2*time.Hour + 29*time.Second + 3*time.Minute: "2 h 3 min",
		time.Hour - time.Millisecond:                 "1 h 0 min",
	} {
		assert.Equal(t, want, text.Span(d), d.String())
	}
}

func TestOneIsNoPlural(t *testing.T) {
	t.Parallel()
	assert.Equal(t, []string{"0 images", "1 image", "2 images"}, []string{text.Count(0, "image"), text.Count(1, "image"), text.Count(2, "image")})
}

func TestAURLIsShownWithoutWhatMayBeSecret(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"https://me:secret@example.org/x.qcow2?sig=secret#secret": "https://example.org/x.qcow2",
		"https://token@example.org/x?":                            "https://example.org/x",
		"http://me:secret%zz@proxy:3128":                          "http://…",
		"//me:secret@example.org/x":                               "//example.org/x",
		"/a/path?with#signs":                                      "/a/path?with#signs",
		"words":                                                   "words",
	} {
		assert.Equal(t, want, text.URL(given), given)
	}
}

func TestSecretsAreReplacedTheLongestFirst(t *testing.T) {
	t.Parallel()
	r := text.Redactor("", "pass", "password&x", "line one")
	assert.Equal(t, "*** *** ?q=*** *** ***", r.Replace("pass password&x ?q=password%26x line one line+one"))
}
