package address

import (
	"strings"
	"testing"
)

func TestAWholeAddressHasTheSettingsParts(t *testing.T) {
	for whole, want := range map[string]Address{
		"harbor.example.org/labs/debian:2026-11": {"harbor.example.org", "labs", "debian", "2026-11"},
		"registry:5000/a/b/c:1":                  {"registry:5000", "a/b", "c", "1"},
		"ghcr.io/debian:12":                      {"ghcr.io", "", "debian", "12"},
	} {
		got, err := Of(whole, Address{})
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v, want %+v", whole, got, err, want)
		}
	}
}

func TestAnAddressIsGivenOnce(t *testing.T) {
	for _, c := range []struct {
		whole string
		parts Address
		says  string
	}{
		{"", Address{}, "no address"},
		{"", Address{Name: "a", Tag: "1"}, "no address"},
		{"", Address{Registry: "r", Name: "a"}, "no address"},
		{"ghcr.io/debian", Address{}, "no tag"},
		{"ghcr.io/labs/:1", Address{}, "no name"},
		{"r/a:1", Address{Tag: "2"}, "both"},
		{"debian:1", Address{}, "no address to publish to"},
		{"r/a@sha256:0", Address{}, "no address to publish to"},
	} {
		if _, err := Of(c.whole, c.parts); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q %+v: %v does not say %q", c.whole, c.parts, err, c.says)
		}
	}
}

func TestAServiceAnswersUnderTheRegistrysName(t *testing.T) {
	for registry, want := range map[string]string{"registry:5000": "registry", "harbor.example.org": "harbor.example.org", "registry:5000/labs/a:1": "registry", "ghcr.io/a@sha256:0": "ghcr.io"} {
		if got := Host(registry); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
