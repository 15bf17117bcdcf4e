package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-wireguard/internal/wgconf"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

func (c *cli) imports() *cobra.Command {
	var name string
	var force bool
	cmd := &cobra.Command{
		Use:   "import FILE.conf",
		Short: "Copy a file to where only you can read it, and offer it to user interfaces",
		Long: `Copy a file to ~/.config/vpn-wireguard, where only you can read it, and make a
config of it that vpnctl and other user interfaces show. The name is that of
the file.`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&name, "name", "", "another `NAME`")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "replace what has that name")
	cmd.RunE = c.change(func(ctx context.Context, args []string) error {
		if name == "" {
			name = nameOf(args[0])
		}
		return c.importFile(ctx, args[0], name, force)
	})
	return cmd
}

func (c *cli) importFile(ctx context.Context, file, name string, force bool) error {
	err := checkName(name)
	if err == nil && isFile(name) { // which no command would find
		err = fmt.Errorf("%q cannot be a name: it would be taken for a file", name)
	}
	if err != nil {
		return &ui.Error{Code: ui.ExitUsage, Err: err, Hint: "give it another with --name"}
	}
	content, mode, err := readFile(file)
	if err != nil {
		return err
	}
	if _, err := wgconf.Parse(file, content); err != nil {
		return err
	}
	own, err := ownFolder()
	if err != nil {
		return err
	}
	if own.has(name) && !force {
		return &ui.Error{
			Code: ui.ExitFailed,
			Err:  fmt.Errorf("there is a %q already", name),
			Hint: "replace it with --force, or give this another with --name",
		}
	}
	if err := own.write(name, content); err != nil {
		return err
	}
	if mode&0o077 != 0 {
		c.complain("other users can read the keys in %s: delete it, or chmod 600 it", file)
	}
	c.say("%s: imported", name)
	if err := c.offer(ctx, name, own.path(name)); err != nil {
		c.complain("user interfaces do not show it before 'vpn-wireguard up %s': %v", name, err)
	}
	return nil
}

// offer makes the config of an imported file.
func (c *cli) offer(ctx context.Context, name, file string) error {
	d, err := ui.Dial(ctx, c.bus)
	if err != nil {
		return err
	}
	defer d.Close()
	_, err = ensure(ctx, d, name, file)
	return err
}

func (c *cli) remove() *cobra.Command {
	return &cobra.Command{
		Use:               "remove NAME",
		Short:             "Disconnect, and delete the imported file and the config",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeName,
		RunE:              c.change(c.removeProfile),
	}
}

func (c *cli) removeProfile(ctx context.Context, args []string) error {
	name := args[0]
	own, err := ownFolder()
	if err != nil {
		return err
	}
	d, err := ui.Dial(ctx, c.bus)
	if err != nil {
		return err
	}
	defer d.Close()
	cfg, err := d.FindConfig(ctx, app, name)
	switch {
	case errors.Is(err, client.ErrNotFound) && !own.has(name):
		return notFound(name)
	case err == nil:
		err = cfg.Remove(ctx)
	}
	if err != nil && !errors.Is(err, client.ErrNotFound) {
		return err
	}
	if own.has(name) {
		if err := os.Remove(own.path(name)); err != nil {
			return err
		}
	}
	c.say("%s: removed", name)
	return nil
}

func (c *cli) list() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the configurations",
		Args:  cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = c.do(callTime, func(ctx context.Context, _ []string) error {
		all, err := c.profiles(ctx)
		if all == nil && err != nil {
			return err
		}
		if err != nil {
			c.complain("the states are unknown: %v", err)
		}
		if asJSON {
			return ui.JSON(c.stdout, all)
		}
		table := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "NAME\tSTATE\tFILE")
		for _, p := range all {
			state := string(p.State)
			if state == "" {
				state = "-"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\n", ui.Clean(p.Name), ui.Clean(state), ui.Clean(p.File))
		}
		return table.Flush()
	})
	return cmd
}
