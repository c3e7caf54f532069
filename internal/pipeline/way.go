package pipeline

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/attest"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/report"
)

// way is one disk's way through the stages: what they need, and what those
// before left.
type way struct {
	*Build
	rooms   *rooms
	journal journal
	dir     *Dir // for work and logs; nil for stages that need none
	results []string
	// whole is a build of all stages: what earlier runs left in dir is used again.
	whole bool
	// source is the disk of a machine that is captured; empty: the playbook makes it.
	source string

	ready
	disk    string // the file that the stage before left
	out     string // the file to write, in place of the stage's own in dir
	backing string // the base that disk is an overlay of, or empty
	known   Sidecar
	address string // to push to
	Result

	login   func() (registry.Options, error)
	key     func(context.Context) (attest.Key, error) // SIGNING_KEY
	secrets func() ([]hygiene.Secret, error)
	mask    func() *strings.Replacer // of secrets
}

// way begins a way. The password file, which may be a pipe, is read once, and so is a key,
// whose password takes time to check.
func (b *Build) way(dir *Dir) *way {
	w := &way{Build: b, rooms: cmp.Or(b.rooms, &realRooms), dir: dir, results: slices.Clone(b.Results), address: b.Config.Reference}
	w.login = sync.OnceValues(func() (registry.Options, error) { return RegistryOptions(b.Config, b.Version) })
	var read sync.Once
	var key attest.Key
	var keyErr error
	w.key = func(ctx context.Context) (attest.Key, error) {
		read.Do(func() { key, keyErr = signingKey(ctx, b.Config) })
		return key, keyErr
	}
	w.secrets = func() ([]hygiene.Secret, error) {
		login, err := w.login()
		return secrets(b.Config, login.Password), err
	}
	w.mask = sync.OnceValue(func() *strings.Replacer {
		all, _ := w.secrets() // what is not known cannot be shown, either
		return hygiene.Mask(all)
	})
	w.journal.begin(b)
	return w
}

// stage is one step of the way.
type stage struct {
	name string // as it is shown, and its record is called
	file string // that it writes, in the work directory; empty: it leaves the disk as it is
	// when says whether a whole build has it; nil: always.
	when func(*way) bool
	// inputs is the digest of all that it reads: where that is the same, what an
	// earlier run left is used again. Nil: it is run always.
	inputs func(*way) string
	// run does the work. Its result, where there is one, is part of the report
	// even if the stage failed.
	run func(w *way, ctx context.Context, out string, p progress.Reporter) (result, error)
	// empty is a result to read a record into; nil where there are no inputs.
	empty func() result
}

// result is what came of a stage. One that is recorded is JSON.
type result interface {
	String() string      // in a line
	fill(*report.Report) // what the report has of it
	leave(*way)          // what later stages have of it, where the stage ended well
}

// line is the result of a stage that noted everything itself.
type line string

func (l line) String() string    { return string(l) }
func (line) fill(*report.Report) {}
func (line) leave(*way)          {}

// run runs stages side by side. None stops another: one run finds everything
// that has to be changed.
func (w *way) run(ctx context.Context, sideBySide ...stage) error {
	failed := make([]error, len(sideBySide))
	var g sync.WaitGroup
	for i, s := range sideBySide {
		g.Go(func() { failed[i] = w.step(ctx, s) })
	}
	g.Wait()
	var err error
	for _, one := range failed {
		err = together(err, one)
	}
	return err
}

// together is two errors as one, with the evidence of both.
func together(one, two error) error {
	a, okOne := failure.In(one)
	b, okTwo := failure.In(two)
	if !okOne || !okTwo {
		return errors.Join(one, two)
	}
	both := failure.New(one.Error()+"; "+two.Error(), "")
	both.Lines, both.Log, both.Err = append(slices.Clone(a.Lines), b.Lines...), cmp.Or(a.Log, b.Log), errors.Join(one, two)
	return both
}

// step runs a stage, or takes what an earlier run recorded of it.
func (w *way) step(ctx context.Context, s stage) error {
	return w.show(ctx, s.name, func(ctx context.Context, p progress.Reporter) (string, error) {
		out, inputs := w.disk, ""
		switch {
		case s.file != "" && w.out != "":
			out = w.out
		case s.file != "":
			out = w.dir.Path(s.file)
		}
		if w.whole && s.inputs != nil {
			inputs = s.inputs(w)
			done, err := w.reuse(ctx, s, out, inputs, p)
			if done || err != nil {
				return "done before, from the same inputs", err
			}
		}
		r, err := s.run(w, ctx, out, p)
		if r != nil {
			w.journal.note(r.fill)
		}
		if err != nil {
			return "", err
		}
		digest := ""
		if s.file != "" || inputs != "" {
			p.Activity("hashing the result")
			if digest, err = host.DigestFile(ctx, out, p); err != nil {
				return "", err
			}
		}
		if inputs != "" {
			if err := w.record(s, inputs, out, digest, r); err != nil {
				return "", err
			}
		}
		w.leave(s, out, digest, r)
		return r.String(), nil
	})
}

// leave has the way go on with what a stage left.
func (w *way) leave(s stage, out, digest string, r result) {
	if s.file != "" {
		w.disk, w.known.Digest = out, digest
	}
	r.leave(w)
}

// reuse takes what an earlier run recorded of the stage, if it may.
func (w *way) reuse(ctx context.Context, s stage, out, inputs string, p progress.Reporter) (bool, error) {
	record, found, err := w.dir.Load(ctx, s.name, inputs, p)
	if err != nil || !found || record.Time.Before(w.NotBefore) {
		return false, err
	}
	r := s.empty()
	if json.Unmarshal(record.Result, r) != nil {
		return false, nil //nolint:nilerr // of another version
	}
	w.journal.reused(s.name)
	w.journal.note(r.fill)
	w.leave(s, out, record.Digest, r)
	return true, nil
}

// record records what the stage left.
func (w *way) record(s stage, inputs, out, digest string, r result) error {
	info, err := os.Stat(out)
	if err != nil {
		return err
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return w.dir.Save(s.name, Record{Inputs: inputs, Output: filepath.Base(out), Digest: digest, Size: info.Size(), Result: text})
}

// show runs one piece of the work and shows it.
func (w *way) show(ctx context.Context, name string, run func(context.Context, progress.Reporter) (string, error)) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	w.UI.Mask(w.mask())
	s, end := w.UI.Stage(name), w.journal.stage(name)
	result, err := run(ctx, s)
	stopped := context.Cause(ctx) != nil && err != nil
	if stopped {
		err = context.Cause(ctx) // what a program said when it was stopped is no evidence
	}
	err = masked(err, w.mask())
	s.End(result, err)
	end(result, stopped, err)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// logs is where a stage keeps its logs.
func (w *way) logs(stage string) string {
	if w.whole {
		return w.dir.Path("logs", stage)
	}
	return w.dir.Path("logs")
}

// pushes says whether a build ends in a registry.
func (w *way) pushes() bool { return w.Config.Reference != "" && w.Config.Push }
