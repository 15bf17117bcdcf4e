package main

import (
	"context"
	"errors"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// dnsOf is what one link says of names.
type dnsOf struct {
	Interface string       `json:"interface"`
	Servers   []netip.Addr `json:"servers"`
	Names     string       `json:"names"` // which names they are asked for
	Search    []string     `json:"search,omitempty"`
}

func (c *cli) dns() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "Show who answers which names",
		Long: `Show the name servers of the VPN that is connected and of the network below it,
and which names each is asked for.`,
		Example: `  vpnctl dns`,
		Args:    cobra.NoArgs,
		RunE: c.do(readLimit, func(ctx context.Context, d *client.Client, _ []string) error {
			list, err := servers(ctx, d)
			if err != nil {
				return err
			}
			if asJSON {
				return ui.JSON(c.out.w, list)
			}
			if len(list) == 0 {
				c.out.line("No VPN is connected: the host's own DNS answers.")
				return nil
			}
			rows := make([][]string, len(list))
			for i, l := range list {
				rows[i] = []string{l.Interface, some(l.Servers), l.Names, strings.Join(l.Search, ", ")}
			}
			c.out.table([]string{"INTERFACE", "SERVERS", "NAMES", "SEARCH"}, rows)
			return nil
		}),
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func servers(ctx context.Context, d *client.Client) ([]dnsOf, error) {
	sessions, err := d.ListSessions(ctx)
	if err != nil {
		return nil, err
	}
	list := []dnsOf{}
	for _, info := range sessions {
		s, err := d.Session(info.Path).Properties(ctx)
		if errors.Is(err, client.ErrNotFound) {
			continue // ended since
		}
		if err != nil {
			return nil, err
		}
		vpn := dnsOf{Interface: s.Interface, Servers: s.DNSServers, Names: "all", Search: s.DomainSearch}
		below := "all"
		switch {
		case len(s.DNSServers) == 0:
			vpn.Names = "none"
		case len(s.MatchDomains) > 0:
			vpn.Names, below = strings.Join(s.MatchDomains, ", "), "all others"
		default:
			below = "none"
		}
		list = append(list, vpn)
		if s.Uplink != nil {
			list = append(list, dnsOf{Interface: s.Uplink.Interface, Servers: s.Uplink.DNSServers, Names: below, Search: s.Uplink.Domains})
		}
	}
	return list, nil
}
