// Package render decides what is to be done for the images of a catalogue, says
// why, and writes it down: for people, for programs, for GitHub Actions and for
// Kubernetes. It asks nobody: what the registry has is given to it.
package render

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// Action is what is to be done for an image.
type Action string

// The actions.
const (
	Build   Action = "build"
	Tag     Action = "tag"     // the registry has it, and a wanted tag is elsewhere
	Skip    Action = "skip"    // there is nothing to do
	Blocked Action = "blocked" // it cannot be planned, or its parent cannot
)

// Facts are what is known of an image.
type Facts struct {
	// Inputs is the digest of all that the image is made from, "sha256:…".
	Inputs string
	// Reference is where the image goes, REGISTRY/REPOSITORY:TAG, or empty.
	Reference string
	// Tags are the wanted ones; that of Reference is the first.
	Tags []string
	// Found is the image of these inputs that there is already, or nil.
	Found *Found
	// Absent says why there is none, where that is known: "its inputs have
	// changed", "the registry has lost a blob".
	Absent string
	// MemoryMiB and DiskSize (in bytes) are the guest's.
	MemoryMiB int
	DiskSize  int64
	// Notes are for people: what was digested more coarsely than they think.
	Notes []string
	// Err is why the rest is not known.
	Err error
}

// Found is an image that was built before.
type Found struct {
	Digest string    // of the manifest, "sha256:…"
	Tags   []string  // that it is known to have
	Built  time.Time // zero where that is not known
}

// Options are the wishes of the one who plans.
type Options struct {
	// Force builds the wanted images though nothing has changed.
	Force bool
	// MaxAge builds what is older, and what starts from it; 0: no matter how old.
	MaxAge time.Duration
	// Now is the time that ages are counted from.
	Now time.Time
}

// Entry is an image of the plan.
type Entry struct {
	Name string `json:"name"`
	From string `json:"from,omitempty"`
	// Level is the number of images that it starts from, one from the other.
	Level  int    `json:"level"`
	Action Action `json:"action"`
	Why    string `json:"why"`
	Inputs string `json:"inputs,omitempty"`
	// Anew says that an image of the same inputs must not take its place.
	Anew bool `json:"anew,omitempty"`
	// Fetch says that an image that is built starts from this one, which is not.
	Fetch     bool     `json:"fetch,omitempty"`
	Reference string   `json:"reference,omitempty"`
	Tags      []string `json:"tags,omitempty"`
	// Found is the digest of the image that there is, "sha256:…", or empty.
	Found    string            `json:"found,omitempty"`
	Notes    []string          `json:"notes,omitempty"`
	Settings map[string]string `json:"settings"`
	// Stages are the arguments of the commands that build the image one by
	// one: base, provision, sparsify, verify and pack. A child's base is left
	// to the caller, who has its parent.
	Stages map[string][]string `json:"stages,omitempty"`

	memoryMiB int
	diskSize  int64
	foundTags []string
}

// Decide says what is to be done for each image, parents first as the images
// are. What has not changed is not built, unless it is forced or too old; what
// starts from an image that is built is built. An image that is only needed by
// others is built where one of those is and nobody has it; where somebody has,
// it is fetched.
func Decide(images []catalogue.Image, facts map[string]Facts, o Options) []Entry {
	d := &decision{images: images, facts: facts, o: o, entries: make([]Entry, len(images)), at: make(map[string]int, len(images))}
	for i := range images {
		d.at[images[i].Name] = i
		d.alone(i)
		d.inherit(i)
	}
	for i := range slices.Backward(images) {
		d.need(i)
	}
	for i := range images {
		d.settle(i)
	}
	return d.entries
}

// undecided is the action of an image that only others need, until they do.
const undecided Action = ""

type decision struct {
	images  []catalogue.Image
	facts   map[string]Facts
	o       Options
	entries []Entry
	at      map[string]int // the image's place, by its name
}

// parent returns the entry that the i-th starts from, or nil.
func (d *decision) parent(i int) *Entry {
	if p, ok := d.at[d.images[i].From]; ok && d.images[i].From != "" {
		return &d.entries[p]
	}
	return nil
}

// alone decides by what is known of the image itself.
func (d *decision) alone(i int) {
	image, f := d.images[i], d.facts[d.images[i].Name]
	e := &d.entries[i]
	*e = Entry{
		Name: image.Name, From: image.From, Inputs: f.Inputs, Reference: f.Reference, Tags: f.Tags,
		Notes: f.Notes, Settings: image.Settings, memoryMiB: f.MemoryMiB, diskSize: f.DiskSize,
	}
	if p := d.parent(i); p != nil {
		e.Level = p.Level + 1
	}
	if f.Found != nil {
		e.Found, e.foundTags = f.Found.Digest, f.Found.Tags
	}
	switch old := d.tooOld(i, f.Found); {
	case f.Err != nil:
		e.Action, e.Why = Blocked, text.Line(f.Err.Error())
	case f.Found == nil && !image.Wanted:
		e.Action, e.Why = undecided, absent(f)
	case f.Found == nil:
		e.Action, e.Why = Build, absent(f)
	case d.o.Force && image.Wanted:
		e.Action, e.Why, e.Anew = Build, "forced", true
	case old != "":
		e.Action, e.Why, e.Anew = Build, old, true
	case image.Wanted && len(e.missingTags()) > 0:
		e.Action, e.Why = Tag, "built before"+tagged(f.Found.Tags)
	default:
		e.Action, e.Why = Skip, "unchanged"
	}
}

// missingTags are the wanted tags that the image found has not.
func (e Entry) missingTags() []string {
	return slices.DeleteFunc(slices.Clone(e.Tags), func(t string) bool { return slices.Contains(e.foundTags, t) })
}

func absent(f Facts) string {
	if f.Absent != "" {
		return text.Line(f.Absent)
	}
	return "not built yet"
}

func tagged(tags []string) string {
	if len(tags) == 0 {
		return ""
	}
	return " as " + strings.Join(tags, ", ")
}

// tooOld says why an image must be built though its inputs are the same, or
// nothing. One that is older than its parent was left by a run that ended in
// between.
func (d *decision) tooOld(i int, found *Found) string {
	if found == nil {
		return ""
	}
	parent := d.facts[d.images[i].From].Found
	switch age := d.o.Now.Sub(found.Built); {
	case d.o.MaxAge > 0 && found.Built.IsZero():
		return "nobody knows how old it is"
	case d.o.MaxAge > 0 && age > d.o.MaxAge:
		return fmt.Sprintf("%s old, and %s is the limit", ago(age), ago(d.o.MaxAge))
	case parent != nil && !found.Built.IsZero() && parent.Built.After(found.Built):
		return "older than " + d.images[i].From
	}
	return ""
}

// ago writes a duration in days where it has some, else in hours and minutes.
func ago(d time.Duration) string {
	const day = 24 * time.Hour
	if d >= day {
		return fmt.Sprintf("%dd", d/day)
	}
	return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
}

// inherit builds what starts from an image that is built.
func (d *decision) inherit(i int) {
	e, p := &d.entries[i], d.parent(i)
	if p == nil || p.Action != Build || e.Action != Skip && e.Action != Tag {
		return
	}
	e.Action, e.Why, e.Anew, e.Fetch = Build, e.From+" is built", e.Found != "", false
}

// need has the parent of an image that is built ready.
func (d *decision) need(i int) {
	p := d.parent(i)
	if d.entries[i].Action != Build || p == nil {
		return
	}
	switch p.Action {
	case undecided:
		p.Action = Build
	case Skip, Tag:
		p.Fetch = true
	}
}

// settle decides on what nobody needs, and on what now has another parent.
func (d *decision) settle(i int) {
	e, p := &d.entries[i], d.parent(i)
	if e.Action == undecided {
		e.Action, e.Why = Skip, "not needed"
	}
	d.inherit(i)
	if e.Action == Build && p != nil && p.Action == Blocked {
		e.Action, e.Why, e.Anew = Blocked, e.From+" is blocked", false
	}
	if e.Fetch {
		e.Why += "; others start from it"
	}
}
