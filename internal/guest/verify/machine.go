package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// machine is one boot of an overlay of the disk, and what it showed.
type machine struct {
	Options
	kind     kind
	p        progress.Reporter
	guest    *vm.Guest
	shell    shell // guest's
	result   Result
	identity []string // its machine-id and its ssh host keys
	compare  []string // the first machine's, for a further one
	ahci     bool     // the kernel has a driver for SATA
	uefi     bool     // it was started with UEFI
	secure   bool     // and Secure Boot
	warnings []string // in cloud-init's log
}

// kind is what a machine has that the first one has not.
type kind struct {
	name      string // in the names of its checks; empty for the first machine
	crownLabs bool   // CrownLabs' literal seed
	uefi      bool
	secure    bool // with Secure Boot
	sata      bool
	// persistent: it is not thrown away after its first start, see live.
	persistent  bool
	unsupported string // why the disk is not for it, or empty
}

var (
	crownLabsSeed = kind{name: "CrownLabs seed", crownLabs: true}
	overSATA      = kind{name: "SATA", sata: true}
	withUEFI      = kind{name: "UEFI", uefi: true}
	// Where signatures are checked, UEFI without that check starts the disk, too.
	withSecureBoot = kind{name: "Secure Boot", uefi: true, secure: true}
)

// shell runs a command in a guest, as vm.Guest.Run does.
type shell func(ctx context.Context, cmd string, stdin io.Reader) (string, error)

// run boots the machine, looks at it and ends it. The error is a
// *failure.Error where checks failed.
func (m *machine) run(ctx context.Context) error {
	guest, err := vm.Start(ctx, m.boot(), m.p)
	if err != nil {
		return err
	}
	m.guest, m.shell = guest, guest.Run
	m.result.TimeToSSH = time.Since(guest.PowerOn())
	m.result.Console = guest.ConsoleLog()
	if err = m.look(ctx); err == nil && m.kind.persistent {
		err = m.live(ctx)
	}
	if err == nil {
		err = m.verdict()
	}
	if f, ok := failure.In(err); ok && m.KeepOnError && ctx.Err() == nil {
		guest.Detach()
		f.Guest = false
		f.Try = fmt.Sprintf("look into the guest, which still runs: %s ; end it with: kill %d", guest.SSHCommand(), guest.Pid())
		return err
	}
	return errors.Join(err, guest.Close())
}

func (m *machine) boot() vm.Options {
	o := vm.Options{
		Disk: m.Disk, Format: m.Format, Dir: filepath.Join(m.Dir, strings.ReplaceAll(m.kind.name, " ", "-")),
		MemoryMiB: m.MemoryMiB, CPUs: m.CPUs, Accel: m.Accel,
		User: m.VMUser, Hostname: hostname, Timeout: m.Timeout, Survive: m.KeepOnError,
		// Keys that two machines made themselves can be compared.
		OwnHostKeys: m.Full || m.Persistent, CrownLabs: m.kind.crownLabs, UEFI: m.kind.uefi, SecureBoot: m.kind.secure, SATA: m.kind.sata,
		Online: m.kind.persistent, Reboots: m.kind.persistent,
	}
	if m.VirtualSize > 0 {
		o.DiskSize = m.machineSize()
	}
	if m.desktopExpected() || m.Desktop && m.kind.persistent {
		o.Forward = []int{DesktopPort}
	}
	return o
}

// desktopExpected says whether this machine's desktop is looked at: the first
// machine shows it.
func (m *machine) desktopExpected() bool { return m.Desktop && m.kind.name == "" }

// machineSize is the size of the machine's disk: so much larger than the disk
// image that a root file system which grew has more room than the image had,
// although its tables and other partitions take some.
func (m *machine) machineSize() int64 {
	return (m.VirtualSize + max(1<<30, m.VirtualSize/10)) &^ (1<<20 - 1)
}

// What a guest may take for each thing that is waited for: the boot's time,
// which tells how slow it is, and this.
const lookTime = 15 * time.Minute

// within bounds the time for what depends on the guest: the image may be of a
// kind that never comes to an end. what is the error when the time is over.
func (m *machine) within(ctx context.Context, what string) (context.Context, context.CancelFunc) {
	limit := m.Timeout + lookTime
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s within %v", what, limit))
}

// found is what a part of the looking brought.
type found struct {
	checks   []Check
	pictures []Picture
	moments  []Moment
}

// look makes all checks, so that one boot tells everything that is wrong.
// What does not depend on each other runs at the same time: an emulated guest
// has most to do with starting processes, and it has more than one CPU. The
// desktop is watched from the first moment on. The error is the context's.
func (m *machine) look(ctx context.Context) error {
	var all sync.WaitGroup
	var booted, inside, desktop, goss found
	if m.desktopExpected() {
		all.Go(func() { desktop = m.desktop(ctx) })
	}
	ended := make(chan struct{})
	all.Go(func() { goss = m.goss(ctx, ended) })
	all.Go(func() {
		status, done := m.awaitCloudInit(ctx)
		if done {
			m.result.CloudInitDone = time.Since(m.guest.PowerOn())
		}
		close(ended)
		m.p.Activity("checking the guest")
		inside = m.inside(ctx)
		booted = m.cloudInit(<-status)
	})
	all.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	ssh := found{checks: []Check{m.check("ssh", "answered after "+text.Span(m.result.TimeToSSH), nil)}}
	inside.checks = append(inside.checks, m.differences()...)
	for _, f := range []found{ssh, booted, inside, desktop, goss} {
		m.result.Checks = append(m.result.Checks, f.checks...)
		m.result.Pictures = append(m.result.Pictures, f.pictures...)
		m.result.Boot = append(m.result.Boot, f.moments...)
	}
	for _, phase := range m.guest.Moments() {
		m.happened(phase.Phase, phase.At.Sub(m.guest.PowerOn()))
	}
	m.happened("ssh", m.result.TimeToSSH)
	if m.result.CloudInitDone > 0 {
		m.happened("cloud-init done", m.result.CloudInitDone)
	}
	slices.SortStableFunc(m.result.Boot, func(a, b Moment) int { return cmp.Compare(a.At, b.At) })
	return nil
}

func (m *machine) happened(what string, at time.Duration) {
	m.result.Boot = append(m.result.Boot, Moment{Name: what, At: max(0, at)})
}

// check is the outcome of one check.
func (m *machine) check(name, detail string, err error) Check {
	if m.kind.name != "" {
		name = m.kind.name + ": " + name
	}
	if err != nil {
		detail = text.Line(err.Error())
	}
	return Check{Group: GroupBoot, Name: name, OK: err == nil, Detail: detail}
}

// Failed has a line for each check that does not hold.
func Failed(checks []Check) (lines []string) {
	for _, c := range checks {
		if !c.OK {
			lines = append(lines, c.Name+": "+c.Detail)
		}
	}
	return lines
}

// verdict is nil where every check held.
func (m *machine) verdict() error {
	lines := Failed(m.result.Checks)
	if len(lines) == 0 {
		return nil
	}
	return &failure.Error{
		What:  fmt.Sprintf("the disk boots, but %d of %d checks failed", len(lines), len(m.result.Checks)),
		Try:   "correct the playbook or its checks",
		Lines: lines, Log: m.result.Console, Guest: true,
	}
}
