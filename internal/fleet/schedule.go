package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// Event says that an image's state, or the reason for it, has changed; the last
// of an image says how it ended.
type Event struct {
	State State
	Why   string        // what it waits for, what blocks or stops it; may be empty
	Err   error         // of Failed and Cancelled
	Took  time.Duration // of one that ran and has ended
}

// schedule does the work of the entries, parents before their children, as many
// at once as the host bears: at most limit, or, where that is 0, as many as
// there are processors for. It returns how each ended. Parents stand before
// their children; for what there is to skip, no work is done.
//
// A failure stops only the descendants; the end of the context stops all, and
// schedule returns when the work that ran has ended. Of the images that could
// be next, those with the longest chain of descendants are first. Room is
// reserved, not measured, while images are built: a guest that was just started
// has not taken its memory yet. An image takes all that it needs at once or
// nothing, so that two half-served ones cannot wait for each other.
//
// The error says, before anything has started, what the host can never give.
// observe learns of every change, in order, from one goroutine.
func schedule(
	ctx context.Context, entries []*Entry, limit int, host Capacity,
	work func(context.Context, *Entry) error, observe func(*Entry, Event),
) (map[*Entry]Event, error) {
	nodes := graph(entries)
	s := &scheduler{work: work, observe: observe, ended: make(chan *node)}
	if err := s.reserve(nodes, limit, host); err != nil {
		return nil, err
	}
	s.queue = slices.SortedStableFunc(slices.Values(nodes), byUrgency)
	s.run(ctx)
	outcomes := make(map[*Entry]Event, len(nodes))
	for _, n := range nodes {
		outcomes[n.Entry] = n.last
	}
	return outcomes, nil
}

// waitsFor is the entry that must have ended well before, or nil. What there is
// waits for nobody, nor does an image that cannot be planned for a reason of its
// own: it fails at once, and stops its descendants and nothing else.
func (e *Entry) waitsFor() *Entry {
	if e.Parent == nil || e.Parent.Action == Tag { // the registry has that, whatever its tag
		return nil
	}
	if e.Action == Build || e.Action == Blocked && e.Err == nil {
		return e.Parent
	}
	return nil
}

// node is an entry with those that wait for it.
type node struct {
	*Entry
	first       *node // what it waits for, or nil
	waiting     []*node
	chain       int // the longest way down below it
	descendants int
	need        amounts
	overtaken   int // by less urgent ones, while it could have started but for want of room
	began       time.Time
	err         error
	last        Event
}

// graph connects the entries, and counts what depends on each.
func graph(entries []*Entry) []*node {
	of := make(map[*Entry]*node, len(entries))
	nodes := make([]*node, len(entries))
	for i, e := range entries {
		n := &node{Entry: e, first: of[e.waitsFor()]}
		if n.first != nil {
			n.first.waiting = append(n.first.waiting, n)
		}
		nodes[i], of[e] = n, n
	}
	for _, n := range slices.Backward(nodes) {
		if n.first != nil {
			n.first.chain = max(n.first.chain, n.chain+1)
			n.first.descendants += n.descendants + 1
		}
	}
	return nodes
}

// byUrgency sorts the critical path first: the image from which the longest
// chain hangs, then the one that most others need.
func byUrgency(a, b *node) int {
	return cmp.Or(cmp.Compare(b.chain, a.chain), cmp.Compare(b.descendants, a.descendants))
}

// ready says whether what the image starts from is there.
func (n *node) ready() bool {
	return n.first == nil || n.first.last.State == Done || n.first.last.State == Skipped
}

// amounts are of each kind of room.
type amounts [3]int64

const (
	turns  = iota // processors, or what stands in for them: the limit
	memory        // MiB
	space         // bytes in Capacity.Dir
)

// scheduler runs one schedule. Everything in it belongs to the goroutine of
// schedule.
type scheduler struct {
	work    func(context.Context, *Entry) error
	observe func(*Entry, Event)
	queue   []*node // the most urgent first
	free    amounts
	kinds   [3]string // what an image that lacks them waits for
	running int
	ended   chan *node
}

// reserve finds out what each image takes and what there is. The error names
// every image for which there can never be enough.
func (s *scheduler) reserve(nodes []*node, limit int, host Capacity) error {
	s.free = amounts{int64(limit), int64(host.MemoryMiB), host.Free}
	s.kinds = [3]string{"its turn", "memory", "space in " + host.Dir}
	if limit <= 0 {
		s.free[turns], s.kinds[turns] = int64(max(host.CPUs, 1)), "processors"
	}
	var errs []error
	var kept, last int64 // what all leave, and the most that one takes beyond that
	count := 0
	for _, n := range nodes {
		if n.Action == Skip {
			continue
		}
		n.need = amounts{1, int64(n.Needs.MemoryMiB), max(n.Needs.Disk, n.Needs.Keep)}
		if limit <= 0 {
			n.need[turns] = min(int64(max(n.Needs.CPUs, 1)), s.free[turns])
		}
		if n.need[memory] > s.free[memory] {
			what := fmt.Sprintf("%s needs %d MiB of memory, but this host has %d MiB to give", n.Name, n.need[memory], s.free[memory])
			errs = append(errs, failure.New(what, "give it less, build on a larger host, or leave it out"))
		}
		if n.need[space] > s.free[space] {
			what := fmt.Sprintf("%s needs about %s of %s, but %s is free", n.Name, text.Size(n.need[space]), s.kinds[space], text.Size(s.free[space]))
			errs = append(errs, failure.New(what, "free some there, choose a directory on a larger disk, or leave it out"))
		}
		if n.need[space] > 0 {
			count++
			kept += n.Needs.Keep
			last = max(last, n.need[space]-n.Needs.Keep)
		}
	}
	if errs == nil && kept+last > s.free[space] { // the last would wait for ever
		what := fmt.Sprintf("%d builds need about %s of %s together, but %s is free", count, text.Size(kept+last), s.kinds[space], text.Size(s.free[space]))
		return failure.New(what, "free some there, choose a directory on a larger disk, or build fewer at a time")
	}
	return errors.Join(errs...)
}

// lacks returns the first kind of room of which there is not enough, if any.
func (s *scheduler) lacks(need amounts) (kind string, lacks bool) {
	for i := range need {
		if need[i] > s.free[i] {
			return s.kinds[i], true
		}
	}
	return "", false
}

func (s *scheduler) run(ctx context.Context) {
	for _, n := range s.queue {
		if n.Action == Skip {
			s.set(n, Event{State: Skipped})
		} else {
			s.set(n, Event{State: Waiting})
		}
	}
	stopped := ctx.Done()
	for {
		if ctx.Err() != nil {
			s.cancel(context.Cause(ctx))
			stopped = nil
		} else {
			s.dispatch(ctx)
		}
		if s.running == 0 {
			return
		}
		select {
		case n := <-s.ended:
			s.finish(ctx, n)
		case <-stopped:
		}
	}
}

// patience is how many images may overtake a more urgent one for which there is
// no room. Then nothing else starts until there is: small ones must not keep a
// large one waiting to the very end.
const patience = 4

// dispatch starts every image for which there is room.
func (s *scheduler) dispatch(ctx context.Context) {
	var held []*node
	var first *node // one whose patience is at its end
	for _, n := range s.queue {
		if n.last.State != Waiting {
			continue
		}
		kind, lacks := s.lacks(n.need)
		switch {
		case !n.ready():
			s.set(n, Event{State: Waiting, Why: "for " + n.first.Name})
		case lacks:
			s.set(n, Event{State: Waiting, Why: "for " + kind})
			held = append(held, n)
			if first == nil && n.overtaken >= patience {
				first = n
			}
		case first != nil:
			s.set(n, Event{State: Waiting, Why: "for " + first.Name + " to start"})
		default:
			for _, h := range held {
				h.overtaken++
			}
			s.start(ctx, n)
		}
	}
}

func (s *scheduler) start(ctx context.Context, n *node) {
	for i := range n.need {
		s.free[i] -= n.need[i]
	}
	s.running++
	n.began = time.Now()
	s.set(n, Event{State: Running})
	go func() {
		n.err = s.work(ctx, n.Entry)
		s.ended <- n
	}()
}

func (s *scheduler) finish(ctx context.Context, n *node) {
	s.running--
	for i := range n.need {
		s.free[i] += n.need[i]
	}
	s.free[space] -= n.Needs.Keep
	took := time.Since(n.began)
	switch {
	case n.err == nil:
		s.set(n, Event{State: Done, Took: took})
	case ctx.Err() != nil: // what was stopped gives no evidence
		s.set(n, Event{State: Cancelled, Why: context.Cause(ctx).Error(), Err: context.Cause(ctx), Took: took})
	default:
		s.set(n, Event{State: Failed, Why: n.err.Error(), Err: n.err, Took: took})
		s.block(n, n.Name)
	}
}

// block marks the descendants of an image that failed.
func (s *scheduler) block(n *node, culprit string) {
	for _, child := range n.waiting {
		s.set(child, Event{State: Blocked, Why: "blocked by " + culprit})
		s.block(child, culprit)
	}
}

// cancel marks what will not be started any more.
func (s *scheduler) cancel(cause error) {
	for _, n := range s.queue {
		if n.last.State == Waiting {
			s.set(n, Event{State: Cancelled, Why: cause.Error(), Err: cause})
		}
	}
}

// set reports a change; what stays as it was is not reported again.
func (s *scheduler) set(n *node, e Event) {
	if n.last.State != e.State || n.last.Why != e.Why {
		n.last = e
		s.observe(n.Entry, e)
	}
}
