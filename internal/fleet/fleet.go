// Package fleet builds many images: those that are needed, parents before
// children, as many at once as the host bears, and none twice.
//
//	OUTPUT_DIR/work/              locked while a fleet, or a single build, runs
//	OUTPUT_DIR/work/image-*.json  what is complete, from which inputs
//	OUTPUT_DIR/IMAGE/             one image's, the Builder's to fill
//	OUTPUT_DIR/build-all.json     how the last run ended
//
// A run that was killed at any point goes on when it is started again: an image
// whose record names the same inputs, and whose result is still there, is not
// built again; every other is given to the Builder, which goes on from the
// stages that it had finished.
package fleet

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// Action is what is to be done for an image.
type Action string

// The actions of a plan.
const (
	Build Action = "build" // nobody has it yet
	Tag   Action = "tag"   // the registry has it, under another tag
	Skip  Action = "skip"  // the registry has it
)

// Entry is one image of the plan.
type Entry struct {
	Name   string
	Parent string // the image whose disk it starts from, or empty
	Action Action
	Why    string // in a few words
	// Inputs is the digest of all that the image is made from.
	Inputs string
	// Needs is what building it takes, beyond what is in its directory
	// already.
	Needs Resources
	// NotBefore is when a result may have been made at the earliest to be used
	// again: for --force and --max-age.
	NotBefore time.Time
	// Known is the image that there is, in the registry or as a layout, for Tag
	// and Skip. For Build it is the one whose place another shall take.
	Known Result
}

// Result is an image.
type Result struct {
	Reference string `json:"reference"`        // with digest
	Digest    string `json:"digest"`           // of the manifest, "sha256:…"
	Layout    string `json:"layout,omitempty"` // directory of the OCI layout, where it was built here
}

// Builder does the work on single images. Its methods are called from several
// goroutines at once, for different images.
type Builder interface {
	// Build makes the image in dir, which is its alone, from the parent's
	// result; the zero Result is no parent's. It goes on from the stages that
	// an earlier Build finished from the same inputs. They must stay until
	// Clean, as must the disk that children start from. Of a parent that this
	// run did not build there may be no more than the Result.
	Build(ctx context.Context, e Entry, dir string, parent Result) (Result, error)
	// Tag moves the tag to the image that the registry has.
	Tag(ctx context.Context, e Entry) (Result, error)
	// Check says why a result that was recorded earlier cannot be used again:
	// it is not there, not complete, or not what it was.
	Check(ctx context.Context, e Entry, dir string, r Result) error
	// Clean deletes everything but the result from dir: no child will start
	// from the image, and no later run needs its stages. It may be called
	// again.
	Clean(e Entry, dir string) error
}

// Observer is told what happens, by one goroutine or another.
type Observer interface {
	// Set tells an image's state (one of schedule's) and the reason for it.
	Set(image, state, why string)
	// Warn tells something that the user should know and that stops nothing.
	Warn(image, message string)
}

// Options says where and with what the images are built.
type Options struct {
	OutputDir string
	Jobs      int // at once; 0: as many as the host bears
	// Host is what the images share; the zero Capacity is what this host has.
	Host Capacity
}

// Run does what the entries ask for; parents stand before their children. The
// error says that nothing was started and why, or names each image that
// failed, in a line, with its cause.
func Run(ctx context.Context, entries []Entry, b Builder, o Options, to Observer) (Summary, error) {
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
	f := newFleet(entries, b, o, to, dir)
	if err := f.recall(ctx); err != nil {
		return Summary{}, err
	}
	if f.Host.CPUs == 0 {
		if f.Host, err = HostCapacity(f.dirs()...); err != nil {
			return Summary{}, err
		}
	}
	outcomes, err := Schedule(ctx, f.jobs(), ScheduleOptions{Jobs: o.Jobs, Host: f.Host}, f.observe)
	if err != nil {
		return Summary{}, err
	}
	s := f.summary(began, outcomes)
	return s, errors.Join(failures(ctx, entries, outcomes), s.write(o.OutputDir))
}

// workName is also the work directory of a single build, so that neither
// disturbs the other.
const workName = "work"

// Dir is the directory of an image below OUTPUT_DIR.
func Dir(outputDir, image string) string {
	return filepath.Join(outputDir, strings.ReplaceAll(image, "/", "_"))
}

// fleet is one run.
type fleet struct {
	Options
	entries  []Entry
	byName   map[string]Entry
	children map[string][]string
	builder  Builder
	to       Observer
	dir      *pipeline.Dir

	mu       sync.Mutex
	results  map[string]Result // of the images that are complete
	recalled map[string]bool   // those that an earlier run built
}

func newFleet(entries []Entry, b Builder, o Options, to Observer, dir *pipeline.Dir) *fleet {
	f := &fleet{
		Options: o, entries: entries, builder: b, to: to, dir: dir,
		byName: map[string]Entry{}, children: map[string][]string{},
		results: map[string]Result{}, recalled: map[string]bool{},
	}
	for _, e := range entries {
		f.byName[e.Name] = e
		if e.Parent != "" {
			f.children[e.Parent] = append(f.children[e.Parent], e.Name)
		}
		if e.Action != Build {
			f.results[e.Name] = e.Known
		}
	}
	return f
}

// recall finds out what an earlier run has completed. Records are compared
// first, parents before children; then the results are looked at, side by side.
func (f *fleet) recall(ctx context.Context) error {
	for _, e := range f.entries {
		if e.Action != Build {
			continue
		}
		parent, known := f.results[e.Parent]
		if r, ok := f.load(e); ok && (e.Parent == "" || known) && r.Parent == parent.Digest {
			f.results[e.Name], f.recalled[e.Name] = r.Result, true
		}
	}
	reasons := make([]error, len(f.entries))
	g := new(errgroup.Group)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, e := range f.entries {
		if f.recalled[e.Name] {
			g.Go(func() error {
				reasons[i] = f.builder.Check(ctx, e, Dir(f.OutputDir, e.Name), f.results[e.Name])
				return nil
			})
		}
	}
	_ = g.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for i, e := range f.entries {
		f.doubt(e, reasons[i])
	}
	for _, e := range f.entries {
		f.clean(e)
	}
	return nil
}

// doubt gives up a result that cannot be used again, or whose parent's cannot.
func (f *fleet) doubt(e Entry, reason error) {
	if reason != nil {
		f.to.Warn(e.Name, "what was made earlier is not used again: "+oneLine(reason))
	}
	_, parentComplete := f.results[e.Parent]
	if f.recalled[e.Name] && (reason != nil || e.Parent != "" && !parentComplete) {
		delete(f.results, e.Name)
		delete(f.recalled, e.Name)
	}
}

// jobs are the entries in the schedule's terms. What the registry has waits
// for nobody.
func (f *fleet) jobs() []Job {
	jobs := make([]Job, len(f.entries))
	for i, e := range f.entries {
		jobs[i] = Job{Name: e.Name}
		switch {
		case e.Action == Tag:
			jobs[i].Run = func(ctx context.Context) error { return f.tag(ctx, e) }
		case e.Action == Build && !f.recalled[e.Name]:
			jobs[i].Parent, jobs[i].Needs = e.Parent, e.Needs
			if f.byName[e.Parent].Action == Tag {
				jobs[i].Parent = "" // the registry has it, whatever its tag
			}
			jobs[i].Run = func(ctx context.Context) error { return f.build(ctx, e) }
		}
	}
	return jobs
}

// dirs are those in which space is needed.
func (f *fleet) dirs() []string {
	dirs := []string{f.OutputDir}
	for _, e := range f.entries {
		for _, needs := range []map[string]int64{e.Needs.Disk, e.Needs.Keep} {
			for dir := range needs {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs
}

func (f *fleet) tag(ctx context.Context, e Entry) error {
	r, err := f.builder.Tag(ctx, e)
	if err == nil {
		f.complete(e, r)
	}
	return err
}

// build makes one image and records it; what it was made with is deleted after
// that, so that there is no moment in which a killed run loses its work.
func (f *fleet) build(ctx context.Context, e Entry) error {
	dir := Dir(f.OutputDir, e.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	parent := f.result(e.Parent)
	r, err := f.builder.Build(ctx, e, dir, parent)
	if err != nil {
		return err
	}
	if err := f.save(e, parent, r); err != nil {
		return err
	}
	f.complete(e, r)
	f.clean(e)
	if e.Parent != "" {
		f.clean(f.byName[e.Parent])
	}
	return nil
}

func (f *fleet) complete(e Entry, r Result) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.results[e.Name] = r
}

func (f *fleet) result(name string) Result {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.results[name]
}

// clean deletes what an image was made with, if the image is complete and so
// is all that starts from it.
func (f *fleet) clean(e Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range append([]string{e.Name}, f.children[e.Name]...) {
		if _, complete := f.results[name]; !complete {
			return
		}
	}
	dir := Dir(f.OutputDir, e.Name)
	if e.Action != Build && !exists(dir) {
		return // it is in the registry, and no earlier run has left anything here
	}
	if err := f.builder.Clean(e, dir); err != nil {
		f.to.Warn(e.Name, "cleaning up: "+oneLine(err))
	}
}

// observe passes on what the schedule tells, with the reasons that it does not
// know.
func (f *fleet) observe(e Event) {
	f.to.Set(e.Name, string(e.State), f.why(e))
}

func (f *fleet) why(e Event) string {
	entry := f.byName[e.Name]
	switch {
	case e.State == Done:
		return f.result(e.Name).Reference
	case e.Why != "":
		return oneLine(errors.New(e.Why))
	case f.recalled[e.Name]:
		return "built before, from the same inputs"
	}
	return entry.Why
}

// oneLine makes a line of an error that may have several.
func oneLine(err error) string { return text.Line(strings.ReplaceAll(err.Error(), "\n", "; ")) }
