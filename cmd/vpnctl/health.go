package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

func (c *cli) health() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Show what is wrong with the service or this machine's network",
		Example: `  vpnctl health
  vpnctl health --json | jq -e 'all(.severity == "info")'`,
		Args: cobra.NoArgs,
		RunE: c.do(readLimit, func(ctx context.Context, d *client.Client, _ []string) error {
			m, err := d.Properties(ctx)
			if err != nil {
				return err
			}
			if asJSON {
				return ui.JSON(c.out.w, append([]client.Health{}, m.Health...))
			}
			if len(m.Health) == 0 {
				c.out.line("Nothing is wrong.")
			}
			c.printHealth(m.Health)
			return nil
		}),
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (c *cli) printHealth(list []client.Health) {
	for _, h := range list {
		c.out.line("%s: %s (%s)", ui.Clean(h.Severity), ui.Clean(h.Text), ui.Clean(h.Code))
	}
}
