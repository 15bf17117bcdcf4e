package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-wireguard/internal/tunnel"
)

// report is a configuration with what WireGuard tells of its tunnel.
type report struct {
	profile
	WireGuard *tunnel.Status `json:"wireguard,omitempty"`
}

func (c *cli) status() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "status [NAME]",
		Short:             "Show what is connected, with handshakes and transfer, as 'wg show'",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.completeName,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = c.do(callTime, func(ctx context.Context, args []string) error {
		reports, err := c.reports(ctx, args)
		if err != nil {
			return err
		}
		if asJSON {
			return ui.JSON(c.stdout, reports)
		}
		for i, r := range reports {
			if i > 0 {
				c.say("")
			}
			c.say("%s", r.text())
		}
		if len(reports) == 0 {
			c.say("Nothing is connected.")
		}
		return nil
	})
	return cmd
}

// reports are of what is connected, or of the one that is named.
func (c *cli) reports(ctx context.Context, args []string) ([]report, error) {
	all, err := c.profiles(ctx)
	if err != nil {
		return nil, err
	}
	if len(args) > 0 {
		p, err := named(all, args[0])
		if err != nil {
			return nil, err
		}
		all = []profile{p}
	}
	var statuses map[string]tunnel.Status
	if slices.ContainsFunc(all, func(p profile) bool { return p.State.Active() }) {
		if statuses, err = askStatuses(ctx); err != nil {
			c.complain("%v", err)
		}
	}
	reports := []report{} // "[]" in JSON
	for _, p := range all {
		r := report{profile: p}
		if s, ok := statuses[p.Name]; ok && p.State.Active() {
			r.WireGuard = &s
		}
		if p.State.Active() || len(args) > 0 {
			reports = append(reports, r)
		}
	}
	return reports, nil
}

// text is the report for people, much like that of wg(8).
func (r report) text() string {
	var b strings.Builder
	line := func(indent, name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "\n%s%s: %s", indent, name, value)
		}
	}
	fmt.Fprintf(&b, "%s: %s", r.Name, r.State)
	if r.State == "" {
		b.WriteString("not connected")
	}
	line("  ", "reason", r.Reason)
	line("  ", "file", r.File)
	if r.WireGuard == nil {
		return b.String()
	}
	line("  ", "interface", r.WireGuard.Interface)
	line("  ", "public key", r.WireGuard.PublicKey)
	line("  ", "listening port", fmt.Sprint(r.WireGuard.ListenPort))
	for _, p := range r.WireGuard.Peers {
		b.WriteString("\n")
		line("  ", "peer", p.PublicKey.String())
		if p.PresharedKey {
			line("    ", "preshared key", "(hidden)")
		}
		line("    ", "endpoint", p.Endpoint)
		line("    ", "allowed ips", strings.Join(p.AllowedIPs, ", "))
		line("    ", "latest handshake", since(p.LatestHandshake))
		line("    ", "transfer", ui.Size(p.RxBytes, 2)+" received, "+ui.Size(p.TxBytes, 2)+" sent")
		if p.Keepalive > 0 {
			line("    ", "persistent keepalive", fmt.Sprintf("every %d seconds", p.Keepalive))
		}
	}
	return b.String()
}

// since is a time for people.
func since(at time.Time) string {
	d := time.Since(at).Round(time.Second)
	switch {
	case at.IsZero():
		return "never"
	case d < time.Second:
		return "now"
	default:
		return d.String() + " ago"
	}
}
