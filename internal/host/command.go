// Package host is the computer that diskforge runs on: its programs, files,
// locks and clock, each asked in one way.
//
//   - Programs: Run, Output and Start give each a context, a log file, a bounded
//     output and, where it fails, an error with its last lines. None outlives
//     its context, nor this process. Confined ones run others' code.
//   - Files: Open and OpenNoFollow take regular files alone, ReadFile what a user
//     names, ReadAll no more than a bound. WriteFile, Create and Move give a file
//     its name only when it is complete and on stable storage; ReadJSON and
//     WriteJSON are for records.
//   - Locks: LockDir waits, TryLock does not.
//   - Digests: DigestFile, Digest; Verify reads what must have a digest.
//   - What ends with its context: Reader, Copy, Sleep, Retry with Backoff.
package host

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// Cmd describes one run of an external program.
type Cmd struct {
	Program string
	Args    []string // never a secret: every user of the host can read them
	Dir     string
	Env     []string // the whole environment; nil means Env()
	Stdin   io.Reader
	// Stdout receives the program's standard output unaltered; it is then kept
	// out of Log, OnLine and the error's tail.
	Stdout io.Writer
	// Log is a file to which the output is appended (created 0600), or empty.
	Log string
	// OnLine is called with each line of output, without its end; it may be nil.
	// A line ends with \n or \r (progress meters).
	OnLine func(line string)
	// Survive lets the program outlive this process: it gets no signal when we
	// die. The end of the context, and Stop, still end it.
	Survive bool
	// Confined is for a program that runs others' code: it sees no process but
	// those that it starts, where the host allows that (see Unconfined), and
	// what it starts ends with it.
	Confined bool
	// Grace is how long the program may take to end after SIGTERM before its
	// process group is killed. Zero means 10 s.
	Grace time.Duration
}

const (
	defaultGrace = 10 * time.Second
	tailLines    = 20      // lines of output kept for the error
	maxLine      = 4 << 10 // bytes of one line kept; the log has all
	maxOutput    = 8 << 20 // bytes that Output keeps
)

// packages are Debian's for the programs that are in none of their own name.
var packages = map[string]string{
	"ansible-galaxy":   "ansible-core",
	"ansible-playbook": "ansible-core",
	"blkid":            "util-linux",
	"debugfs":          "e2fsprogs",
	"go":               "golang (1.26 or newer: https://go.dev/dl/)",
	"mcopy":            "mtools",
	"mke2fs":           "e2fsprogs",
	"mkfs.fat":         "dosfstools",
	"mmd":              "mtools",
	"prlimit":          "util-linux",
	"qemu-img":         "qemu-utils",
	"sfdisk":           "fdisk",
	"ssh":              "openssh-client",
	"unshare":          "util-linux",
	"virt-sparsify":    "guestfs-tools",
}

// Package is the Debian package that has a program.
func Package(program string) string {
	for _, a := range arch.All {
		if a.QEMU == program {
			return a.QEMUPackage
		}
	}
	return cmp.Or(packages[program], program)
}

// Look finds a program in the PATH or in the system's directories, which are
// not in every user's PATH. Its error is a *failure.Error that says how to get
// the program, and exec.ErrNotFound.
func Look(name string) (string, error) {
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path, nil
		}
	}
	return "", &failure.Error{What: name + " is not installed", Try: "apt-get install " + Package(name), Err: exec.ErrNotFound}
}

// CommandError says which program failed, how, and with which last lines.
type CommandError struct {
	Program string
	Err     error
	Tail    []string // last lines of output, oldest first
}

// Error names the program, how it ended and its last line of output.
func (e *CommandError) Error() string {
	if n := len(e.Tail); n > 0 {
		return fmt.Sprintf("%s: %v: %s", e.Program, e.Err, e.Tail[n-1])
	}
	return fmt.Sprintf("%s: %v", e.Program, e.Err)
}

// Unwrap returns how the program ended, or the cause of the context's end.
func (e *CommandError) Unwrap() error { return e.Err }

// Run runs the program to its end. It returns Look's error where there is no such
// program, and a *CommandError where it cannot be started, fails, or is stopped
// because ctx ended.
func Run(ctx context.Context, c Cmd) error {
	p, err := Start(ctx, c)
	if err != nil {
		return err
	}
	return p.Wait()
}

// Output runs the program and returns its standard output, of at most 8 MiB.
func Output(ctx context.Context, c Cmd) ([]byte, error) {
	out := &Bounded{Most: maxOutput}
	c.Stdout = out
	if err := Run(ctx, c); err != nil {
		return nil, err
	}
	if out.tooMany {
		return nil, &CommandError{Program: filepath.Base(c.Program), Err: fmt.Errorf("more than %d bytes of output", maxOutput)}
	}
	return out.kept.Bytes(), nil
}

// Process is a started program.
type Process struct {
	cmd    *exec.Cmd
	name   string
	lines  *lines
	close  func()
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// Start starts the program and returns at once. The caller must call Wait.
func Start(ctx context.Context, c Cmd) (*Process, error) {
	name := filepath.Base(c.Program)
	if err := ctx.Err(); err != nil {
		return nil, &CommandError{Program: name, Err: context.Cause(ctx)}
	}
	path := c.Program
	if path == name {
		var err error
		if path, err = Look(name); err != nil {
			return nil, err
		}
	}
	kept := newLines(c.OnLine)
	var out io.Writer = kept
	closeLog := func() {}
	if c.Log != "" {
		f, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, &CommandError{Program: name, Err: fmt.Errorf("opening its log: %w", err)}
		}
		closeLog = func() { f.Close() }
		out = io.MultiWriter(f, kept)
	}
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, path, c.Args...)
	// The death signal, so that it ends even if this process is killed.
	death := syscall.SIGTERM
	if c.Confined && Unconfined() == nil {
		all := append(append(confinement(), path), c.Args...)
		cmd = exec.CommandContext(ctx, all[0], all[1:]...)
		death = syscall.SIGKILL // unshare does not heed SIGTERM
	}
	cmd.Dir, cmd.Stdin = c.Dir, c.Stdin
	cmd.Env = c.Env
	if cmd.Env == nil {
		cmd.Env = Env()
	}
	cmd.Stderr = out
	cmd.Stdout = out
	if c.Stdout != nil {
		cmd.Stdout = c.Stdout
	}
	// A session, and so a process group, of its own: what the program starts ends
	// with it, and there is no terminal at which it could ask anybody.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: death}
	if c.Survive {
		cmd.SysProcAttr.Pdeathsig = 0
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = c.Grace
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = defaultGrace
	}
	p := &Process{cmd: cmd, name: name, lines: kept, close: closeLog, cancel: cancel, done: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		cancel()
		closeLog()
		return nil, &CommandError{Program: name, Err: err}
	}
	go p.wait(ctx)
	return p, nil
}

func (p *Process) wait(ctx context.Context) {
	err := p.cmd.Wait()
	// What the program left behind in its group ends now.
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	p.lines.add(p.lines.split.Part())
	p.close()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		p.err = &CommandError{Program: p.name, Err: err, Tail: p.lines.last}
	}
	p.cancel()
	close(p.done)
}

// Wait waits for the end of the program and returns how it ended.
func (p *Process) Wait() error { <-p.done; return p.err }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Stop ends the program and its process group (SIGTERM, then SIGKILL after
// the grace time) and waits for that.
func (p *Process) Stop() { p.cancel(); <-p.done }

// Pid is the program's process number.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// passed are the variables of our environment that external programs see.
// Everything else, registry credentials above all, is kept from them:
// playbooks are code that runs on the controller.
var passed = []string{"PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "XDG_CACHE_HOME", "SSH_AUTH_SOCK"}

// Env returns the allow-listed part of our environment, then extra.
func Env(extra ...string) []string { return append(Variables(passed...), extra...) }

// Variables returns those of our environment that are set, as NAME=VALUE.
func Variables(names ...string) (env []string) {
	for _, name := range names {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// Tail returns the last lines of output of the failed program in err's chain.
func Tail(err error) []string {
	var e *CommandError
	if errors.As(err, &e) {
		return e.Tail
	}
	return nil
}

// DiskFull says whether err is that of a full file system or quota, or of a
// program whose last words say so.
func DiskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || SaysDiskFull(strings.Join(Tail(err), "\n"))
}

// SaysDiskFull says whether a program's words are of a full file system or
// quota: C's and Go's differ in their capitals.
func SaysDiskFull(words string) bool {
	words = strings.ToLower(words)
	return strings.Contains(words, syscall.ENOSPC.Error()) || strings.Contains(words, syscall.EDQUOT.Error())
}

// lines keeps the last lines that are written to it and hands each to onLine.
type lines struct {
	split  text.Splitter
	onLine func(string)
	last   []string
}

func newLines(onLine func(string)) *lines {
	l := &lines{onLine: onLine}
	l.split = text.Splitter{Most: maxLine, Ends: "\n\r", Line: l.add}
	return l
}

func (l *lines) Write(b []byte) (int, error) { return l.split.Write(b) }

func (l *lines) add(line string) {
	line = strings.ToValidUTF8(line, "?")
	if strings.TrimSpace(line) == "" {
		return
	}
	if l.last = append(l.last, line); len(l.last) > tailLines {
		l.last = l.last[1:]
	}
	if l.onLine != nil {
		l.onLine(line)
	}
}

// Bounded keeps the first Most bytes written to it, and takes the rest, so that whoever
// writes never blocks. No buffer is embedded: io.Copy would use its ReadFrom, without a bound.
type Bounded struct {
	Most    int
	kept    bytes.Buffer
	tooMany bool
}

func (b *Bounded) Write(p []byte) (int, error) {
	left := b.Most - b.kept.Len()
	b.tooMany = b.tooMany || len(p) > left
	b.kept.Write(p[:min(len(p), left)])
	return len(p), nil
}

// String is what was kept.
func (b *Bounded) String() string { return b.kept.String() }
