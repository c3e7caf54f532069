package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/fleet/starter"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
)

func (a *app) init() *cobra.Command {
	var o starter.Options
	c := a.command("init [DIR]", "Begin a repository with an image of your own",
		`Write what a course of your own begins with into DIR (here, if none is given): a
catalogue with an image that starts from Debian with a desktop, its playbook, which
installs a list of packages, its checks, a GitHub workflow, and a page about them.
plan and build-all then work in it. What is there already is left, and named.`,
		cobra.MaximumNArgs(1), nil,
		func(c *cobra.Command, args []string, _ *pipeline.Build) error {
			switch {
			case o.Name != "" && !catalogue.Named(o.Name):
				return usageError{fmt.Errorf("--name %q cannot be an image's name: give lower-case letters and digits, with - . or _ between them", o.Name)}
			case o.Course != "" && !slices.Contains(starter.Courses(), o.Course):
				return usageError{fmt.Errorf("--course %q is not known: give one of %s", o.Course, strings.Join(starter.Courses(), ", "))}
			case o.Release != "bookworm" && o.Release != "trixie":
				return usageError{fmt.Errorf("--release %q is not known: give bookworm or trixie", o.Release)}
			}
			if o.Course != "" {
				if err := pipeline.CheckShipped(c.Context(), o.Course, o.Release); err != nil {
					return usageError{fmt.Errorf("the course %s is not for %s: give another --release", o.Course, o.Release)}
				}
			}
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			w, err := starter.Write(dir, o)
			if err != nil {
				return err
			}
			for _, path := range w.New {
				if err := a.print("wrote " + path); err != nil {
					return err
				}
			}
			for _, path := range w.Left {
				if err := a.print("left " + path + ", which was there"); err != nil {
					return err
				}
			}
			return nil
		})
	c.Flags().StringVar(&o.Name, "name", "", "name of the image; by default DIR's")
	c.Flags().StringVar(&o.Release, "release", "bookworm", "Debian release of the image: bookworm or trixie")
	c.Flags().StringVar(&o.Course, "course", "", "start from one of the courses that come with diskforge: "+strings.Join(starter.Courses(), ", "))
	return c
}
