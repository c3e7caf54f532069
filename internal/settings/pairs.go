package settings

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/host"
)

// Pairs are a command's settings as text, KEY=VALUE: those of a file, where one is
// named, a line each or one JSON object, then single ones, which win. What is empty
// counts as not given.
func Pairs(command, file string, single []string) (Settings, error) {
	var text []byte
	if file != "" {
		var err error
		if text, err = host.ReadFile(file, 1<<20); err != nil {
			return nil, Mistakes{fmt.Sprintf("the settings' file: %v", err)}
		}
	}
	lines := strings.Split(string(text), "\n")
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) {
		object := map[string]string{}
		if err := json.Unmarshal(text, &object); err != nil {
			return nil, Mistakes{fmt.Sprintf("the settings' file is no JSON object of texts: %v", err)}
		}
		lines = nil
		for _, name := range slices.Sorted(maps.Keys(object)) {
			lines = append(lines, name+"="+object[name])
		}
	}
	given := Settings{}
	var mistakes Mistakes
	for _, line := range append(lines, single...) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		f, known := By(name)
		switch {
		case !ok:
			mistakes = append(mistakes, fmt.Sprintf("%q is no setting: give KEY=VALUE, e.g. MEMORY=4096", line))
		case !known || !f.In(command):
			mistakes = append(mistakes, fmt.Sprintf("%s is no setting of %s: docs/settings.md lists them", name, command))
		case notText(f, value) != "":
			mistakes = append(mistakes, name+" "+notText(f, value))
		case value != "":
			given[name] = value
		}
	}
	if mistakes != nil {
		return nil, mistakes
	}
	return given, nil
}

// notText is why a setting does not get to an engine as its text.
func notText(f Field, value string) string {
	why, none := strings.CutPrefix(f.Engine, "none: ")
	if refused, ok := strings.CutPrefix(f.Engine, "refused: "); ok {
		return refused
	}
	switch {
	case f.Engine == "login":
		return "is the registry's business: give it to with-registry"
	case f.Engine == "export":
		return "has no effect: export what the function returns"
	case none:
		return "has no effect: " + why
	case f.Env == "SPARSIFY" && value == "virt-sparsify":
		return "cannot be virt-sparsify, which the toolbox does not have: give auto, trim or none"
	case f.Engine == "digest":
		return "names what is on your host, which an engine does not see: give the digest itself in ISO_CHECKSUM"
	case f.Engine == "folder", f.Engine == "file", f.Engine == "secret", f.Engine == "refused", f.Env == "EXTRA_VARS" && strings.HasPrefix(value, "@"):
		return "names what is on your host, which an engine does not see: give it as an argument of the function"
	}
	return ""
}
