// Package flags puts diskforge's arguments together.
package flags

import "strings"

// Of turns pairs of a setting's flag and its value into arguments. A setting
// without a value is left out: its default is the program's.
func Of(pairs ...string) []string {
	var args []string
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			args = append(args, "--"+pairs[i]+"="+pairs[i+1])
		}
	}
	return args
}

// Bool is the value of a switch: nothing where it is off.
func Bool(on bool) string {
	if on {
		return "true"
	}
	return ""
}

// File is the value of a setting that names a file: its path where it is given.
func File(given bool, path string) string {
	if given {
		return path
	}
	return ""
}

// LastLine is the last line of what a stage printed: its result.
func LastLine(stdout string) string {
	text := strings.TrimSpace(stdout)
	return text[strings.LastIndexByte(text, '\n')+1:]
}
