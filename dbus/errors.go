package dbus

import (
	"errors"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/driver"
)

// standardError is an answer with a name that is not the service's.
type standardError struct{ name, text string }

func (e *standardError) Error() string { return e.text }

// errorName is the name that an error has on the bus.
func errorName(err error) string {
	if e, ok := errors.AsType[*standardError](err); ok {
		return e.name
	}
	switch driver.KindOf(err) {
	case driver.KindInvalidParameter:
		return wire.ErrInvalidParameter
	case driver.KindNotAuthorized:
		return wire.ErrNotAuthorized
	case driver.KindNotOwner:
		return wire.ErrNotOwner
	case driver.KindNotFound:
		return wire.ErrNotFound
	case driver.KindAlreadyExists:
		return wire.ErrAlreadyExists
	case driver.KindWrongState:
		return wire.ErrWrongState
	case driver.KindLimitExceeded:
		return wire.ErrLimitExceeded
	case driver.KindBusy:
		return wire.ErrBusy
	case driver.KindNotSupported:
		return wire.ErrNotSupported
	case driver.KindProviderNotRunning:
		return wire.ErrProviderNotRunning
	case driver.KindTimeout:
		return wire.ErrTimeout
	case driver.KindFailed:
	}
	return wire.ErrFailed
}
