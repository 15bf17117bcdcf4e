package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/commands"
	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// How long calls may take. Those that change something may have to wait for
// a person who is asked for a password.
const (
	readLimit   = 30 * time.Second
	changeLimit = 3 * time.Minute
)

// cli is one run of the program.
type cli struct {
	out     *printer
	stderr  io.Writer
	bus     string
	started bool // a command runs: errors are no longer about its use
}

// run is the whole program. It returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := &cli{out: newPrinter(stdout), stderr: stderr}
	p := ui.Program{Name: "vpnctl", NotFound: hintList, NotAuthorized: hintNotAuthorized}
	return commands.Run(ctx, p, c.root(), &c.started, args, stdout, stderr)
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "vpnctl",
		Short: "List, connect and watch VPNs",
		Long: `List, connect and watch the VPNs that apps offer through vpnproviderd.

A NAME is the name of a config, its id, app/name, or the beginning of a name
or id that is no other's.

Exit codes: 0 done, 1 another failure, 2 wrong use, 3 time is over, 4 connecting
failed, 5 disconnecting failed, 7 removing failed, 8 the daemon is not running,
10 no such config, 130 interrupted.`,
		Example: `  vpnctl list
  vpnctl connect Work
  vpnctl status
  vpnctl disconnect`,
		Version: version,
	}
	root.PersistentFlags().StringVar(&c.bus, "bus", "", "D-Bus `ADDRESS` instead of the system bus")
	root.AddCommand(c.list(), c.show(), c.create(), c.connect(), c.disconnect(), c.remove(), c.status(), c.monitor(),
		c.forget(), c.add(), c.configure(), c.dns(), c.explain(), c.health(), c.lockdown(), c.unlock(),
		c.capture(), c.agent(), c.provision())
	return root
}

// action is what a command does, once connected.
type action func(ctx context.Context, d *client.Client, args []string) error

// do runs an action with a connection to the bus and a limit; 0 is none.
func (c *cli) do(limit time.Duration, act action) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c.started = true
		ctx := cmd.Context()
		if limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		d, err := ui.Dial(ctx, c.bus)
		if err != nil {
			return err
		}
		defer d.Close()
		return act(ctx, d, args)
	}
}

// change is do for an action about which polkit may ask for a password.
func (c *cli) change(limit time.Duration, act action) func(*cobra.Command, []string) error {
	return c.do(limit, func(ctx context.Context, d *client.Client, args []string) error {
		defer ui.Ask(ctx, c.bus)()
		return act(ctx, d, args)
	})
}

// jsonFlag is the same for every command that reads.
func jsonFlag(cmd *cobra.Command, to *bool) {
	cmd.Flags().BoolVar(to, "json", false, "print JSON")
}
