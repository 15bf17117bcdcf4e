package main

import (
	"errors"

	godbus "github.com/godbus/dbus/v5"
)

// takeName takes the app's name on the session bus: an agent that starts apps
// when they are needed (vpnctl agent) starts this one by that name, and waits
// for it. Without a session bus there is nobody to start it. The returned
// function gives the name up.
func (c *cli) takeName() (release func()) {
	bus, err := godbus.SessionBusPrivateNoAutoStartup()
	if err != nil {
		return func() {}
	}
	release = func() { _ = bus.Close() }
	if err := requestName(bus); err != nil {
		c.complain("cannot take the name %s on the session bus, so agents do not find this process: %v", app, err)
	}
	return release
}

func requestName(bus *godbus.Conn) error {
	if err := bus.Auth(nil); err != nil {
		return err
	}
	if err := bus.Hello(); err != nil {
		return err
	}
	reply, err := bus.RequestName(app, godbus.NameFlagDoNotQueue)
	if err == nil && reply != godbus.RequestNameReplyPrimaryOwner {
		err = errors.New("another process has it")
	}
	return err
}
