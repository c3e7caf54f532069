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

// The locks are the kernel's (flock): they end with their holder, however it
// ends.

// poll is how often a lock that somebody holds is tried again: waiting with
// flock itself could not be interrupted.
const poll = 200 * time.Millisecond

// TryLock takes the lock on an open file or directory, which closing it gives
// back, or fails with unix.EWOULDBLOCK where somebody has it.
func TryLock(f *os.File) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	return nil
}

// LockDir makes a directory where it is missing, and waits for its lock, of which
// p is told; closing what it returns gives the lock back. No file is left over.
// The error is the cause of ctx's end, or the kernel's.
func LockDir(ctx context.Context, dir, waiting string, p progress.Reporter) (*os.File, error) {
	for said := false; ; {
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
		if err = TryLock(f); err == nil && stillNamed(f, dir) {
			return f, nil
		}
		f.Close()
		if err == nil {
			continue
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, err
		}
		if !said {
			p.Activity(waiting)
			said = true
		}
		if err := Sleep(ctx, poll); err != nil {
			return nil, err
		}
	}
}
