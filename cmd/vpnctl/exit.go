package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// Exit codes, those of nmcli where it has one.
const (
	exitOK            = 0
	exitFailed        = 1
	exitUsage         = 2
	exitTimeout       = 3
	exitNotConnected  = 4
	exitStillThere    = 5
	exitNotRemoved    = 7
	exitNotRunning    = 8
	exitNotFound      = 10
	exitInterrupted   = 130
	hintDaemon        = "start the daemon: systemctl start vpnproviderd"
	hintList          = "see the configs: vpnctl list"
	hintNotAuthorized = "try it in a session at this machine's screen, with sudo, or ask its administrator"
)

// failure is an error with what the program makes of it.
type failure struct {
	code int
	err  error
	hint string // what to do next
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// usage marks an error as one of the caller's.
func usage(err error) error {
	return &failure{code: exitUsage, err: err, hint: "see: vpnctl --help"}
}

// failed gives errors of an action its exit code, unless they have a better
// one.
func failed(code int, err error) error {
	if _, ok := errors.AsType[*failure](err); ok || err == nil {
		return err
	}
	return &failure{code: code, err: err}
}

// report tells the user of an error and returns the exit code.
func (c *cli) report(ctx context.Context, err error) int {
	if err == nil {
		return exitOK
	}
	code, hint := exitFailed, ""
	if f, ok := errors.AsType[*failure](err); ok {
		code, hint = f.code, f.hint
	}
	switch {
	case errors.Is(err, client.ErrNotRunning):
		code, hint = exitNotRunning, hintDaemon
	case errors.Is(err, client.ErrNotFound):
		code, hint = exitNotFound, hintList
	case errors.Is(err, client.ErrNotAuthorized) && hint == "":
		hint = hintNotAuthorized
	case errors.Is(err, context.DeadlineExceeded) && code != exitNotRunning:
		code = exitTimeout
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		code = exitInterrupted
	}
	fmt.Fprintln(c.stderr, "vpnctl: "+clean(err.Error()))
	if hint != "" {
		fmt.Fprintln(c.stderr, "  "+clean(hint))
	}
	return code
}
