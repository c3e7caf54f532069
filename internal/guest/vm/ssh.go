package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/text"
)

const (
	sshPort = 22 // in the guest
	// A connection is accepted by QEMU before the guest listens, and then
	// stays silent; give up soon and try again.
	bannerTimeout    = 3 * time.Second
	handshakeTimeout = 30 * time.Second
	retryAfter       = 300 * time.Millisecond
	maxOutput        = 8 << 20 // bytes of a command's output that are kept
	// A guest that answers nothing for so long is frozen. sshd answers in
	// milliseconds; an emulated guest under full load takes seconds.
	aliveEvery  = 15 * time.Second
	aliveWithin = 2 * time.Minute
)

// died is the cause of the end of waiting where the boot itself failed.
type died string

func (d died) Error() string { return string(d) }

// awaitSSH tries until ssh answers, the guest dies or the time is over.
func (g *Guest) awaitSSH(ctx context.Context) error {
	wait, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	wait, stop := context.WithTimeoutCause(wait, g.options.Timeout, died(fmt.Sprintf("the guest did not answer ssh within %v", g.options.Timeout)))
	defer stop()
	go func() {
		select {
		case <-g.process.Done():
			cancel(died("the guest's QEMU ended before ssh answered"))
		case what := <-g.console.Died():
			cancel(died(what))
		case <-wait.Done():
		}
	}()
	var refused error
	err := host.Retry(wait, func() error {
		g.client, refused = g.dial(wait)
		return refused
	}, func(int, error) (time.Duration, error) { return retryAfter, nil })
	if err != nil {
		// What ssh said last is no cause: it is as the wait ended, cancelled.
		return g.explain(ctx, fmt.Errorf("%w (ssh: %v)", err, refused)) //nolint:errorlint
	}
	return nil
}

// watch ends the connection of a guest that stops answering: nothing else
// would end what waits for it. It asks at intervals, and gives the guest a
// time for its answer.
func (g *Guest) watch(every, within time.Duration) {
	client := g.client
	go func() {
		for err := error(nil); err == nil; { // until the connection has ended
			time.Sleep(every)
			late := time.AfterFunc(within, func() {
				g.frozen.Store(true)
				_ = client.Close()
			})
			// OpenSSH's own request; sshd refuses it, which is an answer, too.
			_, _, err = client.SendRequest("keepalive@openssh.com", true, nil)
			late.Stop()
		}
	}()
}

// errFrozen is why commands fail in a guest that stopped answering.
var errFrozen = fmt.Errorf("the guest is frozen: it has not answered ssh for %v", aliveWithin)

// explain turns the end of a boot into an error with its evidence.
func (g *Guest) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	what := err.Error()
	if d := died(""); errors.As(err, &d) {
		what = string(d)
	}
	if errors.Is(err, errMonitorGone) {
		// It is ending: have its last words.
		select {
		case <-g.process.Done():
		case <-time.After(bannerTimeout):
			g.process.Stop()
		}
		what = "the guest did not start: QEMU ended"
		if err := g.process.Wait(); err != nil {
			what = "the guest did not start: " + err.Error()
		}
	}
	lines := g.console.Last()
	select {
	case <-g.process.Done():
		<-g.console.Done()
		lines = append(g.console.Last(), host.Tail(g.process.Wait())...)
	default:
	}
	return &failure.Error{
		What: what, Lines: lines, Log: g.ConsoleLog(), Err: err,
		Try: HangAdvice(what, "read the end of the guest's serial console; "+
			"the image needs a boot loader for its firmware, cloud-init with the NoCloud datasource, and sshd"),
	}
}

// dial connects and logs in, all or nothing.
func (g *Guest) dial(ctx context.Context) (*ssh.Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", g.Address(sshPort))
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	client, err := g.handshake(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return client, nil
}

func (g *Guest) handshake(conn net.Conn) (*ssh.Client, error) {
	if err := conn.SetDeadline(time.Now().Add(bannerTimeout)); err != nil {
		return nil, err
	}
	buffered := bufio.NewReader(conn)
	if _, err := buffered.Peek(4); err != nil {
		return nil, fmt.Errorf("no answer yet: %w", err)
	}
	if err := conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, err
	}
	config := &ssh.ClientConfig{
		User:              g.options.User,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(g.keys.user)},
		HostKeyCallback:   ssh.FixedHostKey(g.keys.host.PublicKey()),
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
	}
	if g.options.OwnHostKeys {
		config.HostKeyCallback, config.HostKeyAlgorithms = g.takeHostKey, nil
	}
	c, channels, requests, err := ssh.NewClientConn(peeked{conn, buffered}, g.Address(sshPort), config)
	if err != nil {
		return nil, err
	}
	return ssh.NewClient(c, channels, requests), conn.SetDeadline(time.Time{})
}

// takeHostKey takes the key that a guest with OwnHostKeys shows. The last one
// counts: sshd may have answered before cloud-init made the keys anew.
func (g *Guest) takeHostKey(_ string, _ net.Addr, key ssh.PublicKey) error {
	g.shown = key
	return nil
}

// peeked is a connection whose first bytes were read already.
type peeked struct {
	net.Conn
	r io.Reader
}

func (p peeked) Read(b []byte) (int, error) { return p.r.Read(b) }

// RunError says how a command in the guest failed.
type RunError struct {
	Command string // its first line
	Status  int    // exit status; -1 where it has none (a signal, a broken connection)
	Stderr  string // the end of its standard error
	Err     error
}

// Error names the command, how it ended and what it said.
func (e *RunError) Error() string {
	if e.Stderr != "" {
		return fmt.Sprintf("in the guest: %s: %v: %s", e.Command, e.Err, e.Stderr)
	}
	return fmt.Sprintf("in the guest: %s: %v", e.Command, e.Err)
}

// Unwrap returns the cause.
func (e *RunError) Unwrap() error { return e.Err }

// Run runs a shell command as the login user, who may sudo without password,
// and returns its standard output, of at most 8 MiB. A command that fails is
// a *RunError; its output so far is returned all the same. Where the context
// ends there is none, for a guest that may be frozen is not waited for.
func (g *Guest) Run(ctx context.Context, cmd string, stdin io.Reader) (string, error) {
	type result struct {
		out string
		err error
	}
	done := make(chan result, 1)
	// Also opening and closing a session waits for the guest.
	go func() {
		out, err := g.run(ctx, cmd, stdin)
		done <- result{out, err}
	}()
	select {
	case r := <-done:
		return r.out, r.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

func (g *Guest) run(ctx context.Context, cmd string, stdin io.Reader) (string, error) {
	session, err := g.client.NewSession()
	if err != nil {
		return "", g.failed(cmd, err, "")
	}
	defer session.Close()
	stdout, stderr := host.Bounded{Most: maxOutput}, host.Bounded{Most: maxOutput} // a guest may say without end
	session.Stdin, session.Stdout, session.Stderr = stdin, &stdout, &stderr
	// sshd passes no signals on to a command; closing the session hangs it up.
	stop := context.AfterFunc(ctx, func() { session.Close() })
	defer stop()
	if err := session.Run(cmd); err != nil {
		return stdout.String(), g.failed(cmd, err, stderr.String())
	}
	return stdout.String(), nil
}

func (g *Guest) failed(cmd string, err error, stderr string) *RunError {
	status := -1
	var exit *ssh.ExitError
	switch {
	case errors.As(err, &exit):
		status = exit.ExitStatus()
		err = fmt.Errorf("exit status %d", status)
	case g.frozen.Load():
		err = errFrozen
	}
	command, _, _ := strings.Cut(cmd, "\n")
	stderr = strings.TrimSpace(stderr)
	return &RunError{Command: command, Status: status, Stderr: text.Line(stderr[strings.LastIndexByte(stderr, '\n')+1:]), Err: err}
}

// Upload writes what r holds to a file of the guest that belongs to root,
// with mode in octal ("0755").
func (g *Guest) Upload(ctx context.Context, r io.Reader, path, mode string) error {
	q := Quote(path)
	_, err := g.Run(ctx, "sudo sh -c "+Quote("cat > "+q+" && chmod "+Quote(mode)+" "+q), r)
	return err
}

// hostAlias is a guest's name in known_hosts, whatever its port.
const hostAlias = "diskforge-guest"

// KnownHost is the line of known_hosts for a guest with this key.
func KnownHost(key ssh.PublicKey) string { return hostAlias + " " + authorized(key) + "\n" }

// SSHOptions make ssh trust the guest of a file of known hosts, and nothing of
// the user's own configuration.
func SSHOptions(knownHosts string) []string {
	return []string{
		"-F", "/dev/null", "-o", "StrictHostKeyChecking=yes", "-o", "HostKeyAlias=" + hostAlias,
		"-o", "UserKnownHostsFile=" + knownHosts, "-o", "GlobalKnownHostsFile=/dev/null",
	}
}

// SSHCommand is what a person types to look into a guest: with the file of a
// key, at a port of the loopback.
func SSHCommand(user, key, knownHosts, port string) string {
	words := append(SSHOptions(knownHosts), "-i", key, "-o", "IdentitiesOnly=yes", "-p", port, user+"@127.0.0.1")
	for i := range words {
		words[i] = Quote(words[i])
	}
	return "ssh " + strings.Join(words, " ")
}

// SSHCommand is what a person types to look into the guest.
func (g *Guest) SSHCommand() string {
	return SSHCommand(g.options.User, g.file(keyFile), g.file(knownFile), strconv.Itoa(g.ports[sshPort]))
}

// Inventory is a file of Ansible's with the guest alone, under the name.
func (g *Guest) Inventory(name string) string {
	return fmt.Sprintf("%s ansible_host=127.0.0.1 ansible_port=%d ansible_user=%s ansible_ssh_private_key_file=%q ansible_ssh_common_args=%q\n",
		name, g.ports[sshPort], g.options.User, g.file(keyFile), strings.Join(append(SSHOptions(g.file(knownFile)), "-o", "IdentitiesOnly=yes"), " "))
}

func (g *Guest) writeKnownHosts() error {
	key := g.keys.host.PublicKey()
	if g.options.OwnHostKeys {
		key = g.shown
	}
	return os.WriteFile(g.file(knownFile), []byte(KnownHost(key)), 0o600)
}

// Quote makes s one word of a shell.
func Quote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-=@:") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
