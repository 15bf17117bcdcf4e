package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// completeName offers the names of configs that are not among the arguments
// yet; many says whether there may be more than one.
func (c *cli) completeName(many bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 && !many {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return c.offer(cmd, func(ctx context.Context, d *client.Client) (offered []cobra.Completion) {
			all, _ := configs(ctx, d)
			for _, info := range all {
				if strings.HasPrefix(info.Name, begun) && !slices.Contains(args, info.Name) {
					offered = append(offered, cobra.CompletionWithDesc(info.Name, fmt.Sprintf("%s, %s", info.App, info.State)))
				}
			}
			return offered
		})
	}
}

// completeApp offers the apps that the daemon knows.
func (c *cli) completeApp(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.offer(cmd, func(ctx context.Context, d *client.Client) (offered []cobra.Completion) {
		providers, _ := d.ListProviders(ctx)
		for _, p := range providers {
			if strings.HasPrefix(p.App, begun) {
				offered = append(offered, cobra.CompletionWithDesc(p.App, p.DisplayName))
			}
		}
		return offered
	})
}

// offer asks the daemon, and nobody waits for long: a shell does meanwhile.
func (c *cli) offer(cmd *cobra.Command, ask func(context.Context, *client.Client) []cobra.Completion) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
	defer cancel()
	d, err := ui.Dial(ctx, c.bus)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer d.Close()
	return ask(ctx, d), cobra.ShellCompDirectiveNoFileComp
}
