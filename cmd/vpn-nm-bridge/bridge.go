package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"time"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-nm-bridge/internal/menu"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-nm-bridge/internal/nm"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-nm-bridge/internal/plugin"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

const (
	// dialTime bounds joining the bus, and askTime calls for which the user
	// may have to give a password.
	dialTime = 10 * time.Second
	askTime  = 3 * time.Minute

	// retryTime is how long a daemon that is not there is not looked for.
	retryTime = 3 * time.Minute
)

// bridge is the program in a user's session.
func bridge(ctx context.Context, opts options, log *slog.Logger) (err error) {
	manager, m, d, err := open(ctx, opts, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, manager.Close(), d.Close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, err := watch(ctx, d)
	if err != nil {
		return err
	}
	events := make(chan nm.Event)
	go manager.Watch(ctx, events)
	return m.Run(ctx, manager.Running(), changes, events)
}

// watch waits for a daemon that is not installed, or not able to start: the
// session's other services go on without a VPN, too.
func watch(ctx context.Context, d *client.Client) (<-chan client.Change, error) {
	for {
		changes, err := d.Watch(ctx)
		if !errors.Is(err, client.ErrNotRunning) {
			return changes, err
		}
		select {
		case <-time.After(retryTime):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// cleanup takes away what a bridge that was killed has left.
func cleanup(ctx context.Context, opts options, log *slog.Logger) error {
	manager, m, d, err := open(ctx, opts, log)
	if err != nil {
		return err
	}
	return errors.Join(m.Clear(ctx), manager.Close(), d.Close())
}

func open(ctx context.Context, opts options, log *slog.Logger) (*nm.Client, *menu.Menu, *client.Client, error) {
	u, err := user.Current()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("cannot tell whose session it is: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	manager, err := nm.Dial(ctx, opts.bus)
	if err != nil {
		return nil, nil, nil, err
	}
	d, err := ui.Dial(ctx, opts.bus)
	if err != nil {
		return nil, nil, nil, errors.Join(err, manager.Close())
	}
	m := menu.New(menu.Options{
		User:     menu.User{Name: u.Username, UID: uint32(os.Getuid())},
		Profiles: manager, Activations: manager, Configs: configs{d}, Log: log,
	})
	return manager, m, d, nil
}

// configs are those of vpnproviderd.
type configs struct{ d *client.Client }

func (c configs) Connect(ctx context.Context, config string) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	_, err := c.d.Config(config).Connect(ctx)
	return err
}

func (c configs) Disconnect(ctx context.Context, config string) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	return c.d.Config(config).Disconnect(ctx)
}

// serve is the program as NetworkManager's plugin.
func serve(ctx context.Context, opts options, log *slog.Logger) error {
	if err := plugin.DropRoot(plugin.User); err != nil {
		return err
	}
	dialed, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := plugin.Dial(dialed, opts.bus)
	if err != nil {
		return err
	}
	return plugin.Run(ctx, conn, opts.busName, log)
}
