package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

func (c *cli) create() *cobra.Command {
	var data []string
	var asJSON bool
	var o client.ConfigOptions
	cmd := &cobra.Command{
		Use:   "create APP NAME",
		Short: "Create a config of an app",
		Long: `Create a config of an app, which is told of it, now or when it starts.

What --data takes is the app's own. Every program of yours can read it: no
passwords.`,
		Example:           `  vpnctl create com.example.Demo Work --data server=vpn.example.com --data user=me`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: c.completeApp,
	}
	run := c.change(changeLimit, func(ctx context.Context, d *client.Client, args []string) error {
		app, name := args[0], args[1]
		cfg, err := d.CreateConfig(ctx, app, name, o)
		if errors.Is(err, client.ErrAlreadyExists) {
			return &failure{exitFailed, err, fmt.Sprintf("see: vpnctl show %s/%s", app, name)}
		}
		if err != nil {
			return err
		}
		if asJSON {
			p, err := cfg.Properties(ctx)
			if err != nil {
				return err
			}
			return c.out.json(p)
		}
		c.out.line("Created %s (%s).", clean(name), id(cfg.Path()))
		return nil
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o.Data = make(map[string]any)
		for _, pair := range data {
			key, value, ok := strings.Cut(pair, "=")
			if !ok || key == "" {
				return fmt.Errorf("--data %q is not KEY=VALUE", pair)
			}
			o.Data[key] = value
		}
		return run(cmd, args)
	}
	// Not StringSlice: values may hold commas.
	cmd.Flags().StringArrayVar(&data, "data", nil, "a `KEY=VALUE` for the app; may be repeated")
	cmd.Flags().BoolVar(&o.AutoConnect, "auto-connect", false, "connect by itself once it was connected before")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// completeApp offers the apps that the daemon knows.
func (c *cli) completeApp(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	d, err := c.dial(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer d.Close()
	var out []cobra.Completion
	providers, _ := d.ListProviders(cmd.Context())
	for _, p := range providers {
		if strings.HasPrefix(p.App, begun) {
			out = append(out, cobra.CompletionWithDesc(p.App, p.DisplayName))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
