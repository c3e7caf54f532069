// Package page has no code: its tests look at the report's page in a real
// browser. They lie here and not beside the report, because what drives the
// browser is no dependency of the program's module.
package page

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestThePageIsReadableInARealBrowser shows reports in Chromium on screens of
// several sizes, light and dark. With -artifacts it keeps screenshots to look
// at.
func TestThePageIsReadableInARealBrowser(t *testing.T) {
	b, dir := newBrowser(t), pages(t)
	for _, name := range []string{"published", "failed", "task", "hostile", "empty", "site"} {
		if name == "site" {
			b.open(filepath.Join(dir, "index.html"))
		} else {
			b.open(filepath.Join(dir, name, "report.html"))
		}
		b.check(name, "light", 1280)
		b.check(name, "dark", 360)
		if name == "published" || name == "failed" || name == "site" {
			b.check(name, "dark", 1280)
			b.check(name, "light", 360)
		}
		assert.Equal(t, 1.0, b.number(`document.querySelectorAll("h1").length`), name)
		assert.Zero(t, b.number(headingSkips), "%s: headings go one level deeper at a time", name)
		assert.Zero(t, b.number(`[...document.images].filter(i => !i.alt || !i.complete || !i.naturalWidth).length`), "%s: pictures are shown and have an alternative", name)
		assert.Equal(t, "rgb(255, 255, 255)", b.light(), "%s: the style passes the page's own policy", name)
	}
	assert.Empty(t, b.complaints(), "the console is silent, and nothing is fetched")
}

// headingSkips counts headings that are more than one level below the one
// before.
const headingSkips = `[...document.querySelectorAll("h1,h2,h3,h4")].map(h => +h.tagName[1]).filter((level, i, all) => level > (i ? all[i-1] : 0) + 1).length`

// TestTheWholeReportIsPrinted looks at what paper would show of what is folded
// on the screen.
func TestTheWholeReportIsPrinted(t *testing.T) {
	b := newBrowser(t)
	b.open(filepath.Join(pages(t), "published", "report.html"))
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Media: "print"})
	assert.True(t, run(b, chromedp.Poll[bool](`[...document.querySelectorAll("details td, details li")].every(e => e.checkVisibility({contentVisibilityAuto: true}) && e.getBoundingClientRect().height)`,
		chromedp.WithPollingTimeout(10*time.Second))))
	b.screenshot("printed")
	pdf := run(b, chromedp.PrintToPDF(chromedp.PDFPrintBackground()))
	require.NoError(t, os.WriteFile(filepath.Join(t.ArtifactDir(), "published.pdf"), pdf, 0o600))
	assert.Greater(t, len(pdf), 10_000)
}

// pages has the report's own tests write their reports, each into a folder of
// its name.
func pages(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	c := exec.Command("go", "test", "-count=1", "-run", "^(TestEveryKindOfReportIsSaved|TestASiteShowsEachImageAndNothingOfAnothersMarkup)$", "./internal/report")
	c.Dir, c.Env = "../../..", append(os.Environ(), "DISKFORGE_TEST_PAGES="+dir)
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return dir
}

// browser is a headless Chromium with one page.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu  sync.Mutex
	bad []string
}

// newBrowser starts Chromium; it ends, with all its processes, when the test
// does.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath("chromium"), chromedp.UserDataDir(t.TempDir()),
		chromedp.ModifyCmdFunc(func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		}),
	}
	for _, flag := range []string{
		"headless", "hide-scrollbars", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
		"disable-component-update", "disable-sync", "disable-dev-shm-usage",
	} {
		options = append(options, chromedp.Flag(flag, true))
	}
	allocator, stop := chromedp.NewExecAllocator(t.Context(), options...)
	ctx, _ := chromedp.NewContext(allocator)
	b := &browser{t: t, ctx: ctx}
	require.NoError(t, chromedp.Do(ctx))
	group := chromedp.FromContext(ctx).Browser.Process().Pid
	t.Cleanup(func() {
		stop()
		assert.Eventually(t, func() bool { return !running(group) }, 10*time.Second, 50*time.Millisecond, "no process is left")
	})
	require.NoError(t, chromedp.Listen(ctx, b.hear))
	call(b, network.Enable, network.EnableParams{})
	call(b, log.Enable, cdp.Empty{})
	return b
}

// running says whether a process of the group lives; /proc/PID/stat is PID
// (NAME) STATE PARENT GROUP … (proc(5)).
func running(group int) bool {
	processes, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range processes {
		text, _ := os.ReadFile(name)
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		if len(fields) > 2 && fields[0] != "Z" && fields[2] == strconv.Itoa(group) {
			return true
		}
	}
	return false
}

// hear notes whatever a page that needs nothing and does nothing must not do.
func (b *browser) hear(event any) {
	var what string
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		if strings.HasPrefix(e.Request.URL, "file://") && (strings.HasSuffix(e.Request.URL, "/report.html") || strings.HasSuffix(e.Request.URL, "/index.html")) || strings.HasPrefix(e.Request.URL, "data:") {
			return
		}
		what = "request of " + e.Request.URL
	case *log.EventEntryAdded:
		what = "console: " + e.Entry.Text
	case *runtime.EventConsoleAPICalled:
		what = "script: " + string(e.Type)
	case *runtime.EventExceptionThrown:
		what = "exception: " + e.ExceptionDetails.Text
	case *page.EventJavascriptDialogOpening:
		what = "dialogue: " + e.Message
	default:
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bad = append(b.bad, what)
}

func (b *browser) complaints() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bad
}

// run runs one action in the page.
func run[T any](b *browser, action chromedp.Action[T]) T {
	b.t.Helper()
	result, err := chromedp.Run(b.ctx, action)
	require.NoError(b.t, err)
	return result
}

// call sends one command of the DevTools protocol.
func call[P, R any](b *browser, command cdp.Command[P, R], params P) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, command, params)
	require.NoError(b.t, err)
}

func (b *browser) open(file string) {
	b.t.Helper()
	run(b, chromedp.Navigate((&url.URL{Scheme: "file", Path: file}).String()))
}

// show sets the colour scheme and the width of the screen in CSS pixels.
func (b *browser) show(scheme string, width int64) {
	b.t.Helper()
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
	run(b, chromedp.EmulateViewport(width, 800))
}

func (b *browser) number(script string) float64 {
	b.t.Helper()
	return run(b, chromedp.Evaluate[float64](script))
}

// light is the page's background in the light scheme.
func (b *browser) light() string {
	b.t.Helper()
	b.show("light", 1280)
	return run(b, chromedp.Evaluate[string](`getComputedStyle(document.body).backgroundColor`))
}

// overflowing names the elements that stick out to the right.
const overflowing = `[...document.querySelectorAll("body *")].filter(e => e.checkVisibility({contentVisibilityAuto: true}) && e.getBoundingClientRect().right > innerWidth + 1)
	.map(e => e.tagName + "." + (e.className.baseVal ?? e.className) + " " + e.textContent.slice(0, 60)).slice(0, 5)
	.concat(document.documentElement.scrollWidth > innerWidth ? ["the page scrolls to " + document.documentElement.scrollWidth] : [])`

// unfold opens what is folded, and fold closes it again.
const (
	unfold = `document.querySelectorAll("details:not([open])").forEach(d => { d.dataset.folded = true; d.open = true; })`
	fold   = `document.querySelectorAll("details[data-folded]").forEach(d => d.open = false)`
)

// screenshot keeps a picture of the whole page, which takes longer than all the
// rest, where somebody asked for it.
func (b *browser) screenshot(name string) {
	b.t.Helper()
	if flag.Lookup("test.artifacts").Value.String() != "true" {
		return
	}
	png := run(b, chromedp.FullScreenshot(100))
	require.NoError(b.t, os.WriteFile(filepath.Join(b.t.ArtifactDir(), name+".png"), png, 0o600))
}

// check takes the page as it came, unfolds everything and looks at it.
func (b *browser) check(name, scheme string, width int64) {
	b.t.Helper()
	b.show(scheme, width)
	where := fmt.Sprintf("%s-%s-%d", name, scheme, width)
	b.screenshot(where)
	run(b, chromedp.Evaluate[chromedp.Void](unfold))
	assert.Empty(b.t, run(b, chromedp.Evaluate[[]string](overflowing)), where)
	assert.Empty(b.t, run(b, chromedp.Evaluate[[]string](pale)), where)
	run(b, chromedp.Evaluate[chromedp.Void](fold))
}

// pale names the texts whose contrast with their background is below 4.5
// (WCAG 2.2, 1.4.3).
const pale = `(() => {
	const parse = c => c.match(/[\d.]+/g).map(Number);
	const luminance = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
	const contrast = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
	const background = e => {
		for (; e; e = e.parentElement) {
			const c = parse(getComputedStyle(e).backgroundColor);
			if (c.length < 4 || c[3] === 1) return c;
		}
		return [255, 255, 255];
	};
	const found = new Set(), texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	while (texts.nextNode()) {
		const e = texts.currentNode.parentElement, style = getComputedStyle(e);
		if (!texts.currentNode.textContent.trim()) continue;
		const svg = e.namespaceURI.endsWith("svg");
		const behind = svg && e.previousElementSibling?.tagName === "rect" ? parse(getComputedStyle(e.previousElementSibling).fill) : background(e);
		const ratio = contrast(parse(svg ? style.fill : style.color), behind);
		if (!(ratio >= 4.5)) found.add(e.tagName + "." + (e.className.baseVal ?? e.className) + " " + ratio.toFixed(2));
	}
	return [...found];
})()`
