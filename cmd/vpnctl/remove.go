package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

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
			var chosen []client.ConfigInfo
			for _, name := range args { // all are known before the first goes
				info, err := match(all, name)
				if err != nil {
					return err
				}
				chosen = append(chosen, info)
			}
			for _, info := range chosen {
				if err := d.Config(info.Path).Remove(ctx); err != nil {
					return failed(exitNotRemoved, fmt.Errorf("%s: %w", info.Name, err))
				}
				c.out.line("Removed %s.", clean(info.Name))
			}
			return nil
		}),
	}
}
