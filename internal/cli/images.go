package cli

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/fleet"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/text"
)

func (a *app) images() *cobra.Command {
	parent := &cobra.Command{
		Use: "images", Short: "List, tag, promote, revoke, delete and prune what was published",
		RunE: func(c *cobra.Command, _ []string) error {
			return usageError{errors.New("say what to do with the images: list, tag, promote, revoke, delete or prune")}
		},
	}
	for _, f := range settings.Fields() {
		if f.In("images") {
			addFlag(parent.PersistentFlags(), f)
		}
	}
	parent.AddCommand(a.listImages(), a.tagImage(), a.promoteImage(), a.revokeImage(), a.deleteImages(), a.pruneImages())
	return parent
}

func (a *app) listImages() *cobra.Command {
	return a.command("list [REGISTRY/PREFIX…]", "List the images of a registry",
		`List the images at and below REGISTRY/PREFIX or, without one, below what
TARGET_REGISTRY and REGISTRY_PREFIX name: their tags, digests, sizes, ages and input
digests. The age is that of the playbook's run or, where that is not known, of the
image. With --json each image is one JSON object on standard output.

Docker's registry is asked for its list of repositories, Harbor for its project's.
Registries without such a list (GitHub's) want the repositories named. An image
without a tag is not listed: no registry lists those.`,
		cobra.ArbitraryArgs, nil, a.withSession(func(c *cobra.Command, args []string, s *registry.Session) error {
			all, err := a.readImages(c, args, s)
			if err != nil {
				return err
			}
			if a.json {
				err = printJSON(a.stdout, entriesOf(all)...)
			} else {
				err = writeImages(a.stdout, all, time.Now())
			}
			return errors.Join(err, a.unread(all))
		}))
}

func (a *app) site() *cobra.Command {
	return a.command("site [REGISTRY/PREFIX…]", "Write a page for people about the images of a registry",
		`Write OUTPUT_DIR/index.html, a page that needs no network, about the newest image of
each repository at and below REGISTRY/PREFIX: its tags, size and age, what it starts from
and how to start it. Where OUTPUT_DIR has the report of that very image, as build-all
leaves it, the page has its picture, its checks and what is in it, too. What diskforge
did not make is left out.`,
		cobra.ArbitraryArgs, nil, func(c *cobra.Command, args []string, b *pipeline.Build) error {
			s, err := pipeline.NewSession(b.Config, b.Version)
			if err != nil {
				return err
			}
			defer s.Close()
			all, err := a.readImages(c, args, s)
			if err == nil {
				err = a.unread(all) // half a page would take the place of a whole one
			}
			if err != nil {
				return err
			}
			page, err := fleet.SiteOf(c.Context(), s, all, b.Config.OutputDir, time.Now())
			if err != nil {
				return err
			}
			dir := b.Config.OutputDir
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return failure.Wrap(err, "the page cannot be written", "give another OUTPUT_DIR")
			}
			return a.printed(page.Save(dir))
		})
}

func (a *app) tagImage() *cobra.Command {
	return a.command("tag REF TAG…", "Give an image in a registry further tags",
		`Give the image REF, REGISTRY/REPOSITORY@DIGEST, further tags, or move them to it.
Only its manifest is sent.`,
		cobra.MinimumNArgs(2), nil, a.withSession(func(c *cobra.Command, args []string, s *registry.Session) error {
			if err := s.Tag(c.Context(), args[0], args[1:]...); err != nil {
				return usage(err)
			}
			return a.print(args[0])
		}))
}

func (a *app) deleteImages() *cobra.Command {
	return a.command("delete REF…", "Delete images from a registry",
		`Delete each REF. REGISTRY/REPOSITORY@DIGEST is the image with all its tags.
REGISTRY/REPOSITORY:TAG is the image where it has no other tag, else the tag alone,
which Docker's registry cannot delete before its version 3. An image that an index in
the repository names is kept: delete the index first.`,
		cobra.MinimumNArgs(1), nil, a.withSession(func(c *cobra.Command, args []string, s *registry.Session) error {
			for _, ref := range args {
				if err := registry.CheckStored(ref); err != nil {
					return usage(err)
				}
			}
			failed := 0
			for _, ref := range args {
				kept, err := s.Delete(c.Context(), ref)
				if c.Context().Err() != nil || err != nil && len(args) == 1 {
					return err
				}
				if err != nil {
					failed++
					a.ui.Warn(err.Error())
					continue
				}
				done := ref + ": deleted"
				if len(kept) > 0 {
					done = fmt.Sprintf("%s: the tag is gone, the image keeps %s", ref, strings.Join(kept, ", "))
				}
				if err := a.print(done); err != nil {
					return err
				}
			}
			return someFailed(failed, len(args), "were not deleted")
		}))
}

// someFailed is the error that something could not be done with some of many,
// of each of which a warning said why, or nil.
func someFailed(failed, of int, what string) error {
	if failed == 0 {
		return nil
	}
	return failure.New(fmt.Sprintf("%d of %d %s", failed, of, what), "the warnings say why")
}

func (a *app) pruneImages() *cobra.Command {
	policy := registry.Policy{Now: time.Now()}
	var younger string
	var yes bool
	c := a.command("prune [REGISTRY/PREFIX…] --keep N | --keep-younger AGE", "Delete the old images of a registry",
		`Say which images at and below REGISTRY/PREFIX, or TARGET_REGISTRY and
REGISTRY_PREFIX, would be deleted, and why; delete them with --yes. Kept are the
newest N of each repository, what is younger than AGE (30d, 12h, 2w), what has a tag
that a GLOB matches or that is a channel's (stable, latest: one without digits), what a
kept image was made from as far as it is listed, images of unknown age, and, without
--all, what diskforge did not make.

An image goes with all its tags; one that got another since it was listed is kept. A
tag that moves to an image in the very moment of its deletion goes with it. The
registry's space is free when it has collected its garbage.`,
		cobra.ArbitraryArgs, nil, a.withSession(func(c *cobra.Command, args []string, s *registry.Session) error {
			if err := complete(&policy, younger); err != nil {
				return usageError{err}
			}
			read, err := a.readImages(c, args, s)
			if err != nil {
				return err
			}
			unread := a.unread(read)
			decisions := policy.Decide(entriesOf(read))
			if a.json {
				err = printJSON(a.stdout, decisions...)
			} else {
				err = writeDecisions(a.stdout, decisions, policy.Now)
			}
			if err != nil {
				return err
			}
			return errors.Join(a.prune(c, s, decisions, yes), unread)
		}))
	c.Flags().IntVar(&policy.Keep, "keep", 0, "keep the newest N images of each repository")
	c.Flags().StringVar(&younger, "keep-younger", "", "keep images that are younger, e.g. 30d")
	c.Flags().StringSliceVar(&policy.KeepTags, "keep-tag", nil, "keep images with such a tag, a glob such as 'release-*'; can be repeated")
	c.Flags().BoolVar(&policy.All, "all", false, "prune images that diskforge did not make, too")
	c.Flags().BoolVar(&yes, "yes", false, "delete; without it nothing is")
	return c
}

// unread is the error that some repositories could not be read, or nil. It warns
// of each, but the only one's own error says all.
func (a *app) unread(all []registry.Repository) error {
	failed := 0
	for _, r := range all {
		if r.Err == nil {
			continue
		}
		if len(all) == 1 {
			return usage(r.Err)
		}
		failed++
		a.ui.Warn(r.Err.Error())
	}
	return someFailed(failed, len(all), "could not be read")
}

// complete adds the age to the policy that the flags of prune give, and checks it.
func complete(p *registry.Policy, younger string) (err error) {
	for _, glob := range p.KeepTags {
		if _, err := path.Match(glob, ""); err != nil {
			return fmt.Errorf("--keep-tag: %q is no glob: give e.g. latest or 'release-*'", glob)
		}
	}
	if younger != "" {
		if p.Younger, err = settings.ParseAge(younger); err != nil {
			return fmt.Errorf("--keep-younger: %w", err)
		}
	}
	if p.Keep < 0 || p.Keep == 0 && p.Younger == 0 {
		return errors.New("nothing would be kept: give --keep N, --keep-younger AGE or both")
	}
	return nil
}

// prune deletes what was decided, or says that it did not.
func (a *app) prune(c *cobra.Command, s *registry.Session, all []registry.Decision, yes bool) error {
	going := registry.Going(all)
	size := int64(0)
	for _, d := range going {
		size += d.Size
	}
	if !yes {
		a.ui.Info(fmt.Sprintf("dry run: nothing was deleted; --yes deletes %d of %d images, at most %s", len(going), len(all), text.Size(size)))
		return nil
	}
	failed := 0
	for _, d := range going {
		err := s.DeleteListed(c.Context(), d.Entry)
		switch {
		case c.Context().Err() != nil, errors.Is(err, registry.ErrNoDeletion):
			return err
		case err != nil:
			failed++
			a.ui.Warn(d.Name() + ": " + err.Error())
		default:
			a.ui.Info("deleted " + d.Name())
		}
	}
	if failed < len(going) {
		a.ui.Info("the space is free when the registry has collected its garbage")
	}
	return someFailed(failed, len(going), "were not deleted")
}

// withSession runs something with a session that the settings say.
func (a *app) withSession(run func(*cobra.Command, []string, *registry.Session) error) func(*cobra.Command, []string, *pipeline.Build) error {
	return func(c *cobra.Command, args []string, b *pipeline.Build) error {
		s, err := pipeline.NewSession(b.Config, b.Version)
		if err != nil {
			return err
		}
		defer s.Close()
		return run(c, args, s)
	}
}

// readImages lists what is below the prefixes, or below the settings' one.
func (a *app) readImages(c *cobra.Command, prefixes []string, s *registry.Session) ([]registry.Repository, error) {
	if len(prefixes) == 0 {
		if a.settings["TARGET_REGISTRY"] == "" {
			return nil, usageError{errors.New("name a registry: REGISTRY/PREFIX, or set TARGET_REGISTRY and REGISTRY_PREFIX")}
		}
		prefixes = []string{a.settings["TARGET_REGISTRY"] + "/" + strings.Trim(a.settings["REGISTRY_PREFIX"], "/")}
	}
	for _, prefix := range prefixes { // all, before the first is read
		if err := registry.CheckPrefix(prefix); err != nil {
			return nil, usage(err)
		}
	}
	return s.List(c.Context(), prefixes)
}
