package driver

import (
	"errors"
	"fmt"
)

// Kind says what sort of answer an error is. The bus gives each its name.
type Kind int

// The kinds. Failed is what an error without a kind counts as.
const (
	KindFailed Kind = iota
	KindInvalidParameter
	KindNotAuthorized
	KindNotOwner
	KindNotFound
	KindAlreadyExists
	KindWrongState
	KindLimitExceeded
	KindBusy
	KindNotSupported
	KindProviderNotRunning
	KindTimeout
)

// ErrCaptures is what a Capturer says that has too many captures.
var ErrCaptures = errors.New("there are too many captures")

// Error is an answer to a caller: its text is one lower-case sentence that
// says what was wrong with which value.
type Error struct {
	Kind Kind
	Text string
}

func (e *Error) Error() string { return e.Text }

// Errorf makes an Error.
func Errorf(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, Text: fmt.Sprintf(format, args...)}
}

// KindOf finds the kind of err; KindFailed where it has none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return KindFailed
}

// notFound is the same for what does not exist and what the caller may not
// see: nobody can probe for the objects of others.
func notFound(what, id string) error {
	return Errorf(KindNotFound, "there is no %s %q", what, id)
}
