package main

import (
	"context"
	"fmt"
	"net/netip"
	"os/user"
	"path"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

func (c *cli) explain() *cobra.Command {
	var asJSON bool
	var who string
	cmd := &cobra.Command{
		Use:   "explain DESTINATION",
		Short: "Say which way an address goes, or who is asked for a name",
		Long: `Say what becomes of packets to an address: whether they go into the VPN, past it
or nowhere, and why. For a name: which servers are asked, and the way to them.
Nothing is sent.`,
		Example: `  vpnctl explain 198.51.100.7
  vpnctl explain --uid alice www.example.com`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			uid, err := uidOf(who)
			if err != nil {
				return usage(err)
			}
			return c.do(readLimit, func(ctx context.Context, d *client.Client, args []string) error {
				e, err := d.Explain(ctx, args[0], uid)
				if err != nil {
					return err
				}
				if asJSON {
					return ui.JSON(c.out.w, e)
				}
				c.out.line("%s: %s", ui.Clean(e.Destination), ui.Clean(e.Why))
				c.out.block("  ", explanationFields(e))
				return nil
			})(cmd, args)
		},
	}
	cmd.Flags().StringVar(&who, "uid", "", "for programs of this `USER` (a name or number), not yours")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// uidOf is nil for nobody.
func uidOf(who string) (*uint32, error) {
	if who == "" {
		return nil, nil
	}
	if u, err := user.Lookup(who); err == nil {
		who = u.Uid
	}
	n, err := strconv.ParseUint(who, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("there is no user %q", who)
	}
	uid := uint32(n)
	return &uid, nil
}

func explanationFields(e client.Explanation) []field {
	number := func(n uint32) string {
		if n == 0 {
			return ""
		}
		return strconv.FormatUint(uint64(n), 10)
	}
	fields := []field{
		{"Goes", map[string]string{
			client.ActionTunnel: "into the VPN", client.ActionDirect: "past the VPN", client.ActionBlocked: "nowhere", client.ActionLocal: "to this machine",
		}[e.Action]},
		{"DNS", some(e.DNSServers)},
		{"Device", e.Device},
		{"Gateway", text(e.Gateway)},
		{"Source", text(e.Source)},
		{"Rule", number(e.Rule)},
		{"Table", number(e.Table)},
	}
	if e.Route.IsValid() {
		fields = append(fields, field{"Route", e.Route.String()})
	}
	if e.Session != "" {
		fields = append(fields, field{"Session", path.Base(e.Session)})
	}
	return fields
}

func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
