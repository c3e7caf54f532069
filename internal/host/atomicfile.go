// Atomicfile writes files that are there in one piece or not at all.

package host

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// Write writes what write writes to the file called name, with the given mode
// where the file is new, and brings it to stable storage. On an error the file
// is what it was.
//
// The temporary name is always the same, so that a killed process leaves
// nothing that the next does not take over: two processes must not write the
// same file at once.
func WriteFile(name string, mode os.FileMode, write func(io.Writer) error) (err error) {
	temp := name + ".part"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_WRONLY|syscall.O_NOFOLLOW, mode)
	if err == nil && !Ours(f) {
		f.Close()
		f, err = ReplaceFile(temp, mode)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(temp)
		}
	}()
	if err = f.Truncate(0); err == nil {
		err = write(f)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(temp, name); err != nil {
		return err
	}
	return Sync(filepath.Dir(name))
}

// Ours says whether an open file is a regular one that belongs to us and has
// one name. Another's would keep its owner and mode under the name that it is
// given, and he could write to it.
func Ours(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return false
	}
	st := info.Sys().(*syscall.Stat_t)
	return int(st.Uid) == os.Geteuid() && st.Nlink == 1
}

// Replace makes a new file in the place of one that is not ours.
func ReplaceFile(name string, mode os.FileMode) (*os.File, error) {
	if err := os.Remove(name); err != nil {
		return nil, err
	}
	return os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, mode)
}

// Sync makes a file's content, or the names in a directory, survive a crash.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
