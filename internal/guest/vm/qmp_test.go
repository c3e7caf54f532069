package vm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// peer answers each request that a monitor sends with what reply prints, in
// which %d is the request's id.
func peer(t *testing.T, reply func(execute string) string) *monitor {
	t.Helper()
	requests, toPeer := io.Pipe()
	fromPeer, answers := io.Pipe()
	go func() {
		defer answers.Close()
		fmt.Fprintln(answers, `{"QMP": {"version": {}}}`)
		for lines := bufio.NewScanner(requests); lines.Scan(); {
			var r struct {
				Execute string
				ID      int
			}
			if json.Unmarshal(lines.Bytes(), &r) != nil || reply(r.Execute) == "" {
				return
			}
			fmt.Fprintf(answers, reply(r.Execute)+"\n", r.ID)
		}
	}()
	m := newMonitor(fromPeer, toPeer)
	t.Cleanup(m.close)
	return m
}

func TestEventsBetweenAnswersAreNoAnswers(t *testing.T) {
	t.Parallel()
	m := peer(t, func(string) string {
		return `{"event": "RESUME"} {"return": {"stale": 1}, "id": 99} {"return": {"ok": true}, "id": %d}`
	})
	for range 3 {
		out, err := m.execute(t.Context(), "query-status", nil)
		require.NoError(t, err)
		assert.JSONEq(t, `{"ok": true}`, string(out))
	}
}

func TestARefusalOfQEMUIsNamed(t *testing.T) {
	t.Parallel()
	m := peer(t, func(string) string { return `{"error": {"class": "GenericError", "desc": "no such thing"}, "id": %d}` })
	_, err := m.execute(t.Context(), "eject", nil)
	require.EqualError(t, err, "QEMU refuses eject: no such thing")
}

func TestAMonitorThatIsGoneIsSaid(t *testing.T) {
	t.Parallel()
	m := peer(t, func(string) string { return "" })
	_, err := m.execute(t.Context(), "query-status", nil)
	require.ErrorIs(t, err, errMonitorGone)
}

func TestACallersEndIsNotWaitedOut(t *testing.T) {
	t.Parallel()
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	m := peer(t, func(string) string { cancel(stop); return `{"event": "no answer to %d"}` })
	_, err := m.execute(ctx, "query-status", nil)
	require.ErrorIs(t, err, stop)
}

func FuzzQMP(f *testing.F) {
	f.Add([]byte(`{"QMP": {}} {"return": {}, "id": 1} {"return": "TCP[HOST_FORWARD]  12 127.0.0.1 40001 10.0.2.15 22 0 0\\r\\n", "id": 2}`))
	f.Add([]byte(`{"return": {}, "id": 9} {"return": {}, "id": 9} {"return": {}, "id": 9} {"return": {}, "id": 9}`))
	f.Fuzz(func(t *testing.T, said []byte) {
		m := newMonitor(io.NopCloser(bytes.NewReader(said)), discard{})
		ports, err := m.forwardedPorts(t.Context(), []int{22})
		if err == nil && (ports[22] < 1 || ports[22] > 65535) {
			t.Fatalf("the port is %d", ports[22])
		}
	})
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) Close() error                { return nil }
