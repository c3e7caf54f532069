package fleet

import (
	"cmp"
	"time"

	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// State is where an image stands: what a plan says of it, then what came of
// that.
type State string

// What is to be done for an image; Blocked is the fourth.
const (
	Build State = "build"
	Tag   State = "tag"  // the registry has it, and a wanted tag is elsewhere
	Skip  State = "skip" // there is nothing to do
)

// How far that has come, in the words in which it is shown. All but the first
// two are final; Blocked is also what cannot be planned.
const (
	Waiting   State = ui.Waiting
	Running   State = ui.Running
	Done      State = ui.Done
	Skipped   State = ui.Skipped
	Failed    State = ui.Failed
	Blocked   State = ui.Blocked
	Cancelled State = ui.Cancelled
)

// Entry is an image of the plan.
type Entry struct {
	Name string `json:"name"`
	From string `json:"from,omitempty"`
	// Level is the number of images that it starts from, one from the other.
	Level int `json:"level"`
	// Action is Build, Tag, Skip or Blocked.
	Action State  `json:"action"`
	Why    string `json:"why"`
	// Anew says that an image of the same inputs must not take its place.
	Anew bool `json:"anew,omitempty"`
	// Fetch says that an image that is built starts from this one, which is not.
	Fetch bool `json:"fetch,omitempty"`
	Facts
	// Settings are the catalogue's and, where the plan is carried out by All,
	// those that name exactly what was planned.
	Settings map[string]string `json:"settings"`
	// Stages are the arguments of the commands that build the image one by
	// one: base, provision, sparsify, verify and pack. A child's base is left
	// to the caller, who has its parent.
	Stages map[string][]string `json:"stages,omitempty"`

	// Parent is the entry that the image starts from, or nil.
	Parent *Entry `json:"-"`
	// Index is the index that the image is a part of, or nil.
	Index *Index `json:"-"`
	// Needs is what building it takes, beyond what is in its directory already.
	Needs pipeline.Resources `json:"-"`
	// NotBefore is when a result may have been made at the earliest to be used
	// again: for --force and --max-age.
	NotBefore time.Time `json:"-"`
	// Known is the image that there is, in the registry or as a layout, for Tag
	// and Skip.
	Known Result `json:"-"`

	image    catalogue.Image
	settings settings.Settings // the image's and the command's
	config   settings.Config   // what they mean
}

// ImageName is the image's name in a registry: that of its index, where it is a part of one.
func (e *Entry) ImageName() string { return cmp.Or(e.image.Index, e.Name) }

// Facts are what is known of an image.
type Facts struct {
	// Inputs is the digest of all that the image is made from, "sha256:…".
	Inputs string `json:"inputs,omitempty"`
	// Reference is where the image goes, REGISTRY/REPOSITORY:TAG, or empty.
	Reference string `json:"reference,omitempty"`
	// Tags are the wanted ones; that of Reference is the first.
	Tags []string `json:"tags,omitempty"`
	// Found is the image of these inputs that there is already, or nil.
	Found *Found `json:"found,omitempty"`
	// Notes are for people: what was digested more coarsely than they think.
	Notes []string `json:"notes,omitempty"`
	// Absent says why there is none, where that is known: "its inputs have
	// changed", "the registry has lost a blob".
	Absent string `json:"-"`
	// MemoryMiB and DiskSize (in bytes) are the guest's.
	MemoryMiB int   `json:"-"`
	DiskSize  int64 `json:"-"`
	// Err is why the rest is not known.
	Err error `json:"-"`
}

// Found is an image that was built before.
type Found struct {
	Digest string    // of the manifest, "sha256:…"
	Tags   []string  // that it is known to have
	Built  time.Time // zero where that is not known
	// Revoked says why it must not be used, or is empty.
	Revoked string
}

// MarshalText writes the digest: that is all of it that a plan tells.
func (f *Found) MarshalText() ([]byte, error) { return []byte(f.Digest), nil }

// Result is an image that is complete.
type Result = pipeline.Result

// newEntries are the images as a plan in which nothing is decided. Parents stand
// before their children.
func newEntries(images []catalogue.Image) []*Entry {
	byName := make(map[string]*Entry, len(images))
	entries := make([]*Entry, len(images))
	for n, i := range images {
		e := &Entry{Name: i.Name, From: i.From, Parent: byName[i.From], Settings: i.Settings, image: i}
		if e.Parent != nil {
			e.Level = e.Parent.Level + 1
		}
		entries[n], byName[i.Name] = e, e
	}
	return entries
}
