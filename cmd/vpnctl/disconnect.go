package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

func (c *cli) disconnect() *cobra.Command {
	return &cobra.Command{
		Use:   "disconnect [NAME...]",
		Short: "Disconnect a config, or what is connected",
		Long: `Disconnect configs, and wait until that is done. Without a NAME: whatever of
yours is connected.`,
		Example: `  vpnctl disconnect
  vpnctl disconnect Work`,
		ValidArgsFunction: c.completeName(true),
		RunE: c.change(changeLimit, func(ctx context.Context, d *client.Client, args []string) error {
			return failed(ui.ExitStillThere, c.disconnectAll(ctx, d, args))
		}),
	}
}

func (c *cli) disconnectAll(ctx context.Context, d *client.Client, names []string) error {
	all, err := configs(ctx, d)
	if err != nil {
		return err
	}
	chosen, err := matchAll(all, names)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		for _, info := range all {
			if info.State.Active() {
				chosen = append(chosen, info)
			}
		}
		if len(chosen) == 0 {
			c.out.line("Nothing is connected.")
		}
	}
	for _, info := range chosen {
		// Asked even where nothing is active: it may be about to be.
		if err := d.Config(info.Path).Disconnect(ctx); err != nil {
			return fmt.Errorf("%s: %w", info.Name, err)
		}
		if info.State.Active() {
			c.out.line("%s: disconnected", ui.Clean(info.Name))
		} else {
			c.out.line("%s: was not connected", ui.Clean(info.Name))
		}
	}
	return nil
}
