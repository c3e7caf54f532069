package report_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/report"
)

// site is one of images in every state.
func site(t testing.TB) report.Site {
	t.Helper()
	parent, child := demo(t), demo(t)
	child.Packages = append(child.Packages, report.Package{Name: "octave", Version: "7.3.0-2"})
	child.Image.Name = "octave-lab"
	return report.Site{Title: "Images of numerical-methods", Made: time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC), Images: []report.Listed{
		{Name: "debian-12", State: "done", Reference: "harbor.example.org/labs/debian-12:1@" + demoDigest, Pushed: true, Report: parent, Page: "debian-12/report.html"},
		{Name: "octave-lab", From: "debian-12", State: "done", Reference: "oci:out/octave-lab/octave-lab@" + demoDigest, Report: child, Page: "octave-lab/report.html"},
		{Name: "broken", From: "debian-12", State: "failed", Why: "verify: 2 of 47 checks failed", Report: failed(t), Page: "broken/report.html"},
		{Name: "<script>alert(1)</script>", From: "broken", State: "blocked", Why: "broken failed\x1b[31m<b>"},
		{Name: "old", State: "skipped", Reference: "harbor.example.org/labs/old:1@" + demoDigest, Pushed: true, Page: "a b/%/report.html"},
	}}
}

func TestASiteShowsEachImageAndNothingOfAnothersMarkup(t *testing.T) {
	t.Parallel()
	dir := siteDir(t)
	page, err := site(t).Save(dir)
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(dir, "index.html"), page)
	b, err := os.ReadFile(page)
	require.NoError(t, err)
	html := string(b)
	assert.Equal(t, 5, strings.Count(html, "<article "))
	assert.Contains(t, html, `<summary>1 package beyond debian-12</summary>`)
	assert.Contains(t, html, `octave <span class="muted">7.3.0-2</span>`)
	assert.Contains(t, html, "virtctl create vm --volume-containerdisk=src:harbor.example.org/labs/debian-12:1@"+demoDigest)
	assert.NotContains(t, html, "src:oci:", "a layout is no image that a cluster could fetch")
	assert.Contains(t, html, `<a href="octave-lab/report.html">`)
	assert.Contains(t, html, `<a href="a%20b/%25/report.html">`)
	assert.Contains(t, html, "verify: 2 of 47 checks failed")
	assert.NotContains(t, html, "<script>")
	assert.NotContains(t, html, "\x1b")
	assert.NotContains(t, html, "<b>")
}

// siteDir is where the browser of .ci/tools/page looks for the site, else a folder of the test.
func siteDir(t *testing.T) string {
	if dir := os.Getenv("DISKFORGE_TEST_PAGES"); dir != "" {
		return dir
	}
	return t.TempDir()
}
