package resolved

import (
	"context"
	"errors"
	"fmt"
	"sync"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/stream"
)

// Names on the bus.
const (
	name    = "org.freedesktop.resolve1"
	path    = "/org/freedesktop/resolve1"
	manager = name + ".Manager"
	busName = "org.freedesktop.DBus"
)

// Names of errors.
const (
	errNoSuchLink     = name + ".NoSuchLink"
	errUnknownMethod  = busName + ".Error.UnknownMethod"
	errServiceUnknown = busName + ".Error.ServiceUnknown"
	errNoOwner        = busName + ".Error.NameHasNoOwner"
	errNoAnswer       = busName + ".Error.NoReply"
	errTimedOut       = busName + ".Error.TimedOut"
	errTimeout        = busName + ".Error.Timeout"
	errNoUnit         = "org.freedesktop.systemd1.NoSuchUnit" // it is disabled
	errInteractive    = busName + ".Error.InteractiveAuthorizationRequired"
	errAccessDenied   = busName + ".Error.AccessDenied"
)

// bus is a private connection to the bus.
type bus struct {
	address string

	mu     sync.Mutex
	conn   *godbus.Conn
	closed bool
}

// connect returns the connection, a new one where there is none or it was
// lost.
func (b *bus) connect(ctx context.Context) (*godbus.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, errClosed
	}
	if b.conn != nil && b.conn.Connected() {
		return b.conn, nil
	}
	conn, err := dial(ctx, b.address)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to the bus: %w", err)
	}
	b.conn = conn
	return conn, nil
}

func (b *bus) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	if b.conn == nil {
		return nil
	}
	return b.conn.Close()
}

// dial connects by a stream: any user of a bus can send any other signals, and
// godbus does not stand all of them.
func dial(ctx context.Context, address string) (*godbus.Conn, error) {
	// Signals in the order of the bus, none of them dropped.
	conn, err := stream.New(stream.Options{}).Open(ctx, address, godbus.WithSignalHandler(godbus.NewSequentialSignalHandler()))
	if err != nil {
		return nil, timedOut(ctx, err)
	}
	return conn, nil
}

// call calls a method of resolved's manager, which the bus starts if need be.
func call(ctx context.Context, conn *godbus.Conn, method string, args ...any) error {
	return invoke(ctx, conn, 0, method, args...)
}

// callRunning does not have it started.
func callRunning(ctx context.Context, conn *godbus.Conn, method string, args ...any) error {
	return invoke(ctx, conn, godbus.FlagNoAutoStart, method, args...)
}

func invoke(ctx context.Context, conn *godbus.Conn, flags godbus.Flags, method string, args ...any) error {
	err := conn.Object(name, path).CallWithContext(ctx, manager+"."+method, flags, args...).Err
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", method, explain(timedOut(ctx, err)))
}

func askBus(ctx context.Context, conn *godbus.Conn, method string, result any, args ...any) error {
	err := conn.BusObject().CallWithContext(ctx, busName+"."+method, 0, args...).Store(result)
	if err != nil {
		return fmt.Errorf("cannot ask the bus for systemd-resolved: %w", timedOut(ctx, err))
	}
	return nil
}

// timedOut makes of err what it is if the time is over.
func timedOut(ctx context.Context, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case ctx.Err() != nil, isName(err, errTimedOut), isName(err, errTimeout):
		return fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
	}
	return err
}

// explain says what can be done about an error.
func explain(err error) error {
	switch {
	case isName(err, errInteractive), isName(err, errAccessDenied):
		return fmt.Errorf("%w (systemd-resolved asks polkit whoever is not root: "+
			"install the rules 49-vpnproviderd.rules for the daemon's user in /usr/share/polkit-1/rules.d)", err)
	case isAbsent(err):
		return fmt.Errorf("%w (systemd-resolved is not running: start it, or choose another --resolver)", err)
	}
	return err
}

// isAbsent says that there is no resolved, or not any more.
func isAbsent(err error) bool {
	return isName(err, errServiceUnknown) || isName(err, errNoOwner) || isName(err, errNoAnswer) || isName(err, errNoUnit)
}

// isName says whether err is a D-Bus error of that name.
func isName(err error, name string) bool {
	e, ok := errors.AsType[godbus.Error](err)
	return ok && e.Name == name
}
