package fleet_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/netgroup-polito/diskforge/internal/fleet"
	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// day is a time some days ago.
func day(ago int) time.Time { return now.AddDate(0, 0, -ago) }

// kin is root ← mid ← leaf, and a second child of root.
func kin() []catalogue.Image {
	return []catalogue.Image{
		{Name: "root", Wanted: true}, {Name: "mid", From: "root", Wanted: true}, {Name: "leaf", From: "mid", Wanted: true}, {Name: "side", From: "root", Wanted: true},
	}
}

// known are facts where all is built and tagged, root first.
func known() map[string]fleet.Facts {
	facts := map[string]fleet.Facts{}
	for i, name := range []string{"root", "mid", "leaf", "side"} {
		facts[name] = fleet.Facts{Inputs: "sha256:i" + name, Tags: []string{"new"}, Found: &fleet.Found{Digest: "sha256:d" + name, Tags: []string{"new"}, Built: day(9 - i)}}
	}
	return facts
}

func without(facts map[string]fleet.Facts, names ...string) map[string]fleet.Facts {
	for _, name := range names {
		f := facts[name]
		f.Found = nil
		facts[name] = f
	}
	return facts
}

// said is a plan in short.
func said(entries []*fleet.Entry) (out []string) {
	for _, e := range entries {
		out = append(out, fmt.Sprintf("%s %s: %s", e.Action, e.Name, e.Why))
	}
	return out
}

func TestWhatHasNotChangedIsLeft(t *testing.T) {
	t.Parallel()
	assert.Equal(t, []string{"skip root: unchanged", "skip mid: unchanged", "skip leaf: unchanged", "skip side: unchanged"},
		said(fleet.Decide(kin(), known(), fleet.Policy{Now: now})))
}

func TestWhatIsMissingIsBuiltAndSoAreItsDescendants(t *testing.T) {
	t.Parallel()
	facts := without(known(), "mid")
	f := facts["mid"]
	f.Absent = "its inputs have\nchanged"
	facts["mid"] = f
	entries := fleet.Decide(kin(), facts, fleet.Policy{Now: now})
	assert.Equal(t, []string{"skip root: unchanged; others start from it", "build mid: its inputs have changed", "build leaf: mid is built", "skip side: unchanged"}, said(entries))
	assert.True(t, entries[0].Fetch)
	assert.False(t, entries[1].Anew, "nobody has it")
	assert.True(t, entries[2].Anew, "the old one has another parent")
	assert.Equal(t, []int{0, 1, 2, 1}, []int{entries[0].Level, entries[1].Level, entries[2].Level, entries[3].Level})
}

func TestATagIsMoved(t *testing.T) {
	t.Parallel()
	facts := known()
	facts["mid"].Found.Tags = []string{"old"}
	facts["side"].Found.Tags = nil
	entries := fleet.Decide(kin(), facts, fleet.Policy{Now: now})
	assert.Equal(t, []string{"skip root: unchanged", "tag mid: built before as old", "skip leaf: unchanged", "tag side: built before"}, said(entries))
	assert.Equal(t, "sha256:dmid", entries[1].Found.Digest)
}

func TestForceBuildsWhatIsWantedAndFetchesItsParent(t *testing.T) {
	t.Parallel()
	images := kin()
	images[0].Wanted, images[3].Wanted = false, false
	entries := fleet.Decide(images, known(), fleet.Policy{Now: now, Force: true})
	assert.Equal(t, []string{"skip root: unchanged; others start from it", "build mid: forced", "build leaf: forced", "skip side: unchanged"}, said(entries))
	assert.True(t, entries[1].Anew)
}

func TestWhatIsTooOldIsBuiltWithItsDescendants(t *testing.T) {
	t.Parallel()
	facts := known()
	facts["root"].Found.Built, facts["mid"].Found.Built, facts["leaf"].Found.Built = day(10), day(2), day(1)
	facts["side"].Found.Built = time.Time{}
	week := fleet.Policy{Now: now, MaxAge: 7 * 24 * time.Hour}
	assert.Equal(t, []string{"build root: 10d old, and 7d is the limit", "build mid: root is built", "build leaf: mid is built", "build side: nobody knows how old it is"},
		said(fleet.Decide(kin(), facts, week)))
	facts["root"].Found.Built = day(7)
	assert.Equal(t, "skip root: unchanged; others start from it", said(fleet.Decide(kin(), facts, week))[0], "a week is not older than a week")
}

func TestAnImageThatIsOlderThanItsParentIsBuilt(t *testing.T) {
	t.Parallel()
	facts := known()
	facts["mid"].Found.Built = day(1)
	entries := fleet.Decide(kin(), facts, fleet.Policy{Now: now})
	assert.Equal(t, []string{"skip root: unchanged", "skip mid: unchanged; others start from it", "build leaf: older than mid", "skip side: unchanged"}, said(entries))
}

func TestWhatNobodyNeedsIsNotBuilt(t *testing.T) {
	t.Parallel()
	images := kin()
	images[0].Wanted, images[1].Wanted, images[3].Wanted = false, false, false
	assert.Equal(t, []string{"skip root: not needed", "skip mid: not needed", "skip leaf: unchanged", "skip side: unchanged"},
		said(fleet.Decide(images, without(known(), "root", "mid"), fleet.Policy{Now: now})))
	assert.Equal(t, []string{"build root: not built yet", "build mid: not built yet", "build leaf: not built yet", "build side: root is built"},
		said(fleet.Decide(images, without(known(), "root", "mid", "leaf"), fleet.Policy{Now: now})), "leaf needs them, and side starts from what is now another root")
}

func TestWhatCannotBePlannedBlocksWhatNeedsItOnly(t *testing.T) {
	t.Parallel()
	facts := without(known(), "leaf")
	f := facts["mid"]
	f.Err = errors.New("the registry\nis away")
	facts["mid"] = f
	assert.Equal(t, []string{"skip root: unchanged", "blocked mid: the registry is away", "blocked leaf: mid is blocked", "skip side: unchanged"},
		said(fleet.Decide(kin(), facts, fleet.Policy{Now: now})))
}

// drawn is a random family with random facts.
func drawn(t *rapid.T) ([]catalogue.Image, map[string]fleet.Facts, fleet.Policy) {
	images := make([]catalogue.Image, rapid.IntRange(1, 20).Draw(t, "images"))
	facts := map[string]fleet.Facts{}
	for i := range images {
		name := fmt.Sprint("i", i)
		images[i] = catalogue.Image{Name: name, Wanted: rapid.Bool().Draw(t, "wanted")}
		if parent := rapid.IntRange(-3, i-1).Draw(t, "parent"); parent >= 0 {
			images[i].From = images[parent].Name
		}
		f := fleet.Facts{Inputs: "sha256:" + name, Tags: []string{"new"}}
		switch rapid.IntRange(0, 9).Draw(t, "state") {
		case 0:
			f.Err = errors.New("broken")
		case 1, 2, 3:
		default:
			f.Found = &fleet.Found{Digest: "sha256:x", Built: day(rapid.IntRange(0, 9).Draw(t, "age")), Tags: rapid.SampledFrom([][]string{{"new"}, {"old"}}).Draw(t, "tags")}
		}
		facts[name] = f
	}
	return images, facts, fleet.Policy{Now: now, Force: rapid.Bool().Draw(t, "force"), MaxAge: time.Duration(rapid.IntRange(0, 9).Draw(t, "max age")) * 24 * time.Hour}
}

func TestEveryPlanCanBeCarriedOut(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		images, facts, o := drawn(t)
		entries := fleet.Decide(images, facts, o)
		require.Len(t, entries, len(images))
		done := map[string]*fleet.Entry{}
		for i, e := range entries {
			f := facts[e.Name]
			assert.NotEmpty(t, e.Why)
			assert.Equal(t, images[i].Name, e.Name)
			p, child := done[e.From]
			if e.Action == fleet.Build {
				assert.True(t, !child || p.Action == fleet.Build || p.Fetch && p.Found != nil, "the parent of %s is not at hand", e.Name)
			}
			if child && p.Action == fleet.Build {
				assert.Contains(t, []fleet.State{fleet.Build, fleet.Blocked}, onlyIfFound(f, e), "%s is left with an old parent", e.Name)
			}
			if f.Err != nil {
				assert.Equal(t, fleet.Blocked, e.Action)
			}
			if e.Fetch {
				assert.True(t, slices.ContainsFunc(entries, func(c *fleet.Entry) bool { return c.From == e.Name && c.Action == fleet.Build }), "nobody needs %s", e.Name)
			}
			if images[i].Wanted && f.Found == nil && f.Err == nil {
				assert.Contains(t, []fleet.State{fleet.Build, fleet.Blocked}, e.Action)
			}
			done[e.Name] = e
		}
	})
}

// onlyIfFound is the action of an image that there is; one that nobody needs
// and nobody has may be left out.
func onlyIfFound(f fleet.Facts, e *fleet.Entry) fleet.State {
	if f.Found == nil && e.Action == fleet.Skip {
		return fleet.Build
	}
	return e.Action
}

func TestAPlanThatWasCarriedOutIsFollowedByNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		images, facts, o := drawn(t)
		blocked := map[string]bool{}
		for _, e := range fleet.Decide(images, facts, o) {
			f := facts[e.Name]
			blocked[e.Name] = e.Action == fleet.Blocked || blocked[e.From]
			switch e.Action {
			case fleet.Build:
				f.Found = &fleet.Found{Digest: "sha256:y", Built: now.Add(time.Minute), Tags: []string{"new"}}
			case fleet.Tag:
				f.Found.Tags = append(f.Found.Tags, "new")
			}
			facts[e.Name] = f
		}
		o.Force = false
		for _, e := range fleet.Decide(images, facts, o) {
			assert.True(t, e.Action == fleet.Skip || blocked[e.Name], "%s %s: %s", e.Action, e.Name, e.Why)
		}
	})
}
