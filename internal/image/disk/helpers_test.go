package disk_test

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

const mib = 1 << 20

// qemuImg runs the real qemu-img.
func qemuImg(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

// noise is n bytes that no compression makes smaller, the same each time.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// rawDisk makes a raw disk of size bytes: a partition table, 2 MiB of text,
// 1 MiB of noise, 1 MiB of written zeroes and holes.
func rawDisk(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Truncate(size))
	mbr := make([]byte, 512)
	copy(mbr[446:], []byte{0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0}) // 1 MiB from sector 2048
	mbr[510], mbr[511] = 0x55, 0xaa
	for offset, b := range map[int64][]byte{
		0:       mbr,
		1 * mib: []byte(strings.Repeat("the guest's own data\n", 2*mib/21)),
		3 * mib: noise(mib),
		6 * mib: make([]byte, mib),
	} {
		_, err := f.WriteAt(b, offset)
		require.NoError(t, err)
	}
	return path
}

// converted are the images of qcow2Disk by their arguments, each made once.
var converted sync.Map

// qcow2Disk makes a qcow2 image of rawDisk's content.
func qcow2Disk(t testing.TB, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	if b, ok := converted.Load(strings.Join(args, " ")); ok {
		require.NoError(t, os.WriteFile(path, b.([]byte), 0o644))
		return path
	}
	qemuImg(t, append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), rawDisk(t, 64*mib), path)...)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	converted.Store(strings.Join(args, " "), b)
	return path
}

// file makes a file with the given content.
func file(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// names lists a directory.
func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	list := []string{}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// running lists the command lines of processes that mention word.
func running(t testing.TB, word string) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	var found []string
	for _, path := range all {
		if line, _ := os.ReadFile(path); strings.Contains(string(line), word) {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

// recorder is a Reporter that remembers.
type recorder struct {
	mu          sync.Mutex
	done, total []int64
	warnings    []string
	onBytes     func()
}

func (r *recorder) Bytes(done, total int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done, r.total = append(r.done, done), append(r.total, total)
	if r.onBytes != nil {
		r.onBytes()
	}
}

func (r *recorder) Activity(string) {}

func (r *recorder) Warn(message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.warnings = append(r.warnings, message)
}
