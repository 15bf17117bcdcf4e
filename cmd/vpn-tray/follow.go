package main

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// A daemon or bus that is not there is looked for again after a second, and
// then less and less often.
const (
	firstPause   = time.Second
	longestPause = 15 * time.Second
)

// follow tells the model of all that is and happens, over the loss of the bus,
// and starts apps, until ctx is done.
func (a *app) follow(ctx context.Context, bus string, starter *client.Starter) {
	pause, said := firstPause, ""
	for ctx.Err() == nil {
		begun := false
		err := a.connection(ctx, bus, starter, func() { begun = true })
		a.post(ctx, func() {
			a.daemon = nil
			a.model.Lost(time.Now())
		})
		if begun {
			pause, said = firstPause, ""
		}
		if err != nil && err.Error() != said && ctx.Err() == nil {
			said = err.Error()
			a.complaints.Print(said)
		}
		select {
		case <-ctx.Done():
		case <-a.retry:
			pause = firstPause
		case <-time.After(pause):
			pause = min(2*pause, longestPause)
		}
	}
}

// connection is follow for as long as one connection to the bus lasts. begun
// is called once the daemon has answered; from then on it may come and go.
func (a *app) connection(ctx context.Context, bus string, starter *client.Starter, begun func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d, err := ui.Dial(ctx, bus)
	if err != nil {
		return err
	}
	defer d.Close()
	changes, err := d.Watch(ctx)
	if err != nil {
		return err
	}
	begun()
	a.post(ctx, func() {
		a.daemon = d
		a.model.Joined()
	})
	if apps, err := d.Agent(ctx); err == nil {
		go a.startApps(ctx, apps, starter)
	} else if ctx.Err() == nil {
		a.complaints.Print(err)
	}
	for change := range changes {
		a.post(ctx, func() {
			a.model.Apply(change, time.Now())
			if change.Kind == client.Synced || change.Config != nil && (change.Kind != client.Changed || slices.Contains(change.Fields, "Lockdown")) {
				a.read(ctx)
			}
		})
	}
	return errors.New("the connection to the bus was lost")
}

// startApps starts the apps that the daemon asks for.
func (a *app) startApps(ctx context.Context, apps <-chan string, starter *client.Starter) {
	for id := range apps {
		go func() { // one that hangs must not keep others waiting
			if err := starter.Start(ctx, id); err != nil && ctx.Err() == nil {
				a.complaints.Printf("cannot start %q: %v", id, err)
			}
		}()
	}
}
