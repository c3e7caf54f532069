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

// request is what the flags say that plan and build-all share.
type request struct {
	file   string
	only   []string
	force  bool
	maxAge string
}

func (r *request) flags(c *cobra.Command) {
	c.Flags().StringVar(&r.file, "catalogue", "catalogue.yaml", "file that lists the images")
	c.Flags().StringSliceVar(&r.only, "only", nil, "names of the images to build, globs such as 'ubuntu-*'; what they start from is built where it has to be")
	c.Flags().BoolVar(&r.force, "force", false, "build them though nothing has changed")
	c.Flags().StringVar(&r.maxAge, "max-age", "", "build what is older, for fresh packages: 7d, 12h")
}

// all reads the catalogue and puts it together with the settings.
func (r *request) all(b *pipeline.Build) (*fleet.All, error) {
	all := &fleet.All{Settings: b.Settings, Config: b.Config, UI: b.UI, Version: b.Version, Policy: fleet.Policy{Force: r.force}}
	var err error
	if r.maxAge != "" {
		if all.Policy.MaxAge, err = settings.ParseAge(r.maxAge); err != nil {
			return nil, usageError{fmt.Errorf("--max-age: %w", err)}
		}
	}
	if all.Catalogue, err = catalogue.Load(r.file); err != nil {
		return nil, err
	}
	if all.Catalogue.Images, err = all.Catalogue.Select(r.only...); err != nil {
		return nil, usageError{fmt.Errorf("--only: %w", err)}
	}
	return all, nil
}

func (a *app) buildAll() *cobra.Command {
	var r request
	var jobs string
	c := a.command("build-all", "Build the images of a catalogue that are not there yet",
		`Build the images that a catalogue lists, parents before children, as many at once
as this host bears. What the registry (without one: OUTPUT_DIR) has from the same
inputs is not built again; what starts from another image starts from its disk. An
image that fails stops those that start from it and no other. Started again, the
command goes on where it was stopped.

Each image has a folder in OUTPUT_DIR, with its OCI layout, its report and, where it
was pushed, what diskforge manifest writes; how it all ended stands in
OUTPUT_DIR/build-all.json. TARGET_REGISTRY, REGISTRY_PREFIX and
IMAGE_TAG win over the catalogue. An image without a tag gets one from its inputs.`,
		cobra.NoArgs, nil,
		func(c *cobra.Command, _ []string, b *pipeline.Build) error {
			b.Settings = b.Settings.Only("build-all")
			all, err := r.all(b)
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
	r.flags(c)
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
	var r request
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
			away, known := elsewhere[format]
			if !known {
				return usageError{fmt.Errorf("--format %q is not known: give text, json, github-matrix or kubernetes", format)}
			}
			all, err := r.all(b)
			if err != nil {
				return err
			}
			var target render.Target
			to := a.stdout
			if away {
				to = a.exact
				if target, err = render.NewTarget(all); err != nil {
					return usageError{fmt.Errorf("--format %s: %w", format, err)}
				}
			}
			entries, err := all.Plan(c.Context())
			if err != nil {
				return err
			}
			if err := writePlan(to, format, entries, target, pullSecret); err != nil {
				return err
			}
			return fleet.Unplannable(entries)
		})
	r.flags(c)
	c.Flags().StringVar(&format, "format", "text", "text, json (what --json gives, too), github-matrix or kubernetes")
	c.Flags().StringVar(&pullSecret, "pull-secret", "",
		"for kubernetes: secret with username and password by which children fetch their parents, in a container that runs no playbook")
	return c
}

// elsewhere says of each format whether other hosts carry the plan out.
var elsewhere = map[string]bool{"text": false, "json": false, "github-matrix": true, "kubernetes": true}

func writePlan(to io.Writer, format string, entries []*fleet.Entry, target render.Target, pullSecret string) error {
	switch format {
	case "json":
		return render.JSON(to, entries)
	case "kubernetes":
		return render.Kubernetes(to, deploy.Job, entries, target, pullSecret)
	case "github-matrix":
		checkout, err := os.Getwd()
		if err != nil {
			return err
		}
		return render.GitHubMatrix(to, entries, target, checkout)
	}
	return render.Text(to, entries)
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
