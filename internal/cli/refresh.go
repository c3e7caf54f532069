package cli

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/fleet/outdated"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

func (a *app) refresh() *cobra.Command {
	var r outdated.Refresh
	c := a.command("refresh [REGISTRY/PREFIX…]", "Publish images anew with the updates that are pending",
		`Build the newest image of ours of each repository at and below REGISTRY/PREFIX, or what
TARGET_REGISTRY and REGISTRY_PREFIX name, anew from itself where updates are pending: they
are installed, no playbook of yours runs, and the disk goes through the same cleaning,
gates and boot as every other. Where nothing is pending, nothing is built.

The new image gets the tag of the day (or IMAGE_TAG), and --tag's tags move to it from the
one that it refreshes. build-all takes it for what it was made from, so an image is built
anew when its inputs change or, by its original's age, with --max-age.

By the SBOM that a build with SIGNING_KEY attaches an image is judged without being
fetched; without one its disk is fetched and read. Checks of its own playbook are not run
again.`,
		cobra.ArbitraryArgs, nil, func(c *cobra.Command, args []string, b *pipeline.Build) error {
			wrong := settings.Mistakes{}
			if r.Most < 1 {
				wrong.Add("--most", "give a number of refreshes, 1 or more")
			}
			for _, tag := range r.Moving {
				wrong.Check("--tag", registry.CheckTag(tag))
			}
			o := outdated.Options{AptMirror: b.Config.AptMirror, CAFile: b.Config.CAFile, Now: time.Now()}
			if file := b.Config.BaseKey; file != "" {
				key, err := pipeline.PublicKey(c.Context(), file)
				wrong.Check("BASE_KEY", err)
				o.Key = &key
			}
			if len(wrong) > 0 {
				return wrong
			}
			var err error
			if b.Settings, err = pipeline.ReadPassword(b.Settings, &b.Config, b.Version); err != nil {
				return err
			}
			s, err := pipeline.NewSession(b.Config, b.Version)
			if err != nil {
				return err
			}
			defer s.Close()
			r.Session = s
			repositories, err := a.readImages(c, args, s)
			if err != nil {
				return err
			}
			if len(repositories) == 1 && repositories[0].Err != nil {
				return usage(repositories[0].Err)
			}
			all, archives, err := outdated.Look(c.Context(), s, repositories, o)
			if err != nil {
				return err
			}
			if len(all) == 0 {
				return errNoImages
			}
			for _, err := range archives {
				a.ui.Warn(err.Error())
			}
			return a.refreshAll(c, b, r, all)
		})
	c.Flags().BoolVar(&r.Security, "security", false, "only where a security update is pending")
	c.Flags().IntVar(&r.Most, "most", 12, "how often an image is refreshed before a build is due, which then is the error")
	c.Flags().StringSliceVar(&r.Moving, "tag", []string{contract.MovingTag},
		"tag that moves to the new image where the one that it refreshes has it; can be repeated")
	return c
}

// refreshAll refreshes one image after another: what fails stops no other.
func (a *app) refreshAll(c *cobra.Command, b *pipeline.Build, r outdated.Refresh, all []outdated.Image) error {
	failed, made := 0, map[string]string{}
	for _, i := range all {
		reference, err := r.Do(c.Context(), *b, i)
		if err == nil {
			made[i.Digest] = reference
		}
		switch {
		case c.Context().Err() != nil:
			return err
		case err != nil && len(all) == 1 && !errors.Is(err, pipeline.ErrCurrent):
			return fmt.Errorf("%s: %w", i.Repository, err)
		case errors.Is(err, pipeline.ErrCurrent):
			a.ui.Info(i.Repository + ": " + pipeline.ErrCurrent.Error())
		case err != nil:
			failed++
			a.ui.Warn(fmt.Sprintf("%s: %v", i.Repository, err))
		default:
			if err := a.print(reference); err != nil {
				return err
			}
		}
	}
	for _, i := range all {
		reference, err := r.Index(c.Context(), *b, i, made)
		if err != nil {
			return fmt.Errorf("%s: the index of its images was not made anew: %w", i.Repository, err)
		}
		if reference != "" {
			if err := a.print(reference); err != nil {
				return err
			}
		}
	}
	return someFailed(failed, len(all), "were not refreshed")
}
