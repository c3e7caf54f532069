package fleet

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Host asks the host what it can give: processors, memory, and the space in
// the directories, which must exist.
//
// Processors are those that Go's runtime counted: of the host, of the affinity
// mask, and of the control group (cpu.max) where it allows less.
func HostCapacity(dirs ...string) (Capacity, error) {
	mib, err := availableMemory(os.DirFS("/"))
	if err != nil {
		return Capacity{}, err
	}
	c := Capacity{CPUs: runtime.GOMAXPROCS(0), MemoryMiB: mib}
	devices := map[uint64]int{}
	for _, dir := range dirs {
		device, free, err := space(dir)
		if err != nil {
			return Capacity{}, err
		}
		i, known := devices[device]
		if !known {
			i = len(c.Space)
			devices[device] = i
			c.Space = append(c.Space, Space{Free: free})
		}
		if !slices.Contains(c.Space[i].Dirs, dir) {
			c.Space[i].Dirs = append(c.Space[i].Dirs, dir)
		}
	}
	return c, nil
}

// space returns the device of a directory and the bytes that an ordinary user
// may still write there.
func space(dir string) (device uint64, free int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, 0, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return st.Dev, int64(s.Bavail) * s.Bsize, nil
}

// availableMemory is the kernel's estimate of what can be taken without
// swapping (MemAvailable, proc(5)), in MiB, or what the control groups still
// allow (memory.max, cgroup v2) where that is less. Groups of version 1 are not
// asked.
func availableMemory(root fs.FS) (int, error) {
	info, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return 0, err
	}
	kib, err := field(info, "MemAvailable:")
	if err != nil {
		return 0, fmt.Errorf("reading /proc/meminfo: %w", err)
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
func controlGroups(root fs.FS) []string {
	text, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return nil
	}
	var dirs []string
	for line := range strings.Lines(string(text)) {
		group, v2 := strings.CutPrefix(strings.TrimSpace(line), "0::/")
		if !v2 {
			continue
		}
		for dir := path.Join("sys/fs/cgroup", group); dir != "sys/fs"; dir = path.Dir(dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// groupMemory returns how many bytes a group may still take. Its cached files
// that nobody uses do not count: the kernel drops them first (the working set
// of the kubelet).
func groupMemory(root fs.FS, dir string) (left int64, limited bool) {
	most, err := number(root, path.Join(dir, "memory.max"))
	if err != nil {
		return 0, false // "max", or the root, which has no such file
	}
	current, err := number(root, path.Join(dir, "memory.current"))
	if err != nil {
		return 0, false
	}
	if stat, err := fs.ReadFile(root, path.Join(dir, "memory.stat")); err == nil {
		if inactive, err := field(stat, "inactive_file"); err == nil {
			current -= inactive
		}
	}
	return max(most-current, 0), true
}

func number(root fs.FS, name string) (int64, error) {
	text, err := fs.ReadFile(root, name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}

// field returns the number behind a name at the beginning of a line.
func field(text []byte, name string) (int64, error) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		if words := strings.Fields(lines.Text()); len(words) > 1 && words[0] == name {
			return strconv.ParseInt(words[1], 10, 64)
		}
	}
	return 0, errors.New("there is no " + name)
}
