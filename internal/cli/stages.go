package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

// stages prints which arguments each stage takes for given settings. The Dagger
// module asks for them before it makes anything, so that it needs no table of
// settings and no rule about them of its own.
func (a *app) stages() *cobra.Command {
	var file, command string
	c := a.command("build [KEY=VALUE]…", "Print the arguments of a build's stages, as JSON", "", cobra.ArbitraryArgs,
		[]pipeline.Need{pipeline.NeedBase, pipeline.NeedPlaybook}, nil)
	c.Use, c.Hidden = "stages [KEY=VALUE]…", true
	c.Flags().StringVar(&file, "settings", "", "file with further settings, a line KEY=VALUE each")
	c.Flags().StringVar(&command, "for", "build", "command whose settings are given")
	c.RunE = func(c *cobra.Command, args []string) error {
		flags, err := given(c.Flags())
		if err != nil {
			return err
		}
		text := ""
		if file != "" {
			b, err := host.ReadFile(file, 1<<20)
			if err != nil {
				return usageError{fmt.Errorf("the settings' file: %w", err)}
			}
			text = string(b)
		}
		needs, known := map[string][]pipeline.Need{
			"build": {pipeline.NeedBase, pipeline.NeedPlaybook}, "pack": {pipeline.NeedReference}, "verify": nil, "plan": nil,
		}[command]
		if !known {
			return usageError{fmt.Errorf("--for %q is not known", command)}
		}
		given, err := pairs(command, text, args)
		if err != nil {
			return err
		}
		all := settings.Settings(given).With(flags)
		cfg, err := pipeline.Parse(all, needs...)
		if err != nil {
			return err
		}
		fixed, err := pipeline.Pinned(c.Context(), cfg)
		if err != nil {
			return err
		}
		stages := map[string][]string{}
		for _, stage := range []string{"base", "provision", "sparsify", "verify", "pack", "push", "plan"} {
			stages[stage] = all.With(fixed).Arguments(stage)
		}
		return json.NewEncoder(a.exact).Encode(stages)
	}
	return c
}

// pairs are settings as text, KEY=VALUE: those of a file, a line each or one
// JSON object, then single ones, which win. What is empty counts as not given.
func pairs(command, file string, single []string) (map[string]string, error) {
	lines := strings.Split(file, "\n")
	if strings.HasPrefix(strings.TrimSpace(file), "{") {
		object := map[string]string{}
		if err := json.Unmarshal([]byte(file), &object); err != nil {
			return nil, usageError{fmt.Errorf("the settings' file is no JSON object of texts: %w", err)}
		}
		lines = nil
		for _, name := range slices.Sorted(maps.Keys(object)) {
			lines = append(lines, name+"="+object[name])
		}
	}
	given := map[string]string{}
	var mistakes settings.Mistakes
	for _, line := range append(lines, single...) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		f, known := settings.By(name)
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
func notText(f settings.Field, value string) string {
	why, none := strings.CutPrefix(f.Engine, "none: ")
	switch {
	case f.Engine == "login":
		return "is the registry's business: give it to with-registry"
	case f.Engine == "export":
		return "has no effect: export what the function returns"
	case none:
		return "has no effect: " + why
	case f.Env == "SPARSIFY" && value == "virt-sparsify":
		return "cannot be virt-sparsify, which the toolbox does not have: give auto, trim or none"
	case f.Engine == "folder", f.Engine == "file", f.Engine == "secret", f.Engine == "refused", f.Env == "EXTRA_VARS" && strings.HasPrefix(value, "@"):
		return "names what is on your host, which an engine does not see: give it as an argument of the function"
	}
	return ""
}
