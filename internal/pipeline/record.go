package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Record is what a stage tells the next one, and the next build.
type Record struct {
	Stage  string          `json:"stage"`
	Inputs string          `json:"inputs"` // digest of everything that the stage read
	Output string          `json:"output"` // file, relative to the directory
	Digest string          `json:"digest"` // "sha256:…" of that file
	Size   int64           `json:"size"`   // bytes of that file
	Time   time.Time       `json:"time"`   // when the stage ended
	Result json.RawMessage `json:"result,omitempty"`
}

var stageName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,63}$`)

// check says what is wrong with a record.
func (r Record) check(stage string) error {
	switch {
	case !stageName.MatchString(stage) || r.Stage != stage:
		return fmt.Errorf("it is of the stage %q", r.Stage)
	case r.Inputs == "":
		return errors.New("it has no inputs")
	case !filepath.IsLocal(r.Output):
		return fmt.Errorf("its output %q is not in the work directory", r.Output)
	case !host.ValidDigest(r.Digest) || r.Size < 0:
		return fmt.Errorf("its digest %q is none", r.Digest)
	}
	return nil
}

// Save records what the stage made. Stage and, where it is zero, Time are set.
func (d *Dir) Save(stage string, r Record) error {
	r.Stage = stage
	if r.Time.IsZero() {
		r.Time = time.Now().UTC()
	}
	if err := r.check(stage); err != nil {
		return fmt.Errorf("recording the stage %q: %w", stage, err)
	}
	if err := d.root.Mkdir("records", 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return writeJSON(d.recordFile(stage), 0o600, r)
}

func (d *Dir) recordFile(stage string) string { return d.Path("records", stage+".json") }

// Load returns the record of the stage if it read the same inputs and its
// output still has the recorded digest. What cannot be used again is told to
// the Reporter, with the reason; the error is that of the context.
func (d *Dir) Load(ctx context.Context, stage, inputs string, to progress.Reporter) (Record, bool, error) {
	r, err := d.read(stage)
	if errors.Is(err, os.ErrNotExist) {
		return Record{}, false, nil
	}
	if err == nil {
		if r.Inputs != inputs {
			return Record{}, false, nil
		}
		err = d.checkOutput(ctx, r, to)
	}
	if ctx.Err() != nil {
		return Record{}, false, context.Cause(ctx)
	}
	if err != nil {
		to.Warn(fmt.Sprintf("what %s made earlier is not used again: %v", stage, err))
		return Record{}, false, nil
	}
	return r, true, nil
}

func (d *Dir) read(stage string) (Record, error) {
	f, err := d.open(filepath.Join("records", stage+".json"))
	if err != nil {
		return Record{}, err
	}
	defer f.Close()
	var r Record
	if err := readJSON(f, &r); err != nil {
		return Record{}, fmt.Errorf("its record is unreadable: %w", err)
	}
	if err := r.check(stage); err != nil {
		return Record{}, fmt.Errorf("its record is wrong: %w", err)
	}
	return r, nil
}

// open opens a regular file below the directory. os.Root keeps links from
// leading out of it; a link in the file's own place is refused, too.
func (d *Dir) open(name string) (*os.File, error) {
	named, err := d.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	f, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !named.Mode().IsRegular() || !os.SameFile(named, st) {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s is not a regular file", name))
	}
	return f, nil
}

// checkOutput compares the recorded file with the one that is there.
func (d *Dir) checkOutput(ctx context.Context, r Record, to progress.Reporter) error {
	f, err := d.open(r.Output)
	if err != nil {
		return fmt.Errorf("its output is not there any more: %v", err) // not %w: its absence is worth a warning
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != r.Size {
		return fmt.Errorf("%s has %d bytes instead of %d", r.Output, st.Size(), r.Size)
	}
	got, err := host.Digest(ctx, f, to)
	if err != nil {
		return err
	}
	if got != r.Digest {
		return fmt.Errorf("%s was changed: it is %s, not %s", r.Output, got, r.Digest)
	}
	return nil
}
