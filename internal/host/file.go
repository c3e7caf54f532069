package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// ErrNotRegular is the error of a path that names a folder, a pipe, a device
// or a socket.
var ErrNotRegular = errors.New("not a regular file")

// Open opens a regular file for reading. It does not wait for a pipe's writer.
func Open(path string) (*os.File, error) { return open(path, 0) }

// OpenNoFollow is Open for a file of ours: a symbolic link in its place, which
// would have us read something else, is refused.
func OpenNoFollow(path string) (*os.File, error) { return open(path, unix.O_NOFOLLOW) }

func open(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: ErrNotRegular}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// stillNamed says whether the path still names the open file or directory:
// who held its lock may have removed or renamed it.
func stillNamed(f *os.File, path string) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(path)
	return err == nil && os.SameFile(opened, named)
}

// AtomicFile is a file that gets its name when it is complete.
type AtomicFile struct {
	*os.File // under its temporary name, NAME.part
	name     string
}

// Create opens the output called name, empty, with the mode where it is new.
// The temporary name is always the same, so that the next run takes over what
// a killed one left; a lock keeps two from writing at once.
func Create(name string, mode os.FileMode) (*AtomicFile, error) {
	temp := name + ".part"
	for {
		f, err := os.OpenFile(temp, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, mode)
		if err != nil {
			return nil, err
		}
		if err = TryLock(f); err != nil {
			err = failure.Wrap(err, "another process is writing "+name, "wait for it, or choose another output")
		} else if stillNamed(f, temp) {
			if ours(f) {
				if err = f.Truncate(0); err == nil {
					return &AtomicFile{f, name}, nil
				}
			} else {
				err = os.Remove(temp)
			}
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}

// ours says whether an open file is a regular one that belongs to us and has
// one name. Another's would keep its owner and mode under the name that it is
// given, and they could write to it.
func ours(f *os.File) bool {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && int(st.Uid) == os.Geteuid() && st.Nlink == 1
}

// Commit brings the file to stable storage and gives it its name.
func (o *AtomicFile) Commit() error {
	if err := Move(o.File.Name(), o.name); err != nil {
		return err
	}
	o.name = ""
	return nil
}

// Discard removes the file unless it was committed, and closes it.
func (o *AtomicFile) Discard() {
	if o.name != "" {
		os.Remove(o.File.Name())
	}
	o.Close()
}

// WriteFile writes what write writes to the file called name, in one piece or
// not at all, and brings it to stable storage. On an error the file is what it
// was.
func WriteFile(name string, mode os.FileMode, write func(io.Writer) error) error {
	o, err := Create(name, mode)
	if err != nil {
		return err
	}
	defer o.Discard()
	if err := write(o); err != nil {
		return err
	}
	return o.Commit()
}

// WriteJSON writes a value as WriteFile does.
func WriteJSON(name string, mode os.FileMode, v any) error {
	return WriteFile(name, mode, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	})
}

// maxJSON bounds a record of ours, in bytes: pictures of screens are in some.
const maxJSON = 32 << 20

// ReadJSON reads what WriteJSON wrote to a file of ours. Fields that v does not
// know are those of a later version.
func ReadJSON(name string, v any) error {
	f, err := OpenNoFollow(name)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := ReadAll(f, maxJSON)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// Move brings a file to stable storage and gives it the name to, in place of
// what was there.
func Move(from, to string) error {
	if err := Sync(from); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return Sync(filepath.Dir(to))
}

// Sync makes a file's content, or the names in a directory, survive a crash.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// FreeSpace is how many bytes an ordinary user may still write in a directory.
func FreeSpace(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(s.Bavail) * s.Bsize, nil
}

// Need is space that something will take.
type Need struct {
	Bytes int64
	What  string // "the provisioned disk"
}

// CheckSpace checks whether there is room for all needs in a directory, which may
// not exist yet; setting is the variable that moves it, "OUTPUT_DIR".
func CheckSpace(dir, setting string, needs ...Need) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	free, err := FreeSpace(dir)
	for errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		free, err = FreeSpace(dir)
	}
	var sum int64
	var parts []string
	for _, n := range needs {
		sum += n.Bytes
		parts = append(parts, n.What+" "+text.Size(n.Bytes))
	}
	if err != nil || free >= sum {
		return err
	}
	what := fmt.Sprintf("%s has %s free, but about %s are needed (%s)",
		dir, text.Size(free), text.Size(sum), strings.Join(parts, ", "))
	return failure.New(what, "free some there, or set "+setting+" to a directory on a larger disk")
}

// ReadAll reads r to its end, and fails where that is more than most bytes.
func ReadAll(r io.Reader, most int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(b)) > most {
		err = &TooLargeError{most}
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// TooLargeError is the error of what is larger than it may be.
type TooLargeError struct{ Most int64 } // bytes

// Error says how large it may be.
func (e *TooLargeError) Error() string { return "it is larger than " + text.Size(e.Most) }

// pipeWait is how long the writer of a pipe may take: it may be a password
// manager that asks a person. Tests wait less.
var pipeWait = 30 * time.Second

// ReadFile returns the content, of at most so many bytes, of a file that a
// user names in a setting. A slip of the keyboard may name anything (/dev/zero,
// a FIFO that nobody writes to), and nothing of that takes long or much memory:
// a pipe, such as a shell makes of <(pass show registry), is read like a file,
// for at most half a minute; folders, devices and sockets are refused.
func ReadFile(name string, most int64) ([]byte, error) {
	// Without O_NONBLOCK the opening itself would wait for a pipe's writer.
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var content []byte
	switch mode := info.Mode(); {
	case mode.IsRegular():
		content, err = ReadAll(f, most)
	case mode&os.ModeNamedPipe != 0:
		content, err = readPipe(f, most)
	default:
		return nil, fmt.Errorf("%s is no file: give one that is", name)
	}
	if tooLarge := (*TooLargeError)(nil); errors.As(err, &tooLarge) {
		return nil, fmt.Errorf("%s is longer than %s", name, text.Size(most))
	}
	return content, err
}

// inherited are the names of files that this process was started with.
var inherited = regexp.MustCompile(`^/dev/stdin$|^(/dev|/proc/self)/fd/`)

// readPipe waits for a writer, too: until there is one, the pipe looks empty. One that this
// process was started with had its writer before.
func readPipe(f *os.File, most int64) ([]byte, error) {
	end := time.Now().Add(pipeWait)
	if err := f.SetReadDeadline(end); err != nil {
		return nil, err
	}
	for {
		content, err := ReadAll(f, most)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), err == nil && len(content) == 0 && time.Now().After(end):
			return nil, fmt.Errorf("%s is a pipe whose writer did not end within %s: give a file", f.Name(), pipeWait)
		case err != nil || len(content) > 0 || inherited.MatchString(f.Name()):
			return content, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}
