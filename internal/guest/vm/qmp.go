package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"sync"

	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// monitor speaks QMP, QEMU's machine protocol: one JSON object a line.
type monitor struct {
	in      io.ReadCloser
	out     io.WriteCloser
	mu      sync.Mutex // one command at a time
	id      int        // of the last command
	answers chan answer
}

type answer struct {
	ID     int             `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
}

var errMonitorGone = errors.New("QEMU has ended")

func newMonitor(in io.ReadCloser, out io.WriteCloser) *monitor {
	m := &monitor{in: in, out: out, answers: make(chan answer, 1)}
	go m.read()
	return m
}

// read passes answers on and drops the greeting and events, so that QEMU
// never waits for a reader.
func (m *monitor) read() {
	defer close(m.answers)
	for d := json.NewDecoder(m.in); ; {
		var a answer
		if d.Decode(&a) != nil {
			return
		}
		if a.Return != nil || a.Error != nil {
			m.answers <- a
		}
	}
}

// execute runs one command and returns its result.
func (m *monitor) execute(ctx context.Context, name string, arguments map[string]any) (json.RawMessage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.id++
	request := map[string]any{"execute": name, "id": m.id}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := json.NewEncoder(m.out).Encode(request); err != nil {
		return nil, errMonitorGone
	}
	for {
		select {
		case a, ok := <-m.answers:
			switch {
			case !ok:
				return nil, errMonitorGone
			case a.ID != m.id: // to a command whose caller did not wait
			case a.Error != nil:
				return nil, fmt.Errorf("QEMU refuses %s: %s", name, a.Error.Desc)
			default:
				return a.Return, nil
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (m *monitor) close() {
	m.out.Close()
	m.in.Close()
}

// ask gives a command to the monitor for people, and returns what it prints.
func (m *monitor) ask(ctx context.Context, command string) (said string, err error) {
	raw, err := m.execute(ctx, "human-monitor-command", map[string]any{"command-line": command})
	if err == nil {
		err = json.Unmarshal(raw, &said)
	}
	return said, err
}

// snapshot saves or loads one. QMP's own commands for that are jobs that name each
// block device; the monitor for people prints nothing where it succeeds.
func (m *monitor) snapshot(ctx context.Context, command string) error {
	said, err := m.ask(ctx, command)
	if err == nil && said != "" {
		err = fmt.Errorf("QEMU refuses %s: %s", command, text.Line(said))
	}
	return err
}

// forwardedPorts opens the monitor and asks which ports of 127.0.0.1 lead to
// the guest's. QEMU chose them itself: no other process can take one between
// the choice and the use.
func (m *monitor) forwardedPorts(ctx context.Context, guest []int) (map[int]int, error) {
	if _, err := m.execute(ctx, "qmp_capabilities", nil); err != nil {
		return nil, err
	}
	table, err := m.ask(ctx, "info usernet")
	if err != nil {
		return nil, err
	}
	return parsePorts(table, guest)
}

// State, descriptor, address and port of the host, address and port of the guest.
var hostForward = regexp.MustCompile(`TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+[0-9.]+\s+(\d+)\s`)

// parsePorts finds in what "info usernet" prints which port of 127.0.0.1
// leads to each of the guest's.
func parsePorts(table string, guest []int) (map[int]int, error) {
	ports := map[int]int{}
	for _, m := range hostForward.FindAllStringSubmatch(table, -1) {
		from, errFrom := strconv.ParseUint(m[1], 10, 16)
		to, errTo := strconv.ParseUint(m[2], 10, 16)
		if err := errors.Join(errFrom, errTo); err != nil {
			return nil, fmt.Errorf("reading QEMU's table of forwarded ports: %w", err)
		}
		ports[int(to)] = int(from)
	}
	for _, port := range guest {
		if ports[port] == 0 {
			return nil, fmt.Errorf("QEMU forwards no port of 127.0.0.1 to the guest's port %d: %q", port, table)
		}
	}
	return ports, nil
}

// maxScreen bounds a picture of the screen, in bytes of PNG: the guest says
// what is on it and how large it is.
const maxScreen = 8 << 20

// Screen returns what the guest's screen shows, as PNG of at most 8 MiB. It
// takes QEMU 7.1 or newer.
func (g *Guest) Screen(ctx context.Context) ([]byte, error) {
	file := g.file(screenFile)
	defer os.Remove(file)
	_, err := g.qmp.execute(ctx, "screendump", map[string]any{"filename": screenFile, "format": "png"})
	if err != nil {
		return nil, fmt.Errorf("taking a picture of the guest's screen: %w", err)
	}
	picture, err := host.ReadFile(file, maxScreen)
	if err != nil {
		return nil, fmt.Errorf("reading the picture of the guest's screen: %w", err)
	}
	return picture, nil
}
