package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// activateLimit is a little less than what the daemon waits for an app.
const activateLimit = 18 * time.Second

func (c *cli) agent() *cobra.Command {
	return &cobra.Command{
		Use:   "agent",
		Short: "Start apps that are needed, until interrupted",
		Long: `Start the apps whose configs somebody connects while they do not run.

An app is started on the session bus, by its id: it needs a D-Bus service file
of that name. The agent runs for as long as the user is logged in, best as the
user unit vpnctl-agent.service.`,
		Example: `  systemctl --user enable --now vpnctl-agent.service`,
		Args:    cobra.NoArgs,
		RunE: c.do(0, func(ctx context.Context, d *client.Client, _ []string) error {
			session, err := godbus.ConnectSessionBus(godbus.WithContext(ctx))
			if err != nil {
				return &failure{exitNotRunning, fmt.Errorf("cannot connect to the session bus: %w", err), "run the agent in a login session"}
			}
			defer session.Close()
			apps, err := d.Agent(ctx)
			if err != nil {
				return err
			}
			c.out.line("Waiting for apps to start.")
			var starting sync.WaitGroup
			defer starting.Wait()
			for app := range apps {
				c.out.line("Starting %s.", clean(app))
				starting.Go(func() { // one that hangs must not keep others waiting
					if err := activate(ctx, session, app); err != nil && ctx.Err() == nil {
						fmt.Fprintf(c.stderr, "vpnctl: cannot start %s: %s\n", clean(app), clean(err.Error()))
					}
				})
			}
			if ctx.Err() == nil {
				return errors.New("the connection to the bus was lost")
			}
			return nil
		}),
	}
}

// activate starts an app as the D-Bus specification says, or as the Desktop
// Entry Specification does for applications that only know that.
func activate(ctx context.Context, session *godbus.Conn, app string) error {
	ctx, cancel := context.WithTimeout(ctx, activateLimit)
	defer cancel()
	err := session.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.StartServiceByName", 0, app, uint32(0)).Err
	if err == nil {
		return nil
	}
	path := godbus.ObjectPath("/" + strings.NewReplacer(".", "/", "-", "_").Replace(app))
	second := session.Object(app, path).CallWithContext(ctx, "org.freedesktop.Application.Activate", 0, map[string]godbus.Variant{}).Err
	if second == nil {
		return nil
	}
	return err
}
