// Package vm starts a virtual machine the way KubeVirt does: a virtio disk,
// a NoCloud seed on a second virtio disk, a user's network. It boots an
// overlay, never the disk itself, and lets a caller look inside over ssh. Which
// accelerator really works, it proves by booting a kernel: that /dev/kvm is there,
// opens and creates virtual machines proves nothing, as on nested and
// para-virtualised hosts a stock kernel then never starts.
package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Options say what to boot and how.
type Options struct {
	Disk     string // disk image, only read
	Format   string // its format, qcow2 or raw; stated, never probed
	DiskSize int64  // virtual size of the overlay in bytes; 0 means the disk's

	// Dir holds the overlay, the seed, the key and the serial console's log.
	// It is made if it is not there; nobody else may read it.
	Dir string

	MemoryMiB int
	CPUs      int         // 0: as many as suit the accelerator
	Accel     Verdict     // which accelerator works
	Forward   []int       // further TCP ports of the guest that can be reached, see Guest.Address
	At        map[int]int // ports of the loopback at which those of the guest answer; else any that are free
	Online    bool        // the guest reaches the network, by this host's address
	Reboots   bool        // a guest that reboots comes back, and does not end
	SATA      bool        // disk and seed are SATA disks, not virtio's
	UEFI      bool        // start with UEFI where there is a BIOS, too
	// SecureBoot starts it with UEFI that takes no loader but those which Microsoft's keys signed.
	SecureBoot bool
	User       string        // login user that the seed makes
	Hostname   string        // name that the seed gives; empty means diskforge
	Timeout    time.Duration // until ssh answers
	Survive    bool          // the guest may outlive this process, see Detach

	// OwnHostKeys leaves it to the guest to make its ssh host keys, as every
	// machine does that a consumer starts. Which key answers is then known
	// only from the first answer of the port that our QEMU forwards; without
	// it, the seed brings the key and no other is talked to.
	OwnHostKeys bool
	// CrownLabs makes the seed what CrownLabs gives its machines, to the
	// letter. It brings no host keys (see OwnHostKeys) and its user is
	// CrownLabsUser, whom User has to name.
	CrownLabs bool

	firmware arch.Firmware // with UEFI
}

// CrownLabsUser is the login user of CrownLabs' seed.
const CrownLabsUser = "crownlabs"

// Names inside Options.Dir. QEMU runs there, so that no path needs quoting.
const (
	overlayFile = "overlay.qcow2"
	seedFile    = "seed.iso"
	keyFile     = "id_ed25519"
	screenFile  = "screen.png"
	varsFile    = "uefi-vars.fd"
	knownFile   = "known_hosts"
	consoleFile = "console.log"
	qemuLog     = "qemu.log"
)

// Guest is a running virtual machine that answers ssh.
type Guest struct {
	options Options
	keys    keys
	process *host.Process
	qmp     *monitor
	console *Console
	started time.Time   // power on
	ports   map[int]int // port of the guest to port of 127.0.0.1
	client  *ssh.Client
	frozen  atomic.Bool   // it stopped answering ssh
	shown   ssh.PublicKey // host key of a guest with OwnHostKeys
	unwatch func() bool   // stops watching the context that Start got
	once    sync.Once
	closed  error
}

// Start boots the disk and returns when ssh answers. The guest ends with ctx
// and with Close. Where ssh never comes, the error is a *failure.Error with
// the end of the serial console.
func Start(ctx context.Context, o Options, p progress.Reporter) (*Guest, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	g := &Guest{options: o, unwatch: func() bool { return true }}
	if err := g.start(ctx, p); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

func (g *Guest) start(ctx context.Context, p progress.Reporter) error {
	if err := g.prepare(ctx); err != nil {
		return err
	}
	if err := g.launch(ctx); err != nil {
		return err
	}
	g.console = WatchConsole(g.ConsoleLog(), g.process.Done(), p)
	ports, err := g.qmp.forwardedPorts(ctx, append([]int{sshPort}, g.options.Forward...))
	if err != nil {
		return g.explain(ctx, err)
	}
	g.ports = ports
	if err := g.awaitSSH(ctx); err != nil {
		return err
	}
	g.watch(aliveEvery, aliveWithin)
	return g.writeKnownHosts()
}

// complete fills in the defaults.
func (o Options) complete() (Options, error) {
	o.CPUs = o.Accel.CPUs(o.CPUs)
	if o.Hostname == "" {
		o.Hostname = "diskforge"
	}
	o.OwnHostKeys = o.OwnHostKeys || o.CrownLabs
	if o.UEFI = o.UEFI || !o.arch().BIOS; o.UEFI {
		var err error
		if o.firmware, err = Firmware(o.arch(), o.SecureBoot); err != nil {
			return o, err
		}
	}
	if o.Format != "qcow2" && o.Format != "raw" {
		return o, failure.New(fmt.Sprintf("cannot boot a disk of format %q", o.Format), "convert it to qcow2 or raw")
	}
	var errDisk, errDir error
	o.Disk, errDisk = filepath.Abs(o.Disk)
	o.Dir, errDir = filepath.Abs(o.Dir)
	return o, errors.Join(errDisk, errDir)
}

func (o Options) arch() arch.Arch { return arch.Of(o.Accel.Architecture) }

// prepare makes everything that QEMU reads.
func (g *Guest) prepare(ctx context.Context) (err error) {
	o := g.options
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return err
	}
	if _, err := os.Stat(o.Disk); err != nil {
		return failure.Wrap(err, "there is no disk to boot", "give the path of a disk image")
	}
	// What a run that was killed left here; the console's log is read from
	// its start.
	if err := errors.Join(g.removeFiles(), os.RemoveAll(g.ConsoleLog())); err != nil {
		return err
	}
	if g.keys, err = newKeys(); err != nil {
		return err
	}
	if err := os.WriteFile(g.file(keyFile), g.keys.user.Private, 0o600); err != nil {
		return err
	}
	if err := writeSeed(ctx, o, g.keys); err != nil {
		return err
	}
	if o.UEFI {
		vars, err := os.ReadFile(o.firmware.Vars)
		if err == nil {
			err = os.WriteFile(g.file(varsFile), vars, 0o600)
		}
		if err != nil {
			return fmt.Errorf("copying the UEFI variables: %w", err)
		}
	}
	args := []string{"create", "-q", "-f", "qcow2", "-F", o.Format, "-b", o.Disk, overlayFile}
	if o.DiskSize > 0 {
		args = append(args, fmt.Sprint(o.DiskSize))
	}
	err = host.Run(ctx, host.Cmd{Program: "qemu-img", Args: args, Dir: o.Dir})
	if err != nil && ctx.Err() == nil {
		return &failure.Error{What: fmt.Sprintf("%s cannot be booted as a %s image: %v", o.Disk, o.Format, err), Lines: host.Tail(err), Err: err}
	}
	return err
}

// Address is where a port of Options.Forward, or 22, answers: host and port
// of the loopback. QEMU accepts every connection there; where nothing listens
// in the guest, it closes it at once.
func (g *Guest) Address(port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(g.ports[port]))
}

// PowerOn is when the machine was switched on.
func (g *Guest) PowerOn() time.Time { return g.started }

// Moments are the phases of the boot that its serial console showed so far.
func (g *Guest) Moments() []Moment { return g.console.Moments() }

// AuthorizedKey is the login user's public key in the seed, as a line of
// authorized_keys.
func (g *Guest) AuthorizedKey() string { return g.keys.user.Authorized() }

// ConsoleLog is the path of the serial console's log. It outlives the guest.
func (g *Guest) ConsoleLog() string { return g.file(consoleFile) }

// file is the path of a file in Options.Dir.
func (g *Guest) file(name string) string { return filepath.Join(g.options.Dir, name) }

// Done is closed when the guest has ended.
func (g *Guest) Done() <-chan struct{} { return g.console.Done() }

// Pid is the process number of the guest's QEMU.
func (g *Guest) Pid() int { return g.process.Pid() }

// Detach lets go of a guest that was started with Survive: neither the end of
// the context nor Close ends it any more.
func (g *Guest) Detach() {
	g.unwatch()
	g.once.Do(func() { g.disconnect() })
}

// Reconnect opens ssh anew, when the guest answers: what Run used is gone where the guest
// has rebooted or went back to a snapshot. The error is as Start's.
func (g *Guest) Reconnect(ctx context.Context) error {
	g.disconnect()
	g.frozen.Store(false)
	if err := g.awaitSSH(ctx); err != nil {
		return err
	}
	g.watch(aliveEvery, aliveWithin)
	return nil
}

// Save keeps the guest as it is, memory and disk, under a name in its overlay; Restore
// goes back there. A guest with UEFI cannot be kept: its variables are no qcow2.
func (g *Guest) Save(ctx context.Context, name string) error {
	return g.qmp.snapshot(ctx, "savevm "+name)
}

// Restore has the guest go on from where Save kept it. Its connections are dead then.
func (g *Guest) Restore(ctx context.Context, name string) error {
	if err := g.qmp.snapshot(ctx, "loadvm "+name); err != nil {
		return err
	}
	return g.Reconnect(ctx)
}

// Close ends the guest without asking it and removes everything but the
// logs. It may be called more than once.
func (g *Guest) Close() error {
	g.once.Do(func() {
		g.unwatch()
		g.disconnect()
		if g.process != nil {
			g.process.Stop()
			g.qmp.close()
		}
		if g.console != nil {
			<-g.console.Done()
		}
		g.closed = g.removeFiles()
	})
	return g.closed
}

func (g *Guest) disconnect() {
	if g.client != nil {
		g.client.Close()
	}
}

func (g *Guest) removeFiles() error {
	var errs []error
	for _, name := range []string{overlayFile, seedFile, keyFile, knownFile, screenFile, varsFile} {
		errs = append(errs, os.RemoveAll(g.file(name)))
	}
	return errors.Join(errs...)
}

// Firmware is this host's UEFI for machines of an architecture. Its error names the
// Debian package that has it.
func Firmware(a arch.Arch, secureBoot bool) (arch.Firmware, error) {
	all := a.UEFI
	if secureBoot {
		all = a.SecureBoot
	}
	for _, f := range all {
		_, errCode := os.Stat(f.Code)
		_, errVars := os.Stat(f.Vars)
		if errCode == nil && errVars == nil {
			return f, nil
		}
	}
	return arch.Firmware{}, failure.New("this host has no UEFI firmware for virtual machines of "+a.Name, "apt-get install "+a.FirmwarePackage)
}
