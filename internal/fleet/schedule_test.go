package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/netgroup-polito/diskforge/internal/fleet"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
)

// small is a host in numbers that are easy to draw.
var small = fleet.Capacity{CPUs: 4, MemoryMiB: 100, Dir: "/out", Free: 1000}

// job is an entry with its work; without Run there is nothing to do.
type job struct {
	Name, Parent string
	Needs        pipeline.Resources
	Run          func(context.Context) error
}

type event struct {
	Name string
	fleet.Event
}

// schedule runs the jobs on the small host and returns how each ended.
func schedule(ctx context.Context, jobs []job, limit int, observe func(event)) (map[string]event, error) {
	byName, entries, run := map[string]*fleet.Entry{}, []*fleet.Entry{}, map[*fleet.Entry]func(context.Context) error{}
	for _, j := range jobs {
		e := &fleet.Entry{Name: j.Name, Parent: byName[j.Parent], Action: fleet.Build, Needs: j.Needs}
		if j.Run == nil {
			e.Action = fleet.Skip
		}
		byName[j.Name], run[e], entries = e, j.Run, append(entries, e)
	}
	work := func(ctx context.Context, e *fleet.Entry) error { return run[e](ctx) }
	outcomes, err := fleet.Schedule(ctx, entries, limit, small, work, func(e *fleet.Entry, now fleet.Event) { observe(event{e.Name, now}) })
	all := map[string]event{}
	for e, o := range outcomes {
		all[e.Name] = event{e.Name, o}
	}
	return all, err
}

// graphs draws jobs that the host can run, each below any before it or none;
// some have nothing to do.
func graphs(t *rapid.T, run func(name string, needs pipeline.Resources) func(context.Context) error) []job {
	count := rapid.IntRange(0, 12).Draw(t, "jobs")
	var jobs []job
	for i := range count {
		job := job{Name: fmt.Sprint("job", i), Needs: pipeline.Resources{
			CPUs:      rapid.IntRange(0, 6).Draw(t, "cpus"),
			MemoryMiB: rapid.IntRange(0, 100).Draw(t, "memory"),
			Disk:      rapid.Int64Range(0, 450).Draw(t, "disk"),
			Keep:      rapid.Int64Range(0, 50).Draw(t, "keep"),
		}}
		if i > 0 && rapid.Bool().Draw(t, "child") {
			job.Parent = fmt.Sprint("job", rapid.IntRange(0, i-1).Draw(t, "parent"))
		}
		if rapid.IntRange(0, 5).Draw(t, "idle") > 0 {
			job.Run = run(job.Name, job.Needs)
		}
		jobs = append(jobs, job)
	}
	return jobs
}

// meter watches the jobs as they run, as the host would.
type meter struct {
	sync.Mutex
	running, cpus, memory    int
	disk                     int64
	ran                      map[string]int
	ended                    map[string]bool
	overCommitted, outOfTurn []string
}

func newMeter() *meter { return &meter{ran: map[string]int{}, ended: map[string]bool{}} }

func (m *meter) begin(name string, r pipeline.Resources, jobs int) {
	m.Lock()
	defer m.Unlock()
	m.ran[name]++
	m.running++
	m.memory += r.MemoryMiB
	m.disk += max(r.Disk, r.Keep)
	m.cpus += min(max(r.CPUs, 1), small.CPUs)
	tooMany := jobs > 0 && m.running > jobs || jobs == 0 && m.cpus > small.CPUs
	if tooMany || m.memory > small.MemoryMiB || m.disk > small.Free {
		m.overCommitted = append(m.overCommitted, name)
	}
}

func (m *meter) end(name string, r pipeline.Resources) {
	m.Lock()
	defer m.Unlock()
	m.ended[name] = true
	m.running--
	m.memory -= r.MemoryMiB
	m.disk -= max(r.Disk, r.Keep) - r.Keep
	m.cpus -= min(max(r.CPUs, 1), small.CPUs)
}

func TestEveryOrderRespectsParentsAndTheHostAndAFailureBlocksExactlyItsDescendants(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := newMeter()
		limit := rapid.IntRange(0, 3).Draw(t, "limit")
		fails := rapid.SliceOfDistinct(rapid.Custom(func(t *rapid.T) string {
			return fmt.Sprint("job", rapid.IntRange(0, 11).Draw(t, "fails"))
		}), rapid.ID).Draw(t, "failing")
		failing := map[string]bool{}
		for _, name := range fails {
			failing[name] = true
		}
		parents, idle := map[string]string{}, map[string]bool{}
		run := func(name string, needs pipeline.Resources) func(context.Context) error {
			return func(context.Context) error {
				m.begin(name, needs, limit)
				defer m.end(name, needs)
				m.Lock()
				if p := parents[name]; p != "" && !idle[p] && !m.ended[p] {
					m.outOfTurn = append(m.outOfTurn, name)
				}
				m.Unlock()
				time.Sleep(100 * time.Microsecond) // so that jobs do run side by side
				if failing[name] {
					return errors.New("planted")
				}
				return nil
			}
		}
		jobs := graphs(t, run)
		for _, j := range jobs {
			parents[j.Name], idle[j.Name] = j.Parent, j.Run == nil
		}
		outcomes, err := schedule(context.Background(), jobs, limit, func(event) {})
		require.NoError(t, err)
		require.Len(t, outcomes, len(jobs))
		assert.Empty(t, m.overCommitted)
		assert.Empty(t, m.outOfTurn)
		for _, j := range jobs {
			want, ran := expected(j.Name, parents, idle, failing)
			assert.Equal(t, want, outcomes[j.Name].State, j.Name)
			assert.Equal(t, ran, m.ran[j.Name], "%s ran %d times", j.Name, m.ran[j.Name])
		}
	})
}

// expected says how a job must end, and how often it must have run.
func expected(name string, parents map[string]string, idle, failing map[string]bool) (fleet.State, int) {
	if idle[name] {
		return fleet.Skipped, 0
	}
	for p := parents[name]; p != "" && !idle[p]; p = parents[p] {
		if failing[p] {
			return fleet.Blocked, 0
		}
	}
	if failing[name] {
		return fleet.Failed, 1
	}
	return fleet.Done, 1
}

func TestACancelledScheduleStartsNothingMoreAndWaitsForWhatRuns(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := newMeter()
		ctx, cancel := context.WithCancelCause(context.Background())
		stop := errors.New("stopped by the test")
		after := rapid.IntRange(0, 12).Draw(t, "after")
		if after == 0 {
			cancel(stop)
		}
		run := func(name string, needs pipeline.Resources) func(context.Context) error {
			return func(ctx context.Context) error {
				m.begin(name, needs, 0)
				defer m.end(name, needs)
				m.Lock()
				started := len(m.ran)
				m.Unlock()
				if started == after {
					cancel(stop)
				}
				if started >= after {
					<-ctx.Done()
					return ctx.Err()
				}
				return nil
			}
		}
		jobs := graphs(t, run)
		outcomes, err := schedule(ctx, jobs, 0, func(event) {})
		require.NoError(t, err)
		cancel(nil)
		assert.Zero(t, m.running)
		for _, j := range jobs {
			o := outcomes[j.Name]
			switch o.State {
			case fleet.Done:
				assert.True(t, m.ended[j.Name])
			case fleet.Skipped:
				assert.Nil(t, j.Run)
			case fleet.Cancelled:
				assert.ErrorIs(t, o.Err, stop)
			default:
				t.Fatalf("%s ended as %s", j.Name, o.State)
			}
		}
	})
}

func TestEveryJobsStatesAreToldInTheirOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		jobs := graphs(t, func(string, pipeline.Resources) func(context.Context) error {
			return func(context.Context) error { return nil }
		})
		told := map[string][]fleet.State{}
		_, err := schedule(context.Background(), jobs, 0, func(e event) {
			if states := told[e.Name]; len(states) == 0 || states[len(states)-1] != e.State {
				told[e.Name] = append(told[e.Name], e.State)
			}
		})
		require.NoError(t, err)
		for _, j := range jobs {
			want := []fleet.State{fleet.Waiting, fleet.Running, fleet.Done}
			if j.Run == nil {
				want = []fleet.State{fleet.Skipped}
			}
			assert.Equal(t, want, told[j.Name])
		}
	})
}

func nothing(context.Context) error { return nil }

// order runs the jobs one at a time and returns the order in which they began.
func order(t *testing.T, jobs ...job) []string {
	t.Helper()
	var began []string
	_, err := schedule(t.Context(), jobs, 1, func(e event) {
		if e.State == fleet.Running {
			began = append(began, e.Name)
		}
	})
	require.NoError(t, err)
	return began
}

func TestTheLongestChainStartsFirstThenWhatMostOthersNeed(t *testing.T) {
	t.Parallel()
	began := order(t,
		job{Name: "leaf", Run: nothing},
		job{Name: "wide", Run: nothing},
		job{Name: "wide1", Parent: "wide", Run: nothing},
		job{Name: "wide2", Parent: "wide", Run: nothing},
		job{Name: "narrow", Run: nothing},
		job{Name: "narrow1", Parent: "narrow", Run: nothing},
		job{Name: "deep", Run: nothing},
		job{Name: "deep1", Parent: "deep", Run: nothing},
		job{Name: "deep2", Parent: "deep1", Run: nothing},
	)
	assert.Equal(t, []string{"deep", "wide", "narrow", "deep1"}, began[:4])
	assert.Equal(t, "leaf", began[4])
}

// When the large job could start, small ones run and more of them wait; a
// processor that becomes free goes to a small one, four times.
func TestALargeJobIsOvertakenFourTimesAtMost(t *testing.T) {
	t.Parallel()
	firstEnded := make(chan struct{})
	jobs := []job{
		{Name: "first", Run: nothing},
		{Name: "large", Parent: "first", Needs: pipeline.Resources{CPUs: 4}, Run: nothing},
		{Name: "next", Parent: "large", Run: nothing},
	}
	for i := range 40 {
		jobs = append(jobs, job{Name: fmt.Sprint("small", i), Run: func(context.Context) error {
			<-firstEnded
			return nil
		}})
	}
	began, before := 0, 0
	_, err := schedule(t.Context(), jobs, 0, func(e event) {
		switch {
		case e.Name == "first" && e.State == fleet.Done:
			close(firstEnded)
			began = 0
		case e.Name == "large" && e.State == fleet.Running:
			before = began
		case e.State == fleet.Running:
			began++
		}
	})
	require.NoError(t, err)
	assert.Equal(t, 4, before)
}

func TestWhatCanNeverFitIsRefusedAllAtOnceBeforeAnythingStarts(t *testing.T) {
	t.Parallel()
	run := func(context.Context) error { t.Error("it was started"); return nil }
	_, err := schedule(t.Context(), []job{
		{Name: "small", Run: run},
		{Name: "greedy", Needs: pipeline.Resources{MemoryMiB: 101}, Run: run},
		{Name: "vast", Parent: "small", Needs: pipeline.Resources{Disk: 1001}, Run: run},
		{Name: "idle", Needs: pipeline.Resources{MemoryMiB: 5000}},
	}, 0, func(event) { t.Error("something was told") })
	require.Error(t, err)
	lines := strings.Split(err.Error(), "\n")
	require.Len(t, lines, 2)
	assert.Contains(t, lines[0], "greedy needs 101 MiB of memory, but this host has 100 MiB to give: give it less")
	assert.Contains(t, lines[1], "vast needs about 1 KiB of space in /out")
}

func TestWhatTheJobsLeaveTogetherMustFitToo(t *testing.T) {
	t.Parallel()
	var jobs []job
	for i := range 4 {
		jobs = append(jobs, job{Name: fmt.Sprint(i), Run: nothing, Needs: pipeline.Resources{
			Disk: 400, Keep: 201,
		}})
	}
	_, err := schedule(t.Context(), jobs, 0, func(event) {})
	assert.ErrorContains(t, err, "4 builds need about")
	_, err = schedule(t.Context(), jobs[1:], 0, func(event) {})
	assert.NoError(t, err)
}

func TestTheSpaceThatAJobKeepsIsNotGivenToAnother(t *testing.T) {
	t.Parallel()
	m := newMeter()
	var jobs []job
	for i := range 10 {
		name := fmt.Sprint(i)
		needs := pipeline.Resources{Disk: 300, Keep: 70}
		jobs = append(jobs, job{Name: name, Needs: needs, Run: func(context.Context) error {
			m.begin(name, needs, 10)
			defer m.end(name, needs)
			time.Sleep(time.Millisecond) // so that jobs do run side by side
			return nil
		}})
	}
	_, err := schedule(t.Context(), jobs, 10, func(event) {})
	require.NoError(t, err)
	assert.Empty(t, m.overCommitted)
}

func TestAJobSaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	why := map[string][]string{}
	_, err := schedule(t.Context(), []job{
		{Name: "a", Needs: pipeline.Resources{MemoryMiB: 80}, Run: nothing},
		{Name: "b", Needs: pipeline.Resources{MemoryMiB: 80}, Run: nothing},
		{Name: "c", Parent: "a", Run: func(context.Context) error { return errors.New("broken") }},
		{Name: "d", Parent: "c", Run: nothing},
	}, 0, func(e event) {
		if e.Why != "" {
			why[e.Name] = append(why[e.Name], e.Why)
		}
	})
	require.NoError(t, err)
	assert.Equal(t, []string{"for memory"}, why["b"])
	assert.Equal(t, []string{"for a", "broken"}, why["c"])
	assert.Equal(t, []string{"for c", "blocked by c"}, why["d"])
}

func TestAJobThatWantsMoreProcessorsThanThereAreRunsAlone(t *testing.T) {
	t.Parallel()
	m := newMeter()
	var jobs []job
	for i := range 5 {
		name, needs := fmt.Sprint(i), pipeline.Resources{CPUs: 64}
		jobs = append(jobs, job{Name: name, Needs: needs, Run: func(context.Context) error {
			m.begin(name, needs, 1)
			defer m.end(name, needs)
			return nil
		}})
	}
	_, err := schedule(t.Context(), jobs, 0, func(event) {})
	require.NoError(t, err)
	assert.Empty(t, m.overCommitted)
	assert.Len(t, m.ran, 5)
}
