package driver_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/routing"
)

func TestExplainAddress(t *testing.T) {
	b := newBench(t)
	link := routing.Link{Name: "vpn0", Index: 7}
	planned := func(kind routing.RouteType, block string) routing.Decision {
		d := routing.Decision{Link: link, Route: routing.Route{Type: kind}}
		if block != "" {
			d.Route.Dst = netip.MustParsePrefix(block)
		}
		return d
	}
	for _, c := range []struct {
		way         driver.Way
		action, why string
	}{
		{driver.Way{Table: 254, Index: 2}, driver.ActionDirect, "there is no tunnel"},
		{driver.Way{Table: 254, Index: 2, Interface: "eth0", Held: true}, driver.ActionBlocked, "a lockdown is in force, and eth0 does not lead into a tunnel"},
		{driver.Way{Table: 255, Index: 1}, driver.ActionLocal, "it is an address of this host"},
		{driver.Way{Refused: true}, driver.ActionBlocked, "this host has no route to it"},
		{driver.Way{Table: routing.TableBase, Index: 7, Planned: planned(routing.Unicast, "10.0.0.0/8")}, driver.ActionTunnel, "10.0.0.0/8 goes into the tunnel"},
		{driver.Way{Table: 254, Index: 2, Planned: planned(routing.Throw, "10.1.0.0/16")}, driver.ActionDirect, "10.1.0.0/16 is kept out of the tunnel"},
		{driver.Way{Table: 254, Index: 2, Planned: planned(0, "")}, driver.ActionDirect, "no block that goes into the tunnel has it"},
		{driver.Way{Refused: true, Planned: planned(routing.Unreachable, "::/0")}, driver.ActionBlocked, "::/0 is for the tunnel, which has no address of that family"},
		{driver.Way{Refused: true, Planned: planned(routing.Unicast, "10.0.0.0/8")}, driver.ActionBlocked, "10.0.0.0/8 is for the tunnel, whose interface is gone"},
		{driver.Way{Table: 52, Rule: 77, Index: 3, Planned: planned(routing.Unicast, "10.0.0.0/8")}, driver.ActionDirect, "10.0.0.0/8 is for the tunnel, but rule 77 of another program (table 52) is asked before"},
	} {
		b.SetWay("10.1.2.3", c.way)
		e, err := b.Explain(t.Context(), ui, "10.1.2.3", 1000)
		if err != nil || e.Action != c.action || e.Why != c.why || e.Way != c.way {
			t.Errorf("%+v: %s, %q, %v", c.way, e.Action, e.Why, err)
		}
	}
	b.connect(b.work)
	for by, want := range map[driver.Caller]bool{ui: true, root: true, stranger: false} {
		if e, err := b.Explain(t.Context(), by, "10.1.2.3", 1000); err != nil || (e.Session != 0) != want {
			t.Errorf("%+v sees session %d, %v", by, e.Session, err)
		}
	}
	for _, bad := range []string{"", "a b", "10.1.2.0/24", "user@host", "[::1]", "x\ny", strings.Repeat("x", 256), "\xff", "host:80"} {
		_, err := b.Explain(t.Context(), ui, bad, 1000)
		kind(t, err, driver.KindInvalidParameter)
	}
	b.Fail("way", true)
	_, err := b.Explain(t.Context(), ui, "10.1.2.3", 1000)
	kind(t, err, driver.KindFailed)
}

func TestExplainName(t *testing.T) {
	b := newBench(t)
	ours, theirs := netip.MustParseAddr("10.98.0.53"), netip.MustParseAddr("192.0.2.53")
	b.SetWay("10.98.0.53", driver.Way{Index: 7, Planned: routing.Decision{
		Link: routing.Link{Index: 7}, Route: routing.Route{Type: routing.Unicast, RouteKey: routing.RouteKey{Dst: netip.MustParsePrefix("10.0.0.0/8")}},
	}})
	b.SetWay("192.0.2.53", driver.Way{Table: 254, Index: 2})
	b.SetUplink(driver.Uplink{Index: 2, Nameservers: []netip.Addr{theirs}})
	tunnel := func(full bool, match ...string) *routing.Resolution {
		return &routing.Resolution{Full: full, DNS: routing.DNS{Servers: []netip.Addr{ours}, Match: match}}
	}
	for _, c := range []struct {
		name    string
		dns     *routing.Resolution
		splits  bool
		servers []netip.Addr
		action  string
		why     string
	}{
		{"example.com", nil, true, []netip.Addr{theirs}, driver.ActionDirect, "the network's servers are asked: the tunnel has none; of 192.0.2.53: there is no tunnel"},
		{"example.com", tunnel(true), true, []netip.Addr{ours}, driver.ActionTunnel, "the tunnel's servers are asked for all names; of 10.98.0.53: 10.0.0.0/8 goes into the tunnel"},
		{"example.com", tunnel(false), true, []netip.Addr{ours, theirs}, driver.ActionTunnel, "the tunnel's servers and the network's are asked"},
		{"example.com", tunnel(false, "corp.example"), true, []netip.Addr{theirs}, driver.ActionDirect, "the network's servers are asked: the name is below no domain of the tunnel"},
		{"notcorp.example", tunnel(true, "corp.example"), true, []netip.Addr{theirs}, driver.ActionDirect, "below no domain"},
		{"a.B.Corp.example.", tunnel(false, "x.example", "corp.example"), true, []netip.Addr{ours}, driver.ActionTunnel, "names below corp.example"},
		{"corp.example", tunnel(false, "corp.example"), true, []netip.Addr{ours}, driver.ActionTunnel, "names below corp.example"},
		{"example.com", tunnel(false, "corp.example"), false, []netip.Addr{ours}, driver.ActionTunnel, "for all names"},
	} {
		b.SetResolution(c.dns, c.splits)
		e, err := b.Explain(t.Context(), ui, c.name, 1000)
		if err != nil || e.Action != c.action || !slices.Equal(e.Servers, c.servers) || !strings.Contains(e.Why, c.why) {
			t.Errorf("%s, %+v: %s, %v, %q, %v", c.name, c.dns, e.Action, e.Servers, e.Why, err)
		}
	}
	b.SetUplink(driver.Uplink{})
	b.SetResolution(nil, false)
	if e, err := b.Explain(t.Context(), ui, "example.com", 1000); err != nil || e.Action != driver.ActionBlocked {
		t.Errorf("%+v, %v", e, err)
	}
}
