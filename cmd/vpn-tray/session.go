package main

import (
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
