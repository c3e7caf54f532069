package report_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"encoding/xml"
	"errors"
	"html"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/report"
)

func written(t testing.TB, write func(io.Writer) error) string {
	t.Helper()
	var b strings.Builder
	require.NoError(t, write(&b))
	return b.String()
}

func terminal(r *report.Report, width int, colour bool) func(io.Writer) error {
	return func(w io.Writer) error { return r.WriteTerminal(w, width, colour, "out/report.html") }
}

// inOrder asserts that the texts follow one another.
func inOrder(t *testing.T, all string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		_, after, found := strings.Cut(all, text)
		require.True(t, found, "%q is not there, or not in its place", text)
		all = after
	}
}

func TestThePageTellsWhatWasMadeFromWhat(t *testing.T) {
	t.Parallel()
	inOrder(t, html.UnescapeString(written(t, demo(t).WriteHTML)),
		"<title>Published: labs/debian-12:2026-11-23", "Published</span></h1>", "labs/debian-12:2026-11-23@"+demoDigest,
		"30 of 31", "Made from", baseDigest, "Base release", "20261116-2299", "signed by", "nobody", "playbooks/debian-base.yml", "QEMU", "ANSIBLE_PLAYBOOK",
		"Timeline", ">provision<", "7 min 47 s", "boot", "cloud-init done", "2 min 28 s",
		"Ansible", "The longest", "apt : Install services and utilities", "1 min 56 s", "All tasks",
		"Sizes", "+319 MiB", "743 MiB", "−73 %", "198 MiB",
		"Checks", "Excused: the key of Debian's ssl-cert package", "Pictures", "data:image/png;base64,",
		"SBOM", "412 packages in sbom.spdx.json and sbom.cdx.json", "Packages", "412 installed", "adduser")
}

func TestTheSBOMIsNamedOrWhyThereIsNone(t *testing.T) {
	t.Parallel()
	assert.Contains(t, written(t, demo(t).WriteMarkdown), `SBOM: 412 packages in sbom\.spdx\.json and sbom\.cdx\.json`)
	assert.Contains(t, written(t, demo(t).WriteJSON), `"sbom.cdx.json"`)
	r := demo(t)
	r.SBOM = report.SBOM{None: "the disk has no list"}
	assert.Contains(t, written(t, r.WriteHTML), "none was written: the disk has no list")
	assert.Contains(t, written(t, r.WriteMarkdown), `SBOM: none was written\: the disk has no list`)
	r.SBOM = report.SBOM{}
	for _, write := range []func(io.Writer) error{r.WriteHTML, r.WriteMarkdown, r.WriteJSON} {
		assert.NotContains(t, strings.ToLower(written(t, write)), "sbom", "nobody looked")
	}
}

func TestAFailureIsTheFirstThingThatIsSeen(t *testing.T) {
	t.Parallel()
	inOrder(t, written(t, failed(t).WriteHTML),
		"<title>Failed in verify", "Failed in verify</span></h1>", "2 of 47 checks failed", "holds an OpenSSH private key",
		"out/work/logs/verify/console.log", "<h2 id=\"checks\"", "✗ failed", "no private keys in homes", "! excused", "✓ passed", "Made from")
	inOrder(t, written(t, brokenTask(t).WriteHTML), "Failed in provision", "Unable to locate package", "The longest", "✗ failed", "apt : Upgrade the system")
	inOrder(t, written(t, failed(t).WriteMarkdown), "## ❌ Failed in verify", "2 of 47 checks failed", "no private keys in homes", "### Stages", "❌ verify", "### The longest of 20 tasks", "### Sizes")
	inOrder(t, written(t, terminal(failed(t), 80, false)), "✗ Failed in verify", "2 of 47 checks failed", "✗ verify", "2 failed", "out/report.html")
}

func TestAnEmptyReportIsAReport(t *testing.T) {
	t.Parallel()
	r := &report.Report{}
	page := written(t, r.WriteHTML)
	assert.Contains(t, page, "Outcome unknown")
	assert.NotContains(t, page, "<table")
	assert.Contains(t, written(t, r.WriteMarkdown), "unnamed image")
	assert.Contains(t, written(t, terminal(r, 80, true)), "Outcome unknown")
	r.Outcome = report.Failed
	assert.Contains(t, written(t, r.WriteHTML), "No reason was recorded.")
}

func TestNothingOfAGuestBecomesMarkup(t *testing.T) {
	t.Parallel()
	page := written(t, hostile(t).WriteHTML)
	for _, forbidden := range []string{"\x1b", "\u202e", "\x00"} {
		assert.NotContains(t, page, forbidden)
	}
	allowed := []string{"charset", "http-equiv", "content", "name", "rel", "lang", "class", "id", "datetime", "role", "scope", "title", "open", "alt", "width", "height",
		"viewBox", "cx", "cy", "r", "d", "x", "y", "x1", "x2", "y2", "rx"}
	for _, start := range starts(t, page) {
		assert.NotContains(t, []string{"script", "iframe", "object", "form", "a", "base"}, start.Name.Local)
		for _, a := range start.Attr {
			switch name := a.Name.Local; name {
			case "href", "src":
				assert.Regexp(t, "^data:(image/png;base64,|,$)", a.Value)
			default:
				assert.True(t, slices.Contains(allowed, name) || strings.HasPrefix(name, "aria-"), name)
			}
		}
	}
	assert.True(t, utf8.ValidString(page))
	assert.Contains(t, page, "gnp.exe", "what is escaped is still told")
	assert.Contains(t, page, "default-src &#39;none&#39;")
}

func TestTheParsersOfOtherToolsSeeTheSameElementsWithAnyText(t *testing.T) {
	t.Parallel()
	assert.Equal(t, elements(t, plain(t)), elements(t, quoted(t)))
}

// plain and quoted differ in their texts only.
func plain(t *testing.T) *report.Report { r := demo(t); r.Pictures = nil; return r }

func quoted(t *testing.T) *report.Report {
	const quotes = `"'><b>&lt;--></td><!--`
	r := plain(t)
	r.Image.Name, r.Base.Name, r.Playbook.Source, r.Version = quotes, quotes, quotes, quotes
	for i := range r.Tasks {
		r.Tasks[i].Name += quotes
	}
	for i := range r.Stages {
		r.Stages[i].Name += quotes
		r.Stages[i].Result += quotes
	}
	for i := range r.Packages {
		r.Packages[i].Version += quotes
	}
	return r
}

// elements counts the elements of the page.
func elements(t *testing.T, r *report.Report) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for _, start := range starts(t, written(t, r.WriteHTML)) {
		counts[start.Name.Local]++
	}
	return counts
}

// starts are the start tags of the page.
func starts(t *testing.T, page string) []xml.StartElement {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(strings.Replace(page, "<!doctype html>", "", 1)))
	d.Strict, d.AutoClose, d.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
	var all []xml.StartElement
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		if start, ok := token.(xml.StartElement); ok {
			all = append(all, start.Copy())
		}
	}
}

func TestAHostileSummaryStaysTextAndBelowGitHubsLimit(t *testing.T) {
	t.Parallel()
	r := hostile(t)
	for range 100 {
		r.Checks = append(r.Checks, r.Checks[len(r.Checks)-2:]...)
		r.Stages = append(r.Stages, r.Stages[len(r.Stages)-1])
		r.Failure = append(r.Failure, r.Failure[0])
	}
	summary := written(t, r.WriteMarkdown)
	assert.Less(t, len(summary), 1<<20)
	assert.True(t, utf8.ValidString(summary))
	assert.NotContains(t, summary, "\x1b")
	assert.NotRegexp(t, `(^|[^\\])<(script|img|a|/style)\b`, summary)
	assert.Equal(t, 1, strings.Count(summary, "</pre>"))
	unescaped := regexp.MustCompile("(^|[^\\\\])(`|\\*\\*b|\\[a|@all|<img)")
	for line := range strings.Lines(summary) {
		if strings.HasPrefix(line, "|") {
			assert.NotRegexp(t, unescaped, line)
		}
	}
	assert.Regexp(t, `… and \d+ more`, summary)
}

func TestATerminalGetsFewLinesThatFitAndNothingOfTheGuests(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]*report.Report{"demo": demo(t), "failed": failed(t), "hostile": hostile(t), "large": large(t), "empty": {}} {
		for _, width := range []int{0, 40, 80, 200} {
			text := written(t, terminal(r, width, false))
			assert.NotContains(t, text, "\x1b", name)
			lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
			assert.LessOrEqual(t, len(lines), 25, name)
			for _, line := range lines {
				if !strings.HasPrefix(line, "  image") {
					assert.LessOrEqual(t, ansi.StringWidth(line), max(width, 40), "%s: %s", name, line)
				}
			}
			assert.Equal(t, text, ansi.Strip(written(t, terminal(r, width, true))), "colour changes no text")
		}
	}
	inOrder(t, written(t, terminal(demo(t), 100, false)), "✓ Published", "@"+demoDigest, "provision      7 min 47 s",
		"longest  1 min 56 s   apt : Install", "base 424 MiB → provisioned 743 MiB → sparsified 198 MiB → layer 198 MiB", "30 of 31 passed, 1 excused", "report   out/report.html")
}

func TestAReportThatIsReadAgainIsTheSameInEveryForm(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]*report.Report{"demo": demo(t), "failed": failed(t), "hostile": hostile(t), "empty": {}} {
		first := written(t, r.WriteJSON)
		again, err := report.Read(strings.NewReader(first))
		require.NoError(t, err, name)
		assert.Equal(t, first, written(t, again.WriteJSON), name)
		assert.Equal(t, written(t, r.WriteHTML), written(t, again.WriteHTML), name)
		assert.Equal(t, written(t, r.WriteMarkdown), written(t, again.WriteMarkdown), name)
	}
}

func TestWhatIsNoReportIsRefused(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                                     "no report of diskforge",
		"[]":                                   "no report of diskforge",
		"{}":                                   "has schema 0, this diskforge reads schema 1",
		`{"schema": 2, "outcome": {"new": 1}}`: "has schema 2, this diskforge reads schema 1: use the diskforge that wrote it",
		`{"schema": 1, "outcome": 7}`:          "no report of diskforge",
		`{"schema": 1} {"schema": 1}`:          "no report of diskforge",
	} {
		_, err := report.Read(strings.NewReader(text))
		assert.ErrorContains(t, err, want, text)
	}
	_, err := report.Read(endless{})
	assert.ErrorContains(t, err, "larger than 256 MiB")
}

// endless is a report that does not end.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

func TestAReportOfALargeBuildIsNotLarge(t *testing.T) {
	t.Parallel()
	r := large(t)
	page := written(t, r.WriteHTML)
	assert.Less(t, len(page), 2<<20)
	assert.Equal(t, 2000+10, strings.Count(page, "role_"), "every task, and the longest")
	assert.Less(t, len(written(t, r.WriteJSON)), 1<<20)
	assert.Less(t, len(written(t, r.WriteMarkdown)), 16<<10)
}

func TestWhatIsLeftOutIsTold(t *testing.T) {
	t.Parallel()
	r := demo(t)
	for range 6000 {
		r.Tasks = append(r.Tasks, report.Task{Name: "again", Status: report.OK})
	}
	again, err := report.Read(strings.NewReader(written(t, r.WriteJSON)))
	require.NoError(t, err)
	assert.Len(t, again.Tasks, 5000)
	assert.Equal(t, 1000+len(demoTasks), again.Omitted)
	assert.Contains(t, written(t, again.WriteHTML), "1020 rows were too many")
}

func TestALongTextIsCutWhereACharacterEnds(t *testing.T) {
	t.Parallel()
	r := &report.Report{Tasks: []report.Task{{Name: strings.Repeat("é", 1<<20)}}}
	again, err := report.Read(strings.NewReader(written(t, r.WriteJSON)))
	require.NoError(t, err)
	assert.Equal(t, strings.Repeat("é", 199)+"…", again.Tasks[0].Name)
}

func TestOnlyPicturesAreShown(t *testing.T) {
	t.Parallel()
	r := demo(t)
	r.Pictures = append(r.Pictures, report.Picture{Title: "no picture", PNG: []byte("<svg onload=alert(1)>")}, report.Picture{Title: "nothing"})
	r.Pictures[0].Width = 1 << 30
	page := written(t, r.WriteHTML)
	assert.Equal(t, 2, strings.Count(page, "<img "))
	assert.Contains(t, page, `alt="Screenshot: the console at login" width="720" height="400"`)
	assert.NotContains(t, page, "no picture")
}

func TestTheReportIsSavedBesideTheImage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := demo(t)
	file, err := r.Save(dir)
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(dir, "report.html"), file)
	page, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, written(t, r.WriteHTML), string(page))
	data, err := os.ReadFile(filepath.Join(dir, "report.json"))
	require.NoError(t, err)
	assert.True(t, json.Valid(data))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 2)

	_, err = r.Save(filepath.Join(dir, "missing"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func FuzzRead(f *testing.F) {
	for _, r := range []*report.Report{{}, brokenTask(f)} {
		f.Add([]byte(written(f, r.WriteJSON)))
	}
	f.Add([]byte(`{"schema":1,"began":"9999-12-31T23:59:59-23:59","stages":[{"start":9223372036854775807,"took":-1}],"boot":[{"at":-5}],"sizes":[{"bytes":9223372036854775807},{"bytes":-1}],"tasks":[{"took":9223372036854775807},{"took":9223372036854775807}],"tools":{"\u202e":"\u001b[31m"}}`))
	f.Add([]byte(`{"schema":1,"outcome":"failed","failure":[""],"checks":[{}],"pictures":[{"png":"iVBORw0KGgo="}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := report.Read(bytes.NewReader(data))
		if err != nil {
			return
		}
		again, err := report.Read(strings.NewReader(written(t, r.WriteJSON)))
		require.NoError(t, err)
		assert.Equal(t, written(t, r.WriteHTML), written(t, again.WriteHTML))
		assert.NotContains(t, written(t, r.WriteMarkdown), "\x1b")
		assert.NotContains(t, written(t, terminal(r, 80, false)), "\x1b")
	})
}

// TestEveryKindOfReportIsSaved writes the reports below DISKFORGE_TEST_PAGES
// where that is set, for the tests that look at the pages in a browser.
func TestEveryKindOfReportIsSaved(t *testing.T) {
	t.Parallel()
	dir := cmp.Or(os.Getenv("DISKFORGE_TEST_PAGES"), t.TempDir())
	for name, r := range map[string]*report.Report{
		"published": demo(t), "failed": failed(t), "task": brokenTask(t), "hostile": hostile(t), "empty": {},
	} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
		page, err := r.Save(filepath.Join(dir, name))
		require.NoError(t, err)
		assert.Equal(t, filepath.Join(dir, name, report.PageFile), page)
		saved, err := os.Open(filepath.Join(dir, name, report.DataFile))
		require.NoError(t, err)
		_, err = report.Read(saved)
		require.NoError(t, err)
		require.NoError(t, saved.Close())
	}
}
