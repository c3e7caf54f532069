package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/text"
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
			report, err := a.examine(c, args[0], b)
			if err != nil {
				return usage(err)
			}
			if err := a.printReport(report); err != nil {
				return err
			}
			return report.Err(contract.Error)
		})
}

// examine inspects a path where there is one, else a reference.
func (a *app) examine(c *cobra.Command, what string, b *pipeline.Build) (r *contract.Report, err error) {
	stage := a.ui.Stage("inspect")
	defer func() { stage.End(readText(r), err) }()
	if _, err := os.Stat(what); err == nil || strings.HasPrefix(what, ".") || strings.HasPrefix(what, "/") {
		return contract.Layout(c.Context(), what, stage)
	}
	if !pipeline.NamesRegistry(what) {
		return nil, failure.New("there is no folder or file "+what+" here, and it names no registry either", "")
	}
	options, err := pipeline.RegistryOptions(b.Config, b.Version)
	if err != nil {
		return nil, err
	}
	stage.Activity("reading " + what)
	image, err := registry.Open(c.Context(), what, options)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	return contract.Image(c.Context(), image.Image, stage)
}

func (a *app) printReport(r *contract.Report) error {
	if a.json {
		return printJSON(a.stdout, r)
	}
	return a.print(reportText(r))
}

// reportText is the report for people: the facts that are known, then checks.
func reportText(r *contract.Report) string {
	var b strings.Builder
	fact := func(name, format string, args ...any) {
		if value := text.Line(fmt.Sprintf(format, args...)); value != "" {
			fmt.Fprintf(&b, "%-13s %s\n", name, value)
		}
	}
	fact("image", "%s", r.Reference)
	fact("digest", "%s", r.Digest)
	fact("platform", "%s/%s", r.Config.OS, r.Config.Architecture)
	for _, l := range r.Layers {
		fact("layer", "%s, %s, compression: %s", text.Size(l.Size), l.MediaType, l.Compression)
		for _, e := range l.Entries[:min(len(l.Entries), 5)] {
			fact("", "%s %d:%d %s %s %s", e.Mode, e.UID, e.GID, e.ModTime.Format("2006-01-02"), text.Size(e.Size), e.Name)
		}
		if l.Count > 5 {
			fact("", "and %d more", l.Count-5)
		}
	}
	if d := r.Disk; d != nil {
		fact("disk", "%s, %s in a file of %s, compression: %s", d.Format, text.Size(int64(d.VirtualSize)), text.Size(d.FileSize), d.Compression)
	}
	fact("base", "%s", r.Base())
	fact("built", "%s", r.Built())
	fact("guest", "%s", r.Guest())
	fact("inputs", "%s", r.Inputs)
	fact("read", "%s", readText(r))
	b.WriteByte('\n')
	for _, c := range r.Checks {
		fmt.Fprintf(&b, "%-8s %-20s %s\n", c.Level, c.Check, c.Detail)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// readText says how much had to be read.
func readText(r *contract.Report) string {
	if r == nil {
		return ""
	}
	var whole []string
	for n, l := range r.Layers {
		if l.WholeRead != "" {
			whole = append(whole, fmt.Sprintf("all of layer %d, as %s", n+1, l.WholeRead))
		}
	}
	how := "parts of the layer"
	if len(whole) > 0 {
		how = strings.Join(whole, "; ")
	}
	if r.BytesRead > 0 {
		how = text.Size(r.BytesRead) + " over the wire: " + how
	}
	return how
}
