package registry

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// Policy says which images of a registry are kept. What one rule keeps is kept,
// whatever the others say, and so is what a channel names.
type Policy struct {
	// Keep is how many images of each repository and architecture are kept, the newest, and
	// how many indexes.
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
// Session.Entries returns them. Applied to what it keeps, a policy deletes
// nothing more.
//
// An image that a kept one was made from, or that a kept index names, is kept
// itself, in whichever repository it is.
func (p Policy) Decide(entries []Entry) []Decision {
	all := make([]Decision, len(entries))
	for i, e := range entries {
		why, deleted := p.decide(e, entries)
		all[i] = Decision{e, deleted, why}
	}
	for again := true; again; { // what they need may need something in turn
		again = false
		for _, by := range all {
			for i := range all {
				if d := &all[i]; !by.Delete && d.Delete && by.needs(d.Entry) {
					d.Delete, d.Why, again = false, "needed by "+by.Name(), true
				}
			}
		}
	}
	return all
}

// needs says whether an image was made from another, or is an index of it. A refresh is
// made anew from its original, and needs no former one.
func (e Entry) needs(other Entry) bool {
	return e.Base != "" && e.Original.Refreshes == 0 && (e.Base == other.Digest || e.Base == other.Disk) || slices.Contains(e.Parts, other.Digest)
}

func (p Policy) decide(e Entry, entries []Entry) (why string, deleted bool) {
	tag, newest := p.keptTag(e), p.newer(e, entries) < p.Keep
	channel := slices.IndexFunc(e.Tags, isChannel)
	switch {
	case tag != "":
		return "tag " + tag, false
	case !p.All && !e.Ours():
		return "diskforge did not make it", false
	case e.Built.IsZero():
		return "its age is not known", false
	case newest:
		return fmt.Sprintf("among the newest %d", p.Keep), false
	case p.Younger > 0 && p.Now.Sub(e.Built) < p.Younger:
		return "younger than " + FormatAge(p.Younger), false
	case channel >= 0:
		return "channel " + e.Tags[channel], false
	case p.Younger > 0 && p.Keep > 0:
		return fmt.Sprintf("not among the newest %d, and older than %s", p.Keep, FormatAge(p.Younger)), true
	case p.Younger > 0:
		return "older than " + FormatAge(p.Younger), true
	}
	return fmt.Sprintf("not among the newest %d", p.Keep), true
}

// isChannel says whether a tag is one that moves from image to image (stable, testing,
// latest): versions and dates have digits.
func isChannel(tag string) bool { return !strings.ContainsAny(tag, "0123456789") }

// CheckChannel says whether a tag may be a channel's.
func CheckChannel(tag string) error {
	err := checkTag(tag)
	if err == nil && !isChannel(tag) {
		err = errors.New("a channel has no digits, by which versions and dates are known: give e.g. stable or testing")
	}
	return err
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

// newer is how many images of e's repository and architecture, or indexes where it is one,
// come before it, of those that the policy speaks of. Of equally old ones those with the lower digest do, so
// that the choice is the same each time.
func (p Policy) newer(e Entry, entries []Entry) (n int) {
	for _, o := range entries {
		alike := o.Repository == e.Repository && o.Architecture() == e.Architecture() && (len(o.Parts) == 0) == (len(e.Parts) == 0)
		if alike && (p.All || o.Ours()) && !o.Built.IsZero() &&
			cmp.Or(e.Built.Compare(o.Built), strings.Compare(o.Digest, e.Digest)) < 0 {
			n++
		}
	}
	return n
}

// Going are the images that are deleted, an index before those that it names.
func Going(all []Decision) (going []Decision) {
	seen := map[string]bool{}
	var add func(d Decision)
	add = func(d Decision) {
		place := d.Repository + "@" + d.Digest
		if !d.Delete || seen[place] {
			return
		}
		seen[place] = true
		for _, index := range all {
			if index.Repository == d.Repository && slices.Contains(index.Parts, d.Digest) {
				add(index)
			}
		}
		going = append(going, d)
	}
	for _, d := range all {
		add(d)
	}
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
