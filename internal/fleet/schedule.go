// Schedule runs jobs that depend on one another: a parent before its
// children, as many at once as the host bears.
//
// Room is reserved, not measured, while jobs run: a guest that was just started
// has not taken its memory yet. A semaphore holds one kind of room; a job needs
// several at once or none, so that two half-served jobs cannot wait for each
// other.

package fleet

import (
	"context"
	"slices"
	"time"
)

// Job is a piece of work.
type Job struct {
	Name   string // unique
	Parent string // the job that must have ended well before; may be empty
	Needs  Resources
	// Run does the work. Its context ends with that of the schedule. A job
	// without Run has nothing to do: it is Skipped, and its children go on.
	Run func(context.Context) error
}

// Resources is what a job needs of the host.
type Resources struct {
	// CPUs is a matter of speed: a job that asks for more than the host has
	// takes them all and runs alone.
	CPUs      int
	MemoryMiB int
	// Disk is the most that the job takes while it runs, in bytes, by
	// directory. The directories must be among those of Capacity.Space.
	Disk map[string]int64
	// Keep is what of it stays when the job has ended, likewise.
	Keep map[string]int64
}

// State is where a job stands.
type State string

// The states of a job. The last five are final.
const (
	Waiting   State = "waiting"
	Running   State = "running"
	Done      State = "done"
	Skipped   State = "skipped"   // there was nothing to do
	Failed    State = "failed"    // Run returned an error
	Blocked   State = "blocked"   // an ancestor failed
	Cancelled State = "cancelled" // the context ended before the job had ended well
)

// Event says that a job's state, or the reason for it, has changed.
type Event struct {
	Name  string
	State State
	Why   string // what it waits for, what blocks or stops it; one line, may be empty
	Err   error  // of Failed and Cancelled
}

// Outcome is how a job ended.
type Outcome struct {
	Event
	Took time.Duration // 0 where it never ran
}

// Options says how many jobs may run at once.
type ScheduleOptions struct {
	// Jobs is how many may run at once, whatever the host's processors. 0: as
	// many as there are processors for. Memory and space are heeded in both.
	Jobs int
	Host Capacity
}

// Run runs the jobs and returns how each ended, by name. A job that fails
// stops only its descendants; the end of the context stops all, and Run
// returns when those that ran have ended. Of the jobs that could start, those
// with the longest chain of descendants start first.
//
// The error says, before anything has started, which jobs cannot be run at
// all: a parent that is not there, a cycle, a need that the host can never
// meet. observe is told of every change, in order, by one goroutine.
func Schedule(ctx context.Context, jobs []Job, o ScheduleOptions, observe func(Event)) (map[string]Outcome, error) {
	nodes, err := graph(jobs)
	if err != nil {
		return nil, err
	}
	r := &runner{observe: observe, ended: make(chan *node)}
	if err := r.reserve(nodes, o); err != nil {
		return nil, err
	}
	r.queue = slices.SortedStableFunc(slices.Values(nodes), byUrgency)
	r.run(ctx)
	outcomes := make(map[string]Outcome, len(nodes))
	for _, n := range nodes {
		outcomes[n.Name] = n.outcome
	}
	return outcomes, nil
}

// runner runs one schedule. Everything in it belongs to the goroutine of Run.
type runner struct {
	observe func(Event)
	queue   []*node // the most urgent first
	room    room
	running int
	ended   chan *node
}

func (r *runner) run(ctx context.Context) {
	for _, n := range r.queue {
		if n.Run == nil {
			r.set(n, Event{State: Skipped})
		} else {
			r.set(n, Event{State: Waiting})
		}
	}
	stopped := ctx.Done()
	for {
		if ctx.Err() != nil {
			r.cancel(context.Cause(ctx))
			stopped = nil
		} else {
			r.dispatch(ctx)
		}
		if r.running == 0 {
			return
		}
		select {
		case n := <-r.ended:
			r.finish(ctx, n)
		case <-stopped:
		}
	}
}

// patience is how many jobs may overtake a more urgent one for which there is
// no room. Then nothing else starts until there is: small jobs must not keep a
// large one waiting to the very end.
const patience = 4

// dispatch starts every job for which there is room.
func (r *runner) dispatch(ctx context.Context) {
	var held []*node
	var first *node // a job whose patience is at its end
	for _, n := range r.queue {
		if n.outcome.State != Waiting {
			continue
		}
		if !n.ready() {
			r.set(n, Event{State: Waiting, Why: "for " + n.Parent})
			continue
		}
		if kind, lacks := r.room.lacks(n.need); lacks {
			r.set(n, Event{State: Waiting, Why: "for " + r.room.names[kind]})
			held = append(held, n)
			if first == nil && n.overtaken >= patience {
				first = n
			}
			continue
		}
		if first != nil {
			r.set(n, Event{State: Waiting, Why: "for " + first.Name + " to start"})
			continue
		}
		for _, h := range held {
			h.overtaken++
		}
		r.start(ctx, n)
	}
}

func (r *runner) start(ctx context.Context, n *node) {
	r.room.take(n.need)
	r.running++
	n.began = time.Now()
	r.set(n, Event{State: Running})
	go func() {
		n.err = n.Run(ctx)
		r.ended <- n
	}()
}

func (r *runner) finish(ctx context.Context, n *node) {
	r.running--
	r.room.give(n.need, n.keep)
	n.outcome.Took = time.Since(n.began)
	switch {
	case n.err == nil:
		r.set(n, Event{State: Done})
	case ctx.Err() != nil: // what a stopped job says is no evidence
		r.set(n, stoppedBy(context.Cause(ctx)))
	default:
		r.set(n, Event{State: Failed, Why: n.err.Error(), Err: n.err})
		r.block(n, n.Name)
	}
}

// block marks the descendants of a job that failed.
func (r *runner) block(n *node, culprit string) {
	for _, child := range n.children {
		if child.Run != nil {
			r.set(child, Event{State: Blocked, Why: "blocked by " + culprit})
			r.block(child, culprit)
		}
	}
}

// cancel marks what will not be started any more.
func (r *runner) cancel(cause error) {
	for _, n := range r.queue {
		if n.outcome.State == Waiting {
			r.set(n, stoppedBy(cause))
		}
	}
}

func stoppedBy(cause error) Event { return Event{State: Cancelled, Why: cause.Error(), Err: cause} }

// set tells a change; what stays as it was is not told again.
func (r *runner) set(n *node, e Event) {
	e.Name = n.Name
	if n.outcome.State == e.State && n.outcome.Why == e.Why {
		return
	}
	n.outcome.Event = e
	r.observe(e)
}
