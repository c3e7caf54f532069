package vm

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
)

// server is an sshd in this process that runs commands with sh on this host.
// It takes the user's key of k alone and shows the host key hostPrivate.
func server(t *testing.T, k keys, hostPrivate []byte) (port int) {
	t.Helper()
	host, err := ssh.ParsePrivateKey(hostPrivate)
	require.NoError(t, err)
	config := &ssh.ServerConfig{PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if c.User() == "tester" && string(key.Marshal()) == string(k.user.PublicKey().Marshal()) {
			return nil, nil
		}
		return nil, errors.New("unknown key")
	}}
	config.AddHostKey(host)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serve(conn, config)
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func serve(conn net.Conn, config *ssh.ServerConfig) {
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for c := range channels {
		channel, requests, err := c.Accept()
		if err != nil {
			return
		}
		go run(channel, requests)
	}
}

func run(channel ssh.Channel, requests <-chan *ssh.Request) {
	r := <-requests
	var payload struct{ Command string }
	_ = r.Reply(ssh.Unmarshal(r.Payload, &payload) == nil, nil)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		ssh.DiscardRequests(requests)
		cancel()
	}()
	cmd := exec.CommandContext(ctx, "sh", "-c", strings.ReplaceAll(payload.Command, "sudo ", ""))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = channel, channel, channel.Stderr()
	_ = cmd.Run()
	status := make([]byte, 4)
	binary.BigEndian.PutUint32(status, uint32(cmd.ProcessState.ExitCode()))
	_, _ = channel.SendRequest("exit-status", false, status)
	channel.Close()
}

// connected returns a guest that is this host.
func connected(t *testing.T) *Guest {
	t.Helper()
	k, err := newKeys()
	require.NoError(t, err)
	g := &Guest{options: Options{User: "tester", Dir: t.TempDir()}, keys: k, ports: map[int]int{sshPort: server(t, k, k.host.Private)}}
	g.client, err = g.dial(t.Context())
	require.NoError(t, err)
	t.Cleanup(g.disconnect)
	return g
}

func TestACommandsOutputIsReturnedAndItsInputGiven(t *testing.T) {
	t.Parallel()
	out, err := connected(t).Run(t.Context(), "tr a-z A-Z", strings.NewReader("hello"))
	require.NoError(t, err)
	assert.Equal(t, "HELLO", out)
}

func TestACommandThatFailsSaysWhatItSaid(t *testing.T) {
	t.Parallel()
	out, err := connected(t).Run(t.Context(), "echo part; echo first >&2; printf 'the \\033[31mcause\\n' >&2; exit 3\n# second line", nil)
	var failed *RunError
	require.ErrorAs(t, err, &failed)
	assert.Equal(t, 3, failed.Status)
	assert.Equal(t, "the cause", failed.Stderr)
	assert.NotContains(t, err.Error(), "second line")
	assert.Equal(t, "part\n", out)
}

func TestEndlessOutputNeitherBlocksNorFillsMemory(t *testing.T) {
	t.Parallel()
	out, err := connected(t).Run(t.Context(), "head -c 9000000 /dev/zero", nil)
	require.NoError(t, err)
	assert.Len(t, out, maxOutput)
}

func TestTheEndOfTheContextEndsACommand(t *testing.T) {
	t.Parallel()
	g := connected(t)
	started := filepath.Join(t.TempDir(), "started")
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for {
			if _, err := os.Stat(started); err == nil {
				cancel(stop)
				return
			}
		}
	}()
	_, err := g.Run(ctx, "touch "+Quote(started)+"; exec sleep 100", nil)
	require.ErrorIs(t, err, stop)
}

// freezable is a way to a port that stops carrying anything when it is frozen,
// without closing a connection.
func freezable(t *testing.T, port int) (through int, freeze func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	frozen := make(chan struct{})
	carry := func(from, to net.Conn) {
		defer to.Close()
		b := make([]byte, 4096)
		for {
			n, err := from.Read(b)
			select {
			case <-frozen:
				<-t.Context().Done()
				return
			default:
			}
			if _, errTo := to.Write(b[:n]); err != nil || errTo != nil {
				return
			}
		}
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			guest, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			if err != nil {
				conn.Close()
				continue
			}
			go carry(conn, guest)
			go carry(guest, conn)
		}
	}()
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).Port, func() { close(frozen) }
}

// freezableGuest is a guest that is this host until it is frozen.
func freezableGuest(t *testing.T) (g *Guest, freeze func()) {
	t.Helper()
	k, err := newKeys()
	require.NoError(t, err)
	through, freeze := freezable(t, server(t, k, k.host.Private))
	g = &Guest{options: Options{User: "tester"}, keys: k, ports: map[int]int{sshPort: through}}
	g.client, err = g.dial(t.Context())
	require.NoError(t, err)
	t.Cleanup(g.disconnect)
	return g, freeze
}

func TestAFrozenGuestEndsWhatWaitsForIt(t *testing.T) {
	t.Parallel()
	g, freeze := freezableGuest(t)
	g.watch(time.Millisecond, 100*time.Millisecond)
	freeze()
	_, err := g.Run(t.Context(), "true", nil)
	require.ErrorIs(t, err, errFrozen)
	_, err = g.Run(t.Context(), "true", nil)
	require.ErrorIs(t, err, errFrozen, "nor does it wait again")
}

func TestAGuestThatAnswersIsNotTakenForFrozen(t *testing.T) {
	t.Parallel()
	g, _ := freezableGuest(t)
	g.watch(time.Millisecond, time.Minute)
	out, err := g.Run(t.Context(), "sleep 0.3; echo done", nil)
	require.NoError(t, err)
	assert.Equal(t, "done\n", out)
}

func TestTheEndOfTheContextDoesNotWaitForAFrozenGuest(t *testing.T) {
	t.Parallel()
	g, freeze := freezableGuest(t)
	freeze()
	late := errors.New("it did not end in time")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Millisecond, late)
	defer cancel()
	_, err := g.Run(ctx, "true", nil)
	require.ErrorIs(t, err, late)
}

func TestAnUploadedFileHasItsContentAndMode(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "it's a file")
	require.NoError(t, connected(t).Upload(t.Context(), strings.NewReader("content"), file, "0700"))
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "content", string(b))
	info, err := os.Stat(file)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o700), info.Mode())
}

func TestAnotherHostThanTheSeedsIsNotTalkedTo(t *testing.T) {
	t.Parallel()
	mine, err := newKeys()
	require.NoError(t, err)
	other, err := newKeys()
	require.NoError(t, err)
	g := &Guest{options: Options{User: "tester"}, keys: mine, ports: map[int]int{sshPort: server(t, mine, other.host.Private)}}
	_, err = g.dial(t.Context())
	require.ErrorContains(t, err, "host key mismatch")
}

func TestTheCommandForAPersonWorksWithOpenSSH(t *testing.T) {
	t.Parallel()
	g := connected(t)
	require.NoError(t, os.WriteFile(filepath.Join(g.options.Dir, keyFile), g.keys.user.Private, 0o600))
	require.NoError(t, g.writeKnownHosts())
	out, err := exec.CommandContext(t.Context(), "sh", "-c", g.SSHCommand()+" -o BatchMode=yes echo hello").CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Equal(t, "hello\n", string(out))
}

func TestAGuestWithKeysOfItsOwnIsTakenAtItsWordAndRemembered(t *testing.T) {
	t.Parallel()
	mine, err := newKeys()
	require.NoError(t, err)
	other, err := newKeys()
	require.NoError(t, err)
	g := &Guest{options: Options{User: "tester", Dir: t.TempDir(), OwnHostKeys: true}, keys: mine, ports: map[int]int{sshPort: server(t, mine, other.host.Private)}}
	g.client, err = g.dial(t.Context())
	require.NoError(t, err)
	t.Cleanup(g.disconnect)
	require.NoError(t, os.WriteFile(filepath.Join(g.options.Dir, keyFile), mine.user.Private, 0o600))
	require.NoError(t, g.writeKnownHosts())
	out, err := exec.CommandContext(t.Context(), "sh", "-c", g.SSHCommand()+" -o BatchMode=yes echo hello").CombinedOutput()
	require.NoError(t, err, "%s", out)
}
