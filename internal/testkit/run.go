package testkit

import (
	"flag"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Run runs a package's tests, which may run side by side, and returns the exit
// code: in a home without a login at any registry and, where they are short and this
// host has memory to give, with their folders there: what is synced waits for a disk.
func Run(m *testing.M) int {
	flag.Parse()
	if os.Getenv(within) != "" { // a process that a test starts, and may kill
		return m.Run()
	}
	must(os.Setenv(within, "1"))
	var fs unix.Statfs_t
	const shm, enough = "/dev/shm", 1 << 30
	if testing.Short() && unix.Statfs(shm, &fs) == nil && fs.Type == unix.TMPFS_MAGIC && fs.Flags&unix.ST_NOEXEC == 0 && fs.Bavail*uint64(fs.Bsize) > enough {
		must(os.Setenv("TMPDIR", shm))
	}
	home, err := os.MkdirTemp("", "home")
	must(err)
	defer os.RemoveAll(home)
	for _, variable := range []string{"HOME", "DOCKER_CONFIG", "XDG_RUNTIME_DIR"} {
		must(os.Setenv(variable, home))
	}
	return m.Run()
}

const within = "DISKFORGE_TEST_WITHIN"

func must(err error) {
	if err != nil {
		panic(err)
	}
}
