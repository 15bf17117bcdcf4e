package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

func (c *cli) lockdown() *cobra.Command {
	return &cobra.Command{
		Use:   "lockdown on|off NAME",
		Short: "Block all that is not the VPN, connected or not",
		Long: `Block everything that would leave this machine otherwise than through a VPN,
from now on, connected or not, until it is switched off: also after a reboot, and
also when the config is removed. It is in force while any config wants it.`,
		Example: `  vpnctl lockdown on Work
  vpnctl lockdown off Work`,
		Args: cobra.ExactArgs(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return []cobra.Completion{"on", "off"}, cobra.ShellCompDirectiveNoFileComp
			}
			return c.completeName(false)(cmd, args[1:], begun)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] != "on" && args[0] != "off" {
				return usage(fmt.Errorf("%q is neither on nor off", args[0]))
			}
			return c.change(changeLimit, c.setLockdown)(cmd, args)
		},
	}
}

func (c *cli) setLockdown(ctx context.Context, d *client.Client, args []string) error {
	info, err := resolve(ctx, d, args[1])
	if err != nil {
		return err
	}
	on := args[0] == "on"
	if err := d.Config(info.Path).Update(ctx, client.ConfigUpdate{Lockdown: &on}); err != nil {
		return fmt.Errorf("%s: %w", info.Name, err)
	}
	c.out.line("%s: lockdown %s", ui.Clean(info.Name), args[0])
	if !on {
		return c.warnLocked(ctx, d)
	}
	return nil
}

// warnLocked tells that a lockdown is in force all the same.
func (c *cli) warnLocked(ctx context.Context, d *client.Client) error {
	m, err := d.Properties(ctx)
	for _, h := range m.Health {
		if h.Code == "lockdown" {
			c.out.line("Another lockdown stays in force; vpnctl unlock ends all.")
		}
	}
	return err
}

func (c *cli) unlock() *cobra.Command {
	return &cobra.Command{
		Use:   "unlock",
		Short: "End every lockdown, also one whose config is gone",
		Example: `  vpnctl unlock
  sudo vpnctl unlock`,
		Args: cobra.NoArgs,
		RunE: c.change(changeLimit, func(ctx context.Context, d *client.Client, _ []string) error {
			if err := d.Unlock(ctx); err != nil {
				return err
			}
			c.out.line("No lockdown is in force.")
			return nil
		}),
	}
}
