package fleet

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// Policy is what the one who plans asks for beyond what is missing.
type Policy struct {
	// Force builds the wanted images though nothing has changed.
	Force bool
	// MaxAge builds what is older, and what starts from it; 0: no matter how old.
	MaxAge time.Duration
	// Now is the time that ages are counted from.
	Now time.Time
}

// Decide says what is to be done for each image, parents first as the images
// are, by what is known of each. What has not changed is not built, unless it
// is forced or too old; what starts from an image that is built is built. An
// image that is only needed by others is built where one of those is and nobody
// has it; where somebody has, it is fetched.
func Decide(images []catalogue.Image, facts map[string]Facts, p Policy) []*Entry {
	entries := newEntries(images)
	for _, e := range entries {
		e.Facts = facts[e.Name]
	}
	p.decide(entries)
	addIndexes(entries)
	return entries
}

func (p Policy) decide(entries []*Entry) {
	for _, e := range entries {
		p.alone(e)
		e.inherit()
	}
	for _, e := range slices.Backward(entries) {
		e.require()
	}
	for _, e := range entries {
		e.settle()
	}
}

// undecided is the action of an image that only others need, until they do.
const undecided State = ""

// alone decides by what is known of the image itself.
func (p Policy) alone(e *Entry) {
	switch old := p.tooOld(e); {
	case e.Err != nil:
		e.Action, e.Why = Blocked, text.Line(e.Err.Error())
	case e.Found == nil:
		e.Action, e.Why = Build, "not built yet"
		if e.Absent != "" {
			e.Why = text.Line(e.Absent)
		}
		if !e.image.Wanted {
			e.Action = undecided
		}
	case p.Force && e.image.Wanted:
		e.Action, e.Why, e.Anew = Build, "forced", true
	case old != "":
		e.Action, e.Why, e.Anew = Build, old, true
	case e.image.Wanted && len(e.MissingTags()) > 0:
		e.Action, e.Why = Tag, "built before"
		if len(e.Found.Tags) > 0 {
			e.Why += " as " + strings.Join(e.Found.Tags, ", ")
		}
	default:
		e.Action, e.Why = Skip, "unchanged"
	}
}

// MissingTags are the wanted tags that the image found does not have.
func (e *Entry) MissingTags() []string {
	return slices.DeleteFunc(slices.Clone(e.Tags), func(t string) bool { return slices.Contains(e.Found.Tags, t) })
}

// tooOld says why an image must be built though its inputs are the same, or
// nothing. One that is older than its parent was left by a run that ended in
// between.
func (p Policy) tooOld(e *Entry) string {
	switch {
	case e.Found == nil:
		return ""
	case e.Found.Revoked != "":
		return "what there is " + e.Found.Revoked
	}
	built := e.Found.Built
	switch age := p.Now.Sub(built); {
	case p.MaxAge > 0 && built.IsZero():
		return "nobody knows how old it is"
	case p.MaxAge > 0 && age > p.MaxAge:
		return fmt.Sprintf("%s old, and %s is the limit", registry.FormatAge(age), registry.FormatAge(p.MaxAge))
	case e.Parent != nil && e.Parent.Found != nil && !built.IsZero() && e.Parent.Found.Built.After(built):
		return "older than " + e.From
	}
	return ""
}

// inherit builds what starts from an image that is built.
func (e *Entry) inherit() {
	if e.Parent != nil && e.Parent.Action == Build && (e.Action == Skip || e.Action == Tag) {
		e.Action, e.Why, e.Anew, e.Fetch = Build, e.From+" is built", e.Found != nil, false
	}
}

// require has the parent of an image that is built ready.
func (e *Entry) require() {
	if e.Action != Build || e.Parent == nil {
		return
	}
	switch e.Parent.Action {
	case undecided:
		e.Parent.Action = Build
	case Skip, Tag:
		e.Parent.Fetch = true
	}
}

// settle decides on what nobody needs, and on what now has another parent.
func (e *Entry) settle() {
	if e.Action == undecided {
		e.Action, e.Why = Skip, "not needed"
	}
	e.inherit()
	if e.Action == Build && e.Parent != nil && e.Parent.Action == Blocked {
		e.Action, e.Why, e.Anew = Blocked, e.From+" is blocked", false
	}
	if e.Fetch {
		e.Why += "; others start from it"
	}
}
