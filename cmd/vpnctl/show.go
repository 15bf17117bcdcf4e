package main

import (
	"context"
	"fmt"
	"maps"
	"os/user"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

func (c *cli) show() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Show all about a config",
		Example: `  vpnctl show Work
  vpnctl show --json com.example.Demo/Work`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeName(false),
		RunE: c.do(readLimit, func(ctx context.Context, d *client.Client, args []string) error {
			info, err := resolve(ctx, d, args[0])
			if err != nil {
				return err
			}
			p, err := d.Config(info.Path).Properties(ctx)
			if err != nil {
				return err
			}
			if asJSON {
				return ui.JSON(c.out.w, p)
			}
			c.out.block("", configFields(p))
			return nil
		}),
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func configFields(p client.ConfigProperties) []field {
	fields := []field{
		{"Name", p.Name},
		{"App", p.App},
		{"ID", id(p.Path)},
		{"Owner", owner(p.Owner)},
		{"Source", string(p.Source)},
		{"State", string(p.State)},
		{"Reason", p.FailureReason},
		{"Auto-connect", yesNo(p.AutoConnect)},
		{"Lockdown", yesNo(p.Lockdown)},
		{"Last connected", when(p.LastConnected)},
	}
	for _, key := range slices.Sorted(maps.Keys(p.Data)) {
		fields = append(fields, field{"Data " + key, fmt.Sprint(p.Data[key])})
	}
	return fields
}

// owner is a user's name, where the machine knows it.
func owner(uid uint32) string {
	number := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(number); err == nil {
		return u.Username
	}
	return number
}

func when(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Local().Format(time.DateTime)
}
