package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

func (c *cli) list() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the configs",
		Example: `  vpnctl list
  vpnctl list --json | jq -r '.[].name'`,
		Args: cobra.NoArgs,
		RunE: c.do(readLimit, func(ctx context.Context, d *client.Client, _ []string) error {
			all, err := configs(ctx, d)
			if err != nil {
				return err
			}
			if asJSON {
				return ui.JSON(c.out.w, all)
			}
			if len(all) == 0 {
				c.out.line("There are no configs. Apps create them, or: vpnctl create APP NAME")
				return nil
			}
			short := shortIDs(all)
			rows := make([][]string, 0, len(all))
			for i, info := range all {
				rows = append(rows, []string{info.Name, info.App, string(info.State), short[i]})
			}
			c.out.table([]string{"NAME", "APP", "STATE", "ID"}, rows)
			return nil
		}),
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}
