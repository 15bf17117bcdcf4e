package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"
)

// startLimit is a little less than what the daemon waits for an app.
const startLimit = 18 * time.Second

// Starter starts apps on the user's session bus, for an Agent. Its methods
// may be called from any goroutine.
type Starter struct{ session *godbus.Conn }

// DialStarter connects to the session bus, whose address is in the
// environment. ctx bounds the whole life of the connection.
func DialStarter(ctx context.Context) (*Starter, error) {
	// Where there is none, godbus is not to start one: nobody else would be on it.
	session, err := godbus.SessionBusPrivateNoAutoStartup(godbus.WithContext(ctx))
	if err == nil {
		if err = session.Auth(nil); err == nil {
			err = session.Hello()
		}
		if err != nil {
			err = errors.Join(err, session.Close())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot connect to the session bus: %w", err)
	}
	return &Starter{session}, nil
}

// Start starts an app by its id, as the D-Bus specification says, or, where
// that does not know the app, as the Desktop Entry Specification does. It
// waits until the app has its name on the session bus, 18 s at most. That an
// app runs already is no error.
func (s *Starter) Start(ctx context.Context, app string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	err := s.session.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.StartServiceByName", 0, app, uint32(0)).Err
	if err == nil {
		return nil
	}
	path := godbus.ObjectPath("/" + strings.NewReplacer(".", "/", "-", "_").Replace(app))
	if s.session.Object(app, path).CallWithContext(ctx, "org.freedesktop.Application.Activate", 0, dict{}).Err == nil {
		return nil
	}
	return err
}

// Close leaves the session bus.
func (s *Starter) Close() error { return s.session.Close() }
