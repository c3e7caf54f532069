package host_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/host"
)

func TestAReaderEndsWithItsContext(t *testing.T) {
	t.Parallel()
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	r := host.Reader(ctx, strings.NewReader("abc"))
	_, err := r.Read(make([]byte, 1))
	require.NoError(t, err)
	cancel(stop)
	_, err = io.ReadAll(r)
	require.ErrorIs(t, err, stop)
}

func TestWhatFailsIsTriedAgainUntilItSucceedsOrIsFinal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, busy, final := time.Now(), errors.New("busy"), errors.New("final")
		failures := 3
		do := func() error {
			if failures--; failures >= 0 {
				return busy
			}
			return nil
		}
		pause := func(tried int, err error) (time.Duration, error) {
			assert.Equal(t, busy, err)
			return host.Backoff(time.Second, time.Minute, tried), nil
		}
		require.NoError(t, host.Retry(t.Context(), do, pause))
		assert.Equal(t, 7*time.Second, time.Since(began))
		failures = 3
		require.ErrorIs(t, host.Retry(t.Context(), do, func(tried int, _ error) (time.Duration, error) {
			if tried == 2 {
				return 0, final
			}
			return 0, nil
		}), final)
		assert.Equal(t, 1, failures)
	})
}

func TestTryingAgainEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop := errors.New("stopped by the test")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Minute, func() { cancel(stop) })
		began := time.Now()
		require.ErrorIs(t, host.Retry(ctx, func() error { return io.EOF }, func(int, error) (time.Duration, error) { return time.Hour, nil }), stop)
		assert.Equal(t, time.Minute, time.Since(began))
	})
}

func TestAPauseDoublesUpToTheLongest(t *testing.T) {
	t.Parallel()
	var all []time.Duration
	for tried := 1; tried <= 5; tried++ {
		all = append(all, host.Backoff(time.Second, 5*time.Second, tried))
	}
	assert.Equal(t, []time.Duration{1e9, 2e9, 4e9, 5e9, 5e9}, all)
	assert.Equal(t, time.Hour, host.Backoff(time.Second, time.Hour, 1<<30))
}
