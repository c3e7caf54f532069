package flags

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// form is what a setting's value looks like, and what to give instead of
// another. What the program takes beyond these forms' letters it checks itself:
// here is only told what needs no toolbox to be seen.
type form struct {
	like *regexp.Regexp
	try  string
}

func like(pattern, try string) form { return form{regexp.MustCompile("^(?:" + pattern + ")$"), try} }

var (
	sizes     = `[0-9]+(?:[KMGTkmgt]i?)?[Bb]?`
	durations = like(`(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h))+`, "give e.g. 90s or 15m")
	users     = like(`[a-z_][a-z0-9_-]{0,31}`, "give lower-case letters, digits, - and _, at most 32")
	labels    = like(`[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?`, "give a name such as u1.medium or debian, or none")
	addresses = like(`https?://\S+`, "give e.g. http://host:3128")
)

var forms = map[string]form{
	"memory":            like(sizes, "give a number of MiB, e.g. 2048"),
	"disk-size":         like(sizes, "give e.g. 20G"),
	"cpus":              like(`[1-9][0-9]?`, "give 1 to 64"),
	"accelerator":       like(`auto|kvm|tcg`, "give auto, kvm or tcg"),
	"architecture":      like(`amd64|x86_64`, "give amd64"),
	"boot-timeout":      durations,
	"base-timeout":      durations,
	"build-user":        users,
	"vm-user":           users,
	"suite":             like(`bookworm|trixie`, "give bookworm or trixie"),
	"sparsify":          like(`auto|trim|none`, "give auto, trim or none; the toolbox has no virt-sparsify"),
	"qcow2-compression": like(`zstd|zlib|none`, "give zstd, zlib or none"),
	"instance-type":     labels,
	"preference":        labels,
	"apt-mirror":        addresses,
	"http-proxy":        addresses,
	"https-proxy":       addresses,
	"image-inputs":      like(`sha256:[0-9a-f]{64}`, "give sha256: and 64 hexadecimal digits"),
	"iso-url":           like(`(?:https?|oci)://\S+`, "give an http, https or oci:// URL; a file is given as --base, a layout as --base-layout"),
	"iso-checksum": like(`(?:sha256:)?[0-9a-fA-F]{64}|(?:sha512:)?[0-9a-fA-F]{128}|inputs:sha256:[0-9a-f]{64}|file:https?://\S+`,
		"give sha256:HEX, sha512:HEX, or file: with the URL of a SHA256SUMS or SHA512SUMS file"),
	"target-registry": like(`[^/@\s]+`, "give its host, without a scheme"),
	"image-name":      like(`[a-z0-9][a-z0-9._-]*`, "give lower-case letters, digits, ., - and _"),
	"image-tag":       like(`[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`, "give letters, digits, ., - and _"),
	"max-age":         like(`[0-9]+[hdw]`, "give e.g. 7d, 12h or 2w"),
}

// Check says of arguments, as Of makes them, which values cannot be meant, all
// at once. Values of URLs are not repeated: they may have a password in them.
func Check(args []string) error {
	var mistakes []error
	for _, arg := range slices.Compact(slices.Sorted(slices.Values(args))) { // stages share some
		flag, value, _ := strings.Cut(arg, "=")
		f, known := forms[strings.TrimPrefix(flag, "--")]
		switch {
		case !known || f.like.MatchString(value):
		case strings.Contains(value, "@"):
			mistakes = append(mistakes, fmt.Errorf("%s is not understood: %s", argument(flag), f.try))
		default:
			mistakes = append(mistakes, fmt.Errorf("%s %q is not understood: %s", argument(flag), value, f.try))
		}
	}
	return errors.Join(mistakes...)
}

// argument is the module's name of the program's flag.
func argument(flag string) string { return strings.Replace(flag, "qcow2-", "", 1) }

// Playbook says whether a tree has a playbook of that name, by its files. It
// compares what the name says in any case, the last part without its ending:
// which of several is meant, and whether it is a playbook, the program says.
func Playbook(name string, files []string) error {
	stem := func(file string) string { return strings.TrimSuffix(path.Base(file), path.Ext(file)) }
	var there []string
	for _, file := range files {
		if stem(file) == stem(name) || path.Base(file) == path.Base(name) {
			return nil
		}
		if dir := path.Dir(file); (dir == "playbooks" || dir == ".") && stem(file) != "requirements" {
			there = append(there, stem(file))
		}
	}
	slices.Sort(there)
	return fmt.Errorf("there is no playbook %q: there are %s", name, strings.Join(slices.Compact(there), ", "))
}
