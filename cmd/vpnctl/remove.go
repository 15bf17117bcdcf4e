package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

func (c *cli) remove() *cobra.Command {
	return &cobra.Command{
		Use:               "remove NAME...",
		Short:             "Remove configs",
		Long:              `Disconnect configs and forget them. Their apps are told.`,
		Example:           `  vpnctl remove Work`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: c.completeName(true),
		RunE: c.change(changeLimit, func(ctx context.Context, d *client.Client, args []string) error {
			all, err := configs(ctx, d)
			if err != nil {
				return err
			}
			chosen, err := matchAll(all, args)
			if err != nil {
				return err
			}
			for _, info := range chosen {
				if err := d.Config(info.Path).Remove(ctx); err != nil {
					return failed(ui.ExitNotRemoved, fmt.Errorf("%s: %w", info.Name, err))
				}
				c.out.line("Removed %s.", ui.Clean(info.Name))
			}
			return nil
		}),
	}
}
