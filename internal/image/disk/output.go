package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// output is a file in the making: it gets its name only when it is complete.
type output struct {
	name string // what it becomes
	temp string // where it is written meanwhile, in the same directory
	file *os.File
}

// create opens the temporary file of name. Its name is always the same, so
// that the next run takes over what a killed one left; a lock keeps two runs
// from writing to it at once.
func create(name string) (*output, error) {
	temp := name + ".part"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o644)
	if err != nil {
		return nil, fmt.Errorf("creating the output: %w", err)
	}
	err = lock(f, temp)
	if err == nil && !host.Ours(f) {
		f.Close()
		if f, err = host.ReplaceFile(temp, 0o644); err != nil {
			return nil, fmt.Errorf("creating the output: %w", err)
		}
		err = lock(f, temp)
	}
	if err != nil {
		f.Close()
		return nil, failure.Wrap(err, "another process is writing "+name, "wait for it, or choose another output")
	}
	return &output{name: name, temp: temp, file: f}, nil
}

// lock takes the lock of f, which must still be the file called name: its
// former owner may have renamed it meanwhile.
func lock(f *os.File, name string) error {
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return err
	}
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	named, err := os.Lstat(name)
	if err != nil {
		return err
	}
	if !os.SameFile(mine, named) {
		return errors.New("it was finished just now")
	}
	return nil
}

// commit brings the file to stable storage and gives it its name.
func (o *output) commit() error {
	if err := o.file.Sync(); err != nil {
		return err
	}
	if err := os.Rename(o.temp, o.name); err != nil {
		return err
	}
	o.temp = ""
	return host.Sync(filepath.Dir(o.name))
}

// discard removes the file unless it was committed, and ends the lock.
func (o *output) discard() {
	if o.temp != "" {
		os.Remove(o.temp)
	}
	o.file.Close()
}
