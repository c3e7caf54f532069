//go:build e2e || nightly

package e2e

import (
	"bytes"
	"encoding/json"
	"image"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/report"
)

// readReport reads the report that a build left in a folder, which must have
// its page beside it.
func readReport(t testing.TB, dir string) *report.Report {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, report.DataFile))
	require.NoError(t, err)
	defer f.Close()
	r, err := report.Read(f)
	require.NoError(t, err)
	page, err := os.ReadFile(filepath.Join(dir, report.PageFile))
	require.NoError(t, err)
	assert.True(t, bytes.Contains(page, []byte(r.Image.Name)), "the page is of another image")
	return r
}

// stage returns a stage of the report.
func stage(t testing.TB, r *report.Report, name string) report.Stage {
	t.Helper()
	for _, s := range r.Stages {
		if s.Name == name {
			return s
		}
	}
	require.Fail(t, "the report has no stage "+name)
	return report.Stage{}
}

// failed are the checks that do not hold, each in a line.
func failed(r *report.Report) []string {
	var lines []string
	for _, c := range r.Checks {
		if !c.OK && c.Excused == "" {
			lines = append(lines, c.Group+" "+c.Name+": "+c.Detail)
		}
	}
	return lines
}

// groups are the groups of checks in the report.
func groups(r *report.Report) []string {
	var all []string
	for _, c := range r.Checks {
		if len(all) == 0 || all[len(all)-1] != c.Group {
			all = append(all, c.Group)
		}
	}
	return all
}

// tellsAll checks that the report of a published image has all its parts.
func tellsAll(t testing.TB, r *report.Report, reference string) {
	t.Helper()
	assert.Equal(t, report.Published, r.Outcome)
	assert.Equal(t, reference, r.Image.Reference)
	assert.True(t, strings.HasSuffix(reference, "@"+r.Image.Digest), r.Image.Digest)
	assert.Empty(t, r.Failure)
	assert.Empty(t, failed(r))
	assert.Subset(t, groups(r), []string{"hygiene", "boot", "playbook", "containerdisk"})
	assert.NotEmpty(t, r.Tasks)
	assert.NotEmpty(t, r.Boot)
	assert.NotEmpty(t, r.Tools["packer"])
	assert.NotEmpty(t, r.Playbook.Revision)
	assert.Regexp(t, "^sha256:", r.Base.Digest)

	sizes := map[string]int64{}
	for _, s := range r.Sizes {
		sizes[s.Name] = s.Bytes
	}
	for _, name := range []string{"base", "changes to it", "sparsified", "layer"} {
		assert.Positive(t, sizes[name], name)
	}
	packages := map[string]string{}
	for _, p := range r.Packages {
		packages[p.Name] = p.Version
	}
	assert.NotEmpty(t, packages["cloud-init"])
	require.NotEmpty(t, r.Pictures)
	for _, p := range r.Pictures {
		picture, err := png.Decode(bytes.NewReader(p.PNG))
		require.NoError(t, err, p.Title)
		assert.False(t, oneColour(picture), "there is nothing to see in the picture %q", p.Title)
	}
}

func oneColour(i image.Image) bool {
	r := i.Bounds()
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			if i.At(x, y) != i.At(r.Min.X, r.Min.Y) {
				return false
			}
		}
	}
	return true
}

// inspected is what diskforge inspect says of an image, which must keep the
// whole contract.
func inspected(t testing.TB, env map[string]string, what string) contract.Report {
	t.Helper()
	r := start(t, env, diskforge(t), "inspect", "--json", what)
	require.Zero(t, r.wait(5*time.Minute), r.errors())
	var found contract.Report
	require.NoError(t, json.Unmarshal(r.stdout.Bytes(), &found))
	require.NotEmpty(t, found.Checks)
	for _, c := range found.Checks {
		assert.Contains(t, []contract.Level{contract.OK, contract.Note}, c.Level, "%s: %s: %s", what, c.Check, c.Detail)
	}
	return found
}

// counts are the states in which the images of the last build-all ended.
func counts(t testing.TB, dir string) map[string]int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "build-all.json"))
	require.NoError(t, err)
	var summary struct{ Counts map[string]int }
	require.NoError(t, json.Unmarshal(text, &summary))
	return summary.Counts
}
