package apt

import (
	"strings"
	"testing"
)

func TestSecurityStandsBesideTheArchive(t *testing.T) {
	for mirror, security := range map[string]string{
		"http://mirror.example.org/debian":                             "http://mirror.example.org/debian-security\n",
		"https://snapshot.debian.org/archive/debian/20261101T000000Z/": "https://snapshot.debian.org/archive/debian-security/20261101T000000Z\n",
	} {
		text, err := Sources(mirror, "trixie")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"URIs: " + mirror + "\n", "URIs: " + security, "Suites: trixie trixie-updates\n", "Suites: trixie-security\n"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: %q is missing in\n%s", mirror, want, text)
			}
		}
	}
}

func TestAMirrorOfItsOwnShapeHasOneArchive(t *testing.T) {
	text, err := Sources("http://apt.example.org/trixie-main", "trixie")
	if err != nil || strings.Contains(text, "security") {
		t.Errorf("%v\n%s", err, text)
	}
}

func TestWhatIsNoMirrorIsRefused(t *testing.T) {
	for _, mirror := range []string{"", "ftp://a/debian", "http:///debian", "http://u:p@a/debian", "http://a/debian\nURIs: http://b"} {
		if text, err := Sources(mirror, "trixie"); err == nil {
			t.Errorf("%q gave\n%s", mirror, text)
		}
	}
}
