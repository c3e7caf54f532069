package boot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"sync"
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
			if !ok {
				return nil, errMonitorGone
			}
			if a.ID != m.id {
				continue // to a command whose caller did not wait
			}
			if a.Error != nil {
				return nil, fmt.Errorf("QEMU refuses %s: %s", name, a.Error.Desc)
			}
			return a.Return, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (m *monitor) close() {
	m.out.Close()
	m.in.Close()
}

// forwardedPort opens the monitor and asks which port of 127.0.0.1 leads to
// the guest's ssh. QEMU chose it itself: no other process can take it between
// the choice and the use.
func (m *monitor) forwardedPort(ctx context.Context) (int, error) {
	if _, err := m.execute(ctx, "qmp_capabilities", nil); err != nil {
		return 0, err
	}
	raw, err := m.execute(ctx, "human-monitor-command", map[string]any{"command-line": "info usernet"})
	if err != nil {
		return 0, err
	}
	var table string
	if err := json.Unmarshal(raw, &table); err != nil {
		return 0, fmt.Errorf("reading QEMU's table of forwarded ports: %w", err)
	}
	return parsePort(table)
}

var hostForward = regexp.MustCompile(`TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s`)

// parsePort finds the forwarded port in what "info usernet" prints.
func parsePort(table string) (int, error) {
	m := hostForward.FindStringSubmatch(table)
	if m == nil {
		return 0, fmt.Errorf("QEMU forwards no port of 127.0.0.1: %q", table)
	}
	port, err := strconv.ParseUint(m[1], 10, 16)
	return int(port), err
}
