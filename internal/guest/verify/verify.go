// Package verify boots a finished disk as its consumers will, and looks
// inside and from outside: whether cloud-init did its work, whether nothing of
// the build is left, whether the desktop is served, whether the checks that
// belong to the playbook hold.
//
// What is looked at inside is a list (looks.go) of functions of one shell
// script (inside.sh) and what follows from their output. The desktop is looked
// at as consumers serve it: noVNC's page behind a proxy with a path prefix, and
// a picture through VNC. All of it runs side by side, and one boot finds all
// that is wrong. The guest is not trusted: whatever it says has a bound.
package verify

import (
	"context"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// hostname is what the seed asks for.
const hostname = "diskforge-verify"

// Options say what to verify.
type Options struct {
	Disk        string // disk image, only read
	Format      string // qcow2 or raw
	VirtualSize int64  // of the disk, in bytes; 0 leaves out the check that the root grows
	Dir         string // private work directory; the console's log stays there
	MemoryMiB   int
	CPUs        int // 0: as many as suit the accelerator
	Accel       vm.Verdict

	BuildUser string // who must be gone; empty if nobody was there
	VMUser    string // login user that the seed makes
	BakedUser bool   // VMUser is in the image, with its password locked
	Desktop   bool   // the image serves a desktop on TCP 6080; without it, that port has to be closed

	// Full boots two machines more where the first one passes: a second
	// overlay with CrownLabs' literal seed, which must share neither machine-id
	// nor ssh host keys with the first, and one with UEFI where the disk can be
	// started by it: with Secure Boot where its loader is signed.
	Full             bool
	UEFI, SecureBoot bool // what the disk can be started by
	// Persistent boots a machine more whose disk is kept: it installs updates and
	// starts again twice.
	Persistent bool

	// Excused says why a finding of a rule of the hygiene gate may be in a file
	// of the image; it may be nil.
	Excused func(rule, path string) (reason string)

	Checks string // file of goss checks, or empty
	Goss   string // goss program for the guest, static; needed with Checks

	KeepOnError bool // leave the guest running when a check fails
	// Timeout is until ssh answers. Each thing that is then waited for in the
	// guest, such as cloud-init's end, may take that and 15 min more, and is a
	// failed check where it does not end.
	Timeout time.Duration
}

// The groups of checks.
const (
	GroupBoot     = "boot"     // what every image has to keep
	GroupPlaybook = "playbook" // goss, what the playbook promises
)

// What is found has the report's words.
type (
	// Check is one thing that was looked at.
	Check = report.Check
	// Moment is something that happened while the machine started.
	Moment = report.Moment
	// Package is a package that is installed in the image.
	Package = report.Package
	// Picture is what a screen showed, of at most 1 MiB: for that, a large one is
	// shown smaller.
	Picture = report.Picture
)

// Result is what the machine showed, and with Options.Full and Persistent the further ones.
// All but the checks and the pictures is of the first.
type Result struct {
	Checks        []Check       `json:"checks"`
	TimeToSSH     time.Duration `json:"timeToSSH"`     // from power on
	CloudInitDone time.Duration `json:"cloudInitDone"` // from power on
	Console       string        `json:"console"`       // path of the serial console's log

	Boot     []Moment  `json:"boot,omitempty"`     // in the order in which they happened
	Packages []Package `json:"packages,omitempty"` // dpkg's or rpm's, by name
	Pictures []Picture `json:"pictures,omitempty"` // the console, and the desktop where there is one
}

// Run boots an overlay of the disk and checks it. Where checks fail, the
// result is complete and the error is a *failure.Error with one line for each.
func Run(ctx context.Context, o Options, p progress.Reporter) (Result, error) {
	m := &machine{Options: o, p: p}
	err := m.run(ctx)
	if err == nil {
		err = m.further(ctx, m.candidates())
	}
	return m.result, err
}

// joined puts the lines of what a guest said into one.
func joined(s string) string {
	var all []string
	for line := range strings.Lines(s) {
		if line = text.Line(line); line != "" {
			all = append(all, line)
		}
	}
	return strings.Join(all, "; ")
}
