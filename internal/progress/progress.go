// Package progress is how a stage says what it is doing, without knowing who
// watches: a terminal, a log file, a machine or nobody.
package progress

import "io"

// Reporter receives the progress of one stage. Its methods are safe for
// concurrent use and cheap enough to be called for every block that is copied.
type Reporter interface {
	// Bytes reports measured progress; total is 0 where it is not known.
	Bytes(done, total int64)
	// Activity names what is going on where there is no measure:
	// the current Ansible task, the phase of a boot.
	Activity(what string)
	// Warn says something that the user should know and that stops nothing.
	Warn(message string)
}

// Discard is the Reporter of a caller that does not watch.
var Discard Reporter = discard{}

type discard struct{}

func (discard) Bytes(int64, int64) {}
func (discard) Activity(string)    {}
func (discard) Warn(string)        {}

// Reader reports every read of r as measured progress towards total bytes.
func Reader(r io.Reader, total int64, to Reporter) io.Reader {
	return &reader{r: r, total: total, to: to}
}

type reader struct {
	r           io.Reader
	done, total int64
	to          Reporter
}

func (p *reader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.done += int64(n)
	p.to.Bytes(p.done, p.total)
	return n, err
}
