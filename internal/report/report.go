// Package report says what a build did, to people and machines: what was made
// from what, how long each part took, what was checked and what it looks like.
// The same report is JSON, one HTML page, a job summary and a few lines of a
// terminal.
package report

import (
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/text"
)

// Schema is the version of report.json. It changes with a field's meaning or
// removal, not with new fields.
const Schema = 1

// Outcomes of a build.
const (
	Published = "published" // in the registry
	Packed    = "packed"    // in an OCI layout
	Verified  = "verified"  // a disk that passed every check
	Built     = "built"     // a disk that was not looked into yet
	Failed    = "failed"
)

// Report is everything that is known of one build. No field holds a secret.
//
// Most of its text comes from playbooks and guests and is hostile: it is shown
// and stored with its control characters replaced, and cut to 200 characters
// (or what the tag text says) and 500 rows (the tag rows).
type Report struct {
	Schema  int       `json:"schema"`
	Version string    `json:"version"` // of diskforge
	Began   time.Time `json:"began"`
	Outcome string    `json:"outcome"`
	// Failure is why the build failed, the evidence in the lines after the first.
	Failure []string `json:"failure,omitempty" text:"2000" rows:"500"`
	Log     string   `json:"log,omitempty" text:"1000"` // path of the whole log of what failed

	Image    Image             `json:"image"`
	Base     Base              `json:"base"`
	Playbook Playbook          `json:"playbook"`
	Tools    map[string]string `json:"tools,omitempty"`    // program to version
	Settings []Setting         `json:"settings,omitempty"` // those that differ from their defaults

	Stages   []Stage   `json:"stages,omitempty"`            // in the order in which they began
	Boot     []Moment  `json:"boot,omitempty"`              // of the guest that was verified, from power on
	Tasks    []Task    `json:"tasks,omitempty" rows:"5000"` // Ansible's, in the order in which they ran
	Sizes    []Size    `json:"sizes,omitempty"`             // from the base to the layer
	Files    []File    `json:"files,omitempty"`             // of other forms (OUTPUTS)
	Checks   []Check   `json:"checks,omitempty" rows:"2000"`
	Changes  []Change  `json:"changes,omitempty" rows:"20000"`  // of packages, since the image before
	Packages []Package `json:"packages,omitempty" rows:"20000"` // installed in the guest, by name
	SBOM     SBOM      `json:"sbom,omitzero"`
	Pictures []Picture `json:"pictures,omitempty" rows:"8"`

	// Omitted is how many rows were too many for a report.
	Omitted int `json:"omitted,omitempty"`
}

// Image is what came out.
type Image struct {
	Name       string `json:"name,omitempty"`
	Tag        string `json:"tag,omitempty"`
	Reference  string `json:"reference,omitempty" text:"1000"` // with digest
	Digest     string `json:"digest,omitempty"`                // of the manifest, "sha256:…"
	DiskDigest string `json:"diskDigest,omitempty"`
	Inputs     string `json:"inputs,omitempty"` // digest of all that it was made from
	// VirtualSize is what the guest sees, in bytes.
	VirtualSize int64 `json:"virtualSize,omitempty"`
}

// Base is the cloud image, or the parent image, that it was made from.
type Base struct {
	Name   string `json:"name,omitempty" text:"1000"` // URL, path or suite
	Digest string `json:"digest,omitempty"`
	Guest  string `json:"guest,omitempty"` // its distribution: Debian 12
	// Release is the one that a URL of the newest meant: the publisher's own name of it
	// (20260722) or, where that is not known, the date of its list of checksums (2026-07-22).
	Release string `json:"release,omitempty"`
	// SignedBy is the fingerprint of the OpenPGP key by which that list is signed, or
	// nobody; empty where the checksum was given itself.
	SignedBy string `json:"signedBy,omitempty"`
}

// Playbook is what provisioned it.
type Playbook struct {
	File     string `json:"file,omitempty"`
	Source   string `json:"source,omitempty" text:"1000"` // URL or folder of the tree; empty for diskforge's own
	Revision string `json:"revision,omitempty"`           // commit, or the digest of its content
}

// Setting is one setting by its variable's name.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value" text:"1000"`
}

// Stage is one step of the build.
type Stage struct {
	Name    string        `json:"name"`
	Start   time.Duration `json:"start"` // since Began, in nanoseconds
	Took    time.Duration `json:"took"`  // in nanoseconds
	Result  string        `json:"result,omitempty" text:"1000"`
	Reused  bool          `json:"reused,omitempty"`  // an earlier run did it
	Stopped bool          `json:"stopped,omitempty"` // it did not fail: another did
	Failure string        `json:"failure,omitempty" text:"1000"`
}

// Moment is something that happened in the guest.
type Moment struct {
	Name string        `json:"name"`
	At   time.Duration `json:"at"` // since power on, in nanoseconds
}

// Task is one task of the playbook.
type Task struct {
	Name   string        `json:"name"`
	Took   time.Duration `json:"took"` // in nanoseconds
	Status string        `json:"status"`
	Detail string        `json:"detail,omitempty" text:"1000"` // why it failed
}

// The status of a task.
const (
	OK      = "ok"
	Changed = "changed"
	Skipped = "skipped"
	// Failed is the fourth.
)

// Size is how large the disk was somewhere on its way.
type Size struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

// File is a file that the disk was written into.
type File struct {
	Name   string `json:"name"`
	Digest string `json:"digest"` // "sha256:…", as CDI's checksum wants it
	Bytes  int64  `json:"bytes"`
}

// Check is one thing that was looked at.
type Check struct {
	Group  string `json:"group"` // hygiene, boot, playbook, containerdisk
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty" text:"1000"`
	// Excused is the reason that the allow-list gives for what does not hold.
	Excused string `json:"excused,omitempty" text:"1000"`
}

// Change is a package of which the image had another version before.
type Change struct {
	Name string `json:"name"`
	From string `json:"from,omitempty"` // empty: it was not installed
	To   string `json:"to,omitempty"`   // empty: it is not any more
}

// Package is an installed package.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// SBOM is the software bill of materials, or why there is none; neither where the
// disk was not looked into.
type SBOM struct {
	Packages int      `json:"packages,omitempty"`
	Files    []string `json:"files,omitempty"`            // beside this report
	None     string   `json:"none,omitempty" text:"1000"` // why there is none
}

// Line is the SBOM in a line, or empty.
func (s SBOM) Line() string {
	switch {
	case s.None != "":
		return "none was written: " + s.None
	case len(s.Files) > 0:
		return text.Count(s.Packages, "package") + " in " + strings.Join(s.Files, " and ")
	}
	return ""
}

// Picture is a screenshot. What is no PNG, or larger than 4 MiB or 16 million
// pixels, is left out.
type Picture struct {
	Title  string `json:"title"`
	PNG    []byte `json:"png"`    // base64 in JSON
	Width  int    `json:"width"`  // in pixels, as the PNG has it
	Height int    `json:"height"` // likewise
}
