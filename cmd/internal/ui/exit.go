// Package ui is what the programs for users have in common: the way to the
// daemon, following a session, polkit's questions on a terminal, text that is
// fit to be shown, and, of those with commands, exit codes and how errors are
// told.
package ui

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// Exit codes of programs with commands, those of nmcli where it has one. The
// programs' documentation says what they mean there.
const (
	ExitOK           = 0
	ExitFailed       = 1
	ExitUsage        = 2
	ExitTimeout      = 3
	ExitNotConnected = 4
	ExitStillThere   = 5
	ExitNotRemoved   = 7
	ExitNotRunning   = 8
	ExitNotFound     = 10
	ExitInterrupted  = 130
)

const hintBus = "check that D-Bus runs, or pass --bus ADDRESS"

// Error is an error with what a program makes of it.
type Error struct {
	Code int
	Err  error
	Hint string // what to do next; may be empty
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Program is a program with commands. What to do next about the errors of the
// daemon differs between them.
type Program struct {
	Name          string
	NotFound      string // hint: where the names are
	NotAuthorized string // hint
}

// Report tells of an error and returns the exit code; nil is none. ctx is what
// the program ran in: interrupted is what its end had.
func (p Program) Report(ctx context.Context, stderr io.Writer, err error) int {
	if err == nil {
		return ExitOK
	}
	code, hint := ExitFailed, ""
	if e, ok := errors.AsType[*Error](err); ok {
		code, hint = e.Code, e.Hint
	}
	switch {
	case errors.Is(err, client.ErrNotRunning):
		code, hint = ExitNotRunning, "start the daemon: systemctl start vpnproviderd"
	case errors.Is(err, client.ErrClosed):
		code, hint = ExitNotRunning, hintBus
	case errors.Is(err, client.ErrNotFound):
		code, hint = ExitNotFound, p.NotFound
	case errors.Is(err, client.ErrNotAuthorized) && hint == "":
		hint = p.NotAuthorized
	case errors.Is(err, context.DeadlineExceeded) && code != ExitNotRunning:
		code = ExitTimeout
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		code = ExitInterrupted
	}
	fmt.Fprintln(stderr, p.Name+": "+CleanLines(err.Error()))
	if hint != "" {
		fmt.Fprintln(stderr, "  "+Clean(hint))
	}
	return code
}
