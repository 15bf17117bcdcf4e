package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// oneApp is a command on an app.
func (c *cli) oneApp(use, short, long, example string, act func(context.Context, *client.Client, string) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " APP", Short: short, Long: long, Example: "  vpnctl " + example,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeApp,
		RunE: c.change(changeLimit, func(ctx context.Context, d *client.Client, args []string) error {
			return act(ctx, d, args[0])
		}),
	}
}

func (c *cli) forget() *cobra.Command {
	return c.oneApp("forget", "Forget an app", `Disconnect an app, remove all its configs, and take back the consent that was
given to it. The app itself stays installed.`, "forget com.example.Demo",
		func(ctx context.Context, d *client.Client, app string) error {
			if err := d.ForgetProvider(ctx, app); err != nil {
				return failed(ui.ExitNotRemoved, err)
			}
			c.out.line("Forgot %s.", ui.Clean(app))
			return nil
		})
}

func (c *cli) add() *cobra.Command {
	return c.oneApp("add", "Let an app make a new config", `Ask an app to show its dialog for a new config. It is started if it does not
run and "vpnctl agent" or a tray of yours does.`, "add com.example.Demo",
		func(ctx context.Context, d *client.Client, app string) error { return d.ShowAddDialog(ctx, app) })
}

func (c *cli) configure() *cobra.Command {
	return &cobra.Command{
		Use:   "configure NAME",
		Short: "Let the app change a config",
		Long: `Ask the app of a config to show its settings. It is started if it does not run
and "vpnctl agent" or a tray of yours does.`,
		Example:           `  vpnctl configure Work`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeName(false),
		RunE: c.change(changeLimit, func(ctx context.Context, d *client.Client, args []string) error {
			info, err := resolve(ctx, d, args[0])
			if err != nil {
				return err
			}
			return d.Config(info.Path).ShowConfigureDialog(ctx)
		}),
	}
}
