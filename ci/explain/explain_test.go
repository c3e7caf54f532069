package explain

import (
	"strings"
	"testing"
)

func TestWhatAStageSaidOfItsFailureIsALineAndItsEvidence(t *testing.T) {
	for stderr, want := range map[string]string{
		"": "",
		"12:00:00 INFO started stage=provision\n": "",
		"    x\n12:00:00 INFO started\ndiskforge: hygiene: 2 leftovers\n    /a: a key\n      and more\n  log: /work/log\n": "hygiene: 2 leftovers\n    /a: a key\n      and more",
		"diskforge: MEMORY: no\r\ndiskforge: CPUS: no\n":                                                                   "MEMORY: no; CPUS: no",
	} {
		if got := Stage(stderr); got != want {
			t.Errorf("%q: got %q, want %q", stderr, got, want)
		}
	}
}

func TestWhatTheEngineRefusesIsExplained(t *testing.T) {
	got := Engine("process failed: security.insecure is not allowed [traceparent:x]")
	if !strings.Contains(got, "engine.json") || strings.Contains(got, "\n") {
		t.Error(got)
	}
	got = Engine("failed to prepare mounts: rpc error: secret env var not found: \"E2E...\" [traceparent:x]")
	if got != `secret env var not found: "E2E...": set the variable that env:// names, or give file:// with a file` {
		t.Error(got)
	}
	if got := Engine("connection refused"); got != "" {
		t.Error(got)
	}
}
