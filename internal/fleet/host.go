package fleet

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/host"
)

// Capacity is what a host can give.
type Capacity struct {
	CPUs      int
	MemoryMiB int
	Dir       string // where the images are built
	Free      int64  // bytes that may still be written there
}

// hostCapacity asks this host what it can give to builds in a directory, which
// must exist. Processors are those that Go's runtime counted: of the host, of
// the affinity mask, and of the control group (cpu.max) where it allows less.
func hostCapacity(dir string) (Capacity, error) {
	mib, err := availableMemory(os.DirFS("/"))
	if err != nil {
		return Capacity{}, err
	}
	free, err := host.FreeSpace(dir)
	return Capacity{CPUs: runtime.GOMAXPROCS(0), MemoryMiB: mib, Dir: dir, Free: free}, err
}

// availableMemory is the kernel's estimate of what can be taken without
// swapping (MemAvailable, proc(5)), in MiB, or what the control groups still
// allow (memory.max, cgroup v2) where that is less. Groups of version 1 are not
// asked.
func availableMemory(root fs.FS) (int, error) {
	kib, err := figure(root, "proc/meminfo", "MemAvailable:")
	if err != nil {
		return 0, err
	}
	available := kib << 10
	for _, group := range controlGroups(root) {
		if left, limited := groupMemory(root, group); limited {
			available = min(available, left)
		}
	}
	return int(available >> 20), nil
}

// controlGroups returns the directories of our control group and of those
// above it: each can have a limit.
func controlGroups(root fs.FS) (dirs []string) {
	text, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		if group, v2 := strings.CutPrefix(strings.TrimSpace(line), "0::/"); v2 {
			for dir := path.Join("sys/fs/cgroup", group); dir != "sys/fs"; dir = path.Dir(dir) {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs
}

// groupMemory returns how many bytes a group may still take. Its cached files
// that nobody uses do not count: the kernel drops them first (the working set
// of the kubelet).
func groupMemory(root fs.FS, dir string) (left int64, limited bool) {
	most, err := figure(root, path.Join(dir, "memory.max"), "")
	if err != nil {
		return 0, false // "max", or the root, which has no such file
	}
	current, err := figure(root, path.Join(dir, "memory.current"), "")
	if err != nil {
		return 0, false
	}
	if inactive, err := figure(root, path.Join(dir, "memory.stat"), "inactive_file"); err == nil {
		current -= inactive
	}
	return max(most-current, 0), true
}

// figure returns the number behind a name at the beginning of a line, or, without
// a name, at the beginning of the file.
func figure(root fs.FS, file, name string) (int64, error) {
	text, err := fs.ReadFile(root, file)
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut("\n"+string(text), "\n"+name)
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0, fmt.Errorf("reading /%s: there is no %s", file, name)
	}
	return strconv.ParseInt(fields[0], 10, 64)
}
