package httpclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// IdleError is the error of a request that got nowhere.
type IdleError struct {
	Got   int64 // bytes of the body within After
	After time.Duration
}

func (e *IdleError) Error() string {
	if e.Got == 0 {
		return fmt.Sprintf("the server was silent for %v", e.After)
	}
	return fmt.Sprintf("the transfer got on by only %d bytes in %v", e.Got, e.After)
}

// Timeout says that trying again may help.
func (e *IdleError) Timeout() bool { return true }

// watch ends a request that gets nowhere. Only the time counts in which
// something is waited for: whoever reads a body may take as long as he likes.
type watch struct {
	ctx    context.Context //nolint:containedctx // the request's own: a watch ends with it
	cancel context.CancelCauseFunc
	limit  time.Duration

	mu       sync.Mutex
	timer    *time.Timer
	left     time.Duration // until the next bytes must have come
	since    time.Time
	got      int64 // bytes since left was full
	finished bool
}

func newWatch(ctx context.Context, cancel context.CancelCauseFunc, limit time.Duration) *watch {
	return &watch{ctx: ctx, cancel: cancel, limit: limit, left: limit}
}

// run lets the time run.
func (w *watch) run() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer == nil && !w.finished {
		w.since = time.Now()
		w.timer = time.AfterFunc(w.left, w.end)
	}
}

func (w *watch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil { // not stopped meanwhile
		w.cancel(&IdleError{w.got, w.limit})
	}
}

// came stops the time, and notes that the request got on by so many bytes.
func (w *watch) came(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
		w.left -= time.Since(w.since)
	}
	if w.got += int64(n); w.got >= least {
		w.got, w.left = 0, w.limit
	}
}

// finish stops the time for good.
func (w *watch) finish() {
	w.came(0)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.finished = true
}

// grant is the time that is left now.
func (w *watch) grant(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.got, w.left, w.limit = 0, d, d
}

// why is the reason for which a request ended.
func (w *watch) why(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	if stalled, ok := errors.AsType[*IdleError](context.Cause(w.ctx)); ok {
		return stalled
	}
	return err
}

// sent is the body of a request. The time runs while it is not read: then the
// network, or the server, takes no more of it.
type sent struct {
	io.ReadCloser
	*watch
	think time.Duration
}

// Read implements io.Reader.
func (s *sent) Read(p []byte) (int, error) {
	s.came(0)
	n, err := s.ReadCloser.Read(p)
	s.came(n)
	if err != nil {
		s.grant(s.think) // all has been sent
	}
	s.run()
	return n, err
}

// received is the body of an answer. The time runs while it is read.
type received struct {
	io.ReadCloser
	*watch
}

// Read implements io.Reader.
func (r *received) Read(p []byte) (int, error) {
	r.run()
	n, err := r.ReadCloser.Read(p)
	r.came(n)
	return n, r.why(err)
}

// Close implements io.Closer.
func (r *received) Close() error {
	err := r.ReadCloser.Close()
	r.cancel(nil)
	return err
}
