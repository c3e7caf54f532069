package testkit

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"time"
)

// MountTmpfs mounts a file system of the size ("1M") until the test's end and
// returns its directory. A test whose host does not let it mount is skipped.
func MountTmpfs(t testing.TB, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small filesystem needs root")
	}
	dir := t.TempDir()
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size)
	if errors.Is(err, syscall.EPERM) {
		t.Skip("this container may not mount a small filesystem")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A program that another test starts just now holds our files until it is
		// the new program (fork, then exec closes them).
		err := syscall.Unmount(dir, 0)
		for end := time.Now().Add(10 * time.Second); errors.Is(err, syscall.EBUSY) && time.Now().Before(end); err = syscall.Unmount(dir, 0) {
			time.Sleep(20 * time.Millisecond)
		}
		if err != nil {
			t.Error(err)
		}
	})
	return dir
}
