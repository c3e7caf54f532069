package fleet

import (
	"path"
	"path/filepath"
	"strings"

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
