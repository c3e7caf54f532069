// Package provision turns a base image and a playbook into a configured disk:
// Packer boots a copy of the base under QEMU, Ansible configures it, a script
// removes the build's traces, trims and powers off.
package provision

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// Options say what is built from what. All are set, and checked as settings,
// unless it says otherwise.
type Options struct {
	Base       string // the base image, a local file whose checksum was verified
	BaseFormat string // qcow2 or raw; stated, never probed
	Output     string // the disk to write, a qcow2
	// BackingFile makes Output an overlay of Base, which must be a qcow2 and
	// stay where it is until Output is flattened, instead of a copy.
	BackingFile bool
	WorkDir     string // a directory of ours, 0700, for logs and what the build needs

	Playbook playbook.Source
	Tools    Tools
	Accel    vm.Verdict

	MemoryMiB int
	CPUs      int   // 0: as many as suit the accelerator
	DiskSize  int64 // virtual size in bytes, not less than the base's

	BuildUser string // deleted at the end, unless BakeUser
	VMUser    string // who logs in where the VM runs
	BakeUser  bool   // build as VMUser and keep that account, its password locked
	Desktop   bool
	ExtraVars map[string]any // win over the variables that we set

	AptMirror                      string // handed to the playbook as apt_mirror
	CAFile                         string // PEM, trusted by the guest during the build
	HTTPProxy, HTTPSProxy, NoProxy string // for the guest, during the build

	// Mask replaces secrets in the logs; it may be nil.
	Mask *strings.Replacer

	PackerLog   bool          // keep Packer's debug log
	KeepOnError bool          // after a failed task the guest stays up until ctx ends
	SSHTimeout  time.Duration // from QEMU's start
}

// Timings are how long the parts of a build took.
type Timings struct {
	Boot     time.Duration // QEMU's start to a working ssh
	Ansible  time.Duration
	Clean    time.Duration // cleaning, deleting the build user, trimming
	PowerOff time.Duration // to the end of QEMU
}

// Result is how the build went. Its logs are in WorkDir, after a failure, too:
// packer.log, ansible.log (Ansible's part of it), console.log (the guest's serial
// console) and, with PackerLog, packer-debug.log.
type Result struct {
	// Trimmed is true where the guest gave the free blocks of its root file
	// system back, so that a conversion of the disk leaves them out.
	Trimmed bool
	Tasks   []report.Task // Ansible's, in the order in which they ran
	Timings Timings
}

// user is the account under which the build works in the guest.
func (o Options) user() string {
	if o.BakeUser {
		return o.VMUser
	}
	return o.BuildUser
}

// Run builds opts.Output. An error that a person must act on is a
// *failure.Error; when ctx ends, Packer, QEMU and Ansible are gone before Run
// returns. The Result is filled as far as the build came.
func Run(ctx context.Context, opts Options, p progress.Reporter) (Result, error) {
	b, err := newBuild(opts)
	if err != nil {
		return Result{}, err
	}
	defer b.close()
	if err := b.prepare(); err != nil {
		return Result{}, err
	}
	err = b.packer(ctx, p)
	result := b.events.result()
	if len(b.events.broken) > 0 {
		p.Warn("conditions that are text or lists, not booleans, which an Ansible to come refuses: " +
			strings.ReplaceAll(strings.Join(b.events.broken, ", "), opts.Playbook.Root+"/", ""))
	}
	if err != nil {
		return result, err
	}
	if !b.events.ran {
		return result, failure.New("no task of the playbook ran in the guest: the image would be the base",
			"write hosts: all in its plays, which is the guest, and no local connection")
	}
	if !b.events.clean {
		return result, b.explain(errors.New("the guest did not say that its cleaning ended well"))
	}
	return result, b.keep(ctx)
}

// build is one run of Packer.
type build struct {
	opts   Options
	id     string // marks our processes, in their environment
	run    string // short-lived files; a short path of plain characters
	out    string // directory, beside the output, that Packer writes the disk to
	events events
}

// newBuild makes the directories of a run, without what a former one that was
// killed left in them.
func newBuild(opts Options) (*build, error) {
	for _, file := range []*string{&opts.WorkDir, &opts.Output, &opts.Base} {
		var err error
		if *file, err = filepath.Abs(*file); err != nil {
			return nil, err
		}
	}
	opts.Mask = cmp.Or(opts.Mask, strings.NewReplacer())
	b := &build{opts: opts, id: rand.Text(), out: opts.Output + ".partial"}
	if err := os.MkdirAll(opts.WorkDir, 0o700); err != nil {
		return nil, failure.Wrap(err, "making the work directory", "")
	}
	sum := sha256.Sum256([]byte(opts.WorkDir)) // always the same, so that the next run finds what is left
	name := "diskforge-" + hex.EncodeToString(sum[:6])
	var err error
	b.run, err = runDir(b.log("run"), filepath.Join(os.TempDir(), name), filepath.Join("/tmp", name), filepath.Join("/var/tmp", name))
	return b, err
}

// plainPath are paths that QEMU's options, ssh's arguments and a shell take as
// they are, and that leave room for a socket's name in them (108 bytes in all).
var plainPath = regexp.MustCompile(`^[A-Za-z0-9/_.+@~-]{1,64}$`)

// runDir makes the first of the directories whose path is plain, so that
// Packer's plugins and ssh can make their sockets there. What is there is
// removed, if it is a directory of ours: it holds a build's key and variables.
func runDir(dirs ...string) (string, error) {
	var why []string
	for _, dir := range dirs {
		info, err := os.Lstat(dir)
		if err == nil && info.Mode() == os.ModeDir|0o700 && info.Sys().(*syscall.Stat_t).Uid == uint32(os.Geteuid()) {
			_ = os.RemoveAll(dir)
		}
		if !plainPath.MatchString(dir) {
			why = append(why, dir+" is too long for the name of a socket, or not plain")
		} else if err := os.Mkdir(dir, 0o700); err != nil {
			why = append(why, err.Error())
		} else {
			return dir, nil
		}
	}
	return "", failure.New("there is no folder for Packer's and ssh's sockets: "+strings.Join(why, "; "), "set TMPDIR to a short path")
}

// CheckSSH says what would stop Ansible, which reaches the guest with it.
func CheckSSH(ctx context.Context) error {
	err := host.Run(ctx, host.Cmd{Program: "ssh", Args: []string{"-V"}})
	switch {
	case err == nil || ctx.Err() != nil:
		return context.Cause(ctx)
	case strings.Contains(strings.Join(host.Tail(err), "\n"), "No user exists for uid"):
		return failure.New(fmt.Sprintf("ssh refuses to run: the user id %d has no entry in /etc/passwd", os.Getuid()),
			fmt.Sprintf("add one when the container starts (echo build:x:%d:0::$HOME:/bin/sh >>/etc/passwd, which must be writable), "+
				"or run as a user that has one", os.Getuid()))
	case errors.Is(err, exec.ErrNotFound):
		return err
	}
	return failure.Wrap(err, "ssh does not run", "apt-get install --reinstall "+host.Package("ssh"))
}

// close removes what only this run needed and ends what it left running.
func (b *build) close() {
	b.killLeftovers()
	_ = os.RemoveAll(b.run)
	_ = os.RemoveAll(b.out)
	b.events.close()
}

func (b *build) log(name string) string { return filepath.Join(b.opts.WorkDir, name) }

// packer runs Packer to its end, with the serial console watched until the
// guest answers.
func (b *build) packer(ctx context.Context, p progress.Reporter) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	booting, connected := context.WithCancel(ctx)
	defer connected()
	b.events.secrets, b.events.reached, b.events.connected = b.opts.Mask, b.reached, connected
	b.events.start(p, b.keptUp(p))
	watch := vm.WatchConsole(b.log("console.log"), booting.Done(), p)
	go func() {
		select {
		case what := <-watch.Died():
			cancel(b.neverUp(what))
		case <-watch.Done():
		}
	}()
	debug := b.log("packer-debug.log")
	err := host.Run(ctx, host.Cmd{
		Program: b.opts.Tools.Packer, Dir: filepath.Dir(b.opts.Output), Confined: true,
		Args:   []string{"build", "-color=false", "-var-file=" + b.path("vars.pkrvars.json"), b.path("packer")},
		Env:    b.environment(debug),
		Stdout: &b.events,
		OnLine: b.events.line, // standard error: Packer's error messages
		Grace:  5 * time.Second,
	})
	switch {
	case ctx.Err() != nil:
		err = b.stopped(ctx)
	case err != nil:
		err = b.explain(err)
	}
	connected()
	<-watch.Done()
	if !b.opts.PackerLog {
		_ = os.Remove(debug)
	} else if errMask := b.maskLog(debug); errMask != nil {
		_ = os.Remove(debug)
		p.Warn(fmt.Sprintf("Packer's debug log is deleted, because secrets could not be taken out of it: %v", errMask))
	}
	return err
}

// maskLog takes secrets and escape sequences out of a log that Packer wrote.
func (b *build) maskLog(name string) error {
	from, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer from.Close()
	return host.WriteFile(name, 0o600, func(to io.Writer) error {
		lines := bufio.NewScanner(from)
		lines.Buffer(nil, 16*maxEvent)
		for lines.Scan() {
			if _, err := fmt.Fprintln(to, text.Lines(b.opts.Mask.Replace(lines.Text()))); err != nil {
				return err
			}
		}
		return lines.Err()
	})
}

// reached says whether Ansible has connected to the guest: then the socket of its
// shared connection is there. A play may connect to this host instead, by
// variables that nobody sees before it runs.
func (b *build) reached() bool {
	entries, err := os.ReadDir(b.path("control"))
	return err != nil || len(entries) > 0
}

// stopped is why a build ended before its time: the failure after which the
// guest was kept up, a boot that the console says will never succeed, or the
// caller's reason.
func (b *build) stopped(ctx context.Context) error {
	if b.events.held {
		return b.explain(context.Cause(ctx))
	}
	return context.Cause(ctx)
}

// keptUp returns what says how to reach a guest that was kept up.
func (b *build) keptUp(p progress.Reporter) func(port string) {
	if !b.opts.KeepOnError {
		return nil
	}
	return func(port string) {
		p.Warn("the guest stays up until diskforge is interrupted (Ctrl-C): " + vm.SSHCommand(b.opts.user(), b.path("key"), b.path("known_hosts"), port))
	}
}

// keep makes Packer's disk the output.
func (b *build) keep(ctx context.Context) error {
	disk := filepath.Join(b.out, "disk.qcow2")
	if b.opts.BackingFile {
		// Packer knows the base by a name that goes with this run.
		if err := host.Run(ctx, host.Cmd{
			Program: "qemu-img", Args: []string{"rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", b.opts.Base, disk},
		}); err != nil {
			return fmt.Errorf("naming the disk's backing file: %w", err)
		}
	}
	if err := host.Move(disk, b.opts.Output); err != nil {
		return failure.Wrap(err, "keeping the disk", "is there room left on its file system?")
	}
	return nil
}

// marker is the environment variable by which a build knows its processes:
// those that made a session of their own are outside Packer's process group.
const marker = "DISKFORGE_BUILD="

// killLeftovers ends what still runs of this build once Packer has ended:
// Ansible's workers and its shared ssh connection. The latter overwrites its
// environment with its title, which names the socket in our directory.
func (b *build) killLeftovers() {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		title, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if bytes.Contains(environ, []byte(marker+b.id)) || bytes.Contains(title, []byte("ssh: "+b.path("control")+"/")) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
