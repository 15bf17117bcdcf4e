package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// defaultWait is a little more than the daemon gives an app.
const defaultWait = 330

func (c *cli) connect() *cobra.Command {
	wait := defaultWait
	cmd := &cobra.Command{
		Use:   "connect NAME",
		Short: "Connect a config",
		Long: `Connect a config, and wait until it is connected or has failed. The VPN that
was connected before is disconnected.

When the time of --wait is over, or with Ctrl-C, vpnctl stops waiting; the
connection attempt goes on.`,
		Example: `  vpnctl connect Work
  vpnctl connect --wait 20 Work || vpnctl disconnect Work
  vpnctl connect --wait 0 Work    # do not wait`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeName(false),
	}
	cmd.Flags().IntVar(&wait, "wait", wait, "wait at most `SECONDS`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if wait < 0 {
			return fmt.Errorf("--wait %d is less than 0", wait)
		}
		limit := time.Duration(wait) * time.Second
		if wait == 0 {
			limit = changeLimit
		}
		return c.change(limit, func(ctx context.Context, d *client.Client, args []string) error {
			info, err := resolve(ctx, d, args[0])
			if err == nil {
				err = c.connectConfig(ctx, d, info, wait > 0)
			}
			return failed(ui.ExitNotConnected, err)
		})(cmd, args)
	}
	return cmd
}

func (c *cli) connectConfig(ctx context.Context, d *client.Client, info client.ConfigInfo, wait bool) error {
	changes, err := d.Watch(ctx)
	if err != nil {
		return err
	}
	session, err := d.Config(info.Path).Connect(ctx)
	if err != nil {
		return connectFailure(info, err)
	}
	state := client.StateConnecting
	if !wait {
		c.out.line("%s: %s", ui.Clean(info.Name), state)
		return nil
	}
	reason, ended, err := ui.Follow(changes, info.Path, session.Path(), func(now client.State) bool {
		state = now
		c.out.line("%s: %s", ui.Clean(info.Name), c.out.state(string(now)))
		return now == client.StateConnected
	})
	switch {
	case ended:
		return endedFailure(info, reason)
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return gaveUp(ctx, info, state)
	default:
		return fmt.Errorf("%s: %w", info.Name, err)
	}
}

func connectFailure(info client.ConfigInfo, err error) error {
	f := &ui.Error{Code: ui.ExitNotConnected, Err: fmt.Errorf("%s: %w", info.Name, err)}
	switch {
	case errors.Is(err, client.ErrProviderNotRunning):
		f.Hint = fmt.Sprintf("start the app %s, then: vpnctl connect %s", info.App, info.Name)
	case errors.Is(err, client.ErrBusy):
		f.Hint = "another user's VPN is connected: only its user or an administrator may end it"
	case errors.Is(err, client.ErrNotAuthorized):
		f.Hint = "an app's first connect is allowed with a password; " + hintNotAuthorized
	}
	return f
}

// endedFailure is about a session that has ended instead of being connected.
func endedFailure(info client.ConfigInfo, reason string) error {
	why := reason
	switch reason {
	case wire.ReasonUser:
		why = "disconnected by the user"
	case wire.ReasonRemoved:
		why = "the config was removed"
	}
	f := &ui.Error{Code: ui.ExitNotConnected, Err: fmt.Errorf("%s: cannot connect: %s", info.Name, why)}
	if reason == wire.ReasonTimeout || reason == wire.ReasonProviderFailure {
		f.Hint = fmt.Sprintf("see what the app %s says; its settings: vpnctl show %s", info.App, info.Name)
	}
	return f
}

// gaveUp is about an attempt that nobody waits for any more.
func gaveUp(ctx context.Context, info client.ConfigInfo, state client.State) error {
	code, why := ui.ExitInterrupted, "interrupted"
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		code, why = ui.ExitTimeout, "the time is over"
	}
	return &ui.Error{
		Code: code,
		Err:  fmt.Errorf("%s: still %s, and goes on: %s", info.Name, state, why),
		Hint: fmt.Sprintf("watch it: vpnctl status %s; end it: vpnctl disconnect %s", info.Name, info.Name),
	}
}
