package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

func (c *cli) verboseFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&c.verbose, "verbose", false, "print what wireguard-go does")
}

func (c *cli) up() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "up NAME|FILE.conf",
		Short: "Connect, and stay until it is disconnected",
		Long: `Connect, and stay in the foreground until it is disconnected: with Ctrl-C, or
'vpn-wireguard down', or in any user interface. What is printed are the states.

A FILE need not be imported, but must not be readable for everybody. If
another vpn-wireguard of yours serves already, it makes the connection.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeName,
	}
	c.verboseFlag(cmd)
	cmd.RunE = c.do(0, func(ctx context.Context, args []string) error { return c.runUp(ctx, args[0]) })
	return cmd
}

func (c *cli) runUp(ctx context.Context, arg string) error {
	d, err := ui.Dial(ctx, c.bus)
	if err != nil {
		return err
	}
	defer d.Close()
	name, file, err := locate(ctx, d, arg)
	if err != nil {
		return err
	}
	if _, err := load(file); err != nil { // here is who can read why
		return err
	}

	answered := ui.Ask(ctx, c.bus)
	defer answered()
	// The tunnel ends by its config being disconnected, not by ctx.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	s, err := c.newServer(ctx, d)
	switch {
	case errors.Is(err, client.ErrAlreadyExists):
		stop()
	case err != nil:
		stop()
		return err
	default:
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = s.run(serving) // what goes wrong ends the session, too
		}()
		defer func() {
			stop()
			<-served
		}()
	}
	reason, err := c.connect(ctx, d, name, file, answered)
	if s != nil && reason == wire.ReasonReplaced {
		// By another of ours, which is served here? Then it must not end.
		s.untilIdle(ctx)
	}
	return err
}

// connect connects and waits for the end. begun is called when the daemon has
// begun to connect: from then on nobody is asked. The reason is that of a
// session that there was.
func (c *cli) connect(ctx context.Context, d *client.Client, name, file string, begun func()) (reason string, err error) {
	cfg, err := ensure(ctx, d, name, file)
	if err != nil {
		return "", err
	}
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	changes, err := d.Watch(watching)
	if err != nil {
		return "", err
	}
	session, err := cfg.Connect(ctx)
	if err != nil {
		return "", &ui.Error{Code: ui.ExitNotConnected, Err: fmt.Errorf("%s: %w", name, err)}
	}
	begun()
	disconnected := make(chan struct{})
	running := context.AfterFunc(ctx, func() {
		defer close(disconnected)
		c.disconnect(watching, name, cfg)
	})
	connected := false // it was, once
	reason, _, err = ui.Follow(changes, cfg.Path(), session.Path(), func(now client.State) (enough bool) {
		c.say("%s: %s", name, now)
		if now == client.StateConnected {
			connected = true
			c.ready()
		}
		return false
	})
	if interrupted := !running(); interrupted {
		<-disconnected
		if !connected && err == nil {
			return reason, ctx.Err()
		}
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return reason, c.result(name, reason, connected)
}

// result is what the program makes of the end of a session.
func (c *cli) result(name, reason string, connected bool) error {
	switch {
	case reason == wire.ReasonUser, reason == wire.ReasonRemoved:
		c.say("%s: disconnected", name)
		return nil
	case reason == wire.ReasonReplaced:
		c.say("%s: disconnected, as another VPN was connected", name)
		return nil
	case connected:
		return fmt.Errorf("%s: the connection has ended: %s", name, reason)
	default:
		return &ui.Error{Code: ui.ExitNotConnected, Err: fmt.Errorf("%s: cannot connect: %s", name, reason)}
	}
}

func (c *cli) disconnect(ctx context.Context, name string, cfg *client.Config) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if err := cfg.Disconnect(ctx); err != nil {
		c.complain("%s: %v", name, err)
	}
}

// ready tells a service manager, where there is one, that the service is up.
func (c *cli) ready() {
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		c.complain("cannot tell the service manager: %v", err)
	}
}

func (c *cli) serve() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Wait, and connect what is connected in any user interface",
		Long: `Wait in the background of your session, and connect whichever of your
configurations you connect, with vpnctl, a tray or 'vpn-wireguard up'.`,
		Args: cobra.NoArgs,
	}
	c.verboseFlag(cmd)
	cmd.RunE = c.do(0, func(ctx context.Context, _ []string) error {
		d, err := ui.Dial(ctx, c.bus)
		if err != nil {
			return err
		}
		defer d.Close()
		answered := ui.Ask(ctx, c.bus)
		s, err := c.newServer(ctx, d)
		answered()
		if errors.Is(err, client.ErrAlreadyExists) {
			return errors.New("another vpn-wireguard of yours serves already")
		}
		if err != nil {
			return err
		}
		changes, err := d.Watch(ctx)
		if err != nil {
			return err
		}
		go c.printStates(changes)
		defer c.takeName()()
		c.ready()
		return s.run(ctx)
	})
	return cmd
}

// printStates prints the states of all our configs as they change.
func (c *cli) printStates(changes <-chan client.Change) {
	states := map[string]client.State{}
	for change := range changes {
		p := change.Config
		if p == nil || p.App != app {
			continue
		}
		before, known := states[p.Path]
		states[p.Path] = p.State
		if p.State == before || !known && !p.State.Active() {
			continue
		}
		line := fmt.Sprintf("%s: %s", p.Name, p.State)
		if p.FailureReason != "" {
			line += " (" + p.FailureReason + ")"
		}
		c.say("%s", line)
	}
}

func (c *cli) down() *cobra.Command {
	return &cobra.Command{
		Use:               "down [NAME]",
		Short:             "Disconnect",
		Long:              "Disconnect, and wait until the network is as before. Without a NAME: what is\nconnected.",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.completeName,
		RunE:              c.change(c.runDown),
	}
}

func (c *cli) runDown(ctx context.Context, args []string) error {
	all, err := c.profiles(ctx)
	if err != nil {
		return err
	}
	var chosen []profile
	for _, p := range all {
		if len(args) == 0 && p.State.Active() {
			chosen = append(chosen, p)
		}
	}
	if len(args) > 0 {
		p, err := named(all, args[0])
		if err != nil {
			return err
		}
		chosen = []profile{p}
	}
	d, err := ui.Dial(ctx, c.bus)
	if err != nil {
		return err
	}
	defer d.Close()
	for _, p := range chosen {
		if p.path != "" { // asked even where it is idle: it may be about to connect
			if err := d.Config(p.path).Disconnect(ctx); err != nil && !errors.Is(err, client.ErrNotFound) {
				return &ui.Error{Code: ui.ExitStillThere, Err: fmt.Errorf("%s: %w", p.Name, err)}
			}
		}
		outcome := "was not connected"
		if p.State.Active() {
			outcome = "disconnected"
		}
		c.say("%s: %s", p.Name, outcome)
	}
	if len(chosen) == 0 {
		c.say("Nothing is connected.")
	}
	return nil
}
