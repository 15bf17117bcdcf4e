package client

import (
	"context"
	"fmt"
	"net/netip"

	godbus "github.com/godbus/dbus/v5"
)

// Actions of an Explanation.
const (
	ActionTunnel  = "tunnel"
	ActionDirect  = "direct" // where it would go without a tunnel
	ActionBlocked = "blocked"
	ActionLocal   = "local" // the host itself
)

// Explanation says what becomes of a destination. What does not apply is empty.
type Explanation struct {
	Destination string `json:"destination"`
	UID         uint32 `json:"uid"`
	Action      string `json:"action"`
	Why         string `json:"why"` // a sentence
	Session     string `json:"session,omitempty"`

	// The rule and the route that decide; for a name, about the questions to
	// the first server.
	Rule    uint32       `json:"rule,omitempty"` // its priority
	Table   uint32       `json:"table,omitempty"`
	Route   netip.Prefix `json:"route,omitzero"`
	Device  string       `json:"device,omitempty"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
	Source  netip.Addr   `json:"source,omitzero"`

	// DNSServers are those that a name is asked of.
	DNSServers []netip.Addr `json:"dnsServers,omitempty"`
}

// Explain says what becomes of what a program of some user sends to an
// address, or which servers a name is asked of. Nothing is sent. uid nil is the
// caller's.
func (c *Client) Explain(ctx context.Context, destination string, uid *uint32) (Explanation, error) {
	d := dict{}
	if uid != nil {
		d.set("uid", *uid)
	}
	var answer map[string]godbus.Variant
	if _, err := c.manager(ctx, "Explain", []any{destination, d}, &answer); err != nil {
		return Explanation{}, fmt.Errorf("cannot explain %s: %w", destination, err)
	}
	from := properties(answer)
	var e Explanation
	get(from, "destination", &e.Destination)
	get(from, "uid", &e.UID)
	get(from, "action", &e.Action)
	get(from, "why", &e.Why)
	from.path("session", &e.Session)
	get(from, "rule", &e.Rule)
	get(from, "table", &e.Table)
	get(from, "device", &e.Device)
	var route, gateway, source string
	get(from, "route", &route)
	get(from, "gateway", &gateway)
	get(from, "source", &source)
	e.Route, _ = netip.ParsePrefix(route) // what there is none of stays invalid
	e.Gateway, _ = netip.ParseAddr(gateway)
	e.Source, _ = netip.ParseAddr(source)
	from.addrs("dnsServers", &e.DNSServers)
	return e, nil
}

// Unlock ends every lockdown, also one whose config is gone.
func (c *Client) Unlock(ctx context.Context) error {
	if _, err := c.manager(ctx, "Unlock", []any{dict{}}); err != nil {
		return fmt.Errorf("cannot unlock: %w", err)
	}
	return nil
}
