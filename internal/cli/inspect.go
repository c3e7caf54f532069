package cli

import (
	"github.com/spf13/cobra"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
)

func (a *app) inspect() *cobra.Command {
	return a.command("inspect REF|LAYOUT_DIR|ARCHIVE.tar", "Say what a containerdisk is and whether KubeVirt and CDI take it",
		`Look into a containerdisk, anybody's: one in a registry, an OCI layout, or a tar
archive of a layout. Nothing is unpacked; of an image in a registry whose layer is
not compressed only parts are read. With --json the report goes to standard output
as one JSON object.

The exit code is 1 where KubeVirt or CDI refuses the image or where it is
dangerous. What only breaks a convention is a warning.`,
		cobra.ExactArgs(1), nil,
		func(c *cobra.Command, args []string, b *pipeline.Build) error {
			report, err := b.Inspect(c.Context(), args[0])
			switch {
			case err != nil:
				return usage(err)
			case a.json:
				err = printJSON(a.stdout, report)
			default:
				err = a.print(report.Text())
			}
			if err != nil {
				return err
			}
			return report.Err(contract.Error) // what they refuse
		})
}
