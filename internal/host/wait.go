package host

import (
	"context"
	"io"
	"time"
)

// Reader reads from r until ctx ends, and fails then with its cause.
func Reader(ctx context.Context, r io.Reader) io.Reader { return contextReader{ctx, r} }

type contextReader struct {
	ctx  context.Context //nolint:containedctx // io.Reader's method takes none
	from io.Reader
}

// Read implements io.Reader.
func (r contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.from.Read(p)
}

// Copy copies in large blocks what from has, until ctx ends.
func Copy(ctx context.Context, to io.Writer, from io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{to}, Reader(ctx, from), make([]byte, 1<<20))
}

// Sleep waits for a time, or for ctx's end, whose cause it returns.
func Sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// Retry calls do until it succeeds, or ctx ends. Between the calls it asks what
// to make of an error, the tried-th: how long to wait, or the error to end with.
func Retry(
	ctx context.Context, do func() error, failed func(tried int, err error) (pause time.Duration, final error),
) error {
	for tried := 1; ; tried++ {
		err := do()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		pause, err := failed(tried, err)
		if err != nil {
			return err
		}
		if err := Sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// Backoff is the pause behind the tried-th failure in a row: it doubles each
// time, up to the longest.
func Backoff(first, longest time.Duration, tried int) time.Duration {
	for ; tried > 1 && first < longest; tried-- {
		first *= 2
	}
	return min(first, longest)
}
