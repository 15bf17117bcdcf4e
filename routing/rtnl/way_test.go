package rtnl

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vpnprovider/vpnproviderd/routing"
)

func TestWay(t *testing.T) {
	n := enter(t)
	n.openTUN("vpn0")
	up, vpn := n.link("up0").Attrs().Index, n.tun.index
	check := func(dst string, uid uint32, want Way) {
		t.Helper()
		got := must(n.kernel.Way(t.Context(), netip.MustParseAddr(dst), uid))(t)
		same := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
		if diff := cmp.Diff(want, got, same, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("%s: %s", dst, diff)
		}
	}
	direct := Way{
		Table: 254, Rule: 32766, Block: prefixes("0.0.0.0/0")[0], Interface: "up0", Index: up,
		Gateway: netip.MustParseAddr("192.0.2.1"), Source: netip.MustParseAddr("192.0.2.2"),
	}
	direct6 := Way{
		Table: 254, Rule: 32766, Block: prefixes("::/0")[0], Interface: "up0", Index: up,
		Gateway: netip.MustParseAddr("2001:db8::1"), Source: netip.MustParseAddr("2001:db8::2"),
	}
	check("203.0.113.1", 1000, direct)
	check("2001:db8:8::1", 1000, direct6)
	c := n.config("0.0.0.0/0", "2001:db8:8::/48")
	c.Exclude = prefixes("198.51.100.0/24")
	n.must(n.network().Apply(t.Context(), c))
	check("198.51.100.1", 1000, direct)
	check("::ffff:198.51.100.1", 1000, direct)
	check("203.0.113.1", 1000, Way{
		Table: routing.TableBase, Rule: 4650, Block: prefixes("0.0.0.0/0")[0], Interface: "vpn0", Index: vpn, Source: netip.MustParseAddr("10.8.0.2"),
	})
	check("2001:db8:8::1", 1000, Way{
		Table: routing.TableBase, Rule: 4650, Block: prefixes("2001:db8:8::/48")[0], Interface: "vpn0", Index: vpn, Source: netip.MustParseAddr("fd00::2"),
	})
	check("2001:db8:9::1", 1000, direct6)
	check("192.0.2.2", 1000, Way{
		Table: 255, Block: prefixes("192.0.2.2/32")[0], Interface: "lo", Index: 1, Source: netip.MustParseAddr("192.0.2.2"),
	})

	// Rules of others, one for a user alone.
	n.ip("rule", "add", "pref", "77", "uidrange", "1000-1001", "lookup", "main")
	byRule := direct
	byRule.Rule = 77
	check("203.0.113.1", 1001, byRule)
	check("203.0.113.1", 1002, Way{
		Table: routing.TableBase, Rule: 4650, Block: prefixes("0.0.0.0/0")[0], Interface: "vpn0", Index: vpn, Source: netip.MustParseAddr("10.8.0.2"),
	})
	n.tun.kill()
	check("203.0.113.1", 1002, Way{Refused: true})
	check("2001:db8:8::1", 1002, Way{Refused: true})
}
