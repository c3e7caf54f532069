package fleet

import (
	"path"
	"path/filepath"
	"slices"
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
		dir := Dir(outputDir, i.Name)
		l := report.Listed{Name: i.Name, From: i.Parent, State: string(i.State)}
		if i.Result != nil {
			l.Reference, l.Pushed = i.Result.Reference, !strings.HasPrefix(i.Result.Reference, "oci:")
		} else {
			l.Why = i.Why
		}
		if n < maxReports {
			l.Report, _ = report.Saved(dir)
		}
		if exists(filepath.Join(dir, report.PageFile)) {
			l.Page = path.Join(filepath.Base(dir), report.PageFile)
		}
		site.Images = append(site.Images, l)
	}
	return site
}

// SiteOf is a page of the newest image of ours of each repository, with what its report says
// where OUTPUT_DIR has that: a registry has none. An image is named by its repository.
func SiteOf(repositories []registry.Repository, outputDir string, now time.Time) report.Site {
	site := report.Site{Title: "Images", Made: now}
	names := map[string]string{} // by the digests that children name
	for _, r := range repositories {
		for _, e := range r.Entries {
			names[e.Digest] = path.Base(e.Repository)
		}
	}
	for n, r := range repositories {
		ours := slices.DeleteFunc(slices.Clone(r.Entries), func(e registry.Entry) bool { return !e.Ours() })
		if len(ours) == 0 {
			continue
		}
		e := slices.MaxFunc(ours, func(a, b registry.Entry) int { return a.Built.Compare(b.Built) })
		name := path.Base(e.Repository)
		l := report.Listed{
			Name: name, From: names[e.Base], Reference: e.Repository + "@" + e.Digest, Pushed: true, Built: e.Built, Size: e.Size, Tags: e.Tags,
		}
		dir := Dir(outputDir, name)
		if saved, err := report.Saved(dir); err == nil && n < maxReports && saved.Image.Digest == e.Digest {
			l.Report = saved
			if exists(filepath.Join(dir, report.PageFile)) {
				l.Page = path.Join(filepath.Base(dir), report.PageFile)
			}
		}
		site.Images = append(site.Images, l)
	}
	return site
}
