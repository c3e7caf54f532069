// Package explain finds, in what a failed stage wrote, the lines that say why.
package explain

import "strings"

// prefix begins every line with which diskforge tells why it failed. The
// lines of evidence that follow are indented by four blanks.
const prefix = "diskforge: "

// Stage is what a failed stage said of its failure: a line, and below it those
// of the evidence, such as the findings of a gate. It is "" where the stage
// said nothing: it was killed, or never began.
func Stage(stderr string) string {
	var said, evidence []string
	for line := range strings.Lines(stderr) {
		line = strings.TrimRight(line, "\r\n")
		if why, ok := strings.CutPrefix(line, prefix); ok {
			said = append(said, why)
		} else if said != nil && strings.HasPrefix(line, "    ") {
			evidence = append(evidence, line)
		}
	}
	return strings.Join(append([]string{strings.Join(said, "; ")}, evidence...), "\n")
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
