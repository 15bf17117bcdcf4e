package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
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
			return &ui.Error{Code: ui.ExitFailed, Err: err, Hint: fmt.Sprintf("see: vpnctl show %s/%s", app, name)}
		}
		if err != nil {
			return err
		}
		if asJSON {
			p, err := cfg.Properties(ctx)
			if err != nil {
				return err
			}
			return ui.JSON(c.out.w, p)
		}
		c.out.line("Created %s (%s).", ui.Clean(name), id(cfg.Path()))
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
