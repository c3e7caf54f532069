// Package fleet builds the images of a catalogue: those that are needed,
// parents before children, as many at once as the host bears, and none twice.
//
// All.Plan asks what each image is made from and what there is already, and
// decides (Decide, which asks nobody) what is to be done for each Entry. Run
// does that: schedule orders it, and a Builder builds single images as a single
// build does.
//
//	OUTPUT_DIR/work/           locked while a fleet, or a single build, runs
//	OUTPUT_DIR/IMAGE/          one image's, the Builder's to fill: layout, report, manifests
//	OUTPUT_DIR/build-all.json  how the last run ended
//	OUTPUT_DIR/index.html      the same for people, with the images' reports
//
// A run that was killed at any point goes on when it is planned and started
// again: what is complete, in the registry or without one in OUTPUT_DIR, the
// plan leaves; every other image is given to the Builder, which goes on from
// the stages that it had finished.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// Builder does the work on single images. Its methods are called from several
// goroutines at once, for different images.
type Builder interface {
	// Build makes the image in dir, which is its alone, from the parent's
	// result; the zero Result is no parent's. It goes on from the stages that
	// an earlier Build finished from the same inputs. They must stay until
	// Clean, as must the disk that children start from. Of a parent that this
	// run did not build there may be no more than the Result.
	Build(ctx context.Context, e *Entry, dir string, parent Result) (Result, error)
	// Tag moves the tags to the image that the registry has.
	Tag(ctx context.Context, e *Entry) (Result, error)
	// Clean deletes everything but the result from dir: no child will start
	// from the image, and no later run needs its stages. It may be called
	// again.
	Clean(e *Entry, dir string) error
}

// Observer learns what happens, from one goroutine or another.
type Observer interface {
	// Set shows an image's State and the reason for it.
	Set(image, state, why string)
	// Warn shows something that the user should know and that stops nothing.
	Warn(image, message string)
}

// Options says where and with what the images are built.
type Options struct {
	OutputDir string
	Jobs      int // at once; 0: as many as the host bears
}

// Run does what the entries ask for; parents stand before their children. The
// error says that nothing was started and why, or names each image that
// failed, in a line, with its cause.
func Run(ctx context.Context, entries []*Entry, b Builder, o Options, to Observer) (Summary, error) {
	if err := check(entries, o.OutputDir); err != nil {
		return Summary{}, err
	}
	dir, err := pipeline.OpenDir(filepath.Join(o.OutputDir, workName))
	if err != nil {
		return Summary{}, err
	}
	defer dir.Close()
	if err := os.Remove(summaryFile(o.OutputDir)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return Summary{}, err
	}
	began := time.Now()
	f := &fleet{outputDir: o.OutputDir, entries: entries, builder: b, to: to, results: map[*Entry]Result{}}
	for _, e := range entries {
		if e.Action == Tag || e.Action == Skip {
			f.results[e] = e.Known
		}
	}
	for _, e := range entries {
		f.clean(e) // what a killed run left
	}
	host, err := hostCapacity(o.OutputDir)
	if err != nil {
		return Summary{}, err
	}
	outcomes, err := schedule(ctx, entries, o.Jobs, host, f.do, f.observe)
	if err != nil {
		return Summary{}, err
	}
	s := f.summary(began, outcomes)
	return s, errors.Join(failures(ctx, entries, outcomes), s.write(o.OutputDir))
}

// imageName is what can be a repository's name and, with its slashes replaced,
// a directory's.
var imageName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$`)

// check refuses entries of which two would write to one place.
func check(entries []*Entry, outputDir string) error {
	seen, dirs := map[*Entry]bool{nil: true}, map[string]string{}
	for _, e := range entries {
		dir := Dir(outputDir, e.Name)
		base := filepath.Base(dir)
		switch {
		case !imageName.MatchString(e.Name) || base == workName || base == manifestsName || base == report.SiteFile || strings.HasPrefix(base, summaryName):
			return failure.New(fmt.Sprintf("an image cannot be called %q", e.Name), "give it another name")
		case dirs[dir] != "":
			return failure.New(fmt.Sprintf("the images %s and %s would both be made in %s", dirs[dir], e.Name, dir), "give one of them another name")
		case !seen[e.Parent]:
			return fmt.Errorf("the parent %q of %q does not stand before it", e.Parent.Name, e.Name)
		case e.Action == Build && exists(filepath.Join(dir, "oci-layout")):
			return failure.New(dir+" holds the image of a single build", "set OUTPUT_DIR to another directory, or move the image away")
		}
		seen[e], dirs[dir] = true, e.Name
	}
	return nil
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// workName is also the work directory of a single build, so that neither
// disturbs the other.
const workName = "work"

// manifestsName is the folder of an image's Kubernetes objects, beside its layout.
const manifestsName = "manifests"

// Dir is the directory of an image below OUTPUT_DIR.
func Dir(outputDir, image string) string {
	return filepath.Join(outputDir, strings.ReplaceAll(image, "/", "_"))
}

// fleet is one run.
type fleet struct {
	outputDir string
	entries   []*Entry
	builder   Builder
	to        Observer

	mu      sync.Mutex
	results map[*Entry]Result // of the images that are complete
}

// do does what is to be done for an image.
func (f *fleet) do(ctx context.Context, e *Entry) error {
	switch e.Action {
	case Build:
		return f.build(ctx, e)
	case Tag:
		r, err := f.builder.Tag(ctx, e)
		if err == nil {
			f.complete(e, r)
		}
		return err
	}
	if e.Err != nil {
		return e.Err
	}
	return errors.New(e.Why)
}

// build makes one image. What it was made with is deleted when it is complete, so
// that there is no moment in which a killed run loses its work.
func (f *fleet) build(ctx context.Context, e *Entry) error {
	dir := Dir(f.outputDir, e.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r, err := f.builder.Build(ctx, e, dir, f.result(e.Parent))
	if err != nil {
		return err
	}
	f.complete(e, r)
	f.clean(e)
	if e.Parent != nil {
		f.clean(e.Parent)
	}
	return nil
}

func (f *fleet) complete(e *Entry, r Result) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.results[e] = r
}

func (f *fleet) result(e *Entry) Result {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.results[e]
}

// clean deletes what an image was made with, if the image is complete and so
// is all that starts from it.
func (f *fleet) clean(e *Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, needs := range f.entries {
		if _, complete := f.results[needs]; !complete && (needs == e || needs.Parent == e) {
			return
		}
	}
	dir := Dir(f.outputDir, e.Name)
	if e.Action != Build && !exists(dir) {
		return // it is in the registry, and no earlier run has left anything here
	}
	if err := f.builder.Clean(e, dir); err != nil {
		f.to.Warn(e.Name, "cleaning up: "+oneLine(err))
	}
}

// observe passes the schedule's events on, with the reasons that it does not
// know.
func (f *fleet) observe(e *Entry, now Event) {
	f.to.Set(e.Name, string(now.State), f.why(e, now))
}

func (f *fleet) why(e *Entry, now Event) string {
	switch {
	case now.State == Done:
		return f.result(e).Reference
	case now.Why != "":
		return oneLine(errors.New(now.Why))
	}
	return e.Why
}

// oneLine makes a line of an error that may have several.
func oneLine(err error) string { return text.Line(strings.ReplaceAll(err.Error(), "\n", "; ")) }
