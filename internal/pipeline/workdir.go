package pipeline

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Dir is the work directory of one build: ours alone (0700), locked until Close,
// with a record of every stage's output, so that a build that was stopped goes
// on, and nothing half-done or tampered with is ever taken for a result.
//
//	DIR/lock            held while a build runs, with its process number
//	DIR/records/*.json  what each stage read and made
//	DIR/tmp/            scratch, cleared when the directory is opened or closed
//	DIR/*.part          outputs in the making, cleared when it is opened
//	DIR/…               the stages' outputs
type Dir struct {
	path string
	root *os.Root
	lock *os.File
}

const tryOther = "set OUTPUT_DIR to another directory"

// OpenDir makes the directory, or takes over the one that is there, and locks
// it. It refuses a directory that others own or may write to, a symbolic
// link, one below a directory in which others could exchange it, and one that
// another build is using. What a crashed build left half-done is cleared.
func OpenDir(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := (place{"the work directory", tryOther}).mkdir(path, 0o700); err != nil {
		return nil, err
	}
	if err := claim(path); err != nil {
		return nil, err
	}
	d := &Dir{path: path}
	if d.lock, err = lock(filepath.Join(path, "lock"), path); err != nil {
		return nil, err
	}
	if d.root, err = os.OpenRoot(path); err == nil {
		err = d.clear()
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// claim checks that the directory is ours alone and takes others' right to
// look into it.
func claim(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENOTDIR) {
		return failure.New("the work directory "+path+" is a symbolic link or no directory", tryOther)
	}
	if err != nil {
		return failure.Wrap(err, "the work directory cannot be opened", tryOther)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if uid := st.Sys().(*syscall.Stat_t).Uid; int(uid) != os.Geteuid() {
		return failure.New(fmt.Sprintf("the work directory %s belongs to user %d, not to us (%d)", path, uid, os.Geteuid()), tryOther)
	}
	others := os.FileMode(0o022)
	if host.InPod() {
		others = 0o002
	}
	if st.Mode()&others != 0 {
		return failure.New(fmt.Sprintf("others may write to the work directory %s (%s), so its content proves nothing", path, st.Mode()),
			"remove it, or "+tryOther)
	}
	return f.Chmod(0o700)
}

// lock takes the lock of the directory. The kernel ends it with the process,
// so a killed build leaves no stale lock.
func lock(name, dir string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, failure.Wrap(err, "locking "+dir, tryOther)
	}
	if err := host.TryLock(f); err != nil {
		defer f.Close()
		pid, _ := io.ReadAll(io.LimitReader(f, 20))
		return nil, failure.New(fmt.Sprintf("another diskforge build is using %s (process %s)", dir, strings.TrimSpace(string(pid))),
			"wait for its end, or "+tryOther)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, failure.Wrap(err, "locking "+dir, tryOther)
	}
	return f, nil
}

// clear removes what a crashed build left half-done.
func (d *Dir) clear() error {
	parts, err := fs.Glob(d.root.FS(), "*.part")
	failed := []error{err}
	for _, name := range append(parts, "tmp") {
		failed = append(failed, d.root.RemoveAll(name))
	}
	return errors.Join(failed...)
}

// Path returns the path of a file in the directory; no name leads out of it.
func (d *Dir) Path(name ...string) string {
	return filepath.Join(d.path, filepath.Join("/", filepath.Join(name...)))
}

// Temp makes a new empty directory for scratch, whose name begins with name.
// It lasts until Close at the latest.
func (d *Dir) Temp(name string) (string, error) {
	if err := d.root.Mkdir("tmp", 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return os.MkdirTemp(d.Path("tmp"), name+"-*")
}

// Close removes the scratch and ends the lock. Closing again does nothing.
func (d *Dir) Close() error {
	if d.lock == nil {
		return nil
	}
	var err error
	if d.root != nil {
		err = errors.Join(d.root.RemoveAll("tmp"), d.root.Close())
	}
	// Unlocked and not only closed: a process that we start at this moment has
	// a copy of the open file until it is the other program, and with it the lock.
	err = errors.Join(err, syscall.Flock(int(d.lock.Fd()), syscall.LOCK_UN), d.lock.Close())
	d.lock = nil
	return err
}

// Record is what a stage leaves for the next one, and for the next build.
type Record struct {
	Stage  string          `json:"stage"`
	Inputs string          `json:"inputs"` // digest of everything that the stage read
	Output string          `json:"output"` // file, relative to the directory
	Digest string          `json:"digest"` // "sha256:…" of that file
	Size   int64           `json:"size"`   // bytes of that file
	Time   time.Time       `json:"time"`   // when the stage ended
	Result json.RawMessage `json:"result,omitempty"`
}

// Save records what the stage made. Stage and, where it is zero, Time are set.
func (d *Dir) Save(stage string, r Record) error {
	r.Stage = stage
	r.Time = cmp.Or(r.Time, time.Now().UTC())
	if err := d.root.Mkdir("records", 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return host.WriteJSON(d.Path(recordFile(stage)), 0o600, r)
}

func recordFile(stage string) string { return filepath.Join("records", stage+".json") }

// Load returns the record of the stage if it read the same inputs and its
// output still has the recorded digest. The Reporter is warned of what cannot be
// used again, with the reason; the error is that of the context.
func (d *Dir) Load(ctx context.Context, stage, inputs string, to progress.Reporter) (Record, bool, error) {
	r, err := d.read(stage)
	if errors.Is(err, os.ErrNotExist) || err == nil && r.Inputs != inputs {
		return Record{}, false, nil
	}
	if err == nil {
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

// Forget deletes what the stage made and its record, the record first: a
// result is never there without its output. A stage without a record made
// nothing.
func (d *Dir) Forget(stage string) error {
	r, err := d.read(stage)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := d.root.Remove(recordFile(stage)); err != nil {
		return err
	}
	if err := d.root.Remove(r.Output); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err // two stages may name the same output
	}
	return nil
}

func (d *Dir) read(stage string) (Record, error) {
	var r Record
	switch err := host.ReadJSON(d.Path(recordFile(stage)), &r); {
	case errors.Is(err, os.ErrNotExist):
		return Record{}, err
	case err != nil:
		return Record{}, fmt.Errorf("its record is unreadable: %w", err)
	}
	if r.Stage != stage {
		return Record{}, fmt.Errorf("its record is of the stage %q", r.Stage)
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
		return nil, errors.Join(err, fmt.Errorf("%s is %w", name, host.ErrNotRegular))
	}
	return f, nil
}

// checkOutput compares the recorded file with the one that is there.
func (d *Dir) checkOutput(ctx context.Context, r Record, to progress.Reporter) error {
	f, err := d.open(r.Output)
	if err != nil {
		return fmt.Errorf("its output is not there any more: %v", err) //nolint:errorlint // not %w: its absence is worth a warning
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
