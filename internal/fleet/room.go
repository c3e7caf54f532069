package fleet

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

// Capacity is what the host can give.
type Capacity struct {
	CPUs      int
	MemoryMiB int
	Space     []Space
}

// Space is a file system.
type Space struct {
	Dirs []string // the directories in question that are on it
	Free int64    // bytes
}

// room is what is free of each kind: turns or processors, MiB of memory, then
// bytes of each file system.
type room struct {
	free  []int64
	names []string
}

const (
	turns  = iota // processors, or what stands in for them: Options.Jobs
	memory        // MiB
	spaces        // the first file system
)

// lacks returns the first kind of room of which there is not enough, if any.
func (r *room) lacks(need []int64) (kind int, lacks bool) {
	for i := range need {
		if need[i] > r.free[i] {
			return i, true
		}
	}
	return 0, false
}

func (r *room) take(need []int64) {
	for i := range need {
		r.free[i] -= need[i]
	}
}

func (r *room) give(need, keep []int64) {
	for i := range need {
		r.free[i] += need[i] - keep[i]
	}
}

// reserve translates the jobs' needs into kinds of room. The error names every
// job for which there can never be enough.
func (r *runner) reserve(nodes []*node, o ScheduleOptions) error {
	r.room = room{
		free:  []int64{int64(o.Jobs), int64(o.Host.MemoryMiB)},
		names: []string{"its turn", "memory"},
	}
	if o.Jobs <= 0 {
		r.room.free[turns], r.room.names[turns] = int64(max(o.Host.CPUs, 1)), "processors"
	}
	for _, s := range o.Host.Space {
		r.room.free = append(r.room.free, s.Free)
		r.room.names = append(r.room.names, "space in "+strings.Join(s.Dirs, ", "))
	}
	var errs []error
	for _, n := range nodes {
		errs = append(errs, r.translate(n, o))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for i := range o.Host.Space {
		errs = append(errs, r.checkTogether(nodes, spaces+i))
	}
	return errors.Join(errs...)
}

// translate sets need and keep, and checks that the job fits an idle host.
func (r *runner) translate(n *node, o ScheduleOptions) error {
	n.need, n.keep = make([]int64, len(r.room.free)), make([]int64, len(r.room.free))
	if n.Run == nil {
		return nil
	}
	n.need[turns] = 1
	if o.Jobs <= 0 {
		n.need[turns] = min(int64(max(n.Needs.CPUs, 1)), r.room.free[turns])
	}
	n.need[memory] = int64(n.Needs.MemoryMiB)
	var errs []error
	if n.need[memory] > r.room.free[memory] {
		errs = append(errs, failure.New(fmt.Sprintf("%s needs %d MiB of memory, but this host has %d MiB to give", n.Name, n.need[memory], r.room.free[memory]),
			"give it less, build on a larger host, or leave it out"))
	}
	if err := errors.Join(addSpace(n.need, n.Needs.Disk, o.Host.Space), addSpace(n.keep, n.Needs.Keep, o.Host.Space)); err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	for i := spaces; i < len(n.need); i++ {
		n.need[i] = max(n.need[i], n.keep[i])
		if n.need[i] > r.room.free[i] {
			errs = append(errs, failure.New(fmt.Sprintf("%s needs about %s of %s, but %s is free", n.Name, gib(n.need[i]), r.room.names[i], gib(r.room.free[i])),
				"free some there, choose a directory on a larger disk, or leave it out"))
		}
	}
	return errors.Join(errs...)
}

// addSpace adds up bytes by file system.
func addSpace(sum []int64, bytes map[string]int64, host []Space) error {
	for _, dir := range slices.Sorted(maps.Keys(bytes)) {
		i := slices.IndexFunc(host, func(s Space) bool { return slices.Contains(s.Dirs, dir) })
		if i < 0 {
			return fmt.Errorf("the host was not asked for the space in %s", dir)
		}
		sum[spaces+i] += bytes[dir]
	}
	return nil
}

// checkTogether checks that the last job still has room, whichever it is, when
// the others have left what they leave: otherwise it would wait for ever.
func (r *runner) checkTogether(nodes []*node, kind int) error {
	var kept, last int64
	count := 0
	for _, n := range nodes {
		if n.need[kind] == 0 {
			continue
		}
		count++
		kept += n.keep[kind]
		last = max(last, n.need[kind]-n.keep[kind])
	}
	if kept+last <= r.room.free[kind] {
		return nil
	}
	return failure.New(fmt.Sprintf("%d builds need about %s of %s together, but %s is free", count, gib(kept+last), r.room.names[kind], gib(r.room.free[kind])),
		"free some there, choose a directory on a larger disk, or build fewer at a time")
}

func gib(n int64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }
