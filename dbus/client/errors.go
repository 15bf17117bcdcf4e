package client

import (
	"errors"
	"io"
	"net"
	"strings"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// Error is what the daemon or the bus answered. Branch on it with
// errors.Is(err, ErrNotFound) and its siblings; Message is one sentence for
// people, which names the offending value.
type Error struct {
	Name    string // D-Bus error name
	Message string
}

// Error is the message, or the name where the sender gave none.
func (e *Error) Error() string {
	if e.Message == "" {
		return e.Name
	}
	return e.Message
}

// Is matches by the name of the error alone. ErrNotRunning matches every way
// in which the bus says that nobody answers.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	if !ok {
		return false
	}
	return t.Name == e.Name || t.Name == serviceUnknown && meansNotRunning(e.Name)
}

// The errors of the service.

// ErrInvalidParameter says that an argument was refused; the message names it.
var ErrInvalidParameter error = &Error{wire.ErrInvalidParameter, "invalid parameter"}

// ErrNotAuthorized says that the caller may not do that.
var ErrNotAuthorized error = &Error{wire.ErrNotAuthorized, "not authorized"}

// ErrNotOwner says that the session belongs to another connection.
var ErrNotOwner error = &Error{wire.ErrNotOwner, "not the owner"}

// ErrNotFound says that there is no such config, session or provider, or that
// it is another user's.
var ErrNotFound error = &Error{wire.ErrNotFound, "not found"}

// ErrAlreadyExists says that the name or the role is taken.
var ErrAlreadyExists error = &Error{wire.ErrAlreadyExists, "already exists"}

// ErrWrongState says that the session cannot do that now.
var ErrWrongState error = &Error{wire.ErrWrongState, "wrong state"}

// ErrLimitExceeded says that a limit or the call rate was exceeded.
var ErrLimitExceeded error = &Error{wire.ErrLimitExceeded, "limit exceeded"}

// ErrBusy says that another user's session has the tunnel.
var ErrBusy error = &Error{wire.ErrBusy, "busy"}

// ErrNotSupported says that this daemon or host cannot do that.
var ErrNotSupported error = &Error{wire.ErrNotSupported, "not supported"}

// ErrProviderNotRunning says that the app of the config is not running and
// could not be started.
var ErrProviderNotRunning error = &Error{wire.ErrProviderNotRunning, "provider not running"}

// ErrTimeout says that a service which the daemon needs did not answer.
var ErrTimeout error = &Error{wire.ErrTimeout, "timeout"}

// ErrFailed is any other failure of the daemon.
var ErrFailed error = &Error{wire.ErrFailed, "failed"}

// ErrNotRunning says that the daemon is not there and could not be started.
var ErrNotRunning error = &Error{serviceUnknown, "vpnproviderd is not running"}

// ErrClosed says that the connection to the bus is closed or lost.
var ErrClosed = errors.New("the connection to the bus is closed")

const (
	dbusError      = "org.freedesktop.DBus.Error."
	serviceUnknown = dbusError + "ServiceUnknown"
	nameHasNoOwner = dbusError + "NameHasNoOwner"
	noReply        = dbusError + "NoReply"
	busTimedOut    = dbusError + "TimedOut" // the bus waited for an activated service
	spawnErrors    = dbusError + "Spawn."
)

func meansNotRunning(name string) bool {
	switch name {
	case serviceUnknown, nameHasNoOwner, noReply, busTimedOut:
		return true
	}
	return strings.HasPrefix(name, spawnErrors)
}

// clientError turns what godbus gives into an error of this package. Errors
// of contexts stay what they are.
func clientError(err error) error {
	var answer godbus.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, godbus.ErrClosed), errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		return ErrClosed
	case errors.As(err, &answer):
	default:
		return err
	}
	e := &Error{Name: answer.Name}
	if len(answer.Body) > 0 {
		e.Message, _ = answer.Body[0].(string)
	}
	if meansNotRunning(e.Name) {
		e.Message = "vpnproviderd is not running: " + e.Error()
	}
	return e
}
