package flags

import (
	"slices"
	"testing"
)

func TestASettingWithoutAValueIsLeftToTheProgram(t *testing.T) {
	got := Of("iso-url", "https://example.org/a b.img", "memory", "", "bake-user", Bool(true), "packer-log", Bool(false), "ca-file", File(true, "/ca.pem"), "extra-vars", File(false, "@/vars"))
	want := []string{"--iso-url=https://example.org/a b.img", "--bake-user=true", "--ca-file=/ca.pem"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTheResultIsTheLastLine(t *testing.T) {
	for stdout, want := range map[string]string{"": "", "a\n": "a", "a\nb\n": "b", "a\nb": "b", "a\n\n": "a"} {
		if got := LastLine(stdout); got != want {
			t.Errorf("%q: got %q, want %q", stdout, got, want)
		}
	}
}
