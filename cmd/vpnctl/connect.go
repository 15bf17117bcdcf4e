package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
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
			return failed(exitNotConnected, err)
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
	if !wait {
		c.out.line("%s: %s", clean(info.Name), client.StateConnecting)
		return nil
	}
	f := follower{cli: c, info: info, session: session.Path()}
	for change := range changes {
		if done, err := f.take(change); done || err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return f.gaveUp(err)
	}
	return client.ErrClosed
}

func connectFailure(info client.ConfigInfo, err error) error {
	f := &failure{code: exitNotConnected, err: fmt.Errorf("%s: %w", info.Name, err)}
	switch {
	case errors.Is(err, client.ErrProviderNotRunning):
		f.hint = fmt.Sprintf("start the app %s, then: vpnctl connect %s", info.App, info.Name)
	case errors.Is(err, client.ErrBusy):
		f.hint = "another user's VPN is connected: only its user or an administrator may end it"
	case errors.Is(err, client.ErrNotAuthorized):
		f.hint = "an app's first connect is allowed with a password; " + hintNotAuthorized
	}
	return f
}

// follower follows a session to connected or to its end.
type follower struct {
	cli     *cli
	info    client.ConfigInfo
	session string       // path
	seen    bool         // the config was seen with the session: what comes is about it
	state   client.State // printed last
}

// take tells the user of progress. done: connected.
func (f *follower) take(change client.Change) (done bool, err error) {
	p := change.Config
	if p == nil || p.Path != f.info.Path {
		return false, nil
	}
	if p.Session == f.session {
		f.seen = true
	}
	if !f.seen {
		return false, nil // from before our session
	}
	if change.Kind == client.Removed || p.Session != f.session {
		return false, f.ended(*p, change.Kind)
	}
	if p.State != f.state {
		f.state = p.State
		f.cli.out.line("%s: %s", clean(f.info.Name), f.cli.out.state(string(p.State)))
	}
	return p.State == client.StateConnected, nil
}

func (f *follower) ended(p client.ConfigProperties, kind client.ChangeKind) error {
	reason := p.FailureReason
	switch {
	case kind == client.Removed:
		reason = "the config was removed"
	case reason == "":
		reason = "disconnected by the user"
	}
	out := &failure{code: exitNotConnected, err: fmt.Errorf("%s: cannot connect: %s", f.info.Name, reason)}
	if reason == "connection timed out" || reason == "provider failure" {
		out.hint = fmt.Sprintf("see what the app %s says; its settings: vpnctl show %s", f.info.App, f.info.Name)
	}
	return out
}

func (f *follower) gaveUp(cause error) error {
	state := f.state
	if state == "" {
		state = client.StateConnecting
	}
	why := "interrupted"
	if errors.Is(cause, context.DeadlineExceeded) {
		why = "the time is over"
	}
	return &failure{
		code: exitTimeout,
		err:  fmt.Errorf("%s: still %s, and goes on: %s%w", f.info.Name, state, why, hidden{cause}),
		hint: fmt.Sprintf("watch it: vpnctl status %s; end it: vpnctl disconnect %s", f.info.Name, f.info.Name),
	}
}

// hidden keeps a cause for errors.Is without repeating its text.
type hidden struct{ error }

func (hidden) Error() string   { return "" }
func (h hidden) Unwrap() error { return h.error }
