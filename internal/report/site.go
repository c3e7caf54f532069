package report

import (
	_ "embed"
	"html/template"
	"io"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// SiteFile is the name of a saved site.
const SiteFile = "index.html"

// Site is a page about many images.
type Site struct {
	Title  string
	Made   time.Time
	Images []Listed // in the order to show them, parents first
}

// Listed is one image of a site.
type Listed struct {
	Name  string
	From  string // the image that it starts from, or empty
	State string // how its build ended, in a word; empty where nothing was done
	Why   string // why it was not built, or failed
	// Reference is where the image can be had, with digest; empty where nowhere.
	Reference string
	Pushed    bool    // the reference is one of a registry
	Report    *Report // nil where there is none
	Page      string  // of the report, a path relative to the site; or empty

	// What a registry knows, where there is no report.
	Built time.Time // zero where it is not known
	Size  int64     // in bytes; 0 where it is not known
	Tags  []string
}

// Save writes index.html into dir, in one piece or not at all.
func (s Site) Save(dir string) (page string, err error) {
	page = filepath.Join(dir, SiteFile)
	return page, host.WriteFile(page, 0o644, s.WriteHTML)
}

// WriteHTML writes the page, which needs nothing else: no network, no fonts, no
// scripts. Links lead to the images' reports.
func (s Site) WriteHTML(w io.Writer) error {
	v := siteView{Title: text.Line(s.Title), Made: s.Made.UTC()}
	packages := map[string]map[string]bool{} // of each image that has a report, by their names
	for _, i := range s.Images {
		if i.Report != nil {
			packages[i.Name] = map[string]bool{}
			for _, p := range i.Report.Packages {
				packages[i.Name][p.Name] = true
			}
		}
	}
	for n, i := range s.Images {
		v.Images = append(v.Images, newCard(n, i, packages[i.From]))
	}
	return siteTemplate.Execute(w, v)
}

//go:embed site.html.tmpl
var siteText string

var siteTemplate = template.Must(template.Must(pageTemplate.Clone()).New("site").Funcs(template.FuncMap{
	"page": func(path string) string { return (&url.URL{Path: path}).String() },
}).Parse(siteText))

type siteView struct {
	Title  string
	Made   time.Time
	Images []card
}

// card is an image as the page shows it.
type card struct {
	*view
	ID              int
	Name, From      string
	Note            string // why it was not built, or failed
	Reference, Page string
	Pushed          bool
	Tags            string
	bytes           int64     // that are known without a report
	Picture         *Picture  // what the guest's screen showed last
	Own             []Package // installed here, and not in what the image starts from
}

// newCard shows an image, of whose parent it knows the packages, or nil.
func newCard(id int, i Listed, parent map[string]bool) card {
	c := card{
		ID: id, Name: cleanText(i.Name, defaultText), From: cleanText(i.From, defaultText), Note: cleanText(i.Why, 1000),
		Reference: cleanText(i.Reference, 1000), Page: i.Page, Pushed: i.Pushed,
		Tags: cleanText(strings.Join(i.Tags, ", "), 1000), bytes: i.Size,
	}
	if i.Report == nil {
		c.view = &view{Report: &Report{Began: i.Built.UTC()}, Mood: "open", Head: cleanText(i.State, defaultText)}
		if i.Reference != "" {
			c.Mood = "good"
		}
		return c
	}
	c.view = i.Report.view()
	if n := len(c.Pictures); n > 0 {
		c.Picture = &c.Pictures[n-1]
	}
	if parent == nil {
		return c
	}
	for _, p := range c.Packages {
		if !parent[p.Name] {
			c.Own = append(c.Own, p)
		}
	}
	return c
}

// Size is that of the layer, which nodes fetch; 0 where it is not known.
func (c card) Size() int64 {
	if n := len(c.Sizes); n > 0 {
		return c.Sizes[n-1].Bytes
	}
	return c.bytes
}
