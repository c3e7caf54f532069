package fleet_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/netgroup-polito/diskforge/internal/fleet"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// fake is a Builder whose stages write small files, as slowly as it is told.
// As the real one does, it records what a stage made and goes on from there.
type fake struct {
	pause time.Duration // between two writes
	tear  *rand.Rand    // may be nil: some stages write in place, so that a killed one leaves half a file
	log   string        // file in which the stages are noted, or empty
	bare  bool          // no stages: only the result is written

	mu      sync.Mutex
	began   []string // "image stage"
	cleaned []string
	fails   map[string]error
	gate    func(context.Context, *fleet.Entry) error // runs before a build, where there is one
	builds  int
	active  map[string]bool // directories in use
	clashes []string
}

func (f *fake) Build(ctx context.Context, e *fleet.Entry, dir string, parent fleet.Result) (fleet.Result, error) {
	defer f.enter(dir)()
	if f.gate != nil {
		if err := f.gate(ctx, e); err != nil {
			return fleet.Result{}, err
		}
	}
	if err := f.fails[e.Name]; err != nil {
		return fleet.Result{}, err
	}
	in, err := f.stages(ctx, e.Name, dir, e.Inputs+parent.Digest)
	if err != nil {
		return fleet.Result{}, err
	}
	layout := filepath.Join(dir, "layout")
	if err := f.write(layout, in); err != nil {
		return fleet.Result{}, err
	}
	made, err := host.DigestFile(ctx, layout, progress.Discard)
	if err != nil {
		return fleet.Result{}, err
	}
	c := complete{e.Inputs, parent.Digest, fleet.Result{Reference: "oci:" + e.Name + "@" + made, Digest: made, Layout: "layout"}}
	return c.Result, host.WriteFile(filepath.Join(dir, "complete"), 0o600, func(w io.Writer) error { return json.NewEncoder(w).Encode(c) })
}

// complete stands beside a layout that is, as the mark that it was verified does.
type complete struct {
	Inputs, Parent string
	Result         fleet.Result
}

// planned are the entries as a plan has them: what is complete from the same
// inputs and parents is left.
func planned(dir string, entries []*fleet.Entry) []*fleet.Entry {
	for _, e := range entries {
		var c complete
		text, err := os.ReadFile(filepath.Join(fleet.Dir(dir, e.Name), "complete"))
		if err != nil || json.Unmarshal(text, &c) != nil || c.Inputs != e.Inputs {
			continue
		}
		if e.Parent == nil || e.Parent.Action == fleet.Skip && e.Parent.Known.Digest == c.Parent {
			e.Action, e.Known = fleet.Skip, c.Result
		}
	}
	return entries
}

// stages runs the stages and returns the digest of the last one's output.
func (f *fake) stages(ctx context.Context, image, dir, in string) (string, error) {
	if f.bare {
		return in, nil
	}
	work, err := pipeline.OpenDir(filepath.Join(dir, "work"))
	if err != nil {
		return "", err
	}
	defer work.Close()
	for _, stage := range []string{"provision", "sparsify", "pack"} {
		if in, err = f.stage(ctx, work, image, stage, in); err != nil {
			return "", err
		}
	}
	return in, nil
}

// enter notes that a directory is in use, until the function that it returns.
func (f *fake) enter(dir string) func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.active[dir] {
		f.clashes = append(f.clashes, dir)
	}
	if f.active == nil {
		f.active = map[string]bool{}
	}
	f.active[dir] = true
	f.builds++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.active, dir)
	}
}

// stage makes one file, or finds it made, and returns its digest.
func (f *fake) stage(ctx context.Context, work *pipeline.Dir, image, stage, in string) (string, error) {
	in = fmt.Sprintf("%x", sha256.Sum256([]byte(stage+in)))
	if r, found, err := work.Load(ctx, stage, in, progress.Discard); err != nil || found {
		return r.Digest, err
	}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	f.note("began", image, stage, in)
	name := work.Path(stage)
	if err := f.write(name, in); err != nil {
		return "", err
	}
	made, err := host.DigestFile(ctx, name, progress.Discard)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(name)
	if err != nil {
		return "", err
	}
	err = work.Save(stage, pipeline.Record{Inputs: in, Output: stage, Digest: made, Size: info.Size()})
	f.note("recorded", image, stage, in)
	return made, err
}

const writes = 8

// write writes a file slowly: in one piece, or torn.
func (f *fake) write(name, content string) error {
	f.mu.Lock()
	torn := f.tear != nil && f.tear.IntN(2) == 0
	f.mu.Unlock()
	temp := name + ".part"
	if torn {
		os.Remove(temp) // a killed one's
		temp = name
	}
	file, err := os.Create(temp)
	if err != nil {
		return err
	}
	defer file.Close()
	for i := range writes {
		if _, err := fmt.Fprintln(file, i, content); err != nil {
			return err
		}
		time.Sleep(f.pause)
	}
	return os.Rename(temp, name)
}

// note keeps a line about a stage, in the log too where there is one: it
// outlives a kill.
func (f *fake) note(what, image, stage, in string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if what == "began" {
		f.began = append(f.began, image+" "+stage)
	}
	if f.log == "" {
		return
	}
	file, err := os.OpenFile(f.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintln(file, what, image, stage, in)
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		panic(err)
	}
}

func (f *fake) Tag(_ context.Context, e *fleet.Entry) (fleet.Result, error) {
	return e.Known, f.fails[e.Name]
}

func (f *fake) Clean(e *fleet.Entry, dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cleaned = append(f.cleaned, e.Name)
	return os.RemoveAll(filepath.Join(dir, "work"))
}

// observer keeps what it is told.
type observer struct {
	mu       sync.Mutex
	states   map[string][]string
	whys     map[string]string
	warnings []string
}

func (o *observer) Set(image, state, why string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.states == nil {
		o.states, o.whys = map[string][]string{}, map[string]string{}
	}
	if s := o.states[image]; len(s) == 0 || s[len(s)-1] != state {
		o.states[image] = append(s, state)
	}
	o.whys[image] = why
}

func (o *observer) Warn(image, message string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.warnings = append(o.warnings, image+": "+message)
}
