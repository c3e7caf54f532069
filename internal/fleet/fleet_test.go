package fleet_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/fleet"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// The table of images is what is told.
var _ fleet.Observer = (*ui.Table)(nil)

// family is a base with two images on it.
func family() []*fleet.Entry {
	base := build("base", nil, "1")
	base.Why = "it is new"
	return []*fleet.Entry{base, build("desktop", base, "2"), build("server", base, "3")}
}

func build(name string, parent *fleet.Entry, inputs string) *fleet.Entry {
	return &fleet.Entry{Name: name, Parent: parent, Action: fleet.Build, Facts: fleet.Facts{Inputs: inputs}}
}

// run runs the entries with a builder of their own and says which images were
// built, in order.
func run(t *testing.T, dir string, entries []*fleet.Entry) (built []string, s fleet.Summary, o *observer) {
	t.Helper()
	b := &fake{}
	o = &observer{}
	s, err := fleet.Run(t.Context(), entries, b, fleet.Options{OutputDir: dir, Jobs: 1}, o)
	require.NoError(t, err)
	for _, line := range b.began {
		if image, is := strings.CutSuffix(line, " provision"); is {
			built = append(built, image)
		}
	}
	return built, s, o
}

func TestAParentIsBuiltOnceThenItsChildrenAndTheSummaryTellsThem(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	built, s, o := run(t, dir, family())
	assert.Equal(t, []string{"base", "desktop", "server"}, built)
	assert.Equal(t, []string{"waiting", "running", "done"}, o.states["desktop"])
	assert.Equal(t, 3, s.Counts[fleet.Done])

	text, err := os.ReadFile(filepath.Join(dir, "build-all.json"))
	require.NoError(t, err)
	var read fleet.Summary
	require.NoError(t, json.Unmarshal(text, &read))
	assert.Equal(t, s, read)
	assert.Equal(t, "it is new", read.Images[0].Why)
	assert.Contains(t, read.Images[1].Result.Reference, "oci:desktop@sha256:")
}

func TestAFailureStopsOnlyWhatStartsFromItAndTheErrorNamesItInALine(t *testing.T) {
	t.Parallel()
	entries := family()
	entries = append(entries, build("kiosk", entries[1], "4"), build("other", nil, "5"))
	cause := &failure.Error{What: "task failed", Try: "mend it", Lines: []string{"fatal: x"}}
	b := &fake{fails: map[string]error{"desktop": fmt.Errorf("provision: %w", cause), "other": errors.New("first line\nsecond line")}}
	dir, o := t.TempDir(), &observer{}
	s, err := fleet.Run(t.Context(), entries, b, fleet.Options{OutputDir: dir}, o)
	require.EqualError(t, err, "2 of 5 images failed, 1 more were blocked by that\n"+
		"desktop: provision: task failed: mend it\nother: first line; second line")
	f, detailed := failure.In(err)
	require.True(t, detailed)
	assert.Equal(t, cause.Lines, f.Lines)
	assert.Equal(t, "blocked by desktop", o.whys["kiosk"])
	assert.Equal(t, map[fleet.State]int{fleet.Done: 2, fleet.Failed: 2, fleet.Blocked: 1}, s.Counts)
	assert.FileExists(t, filepath.Join(dir, "build-all.json"))
	page, err := os.ReadFile(filepath.Join(dir, "index.html"))
	require.NoError(t, err)
	for _, part := range []string{"<h2 id=\"image-4\">other</h2>", "task failed: mend it", "blocked by desktop"} {
		assert.Contains(t, string(page), part)
	}
}

func TestWhatAnImageWasMadeWithStaysUntilNobodyStartsFromIt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := &fake{fails: map[string]error{"desktop": errors.New("planted")}}
	_, err := fleet.Run(t.Context(), family(), b, fleet.Options{OutputDir: dir, Jobs: 1}, &observer{})
	require.Error(t, err)
	assert.Equal(t, []string{"server"}, b.cleaned)
	assert.FileExists(t, filepath.Join(dir, "base", "work", "provision"))

	b = &fake{}
	_, err = fleet.Run(t.Context(), planned(dir, family()), b, fleet.Options{OutputDir: dir, Jobs: 1}, &observer{})
	require.NoError(t, err)
	assert.Equal(t, []string{"server", "desktop", "base"}, b.cleaned)
	assert.NoFileExists(t, filepath.Join(dir, "base", "work", "provision"))
}

func TestWhatTheRegistryHasIsNotBuiltAndWaitsForNobody(t *testing.T) {
	t.Parallel()
	broken := build("broken", nil, "0")
	base := &fleet.Entry{Name: "base", Action: fleet.Skip, Why: "the registry has it", Known: fleet.Result{Reference: "r/base@x", Digest: "sha256:base"}}
	retagged := &fleet.Entry{Name: "retagged", Parent: broken, Action: fleet.Tag, Known: fleet.Result{Reference: "r/retagged@x"}}
	entries := []*fleet.Entry{broken, base, retagged, build("child", base, "1"), build("grandchild", retagged, "2")}
	var parents []string
	b := &fake{fails: map[string]error{"broken": errors.New("planted"), "retagged": errors.New("no")}}
	o := &observer{}
	s, err := fleet.Run(t.Context(), entries, handed{b, &parents}, fleet.Options{OutputDir: t.TempDir(), Jobs: 1}, o)
	require.EqualError(t, err, "2 of 5 images failed\nbroken: planted\nretagged: no")
	assert.Equal(t, "the registry has it", o.whys["base"])
	assert.Equal(t, []string{"skipped"}, o.states["base"])
	assert.Equal(t, fleet.Done, s.Images[4].State, "the registry has its parent, whatever the tag")
	assert.ElementsMatch(t, []string{"broken from ", "child from r/base@x", "grandchild from r/retagged@x"}, parents)
}

// handed notes which parent each image was handed.
type handed struct {
	*fake
	parents *[]string
}

func (h handed) Build(ctx context.Context, e *fleet.Entry, dir string, parent fleet.Result) (fleet.Result, error) {
	*h.parents = append(*h.parents, e.Name+" from "+parent.Reference)
	return h.fake.Build(ctx, e, dir, parent)
}

func TestACancelledRunEndsAndTellsWhyAndTheNextGoesOn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stopped by the test")
	b := &fake{gate: func(ctx context.Context, e *fleet.Entry) error {
		if e.Name == "base" {
			return nil
		}
		cancel(stop)
		<-ctx.Done()
		return errors.New("killed")
	}}
	s, err := fleet.Run(ctx, family(), b, fleet.Options{OutputDir: dir, Jobs: 1}, &observer{})
	require.EqualError(t, err, "stopped by the test")
	assert.Equal(t, map[fleet.State]int{fleet.Done: 1, fleet.Cancelled: 2}, s.Counts)
	built, _, o := run(t, dir, planned(dir, family()))
	assert.Equal(t, []string{"desktop", "server"}, built)
	assert.Equal(t, []string{"skipped"}, o.states["base"])
}

func TestASecondRunInTheSameDirectoryIsToldAtOnceAndHarmsNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	inside, goOn := make(chan struct{}), make(chan struct{})
	b := &fake{gate: func(_ context.Context, e *fleet.Entry) error {
		if e.Name == "base" {
			close(inside)
			<-goOn
		}
		return nil
	}}
	var g errgroup.Group
	g.Go(func() error {
		_, err := fleet.Run(t.Context(), family(), b, fleet.Options{OutputDir: dir}, &observer{})
		return err
	})
	<-inside
	_, err := fleet.Run(t.Context(), family(), &fake{}, fleet.Options{OutputDir: dir}, &observer{})
	assert.ErrorContains(t, err, fmt.Sprintf("another diskforge build is using %s/work (process %d)", dir, os.Getpid()))
	built, _, _ := run(t, t.TempDir(), family())
	assert.Len(t, built, 3, "in another directory")
	close(goOn)
	require.NoError(t, g.Wait())
	built, _, _ = run(t, dir, planned(dir, family()))
	assert.Empty(t, built)
}

func TestWhatCannotFitIsRefusedBeforeAnythingStarts(t *testing.T) {
	t.Parallel()
	entries := family()
	entries[2].Needs.MemoryMiB = 1 << 30
	b := &fake{}
	_, err := fleet.Run(t.Context(), entries, b, fleet.Options{OutputDir: t.TempDir()}, &observer{})
	assert.ErrorContains(t, err, "server needs 1073741824 MiB of memory, but this host has ")
	assert.Empty(t, b.began)
}

func TestImagesThatWouldMeetAreRefused(t *testing.T) {
	t.Parallel()
	occupied := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(occupied, "a"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(occupied, "a", "oci-layout"), nil, 0o600))
	for want, names := range map[string][]string{
		"the images a/b and a_b would both be made in ": {"a/b", "a_b"},
		`an image cannot be called "work"`:              {"work"},
		`an image cannot be called "build-all.json"`:    {"build-all.json"},
		`an image cannot be called "index.html"`:        {"index.html"},
		`an image cannot be called "../a"`:              {"../a"},
		"holds the image of a single build":             {"a"},
	} {
		var entries []*fleet.Entry
		for _, name := range names {
			entries = append(entries, build(name, nil, ""))
		}
		_, err := fleet.Run(t.Context(), entries, &fake{}, fleet.Options{OutputDir: occupied}, &observer{})
		assert.ErrorContains(t, err, want)
	}
	late := build("b", nil, "")
	_, err := fleet.Run(t.Context(), []*fleet.Entry{build("a", late, ""), late}, &fake{}, fleet.Options{OutputDir: t.TempDir()}, &observer{})
	assert.ErrorContains(t, err, `the parent "b" of "a" does not stand before it`)
}

func TestNoTwoImagesAreWrittenToOnePlace(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	count, ran := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		count++
		dir := filepath.Join(top, fmt.Sprint(count))
		names := rapid.SliceOfN(rapid.StringMatching(`[a-d][a-d./_-]{0,3}`), 1, 3).Draw(t, "names")
		var entries []*fleet.Entry
		for i, name := range names {
			e := build(name, nil, fmt.Sprint(i))
			if i > 0 && rapid.Bool().Draw(t, "child") {
				e.Parent = entries[rapid.IntRange(0, i-1).Draw(t, "parent")]
			}
			entries = append(entries, e)
		}
		b := &fake{bare: true}
		s, err := fleet.Run(context.Background(), entries, b, fleet.Options{OutputDir: dir, Jobs: 6}, &observer{})
		if err != nil {
			require.Zero(t, b.builds, "%v", err)
			return
		}
		ran++
		assert.Empty(t, b.clashes)
		var made []string
		for _, i := range s.Images {
			made = append(made, fleet.Dir(dir, i.Name))
			assert.Equal(t, dir, filepath.Dir(fleet.Dir(dir, i.Name)))
		}
		slices.Sort(made)
		assert.Len(t, slices.Compact(made), len(entries))
	})
	assert.Positive(t, ran)
}
