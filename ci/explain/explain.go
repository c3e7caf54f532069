// Package explain finds, in what a failed stage wrote, the lines that say why.
package explain

import (
	"fmt"
	"slices"
	"strings"
)

// prefix begins every line with which diskforge tells why it failed. The
// lines of evidence that follow stand behind a bar.
const prefix, bar = "diskforge: ", "  | "

// Stage is what a failed stage said of its failure: a line, and below it those
// of the evidence, such as the findings of a gate. One that was killed, or
// never began, said nothing of it: then it is how the command ended, and its
// last words.
func Stage(command, stderr string, code int) string {
	var said, evidence []string
	for line := range strings.Lines(stderr) {
		line = strings.TrimRight(line, "\r\n")
		if why, ok := strings.CutPrefix(line, prefix); ok {
			said = append(said, why)
		} else if said != nil && strings.HasPrefix(line, bar) {
			evidence = append(evidence, line)
		}
	}
	if said == nil {
		return ended(command, code) + words(stderr)
	}
	return strings.Join(append([]string{strings.Join(said, "; ")}, evidence...), "\n")
}

// killed is the exit code of a program that SIGKILL ended.
const killed = 128 + 9

func ended(command string, code int) string {
	if code == killed {
		return command + " was killed: the engine's host may be out of memory"
	}
	return fmt.Sprintf("%s ended with exit code %d", command, code)
}

// words are the last line of what was written, behind a colon.
func words(written string) string {
	lines := strings.Split(strings.TrimSpace(written), "\n")
	if last := strings.TrimSpace(lines[len(lines)-1]); last != "" {
		return ": " + last
	}
	return ", and said nothing"
}

// maxNamed bounds the tests that one line names.
const maxNamed = 10

// progress begins lines that say what is being done, and Task's own last words.
var progress = []string{"task: Failed to run task", "task: compiling ", "lint: compiling ", "go: downloading ", "exit status "}

// Task is what a failed task of Taskfile.yml says: the tests that failed, or
// else its last words before Task's own.
func Task(command, output string, code int) string {
	var failed, kept []string
	for line := range strings.Lines(output) {
		line = strings.TrimRight(line, "\r\n")
		if name, ok := strings.CutPrefix(line, "--- FAIL: "); ok {
			name, _, _ = strings.Cut(name, " ")
			failed = append(failed, name)
		}
		if text := strings.TrimSpace(line); text != "" && !slices.ContainsFunc(progress, func(p string) bool { return strings.HasPrefix(text, p) }) {
			kept = append(kept, text)
		}
	}
	switch n := len(failed); {
	case n > maxNamed:
		return fmt.Sprintf("%d tests failed: %s and %d more", n, strings.Join(failed[:maxNamed], ", "), n-maxNamed)
	case n > 0:
		return "failed: " + strings.Join(failed, ", ")
	}
	return ended(command, code) + words(strings.Join(kept, "\n"))
}

// missing is how Dagger begins its account of a secret that is not there.
const missing = "secret env var not found"

// Engine says in one line what an engine's refusal means, or "" where it is
// another error. An engine whose configuration forbids privileged execs
// answers with buildkit's name of that privilege.
func Engine(message string) string {
	if strings.Contains(message, "security.insecure is not allowed") {
		return "this Dagger engine forbids insecureRootCapabilities, without which no virtual machine gets /dev/kvm: " +
			`set "security": {"insecureRootCapabilities": true} in its engine.json, or insecure-entitlements = ["security.insecure"] in its engine.toml`
	}
	if _, which, ok := strings.Cut(message, missing); ok {
		which, _, _ = strings.Cut(which, " [traceparent:")
		return missing + which + ": set the variable that env:// names, or give file:// with a file"
	}
	return ""
}
