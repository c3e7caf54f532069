package fleet

import (
	"context"
	"errors"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/report"
)

// maxReports is how many images are shown with what their reports say, the
// picture among it: with more, no browser would show the page.
const maxReports = 200

// site is the page of a run's images. A report that cannot be read is left out:
// the image may be one that an earlier run built elsewhere.
func (s Summary) site(outputDir string) report.Site {
	site := report.Site{Title: "Images", Made: s.Began}
	for n, i := range s.Images {
		l := report.Listed{Name: i.Name, From: i.Parent, State: string(i.State)}
		if i.Result != nil {
			l.Reference, l.Pushed = i.Result.Reference, !strings.HasPrefix(i.Result.Reference, "oci:")
		} else {
			l.Why = i.Why
		}
		l.Report, l.Page = reportIn(outputDir, i.Name, n)
		site.Images = append(site.Images, l)
	}
	return site
}

// reportIn is what a build left of the n-th image of a site: its report, as far as it can
// be read and n is not too large, and the page of it, relative to the site.
func reportIn(outputDir, name string, n int) (saved *report.Report, page string) {
	dir := Dir(outputDir, name)
	if n < maxReports {
		saved, _ = report.Saved(dir)
	}
	if exists(filepath.Join(dir, report.PageFile)) {
		page = path.Join(filepath.Base(dir), report.PageFile)
	}
	return saved, page
}

// SiteOf is a page of the newest images of ours of each repository, with what its report says
// where OUTPUT_DIR has that: a registry has none. An image is named by its repository. Of one
// that is revoked there is no more than that.
func SiteOf(ctx context.Context, s *registry.Session, repositories []registry.Repository, outputDir string, now time.Time) (report.Site, error) {
	site := report.Site{Title: "Images", Made: now}
	names := map[string]string{} // by the digests that children name
	for _, r := range repositories {
		for _, e := range r.Entries {
			names[e.Digest] = path.Base(e.Repository)
		}
	}
	for n, r := range repositories {
		newest := r.Newest()
		for _, e := range newest {
			name := path.Base(e.Repository)
			if len(newest) > 1 {
				name += "-" + e.Architecture()
			}
			l := report.Listed{
				Name: name, From: names[e.Base], Reference: e.Repository + "@" + e.Digest, Pushed: true, Built: e.Built, Size: e.Size, Tags: e.Tags,
			}
			err := s.Revoked(ctx, e, nil)
			if why, revoked := errors.AsType[registry.Revocation](err); revoked {
				site.Images = append(site.Images, report.Listed{Name: name, From: names[e.Base], State: string(Failed), Why: why.Error()})
				continue
			} else if err != nil {
				return site, err
			}
			if saved, page := reportIn(outputDir, name, n); saved != nil && saved.Image.Digest == e.Digest {
				saved.Outcome = report.Published // if not by that build, later
				l.Report, l.Page = saved, page
			}
			site.Images = append(site.Images, l)
		}
	}
	return site, nil
}
