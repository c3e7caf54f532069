package registry

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"time"
)

// Policy says which images of a registry are kept. What one rule keeps is kept,
// whatever the others say.
type Policy struct {
	// Keep is how many images of each repository are kept, the newest.
	Keep int
	// Younger keeps what was built less than that ago; 0 keeps nothing for it.
	Younger time.Duration
	// KeepTags are globs (path.Match): an image is kept that has a tag which
	// one of them matches. They must be well-formed.
	KeepTags []string
	// All prunes images that diskforge did not make, too.
	All bool
	Now time.Time
}

// Decision is what becomes of one image.
type Decision struct {
	Entry
	Delete bool   `json:"delete"`
	Why    string `json:"why"`
}

// Decide says of every image, in the order of the entries, whether it is
// deleted, and why. Entries are the images of any number of repositories; each
// repository must be whole, with all tags of an image in one entry, as
// registry.Session.Entries returns them. Applied to what it keeps, a policy
// deletes nothing more.
//
// An image that a kept one was made from, or that a kept index names, is kept
// itself, in whichever repository it is.
func (p Policy) Decide(entries []Entry) []Decision {
	newest := p.newest(entries)
	all := make([]Decision, len(entries))
	for i, e := range entries {
		all[i] = p.decide(e, newest[i])
	}
	keepNeeded(all)
	return all
}

func (p Policy) decide(e Entry, newest bool) Decision {
	age := p.Now.Sub(e.Built)
	tag := p.keptTag(e)
	switch {
	case tag != "":
		return Decision{e, false, "tag " + tag}
	case !p.eligible(e):
		return Decision{e, false, "diskforge did not make it"}
	case e.Built.IsZero():
		return Decision{e, false, "its age is not known"}
	case newest:
		return Decision{e, false, fmt.Sprintf("among the newest %d", p.Keep)}
	case p.Younger > 0 && age < p.Younger:
		return Decision{e, false, "younger than " + FormatAge(p.Younger)}
	case p.Younger > 0 && p.Keep > 0:
		return Decision{e, true, fmt.Sprintf("not among the newest %d, and older than %s", p.Keep, FormatAge(p.Younger))}
	case p.Younger > 0:
		return Decision{e, true, "older than " + FormatAge(p.Younger)}
	}
	return Decision{e, true, fmt.Sprintf("not among the newest %d", p.Keep)}
}

// keptTag is the first tag of an image for which it is kept, or empty.
func (p Policy) keptTag(e Entry) string {
	for _, tag := range e.Tags {
		for _, glob := range p.KeepTags {
			if matches, _ := path.Match(glob, tag); matches {
				return tag
			}
		}
	}
	return ""
}

// eligible says whether the policy speaks of such images at all.
func (p Policy) eligible(e Entry) bool { return p.All || e.Ours() }

// newest marks the newest images of each repository that the policy speaks of.
// Of equally old ones those with the lower digest come first, so that the
// choice is the same each time.
func (p Policy) newest(entries []Entry) map[int]bool {
	repositories := map[string][]int{}
	for i, e := range entries {
		if p.eligible(e) && !e.Built.IsZero() {
			repositories[e.Repository] = append(repositories[e.Repository], i)
		}
	}
	marked := map[int]bool{}
	for _, all := range repositories {
		slices.SortFunc(all, func(a, b int) int {
			return cmp.Or(entries[b].Built.Compare(entries[a].Built), cmp.Compare(entries[a].Digest, entries[b].Digest))
		})
		for _, i := range all[:min(len(all), max(0, p.Keep))] {
			marked[i] = true
		}
	}
	return marked
}

// keepNeeded keeps what kept images need, and what these need in turn.
func keepNeeded(all []Decision) {
	known := map[string][]int{} // by what a needy one may call it
	for i, d := range all {
		known[d.Digest] = append(known[d.Digest], i)
		if d.Disk != "" {
			known[d.Disk] = append(known[d.Disk], i)
		}
	}
	var visit func(by Decision)
	visit = func(by Decision) {
		for _, need := range append([]string{by.Base}, by.Parts...) {
			for _, i := range known[need] {
				if all[i].Delete {
					all[i].Delete, all[i].Why = false, "needed by "+by.Name()
					visit(all[i])
				}
			}
		}
	}
	for _, d := range slices.Clone(all) {
		if !d.Delete {
			visit(d)
		}
	}
}

// Going are the images that are deleted, each before those that it names: the
// parts of an index are not deleted before it.
func Going(all []Decision) []Decision {
	place := func(repository, digest string) string { return repository + "@" + digest }
	at := map[string]int{}
	for i, d := range all {
		at[place(d.Repository, d.Digest)] = i
	}
	var going []Decision
	seen := map[int]bool{}
	var visit func(i int)
	visit = func(i int) {
		if seen[i] {
			return
		}
		seen[i] = true
		for _, part := range all[i].Parts {
			if named, ok := at[place(all[i].Repository, part)]; ok {
				visit(named)
			}
		}
		if all[i].Delete {
			going = append(going, all[i])
		}
	}
	for i := range slices.Backward(all) {
		visit(i)
	}
	slices.Reverse(going)
	return going
}

// FormatAge writes a time span of hours and days the way people ask for it: 30d, 12h.
func FormatAge(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%dd", d/day)
	case d >= time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dm", d/time.Minute)
}
