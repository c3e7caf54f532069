package pipeline

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

// Dir is the work directory of one build. It is 0700 and ours, and locked
// until Close.
type Dir struct {
	path string
	root *os.Root
	lock *os.File
}

// Open makes the directory, or takes over the one that is there, and locks
// it. It refuses a directory that others own or may write to, a symbolic
// link, one below a directory in which others could exchange it, and one that
// another build is using. What a crashed build left half-done is cleared.
func OpenDir(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, failure.New(err.Error(), tryOther)
	}
	if err := (place{"the work directory", tryOther}).checkParents(path); err != nil {
		return nil, err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, failure.New(err.Error(), tryOther)
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

const tryOther = "set OUTPUT_DIR to another directory"

// claim checks that the directory is ours alone and takes others' right to
// look into it.
func claim(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENOTDIR) {
		return failure.New("the work directory "+path+" is a symbolic link or no directory", tryOther)
	}
	if err != nil {
		return failure.New(err.Error(), tryOther)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if uid := st.Sys().(*syscall.Stat_t).Uid; int(uid) != os.Geteuid() {
		return failure.New(fmt.Sprintf("the work directory %s belongs to user %d, not to us (%d)", path, uid, os.Geteuid()), tryOther)
	}
	if st.Mode().Perm()&0o022 != 0 {
		return failure.New(fmt.Sprintf("others may write to the work directory %s (%s), so its content proves nothing", path, st.Mode()), "remove it, or "+tryOther)
	}
	return f.Chmod(0o700)
}

// lock takes the lock of the directory. The kernel ends it with the process,
// so a killed build leaves no stale lock.
func lock(name, dir string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, failure.New(err.Error(), tryOther)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		pid, _ := io.ReadAll(io.LimitReader(f, 20))
		return nil, failure.New(fmt.Sprintf("another diskforge build is using %s (process %s)", dir, strings.TrimSpace(string(pid))), "wait for its end, or "+tryOther)
	}
	if err := errors.Join(f.Truncate(0), writePid(f)); err != nil {
		f.Close()
		return nil, failure.Wrap(err, "locking "+dir, tryOther)
	}
	return f, nil
}

func writePid(f *os.File) error {
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// clear removes what a crashed build left half-done.
func (d *Dir) clear() error {
	if err := d.root.RemoveAll("tmp"); err != nil {
		return err
	}
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".part") {
			if err := d.root.RemoveAll(e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
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
