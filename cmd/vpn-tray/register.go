package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"
)

const (
	panelName = "org.kde.StatusNotifierWatcher"
	panelPath = "/StatusNotifierWatcher"

	// registerPatience is how long systray has to register by itself.
	registerPatience = time.Second
)

// stayInPanel registers the icon where systray has not: it looks for a panel
// first and then waits for the next to come, and a panel that comes between
// the two, as when a desktop starts, would never show the icon.
func stayInPanel(ctx context.Context, bus *godbus.Conn, complaints *log.Logger) {
	panels, err := owners(ctx, bus, panelName)
	check := time.NewTimer(registerPatience)
	defer check.Stop()
	for err == nil {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-panels:
			if !ok {
				return
			}
			check.Reset(registerPatience)
		case <-check.C:
			err = register(ctx, bus)
		}
	}
	if ctx.Err() == nil {
		complaints.Print(err)
	}
}

// register registers the icon, by the name that systray has on the bus, where
// there is a panel that does not know it. Only a bus that is gone is an error.
func register(ctx context.Context, bus *godbus.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, notifyLimit)
	defer cancel()
	name := fmt.Sprintf("org.kde.StatusNotifierItem-%d-1", os.Getpid())
	var owner string
	if bus.BusObject().CallWithContext(ctx, busName+".GetNameOwner", 0, name).Store(&owner) != nil {
		return context.Cause(bus.Context())
	}
	panel := bus.Object(panelName, panelPath)
	var v godbus.Variant
	var items []string
	err := panel.CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, panelName, "RegisteredStatusNotifierItems").Store(&v)
	if err != nil || v.Store(&items) != nil {
		return context.Cause(bus.Context()) // there is none
	}
	for _, item := range items {
		if strings.HasPrefix(item, name) || item == owner || strings.HasPrefix(item, owner+"/") {
			return nil
		}
	}
	_ = panel.CallWithContext(ctx, panelName+".RegisterStatusNotifierItem", 0, name).Err
	return context.Cause(bus.Context())
}
