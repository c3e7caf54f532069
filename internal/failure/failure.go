// Package failure carries what a person needs to act on an error: what is
// wrong in one line, the lines of evidence, where the whole log is, what to try.
package failure

import (
	"errors"
	"fmt"
)

// Error is an error that a person can act on. Its message is one line.
type Error struct {
	// What says what is wrong, in one line, without the stage's name.
	What string
	// Try says what to do about it, in one line; it may be empty.
	Try string
	// Lines are the last lines of evidence that matter (a failed task, the
	// end of a console), not the whole log.
	Lines []string
	// Log is the path of the whole log, or empty.
	Log string
	// Guest says that a guest was up when it happened, which --keep-on-error
	// would have left for a look.
	Guest bool
	// Err is the cause, or nil.
	Err error
}

// Error returns what is wrong and, behind a colon, what to do about it.
func (e *Error) Error() string {
	if e.Try == "" {
		return e.What
	}
	return e.What + ": " + e.Try
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New returns an error with what is wrong and what to do about it.
func New(what, try string) *Error { return &Error{What: what, Try: try} }

// Wrap returns an error with what is wrong and what to do about it, caused by err.
// The cause stands in the message: it is the evidence.
func Wrap(err error, what, try string) *Error {
	return &Error{What: fmt.Sprintf("%s: %v", what, err), Try: try, Err: err}
}

// In returns err with the evidence of the first *Error in its chain kept, so
// that a caller can add context in the usual way (fmt.Errorf with %w) and the
// lines, the log and the advice still reach the user.
func In(err error) (*Error, bool) {
	var e *Error
	ok := errors.As(err, &e)
	return e, ok
}
