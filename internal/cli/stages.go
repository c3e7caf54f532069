package cli

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

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
		needs, known := map[string][]pipeline.Need{
			"build": {pipeline.NeedBase, pipeline.NeedPlaybook}, "pack": {pipeline.NeedReference}, "verify": nil, "plan": nil,
		}[command]
		if !known {
			return usageError{fmt.Errorf("--for %q is not known", command)}
		}
		given, err := settings.Pairs(command, file, args)
		if err != nil {
			return err
		}
		all := given.With(flags)
		cfg, err := pipeline.Parse(all, needs...)
		if err != nil {
			return err
		}
		fixed, err := pipeline.Pinned(c.Context(), cfg)
		if err != nil {
			return err
		}
		stages := map[string][]string{}
		for _, stage := range []string{"base", "provision", "sparsify", "verify", "pack", "export", "push", "plan"} {
			stages[stage] = all.With(fixed).Arguments(stage)
		}
		return json.NewEncoder(a.exact).Encode(stages)
	}
	return c
}
