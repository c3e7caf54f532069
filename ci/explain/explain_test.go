package explain

import (
	"strings"
	"testing"
)

func TestWhatAStageSaidOfItsFailureIsALineAndItsEvidence(t *testing.T) {
	for stderr, want := range map[string]string{
		"  | x\n12:00:00 INFO started\ndiskforge: hygiene: 2 leftovers\n  | /a: a key\n  |   and more\n  log: /work/log\n": "hygiene: 2 leftovers\n  | /a: a key\n  |   and more",
		"diskforge: MEMORY: no\r\ndiskforge: CPUS: no\n":                                                                   "MEMORY: no; CPUS: no",
	} {
		if got := Stage("diskforge plan", stderr, 1); got != want {
			t.Errorf("%q: got %q, want %q", stderr, got, want)
		}
	}
}

func TestAStageThatSaidNothingOfItsFailureIsNoEmptyError(t *testing.T) {
	for _, c := range []struct {
		stderr string
		code   int
		want   string
	}{
		{"", 2, "diskforge plan ended with exit code 2, and said nothing"},
		{"12:00:00 INFO started stage=provision\n\n", 1, "diskforge plan ended with exit code 1: 12:00:00 INFO started stage=provision"},
		{"\n", 137, "diskforge plan was killed: the engine's host may be out of memory, and said nothing"},
	} {
		if got := Stage("diskforge plan", c.stderr, c.code); got != c.want {
			t.Errorf("%q: got %q, want %q", c.stderr, got, c.want)
		}
	}
}

func TestATaskThatFailedNamesItsTests(t *testing.T) {
	const end = "task: Failed to run task \"unit\": exit status 1\n"
	for output, want := range map[string]string{
		"ok  \ta\t0.1s\n--- FAIL: TestOne (0.01s)\n    --- FAIL: TestOne/sub (0.00s)\n        x_test.go:1: no\n--- FAIL: TestTwo (0.00s)\nFAIL\nFAIL\tb\t0.1s\nFAIL\n" + end: "failed: TestOne, TestTwo",
		"lint: run gofmt -w on: a.go\n" + end: ".ci/task lint ended with exit code 201: lint: run gofmt -w on: a.go",
		end:                                   ".ci/task lint ended with exit code 201, and said nothing",
		strings.Repeat("--- FAIL: Test (0.00s)\n", 12): "12 tests failed: Test, Test, Test, Test, Test, Test, Test, Test, Test, Test and 2 more",
	} {
		if got := Task(".ci/task lint", output, 201); got != want {
			t.Errorf("got %q, want %q", got, want)
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
