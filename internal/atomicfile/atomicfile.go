// Package atomicfile writes files that are there in one piece or not at all.
package atomicfile

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
func Write(name string, mode os.FileMode, write func(io.Writer) error) (err error) {
	temp := name + ".part"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|syscall.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(temp)
		}
	}()
	err = write(f)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(temp, name); err != nil {
		return err
	}
	return Sync(filepath.Dir(name))
}

// Sync makes a file's content, or the names in a directory, survive a crash.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
