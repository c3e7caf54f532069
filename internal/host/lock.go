// Lock waits for other processes that work on the same thing. The
// locks are the kernel's (flock): they end with their holder, however it ends.

package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/progress"
)

// poll is how often a lock that somebody holds is tried again: waiting with
// flock itself could not be interrupted.
const poll = 200 * time.Millisecond

// File waits for the lock on the file called name, which it makes if need be,
// and returns what gives it back. While it waits, p says what for.
func LockFile(ctx context.Context, name, waiting string, p progress.Reporter) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening a lock: %w", err)
	}
	if err := Lock(ctx, f, waiting, p); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// Dir makes a directory where it is missing, and waits for its lock; closing
// what it returns gives the lock back. No file is left over.
func LockDir(ctx context.Context, dir, waiting string, p progress.Reporter) (*os.File, error) {
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making a directory: %w", err)
		}
		f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue // its last holder has just removed it, empty
		}
		if err != nil {
			return nil, fmt.Errorf("opening a lock: %w", err)
		}
		if err := Lock(ctx, f, waiting, p); err != nil {
			f.Close()
			return nil, err
		}
		if isStill(f, dir) {
			return f, nil
		}
		f.Close()
	}
}

// isStill says whether the directory has not been removed while we waited.
func isStill(f *os.File, dir string) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	now, err := os.Lstat(dir)
	return err == nil && os.SameFile(opened, now)
}

// Wait waits for the lock on an open file or directory; closing it gives the
// lock back. The error is the cause of ctx's end, or the kernel's.
func Lock(ctx context.Context, f *os.File, waiting string, p progress.Reporter) error {
	for told := false; ; told = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("locking %s: %w", f.Name(), err)
		}
		if !told {
			p.Activity(waiting)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(poll):
		}
	}
}
