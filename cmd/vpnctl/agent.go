package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

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
			starter, err := client.DialStarter(ctx)
			if err != nil {
				return &ui.Error{Code: ui.ExitNotRunning, Err: err, Hint: "run the agent in a login session"}
			}
			defer starter.Close()
			apps, err := d.Agent(ctx)
			if err != nil {
				return err
			}
			c.out.line("Waiting for apps to start.")
			var starting sync.WaitGroup
			defer starting.Wait()
			for app := range apps {
				c.out.line("Starting %s.", ui.Clean(app))
				starting.Go(func() { // one that hangs must not keep others waiting
					if err := starter.Start(ctx, app); err != nil && ctx.Err() == nil {
						fmt.Fprintf(c.stderr, "vpnctl: cannot start %s: %s\n", ui.Clean(app), ui.Clean(err.Error()))
					}
				})
			}
			return endOfWatch(ctx)
		}),
	}
}
