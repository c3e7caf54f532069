package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
)

func (a *app) doctor() *cobra.Command {
	return a.command("doctor", "Say what a build would miss on this host",
		`Look at the programs, the accelerator and the space that a build needs here.
The exit code is not 0 where a build cannot work.`,
		cobra.NoArgs, nil,
		func(c *cobra.Command, _ []string, b *pipeline.Build) error {
			all := pipeline.Examine(c.Context(), b.Config)
			if err := a.printFindings(all); err != nil {
				return err
			}
			if slices.ContainsFunc(all, func(f pipeline.Finding) bool { return f.State == pipeline.Missing }) {
				return failure.New("a build cannot work on this host", "put right what is missing above")
			}
			return nil
		})
}

func (a *app) printFindings(all []pipeline.Finding) error {
	if a.json {
		return printJSON(a.stdout, all...)
	}
	for _, f := range all {
		line := fmt.Sprintf("%-8s %-20s %s", f.State, f.Name, f.Detail)
		if f.Remedy != "" {
			line += "\n" + strings.Repeat(" ", 30) + "→ " + f.Remedy
		}
		if err := a.print(line); err != nil {
			return err
		}
	}
	return nil
}
