// Package verify boots a finished disk once, as its consumers will, and looks
// inside: whether cloud-init did its work, whether nothing of the build is
// left, whether the checks that belong to the playbook hold.
package verify

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/accel"
	"github.com/netgroup-polito/diskforge/internal/boot"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// hostname is what the seed asks for.
const hostname = "diskforge-verify"

// Options say what to verify.
type Options struct {
	Disk        string // disk image, only read
	Format      string // qcow2 or raw
	VirtualSize int64  // of the disk, in bytes; 0 leaves out the check that the root grows
	Dir         string // private work directory; the console's log stays there
	MemoryMiB   int    // 0 means 2048
	CPUs        int    // 0 means 2
	Accel       accel.Verdict

	BuildUser string // who must be gone; empty if nobody was there
	VMUser    string // login user that the seed makes
	BakedUser bool   // VMUser is in the image, with its password locked

	Checks string // file of goss checks, or empty
	Goss   string // goss program for the guest (static, amd64); needed with Checks

	AllowedWarnings []string      // parts of cloud-init's warnings that do not count
	KeepOnError     bool          // leave the guest running when a check fails
	Timeout         time.Duration // until ssh answers; 0 means boot's default
}

// Check is one thing that was looked at.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"` // what was found, in one line
}

// Result is what one boot showed.
type Result struct {
	Checks        []Check       `json:"checks"`
	TimeToSSH     time.Duration `json:"timeToSSH"`     // from power on
	CloudInitDone time.Duration `json:"cloudInitDone"` // from power on
	Total         time.Duration `json:"total"`
	CloudInit     string        `json:"cloudInit"` // its status: done, error, degraded
	Console       string        `json:"console"`   // path of the serial console's log
}

// Run boots an overlay of the disk and checks it. Where checks fail, the
// result is complete and the error is a *failure.Error with one line for each.
func Run(ctx context.Context, o Options, p progress.Reporter) (Result, error) {
	if o.Checks != "" && o.Goss == "" {
		return Result{}, errors.New("verify: checks without goss to run them")
	}
	v := &verification{Options: o, p: p, start: time.Now()}
	guest, err := boot.Start(ctx, v.boot(), p)
	if err != nil {
		return Result{}, err
	}
	v.guest = guest
	v.result.TimeToSSH = time.Since(v.start)
	v.result.Console = guest.ConsoleLog()
	err = v.run(ctx)
	v.result.Total = time.Since(v.start)
	if f, ok := failure.In(err); ok && o.KeepOnError && ctx.Err() == nil {
		guest.Detach()
		f.Try = fmt.Sprintf("look into the guest, which still runs: %s ; end it with: kill %d", guest.SSHCommand(), guest.Pid())
		return v.result, err
	}
	return v.result, errors.Join(err, guest.Close())
}

// verification is one run.
type verification struct {
	Options
	p      progress.Reporter
	guest  *boot.Guest
	start  time.Time
	result Result
}

func (v *verification) boot() boot.Options {
	o := boot.Options{
		Disk: v.Disk, Format: v.Format, Dir: v.Dir, MemoryMiB: v.MemoryMiB, CPUs: v.CPUs, Accel: v.Accel,
		Restrict: true, User: v.VMUser, Hostname: hostname, Timeout: v.Timeout, Survive: v.KeepOnError,
	}
	if v.VirtualSize > 0 {
		o.DiskSize = v.machineSize()
	}
	return o
}

// machineSize is the size of the machine's disk: so much larger than the disk
// image that a root file system which grew has more room than the image had,
// although its tables and other partitions take some.
func (v *verification) machineSize() int64 {
	return (v.VirtualSize + max(1<<30, v.VirtualSize/10)) &^ (1<<20 - 1)
}

// run makes all checks, so that one boot tells everything that is wrong.
func (v *verification) run(ctx context.Context) error {
	v.add("ssh", nil, fmt.Sprintf("answered after %v", v.result.TimeToSSH.Round(time.Second)))
	for _, c := range v.checks() {
		v.p.Activity("checking: " + c.name)
		detail, err := c.look(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		v.add(c.name, err, detail)
	}
	if v.Checks != "" {
		v.p.Activity("checking: what the playbook promises")
		checks, err := v.goss(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		v.result.Checks = append(v.result.Checks, checks...)
		if err != nil {
			v.add("goss", err, "")
		}
	}
	return v.verdict()
}

func (v *verification) add(name string, err error, detail string) {
	if err != nil {
		detail = oneLine(err.Error())
	}
	v.result.Checks = append(v.result.Checks, Check{Name: name, OK: err == nil, Detail: detail})
}

// verdict is nil where every check held.
func (v *verification) verdict() error {
	var lines []string
	for _, c := range v.result.Checks {
		if !c.OK {
			lines = append(lines, c.Name+": "+c.Detail)
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return &failure.Error{
		What:  fmt.Sprintf("the disk boots, but %d of %d checks failed", len(lines), len(v.result.Checks)),
		Try:   "mend the playbook or its checks; --keep-on-error leaves the guest running to look inside",
		Lines: lines, Log: v.result.Console,
	}
}

// oneLine makes what a guest said fit for one line.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
