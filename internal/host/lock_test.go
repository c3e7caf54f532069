package host_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// told passes on what a waiting process says.
type told struct {
	progress.Reporter
	what chan string
}

func (t told) Activity(what string) { t.what <- what }

func TestTheSecondWaitsForTheFirstAndSaysSo(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "lock")
	held, err := host.LockDir(t.Context(), name, "", progress.Discard)
	require.NoError(t, err)
	says := told{what: make(chan string, 1)}
	second := make(chan error)
	go func() {
		held, err := host.LockDir(t.Context(), name, "waiting for the first", says)
		if err == nil {
			held.Close()
		}
		second <- err
	}()
	require.Equal(t, "waiting for the first", <-says.what)
	require.NoError(t, held.Close())
	require.NoError(t, <-second)
}

func TestTheEndOfTheContextEndsTheWait(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "lock")
	held, err := host.LockDir(t.Context(), name, "", progress.Discard)
	require.NoError(t, err)
	defer held.Close()
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	_, err = host.LockDir(ctx, name, "waiting", progress.Discard)
	require.ErrorIs(t, err, stop)
}
