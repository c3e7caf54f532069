package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/fleet/outdated"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// threshold is from when on an image is outdated.
type threshold struct {
	days                 int // or negative
	security, superseded bool
}

func (t threshold) passed(i outdated.Image) bool {
	return i.Error == "" && (i.Revoked != "" || t.days >= 0 && (i.Days == nil || *i.Days > t.days) || t.security && len(i.Security) > 0 ||
		t.superseded && i.Parent == outdated.Superseded)
}

func (a *app) outdated() *cobra.Command {
	var limit threshold
	var key string
	c := a.command("outdated [REGISTRY/PREFIX…]", "Say which published images are old, and which lack security updates",
		`Say of the newest image of ours of each repository at and below REGISTRY/PREFIX, or
what TARGET_REGISTRY and REGISTRY_PREFIX name, how many days ago its playbook ran, whether
the image that it was made from has a newer one, and which security updates are pending:
by the SBOM that a build with SIGNING_KEY attaches, and by what the archives of Debian or
Ubuntu (or APT_MIRROR) have now. With --json each image is one JSON object on standard output.

The exit code is 1 where an image passes what --max-days, --security and --superseded
allow or is revoked, or its age is not known and --max-days is given, and where something could
not be read. An image without an SBOM says so; that is
no failure.`,
		cobra.ArbitraryArgs, nil, func(c *cobra.Command, args []string, b *pipeline.Build) error {
			o := outdated.Options{AptMirror: b.Config.AptMirror, CAFile: b.Config.CAFile, Now: time.Now()}
			if c.Flags().Changed("max-days") && limit.days < 0 {
				return usageError{errors.New("--max-days: give a number of days, e.g. 30")}
			}
			if key != "" {
				public, err := pipeline.PublicKey(c.Context(), key)
				wrong := settings.Mistakes{}
				if wrong.Check("--key", err); err != nil {
					return wrong
				}
				o.Key = &public
			}
			s, err := pipeline.NewSession(b.Config, b.Version)
			if err != nil {
				return err
			}
			defer s.Close()
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
			for _, err := range archives {
				a.ui.Warn(err.Error())
			}
			if a.json {
				err = printJSON(a.stdout, all...)
			} else {
				err = a.writeOutdated(all)
			}
			return errors.Join(err, judge(all, limit))
		})
	c.Flags().IntVar(&limit.days, "max-days", -1, "fail where an image is older than so many days (default: however old)")
	c.Flags().BoolVar(&limit.security, "security", false, "fail where a security update is pending")
	c.Flags().BoolVar(&limit.superseded, "superseded", false, "fail where an image was made from one that has a newer one")
	c.Flags().StringVar(&key, "key", "", "public key (its file, or NAME://KEY): only SBOMs and revocations that its holder signed count")
	return c
}

var errNoImages = failure.New("there is no image by diskforge", "check the prefix")

// judge is the error that images are outdated or could not be looked at, or nil.
func judge(all []outdated.Image, limit threshold) error {
	old, failed := 0, 0
	for _, i := range all {
		if i.Error != "" {
			failed++
		}
		if limit.passed(i) {
			old++
		}
	}
	var what, try []string
	if old > 0 {
		what, try = append(what, fmt.Sprintf("%d of %s outdated", old, are(len(all)))), append(try, "rebuild them")
	}
	if failed > 0 {
		what, try = append(what, fmt.Sprintf("%d of %s not known in full", failed, are(len(all)))), append(try, "see why above")
	}
	switch {
	case len(all) == 0:
		return errNoImages
	case len(what) > 0:
		return failure.New(strings.Join(what, ", "), strings.Join(try, ", "))
	}
	return nil
}

func are(n int) string {
	return text.Count(n, "image") + map[bool]string{true: " is", false: " are"}[n == 1]
}

// writeOutdated writes a line for each image.
func (a *app) writeOutdated(all []outdated.Image) error {
	var rows []string
	for _, i := range all {
		others := strconv.Itoa(i.Others)
		if i.Unknown != "" || i.Error != "" {
			others = "?"
		}
		days := "?"
		if i.Days != nil {
			days = strconv.Itoa(*i.Days)
		}
		parent := i.Parent
		if parent == "" || parent == outdated.Unknown {
			parent = "?"
		}
		rows = append(rows, strings.Join([]string{i.Repository, strings.Join(i.Tags, ","), days, parent, others, pending(i)}, "\t"))
	}
	return table(a.stdout, "REPOSITORY\tTAGS\tDAYS\tPARENT\tUPDATES\tSECURITY UPDATES", rows)
}

// pending are the security updates of an image by name, a handful of them, or why they
// are not known.
func pending(i outdated.Image) string {
	const handful = 5
	names := base.Sources(i.Security)
	switch {
	case i.Error != "":
		return "error: " + text.Line(i.Error)
	case i.Revoked != "":
		return i.Revoked
	case i.Unknown != "":
		return "not known: " + i.Unknown
	case len(names) == 0:
		return "none"
	case len(names) > handful:
		return fmt.Sprintf("%d: %s …", len(names), strings.Join(names[:handful], ", "))
	}
	return fmt.Sprintf("%d: %s", len(names), strings.Join(names, ", "))
}
