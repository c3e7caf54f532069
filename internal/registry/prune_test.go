package registry_test

import (
	"fmt"
	"path"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"

	"github.com/netgroup-polito/diskforge/internal/registry"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

// image is one of ours, some days old.
func image(repository string, n, days int) registry.Entry {
	return registry.Entry{
		Repository: repository, Digest: fmt.Sprint("sha256:", n), Tags: []string{fmt.Sprint("v", n)},
		Disk: fmt.Sprint("sha256:disk", n), Built: now.Add(-time.Duration(days) * day),
	}
}

// gone lists what a policy deletes.
func gone(p registry.Policy, entries ...registry.Entry) []string {
	p.Now = now
	names := []string{}
	for _, d := range p.Decide(entries) {
		if d.Delete {
			names = append(names, d.Name())
		}
	}
	return names
}

func TestTheNewestOfEachRepositoryAreKept(t *testing.T) {
	t.Parallel()
	all := []registry.Entry{image("r/a", 1, 50), image("r/a", 2, 10), image("r/a", 3, 20), image("r/b", 4, 90)}
	assert.Equal(t, []string{"r/a:v1", "r/a:v3"}, gone(registry.Policy{Keep: 1}, all...))
	assert.Equal(t, []string{"r/a:v1"}, gone(registry.Policy{Keep: 2}, all...))
	assert.Equal(t, []string{"r/a:v1", "r/b:v4"}, gone(registry.Policy{Younger: 30 * day}, all...))
	assert.Equal(t, []string{"r/a:v1"}, gone(registry.Policy{Keep: 1, Younger: 30 * day}, all...), "either rule keeps")
}

func TestAnImageThatAKeptOneWasMadeFromIsKept(t *testing.T) {
	t.Parallel()
	grandparent, parent, child := image("r/base", 1, 90), image("r/desktop", 2, 80), image("r/course", 3, 1)
	parent.Base, child.Base = grandparent.Disk, parent.Digest
	policy := registry.Policy{Younger: 30 * day, Now: now}
	assert.Empty(t, gone(policy, grandparent, parent, child), "by its manifest's digest or its disk's")
	assert.Equal(t, "needed by r/desktop:v2", policy.Decide([]registry.Entry{grandparent, parent, child})[0].Why)
	child.Built = now.Add(-100 * day)
	assert.Len(t, gone(policy, grandparent, parent, child), 3, "the dead do not keep the dead")

	child.Built, child.Original.Refreshes = now, 1
	assert.Len(t, gone(policy, grandparent, parent, child), 2, "a refresh needs not what it refreshed")

	index := registry.Entry{Repository: "r/base", Digest: "sha256:9", Tags: []string{"multi"}, Parts: []string{grandparent.Digest}}
	assert.Empty(t, gone(policy, grandparent, index), "a part of a kept index")
}

func TestAnImageWithATagThatIsToStayIsKept(t *testing.T) {
	t.Parallel()
	latest, release, draft := image("r/a", 1, 90), image("r/a", 2, 80), image("r/a", 3, 70)
	latest.Tags, release.Tags = []string{"2026-05", "latest"}, []string{"release-1"}
	all := []registry.Entry{latest, release, draft}
	policy := registry.Policy{Younger: day, KeepTags: []string{"latest", "release-*"}, Now: now}
	assert.Equal(t, []string{"r/a:v3"}, gone(policy, all...))
	assert.Equal(t, "tag latest", policy.Decide(all)[0].Why)
	assert.Equal(t, "tag release-1", policy.Decide(all)[1].Why)

	release.Base = draft.Disk
	assert.Empty(t, gone(policy, latest, release, draft), "what it was made from stays with it")
}

func TestImagesThatDiskforgeDidNotMakeAreKeptUnlessAllAreMeant(t *testing.T) {
	t.Parallel()
	theirs, old := image("r/a", 1, 90), image("r/a", 2, 90)
	theirs.Disk = ""
	assert.Equal(t, []string{"r/a:v2"}, gone(registry.Policy{Younger: day}, theirs, old))
	assert.Len(t, gone(registry.Policy{Younger: day, All: true}, theirs, old), 2)
	young := image("r/a", 3, 0)
	young.Disk = ""
	assert.Empty(t, gone(registry.Policy{Keep: 1}, old, young), "others' images are not among the newest of ours")
}

func TestAnImageOfUnknownAgeIsKept(t *testing.T) {
	t.Parallel()
	e := image("r/a", 1, 0)
	e.Built = time.Time{}
	assert.Empty(t, gone(registry.Policy{Younger: day, All: true}, e))
}

// registries draws repositories with images that need one another.
func registries(t *rapid.T) []registry.Entry {
	digest := func(n int) string { return fmt.Sprint("sha256:", n) }
	return rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) registry.Entry {
		e := image(rapid.SampledFrom([]string{"r/a", "r/b", "r/c"}).Draw(t, "repository"), rapid.IntRange(0, 12).Draw(t, "digest"), rapid.IntRange(0, 6).Draw(t, "days"))
		e.Tags = rapid.SliceOfN(rapid.StringMatching(`[a-z]{1,2}1?`), 1, 3).Draw(t, "tags")
		switch rapid.IntRange(0, 5).Draw(t, "kind") {
		case 0:
			e.Disk = ""
		case 1:
			e.Built = time.Time{}
		case 2:
			e.Base = digest(rapid.IntRange(0, 12).Draw(t, "base"))
		case 3:
			e.Base = "sha256:disk" + digest(rapid.IntRange(0, 12).Draw(t, "disk"))[len("sha256:"):]
		case 4:
			e.Disk, e.Parts = "", []string{digest(rapid.IntRange(0, 12).Draw(t, "part"))}
		}
		return e
	}), 0, 20, func(e registry.Entry) string { return e.Repository + "@" + e.Digest }).Draw(t, "entries")
}

func policies(t *rapid.T) registry.Policy {
	return registry.Policy{
		Keep: rapid.IntRange(0, 4).Draw(t, "keep"), Younger: time.Duration(rapid.IntRange(0, 7).Draw(t, "younger")) * day,
		KeepTags: rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b*", "?z", "[c-e]*"}), 0, 2).Draw(t, "keep tags"),
		All:      rapid.Bool().Draw(t, "all"), Now: now,
	}
}

func kept(all []registry.Decision) []registry.Entry {
	var left []registry.Entry
	for _, d := range all {
		if !d.Delete {
			left = append(left, d.Entry)
		}
	}
	return left
}

func TestAPolicyNeverDeletesWhatItMustKeep(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		entries, p := registries(t), policies(t)
		all := p.Decide(entries)
		if len(all) != len(entries) {
			t.Fatalf("%d decisions on %d images", len(all), len(entries))
		}
		candidates, left := map[string]int{}, map[string]int{}
		for i, d := range all {
			if d.Digest != entries[i].Digest || d.Why == "" {
				t.Fatalf("decision %d is on %+v", i, d)
			}
			if p.All || d.Ours() {
				candidates[d.Repository]++
				if !d.Delete {
					left[d.Repository]++
				}
			}
			switch {
			case !d.Delete:
			case !p.All && !d.Ours():
				t.Fatalf("others' %s goes", d.Name())
			case d.Built.IsZero():
				t.Fatalf("%s goes, of unknown age", d.Name())
			case p.Younger > 0 && now.Sub(d.Built) < p.Younger:
				t.Fatalf("%s goes at %v", d.Name(), now.Sub(d.Built))
			}
			for _, glob := range p.KeepTags {
				for _, tag := range d.Tags {
					if matches, _ := path.Match(glob, tag); matches && d.Delete {
						t.Fatalf("%s goes with tag %s, which %s keeps", d.Name(), tag, glob)
					}
				}
			}
			for _, by := range kept(all) {
				if d.Delete && (slices.Contains(by.Parts, d.Digest) || by.Base == d.Digest || d.Disk != "" && by.Base == d.Disk) {
					t.Fatalf("%s goes, which %s needs", d.Name(), by.Name())
				}
				if d.Delete && by.Repository == d.Repository && by.Digest == d.Digest {
					t.Fatalf("a kept digest goes: %s", d.Digest)
				}
			}
		}
		for repository, n := range candidates {
			if left[repository] < min(n, p.Keep) {
				t.Fatalf("%s keeps %d of %d, not %d", repository, left[repository], n, p.Keep)
			}
		}
	})
}

func TestAPolicyDeletesNothingMoreOfWhatItKept(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := policies(t)
		left := kept(p.Decide(registries(t)))
		if again := kept(p.Decide(left)); len(again) != len(left) {
			t.Fatalf("of %d kept images %d are left", len(left), len(again))
		}
	})
}

func TestAnIndexGoesBeforeWhatItNames(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		all := make([]registry.Decision, rapid.IntRange(0, 12).Draw(t, "images"))
		for n := range all {
			all[n] = registry.Decision{Entry: image(rapid.SampledFrom([]string{"r/a", "r/b"}).Draw(t, "repository"), n, 0), Delete: rapid.Bool().Draw(t, "goes")}
			for part := range n { // no digest can be in what it is the digest of
				if rapid.Bool().Draw(t, "part") {
					all[n].Parts = append(all[n].Parts, all[part].Digest)
				}
			}
		}
		all = rapid.Permutation(all).Draw(t, "shuffled")
		gone := map[string]bool{}
		for _, d := range registry.Going(all) {
			for _, part := range d.Parts {
				if gone[d.Repository+"@"+part] {
					t.Fatalf("%s goes after its part %s", d.Name(), part)
				}
			}
			if name := d.Repository + "@" + d.Digest; !gone[name] {
				gone[name] = true
				continue
			}
			t.Fatalf("%s goes twice", d.Name())
		}
		for _, d := range all {
			if goes := gone[d.Repository+"@"+d.Digest]; d.Delete != goes {
				t.Fatalf("%s: decided %t, goes %t", d.Name(), d.Delete, goes)
			}
		}
	})
}

func TestTheOrderOfTheListDoesNotMatter(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		entries, p := registries(t), policies(t)
		shuffled := rapid.Permutation(entries).Draw(t, "shuffled")
		name := func(e registry.Entry) string { return e.Repository + "@" + e.Digest }
		names := func(entries []registry.Entry) (all []string) {
			for _, e := range kept(p.Decide(entries)) {
				all = append(all, name(e))
			}
			slices.Sort(all)
			return all
		}
		if a, b := names(entries), names(shuffled); !slices.Equal(a, b) {
			t.Fatalf("%v and %v", a, b)
		}
	})
}

func TestAgesAreWrittenAsTheyAreAskedFor(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{30 * day: "30d", 36 * time.Hour: "36h", 90 * time.Minute: "1h", 5 * time.Minute: "5m"} {
		assert.Equal(t, want, registry.FormatAge(d))
	}
}
