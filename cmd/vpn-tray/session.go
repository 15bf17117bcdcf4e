package main

import (
	"context"
	"errors"
	"fmt"

	godbus "github.com/godbus/dbus/v5"
)

// ownName is had on the session bus by the one tray of a session.
const ownName = "org.vpnprovider.Tray"

var errRunning = errors.New("the tray runs already")

// joinSession connects to the session bus, whose address is in the
// environment, as the one tray there.
func joinSession() (*godbus.Conn, error) {
	bus, err := godbus.SessionBusPrivateNoAutoStartup()
	if err == nil {
		err = join(bus)
		if err != nil {
			_ = bus.Close()
		}
	}
	if errors.Is(err, errRunning) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("cannot join the session bus: %w", err)
	}
	return bus, nil
}

func join(bus *godbus.Conn) error {
	if err := bus.Auth(nil); err != nil {
		return err
	}
	if err := bus.Hello(); err != nil {
		return err
	}
	reply, err := bus.RequestName(ownName, godbus.NameFlagDoNotQueue)
	if err == nil && reply != godbus.RequestNameReplyPrimaryOwner {
		return errRunning
	}
	return err
}

const busName = "org.freedesktop.DBus"

// owners says who has a name on the bus from now on, whenever that changes;
// "" is nobody. The channel is closed with the connection.
func owners(ctx context.Context, bus *godbus.Conn, name string) (<-chan string, error) {
	signals, out := make(chan *godbus.Signal, 16), make(chan string, 1)
	bus.Signal(signals)
	err := bus.AddMatchSignalContext(ctx, godbus.WithMatchSender(busName), godbus.WithMatchInterface(busName),
		godbus.WithMatchMember("NameOwnerChanged"), godbus.WithMatchArg(0, name))
	if err != nil {
		return nil, fmt.Errorf("cannot watch the name %s: %w", name, err)
	}
	go func() {
		defer close(out)
		for sig := range signals {
			var which, before, owner string
			if sig.Sender != busName || sig.Name != busName+".NameOwnerChanged" || godbus.Store(sig.Body, &which, &before, &owner) != nil || which != name {
				continue
			}
			select {
			case out <- owner:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}
