package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netgroup-polito/diskforge/deploy"
	"github.com/netgroup-polito/diskforge/internal/fleet"
	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/fleet/render"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

// wishes are the flags that plan and build-all share.
type wishes struct {
	file   string
	only   []string
	force  bool
	maxAge string
}

func (w *wishes) flags(c *cobra.Command) {
	c.Flags().StringVar(&w.file, "catalogue", "catalogue.yaml", "file that lists the images")
	c.Flags().StringSliceVar(&w.only, "only", nil, "names of the images to build, globs such as 'ubuntu-*'; what they start from is built where it has to be")
	c.Flags().BoolVar(&w.force, "force", false, "build them though nothing has changed")
	c.Flags().StringVar(&w.maxAge, "max-age", "", "build what is older, for fresh packages: 7d, 12h")
}

// all reads the catalogue and puts it together with the settings.
func (w *wishes) all(b *pipeline.Build) (*fleet.All, error) {
	all := &fleet.All{Settings: b.Settings, Config: b.Config, UI: b.UI, Version: b.Version, Only: w.only, Policy: fleet.Policy{Force: w.force}}
	var err error
	if w.maxAge != "" {
		if all.Policy.MaxAge, err = settings.ParseAge(w.maxAge); err != nil {
			return nil, usageError{fmt.Errorf("--max-age: %w", err)}
		}
	}
	if all.Catalogue, err = catalogue.Load(w.file); err != nil {
		return nil, err
	}
	if _, err := all.Catalogue.Select(w.only...); err != nil {
		return nil, usageError{fmt.Errorf("--only: %w", err)}
	}
	return all, nil
}

func (a *app) buildAll() *cobra.Command {
	var w wishes
	var jobs string
	c := a.command("build-all", "Build the images of a catalogue that are not there yet",
		`Build the images that a catalogue lists, parents before children, as many at once
as this host bears. What the registry (without one: OUTPUT_DIR) has from the same
inputs is not built again; what starts from another image starts from its disk. An
image that fails stops those that start from it and no other. Started again, the
command goes on where it was stopped.

Each image has a folder in OUTPUT_DIR, with its OCI layout and its report; how it
all ended stands in OUTPUT_DIR/build-all.json. TARGET_REGISTRY, REGISTRY_PREFIX and
IMAGE_TAG win over the catalogue. An image without a tag gets one from its inputs.`,
		cobra.NoArgs, nil,
		func(c *cobra.Command, _ []string, b *pipeline.Build) error {
			b.Settings = b.Settings.Only("build-all")
			all, err := w.all(b)
			if err != nil {
				return err
			}
			if all.Jobs, err = parseJobs(jobs); err != nil {
				return err
			}
			summary, err := all.Run(c.Context())
			for _, i := range summary.Images {
				if i.Result != nil && i.Result.Reference != "" {
					err = errors.Join(err, a.print(i.Result.Reference))
				}
			}
			return err
		})
	w.flags(c)
	c.Flags().StringVar(&jobs, "jobs", "auto", "images to build at once: auto (what processors, memory and disk of this host bear) or a number")
	return c
}

func parseJobs(v string) (int, error) {
	if v == "auto" {
		return 0, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		return 0, usageError{fmt.Errorf("--jobs %q is no number of images: give auto, or 1 and more", v)}
	}
	return n, nil
}

func (a *app) plan() *cobra.Command {
	var w wishes
	var format, pullSecret string
	c := a.command("plan", "Say what build-all would build, and why",
		`Say what build-all would build, why, and in which order: those of a level start from
those of the levels before. The formats are text, json, github-matrix (for the
workflow catalogue.yml) and kubernetes: a Job for each image, of which each waits
until the registry has its parent. ACCELERATOR, CPUS, BOOT_TIMEOUT, the proxies and,
for Jobs, REGISTRY_INSECURE and CA_FILE hold there, too; without ACCELERATOR=tcg a
Job asks for KVM. The input digests depend on the version of Ansible: plan in the
image, or the toolbox, that will build.`,
		cobra.NoArgs, nil,
		func(c *cobra.Command, _ []string, b *pipeline.Build) error {
			b.Settings = b.Settings.Only("plan")
			if a.json && !c.Flags().Changed("format") {
				format = "json"
			}
			write, err := planFormat(format, pullSecret)
			if err != nil {
				return err
			}
			all, err := w.all(b)
			if err != nil {
				return err
			}
			var target render.Target
			if elsewhere(format) {
				if target, err = render.NewTarget(all); err != nil {
					return usageError{fmt.Errorf("--format %s: %w", format, err)}
				}
			}
			entries, err := all.Plan(c.Context())
			if err != nil {
				return err
			}
			to := a.stdout
			if elsewhere(format) {
				to = a.exact
			}
			if err := write(to, entries, target); err != nil {
				return err
			}
			return fleet.Unplannable(entries)
		})
	w.flags(c)
	c.Flags().StringVar(&format, "format", "text", "text, json (what --json gives, too), github-matrix or kubernetes")
	c.Flags().StringVar(&pullSecret, "pull-secret", "", "for kubernetes: secret with username and password by which children fetch their parents, in a container that runs no playbook")
	return c
}

// elsewhere says whether a plan in the format is carried out by other hosts.
func elsewhere(format string) bool { return format == "github-matrix" || format == "kubernetes" }

type planWriter func(io.Writer, []*fleet.Entry, render.Target) error

func planFormat(name, pullSecret string) (planWriter, error) {
	switch name {
	case "text":
		return func(w io.Writer, e []*fleet.Entry, _ render.Target) error { return render.Text(w, e) }, nil
	case "json":
		return func(w io.Writer, e []*fleet.Entry, _ render.Target) error { return render.JSON(w, e) }, nil
	case "github-matrix":
		return func(w io.Writer, e []*fleet.Entry, t render.Target) error {
			checkout, err := os.Getwd()
			if err != nil {
				return err
			}
			return render.GitHubMatrix(w, e, t, checkout)
		}, nil
	case "kubernetes":
		return func(w io.Writer, e []*fleet.Entry, t render.Target) error {
			return render.Kubernetes(w, deploy.Job, e, t, pullSecret)
		}, nil
	}
	return nil, usageError{fmt.Errorf("--format %q is not known: give text, json, github-matrix or kubernetes", name)}
}

func (a *app) catalogue() *cobra.Command {
	c := &cobra.Command{
		Use: "catalogue", Short: "Help with writing a catalogue",
		RunE: func(*cobra.Command, []string) error { return usageError{errors.New("say what is wanted: schema")} },
	}
	schema := &cobra.Command{
		Use: "schema", Short: "Print the JSON schema of a catalogue, for editors", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.print(strings.TrimSpace(string(catalogue.Schema()))) },
	}
	c.AddCommand(schema)
	return c
}
