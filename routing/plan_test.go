package routing_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vpnprovider/vpnproviderd/routing"
)

func prefixes(list ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range list {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// text is the routes of a state as an administrator reads them; the guard of a
// block that goes into the tunnel is the + behind it.
func text(s routing.State) string {
	var keys []routing.RouteKey
	for k := range s.Routes {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b routing.RouteKey) int {
		if c := a.Dst.Compare(b.Dst); c != 0 {
			return c
		}
		return int(int64(a.Metric) - int64(b.Metric))
	})
	var lines []string
	for _, k := range keys {
		word := map[routing.RouteType]string{
			routing.Unicast: "tunnel", routing.Throw: "throw", routing.Unreachable: "unreachable",
		}[s.Routes[k].Type]
		if n := len(lines) - 1; k.Metric == routing.GuardMetric && n >= 0 && lines[n] == "tunnel "+k.Dst.String() {
			lines[n] += " +"
			continue
		}
		lines = append(lines, word+" "+k.Dst.String())
	}
	return strings.Join(lines, "\n")
}

func plan(c routing.Config, subnets ...routing.Subnet) routing.State {
	c.Link = routing.Link{Name: "vpn0", Index: 7}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	return routing.Plan(c, false, routing.Facts{IPv6: true, LinkIPv6: true, Subnets: subnets})
}

func TestPlanRoutes(t *testing.T) {
	v4, v6 := prefixes("10.8.0.2/24"), prefixes("fd00::2/64")
	both := slices.Concat(v4, v6)
	docker := routing.Subnet{Prefix: netip.MustParsePrefix("172.17.0.0/16"), Link: 3, Virtual: true}
	docker6 := routing.Subnet{Prefix: netip.MustParsePrefix("2001:db8:d::/64"), Link: 3, Virtual: true}
	lan := routing.Subnet{Prefix: netip.MustParsePrefix("192.168.1.0/24"), Link: 2}
	lan6 := routing.Subnet{Prefix: netip.MustParsePrefix("fd12::/64"), Link: 2}
	public := routing.Subnet{Prefix: netip.MustParsePrefix("203.0.113.0/24"), Link: 2}
	around := []routing.Subnet{docker, docker6, lan, lan6, public}
	const always = "throw fe80::/10"
	for _, c := range []struct {
		name   string
		config routing.Config
		around []routing.Subnet
		want   []string
	}{
		{"nothing by default", routing.Config{Addresses: v4}, around, []string{always}},
		{
			"a block, and what is spared of it",
			routing.Config{Addresses: v4, Include: prefixes("10.0.0.0/8"), Exclude: prefixes("10.1.0.0/16")},
			around,
			[]string{"tunnel 10.0.0.0/8 +", "throw 10.1.0.0/16", always},
		},
		{
			"an inclusion within an exclusion has its own guard",
			routing.Config{
				Addresses: both, Include: prefixes("0.0.0.0/0", "::/0", "198.51.100.0/24"),
				Exclude: prefixes("198.51.0.0/16"),
			},
			nil,
			[]string{
				"tunnel 0.0.0.0/0 +", "throw 198.51.0.0/16", "tunnel 198.51.100.0/24 +", "tunnel ::/0 +", always,
			},
		},
		{
			"an exclusion that nothing covers stays visible",
			routing.Config{Addresses: v4, Include: prefixes("10.0.0.0/8"), Exclude: prefixes("198.51.100.7/32")},
			nil,
			[]string{"tunnel 10.0.0.0/8 +", "throw 198.51.100.7/32", always},
		},
		{
			"exclusion wins over the equal inclusion",
			routing.Config{Addresses: v4, Include: prefixes("10.0.0.0/8", "0.0.0.0/0"), Exclude: prefixes("10.0.0.0/8")},
			nil,
			[]string{"tunnel 0.0.0.0/0 +", "throw 10.0.0.0/8", "unreachable ::/0", always},
		},
		{
			"host bits are masked",
			routing.Config{Addresses: v4, Include: prefixes("10.1.2.3/8"), Exclude: prefixes("10.9.9.9/16")},
			nil,
			[]string{"tunnel 10.0.0.0/8 +", "throw 10.9.0.0/16", always},
		},
		{
			"the default route as the only exclusion excludes nothing",
			routing.Config{Addresses: v4, Include: prefixes("0.0.0.0/0"), Exclude: prefixes("0.0.0.0/0")},
			nil,
			[]string{"tunnel 0.0.0.0/0 +", "unreachable ::/0", always},
		},
		{
			"the default route among others excludes it",
			routing.Config{Addresses: v4, Include: prefixes("0.0.0.0/0", "10.0.0.0/8"), Exclude: prefixes("0.0.0.0/0", "10.1.0.0/16")},
			nil,
			[]string{"throw 0.0.0.0/0", "tunnel 10.0.0.0/8 +", "throw 10.1.0.0/16", always},
		},
		{
			"a full tunnel in halves is one",
			routing.Config{Addresses: v4, Include: prefixes("0.0.0.0/1", "128.0.0.0/1")},
			around,
			[]string{
				"tunnel 0.0.0.0/0 +", "throw 172.17.0.0/16", "unreachable ::/0", "throw 2001:db8:d::/64", always,
			},
		},
		{
			"a full tunnel in odd pieces is one",
			routing.Config{Addresses: v4, Include: prefixes("0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/3", "224.0.0.0/3")},
			nil,
			[]string{"tunnel 0.0.0.0/0 +", "unreachable ::/0", always},
		},
		{
			"half the net is no full tunnel",
			routing.Config{Addresses: v4, Include: prefixes("0.0.0.0/1")},
			around,
			[]string{"tunnel 0.0.0.0/1 +", always},
		},
		{
			"a family without an address may be left alone",
			routing.Config{Addresses: v4, Include: prefixes("0.0.0.0/0"), AllowIPv6: true},
			around,
			[]string{"tunnel 0.0.0.0/0 +", "throw 172.17.0.0/16", always},
		},
		{
			"IPv4 is blocked by a full tunnel of IPv6",
			routing.Config{Addresses: v6, Include: prefixes("::/0")},
			around,
			[]string{"unreachable 0.0.0.0/0", "throw 172.17.0.0/16", "tunnel ::/0 +", "throw 2001:db8:d::/64", always},
		},
		{
			"what is excluded of a blocked family is spared",
			routing.Config{Addresses: v4, Include: prefixes("0.0.0.0/0"), Exclude: prefixes("2001:db8::/32")},
			nil,
			[]string{"tunnel 0.0.0.0/0 +", "unreachable ::/0", "throw 2001:db8::/32", always},
		},
		{
			"an inclusion without an address to send from is refused",
			routing.Config{Addresses: v4, Include: prefixes("10.0.0.0/8", "2001:db8::/32")},
			nil,
			[]string{"tunnel 10.0.0.0/8 +", "unreachable 2001:db8::/32", always},
		},
		{
			"private LANs when they are allowed, public ones never",
			routing.Config{Addresses: both, Include: prefixes("0.0.0.0/0", "::/0"), AllowLAN: true},
			around,
			[]string{
				"tunnel 0.0.0.0/0 +", "throw 172.17.0.0/16", "throw 192.168.1.0/24",
				"tunnel ::/0 +", "throw 2001:db8:d::/64", "throw fd12::/64", always,
			},
		},
		{
			"allowLan is of no matter to a part",
			routing.Config{Addresses: v4, Include: prefixes("192.168.0.0/16"), AllowLAN: true},
			around,
			[]string{"tunnel 192.168.0.0/16 +", always},
		},
		{
			"what a wider block says is not said again",
			routing.Config{Addresses: v4, Include: prefixes("10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16"), Exclude: prefixes("10.1.1.0/24")},
			nil,
			[]string{"tunnel 10.0.0.0/8 +", "throw 10.1.1.0/24", always},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(strings.Join(c.want, "\n"), text(plan(c.config, c.around...))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPlanTheRest(t *testing.T) {
	c := routing.Config{
		MTU:       1400,
		Addresses: prefixes("10.8.0.2/24", "10.9.0.2/31", "fd00::2/64", "10.8.0.2/16"),
		DNS:       routing.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.8.0.1")}},
	}
	s := plan(c)
	want := routing.State{
		Links: map[int]routing.LinkState{
			7: {Index: 7, MTU: 1400, Up: true, Alias: "vpnproviderd", AddrGen: routing.AddrGenNone},
		},
		Addresses: []routing.Address{
			{Link: 7, Addr: netip.MustParseAddr("10.8.0.2"), Broadcast: netip.MustParseAddr("10.8.0.255")},
			{Link: 7, Addr: netip.MustParseAddr("10.9.0.2")},
			{Link: 7, Addr: netip.MustParseAddr("fd00::2")},
		},
		Rules: []routing.Rule{
			{Priority: 4650, Table: 0x56500000, Mark: 0x56000000, Mask: 0xfe000000, Invert: true},
			{IPv6: true, Priority: 4650, Table: 0x56500000, Mark: 0x56000000, Mask: 0xfe000000, Invert: true},
		},
		Firewall: &routing.Filter{Tunnels: []routing.TunnelEnd{{Link: 7, Addresses: addrs("10.8.0.2", "10.9.0.2", "fd00::2")}}},
		DNS:      &routing.Resolution{Link: routing.Link{Name: "vpn0", Index: 7}, DNS: c.DNS},
	}
	s.Routes = nil
	if diff := cmp.Diff(want, s, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	c.Broadcast = netip.MustParseAddr("10.255.255.255")
	if got := plan(c).Addresses[0].Broadcast; got != c.Broadcast {
		t.Errorf("broadcast %s, want the given one", got)
	}
	c.Include = prefixes("::/0")
	if !plan(c).DNS.Full {
		t.Error("a full tunnel of IPv6 alone does not resolve all names")
	}
}

func TestPlanWithoutIPv6(t *testing.T) {
	c := routing.Config{
		Link: routing.Link{Index: 7}, MTU: 1500,
		Addresses: prefixes("10.8.0.2/24", "fd00::2/64"), Include: prefixes("0.0.0.0/0", "::/0"),
	}
	none := routing.Plan(c, false, routing.Facts{})
	if got := text(none); got != "tunnel 0.0.0.0/0 +" || len(none.Rules) != 1 || len(none.Addresses) != 1 {
		t.Errorf("on a host without IPv6: %s, %v, %v", got, none.Rules, none.Addresses)
	}
	// Where only the link cannot have it, the host's other links still can.
	off := routing.Plan(c, false, routing.Facts{IPv6: true})
	if got := text(off); got != "tunnel 0.0.0.0/0 +\nunreachable ::/0\nthrow fe80::/10" || len(off.Addresses) != 1 {
		t.Errorf("on a link without IPv6: %s, %v", got, off.Addresses)
	}
}

// The longest prefix over both lists decides, whatever is merged.
func TestPlanKeepsLongestPrefix(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		c := routing.Config{
			Addresses: prefixes("10.8.0.2/24", "fd00::2/64"), Include: randomBlocks(r), Exclude: randomBlocks(r),
		}
		s := plan(c)
		look := routing.NewLookup(s)
		for range 40 {
			a := randomAddr(r, r.IntN(3) == 0)
			want := longest(c, a)
			route, _ := look.Route(routing.Table(0), netip.PrefixFrom(a, a.BitLen()))
			if got := route.Type == routing.Unicast; got != want {
				t.Fatalf("%s into the tunnel: %v, want %v\ninclude %v\nexclude %v\n%s", a, got, want, c.Include, c.Exclude, text(s))
			}
			_, guarded := s.Routes[routing.RouteKey{Table: route.Table, Dst: route.Dst, Metric: routing.GuardMetric}]
			if want && !guarded {
				t.Fatalf("%s has no guard\n%s", a, text(s))
			}
		}
		blocks := len(c.Include) + len(c.Exclude)
		if len(s.Routes) > 2*blocks+1 {
			t.Fatalf("%d routes for %d blocks", len(s.Routes), blocks)
		}
	}
}

// longest is the rule as the contract states it.
func longest(c routing.Config, a netip.Addr) bool {
	best, into := -1, false
	for _, p := range c.Include {
		if p.Contains(a) && p.Bits() > best {
			best, into = p.Bits(), true
		}
	}
	exclude := c.Exclude
	if all := netip.MustParsePrefix("0.0.0.0/0"); !slices.ContainsFunc(exclude, func(p netip.Prefix) bool { return p != all }) {
		exclude = nil
	}
	for _, p := range exclude {
		if p.Contains(a) && p.Bits() >= best {
			best, into = p.Bits(), false
		}
	}
	return into
}

func TestPlanAggregates(t *testing.T) {
	c := routing.Config{Addresses: prefixes("10.8.0.2/24"), Include: prefixes("0.0.0.0/0")}
	for i := range 10000 {
		a := netip.AddrFrom4([4]byte{20, byte(i >> 8), byte(i), 0})
		c.Exclude = append(c.Exclude, netip.PrefixFrom(a, 24))
	}
	if n := len(plan(c).Routes); n > 12 {
		t.Errorf("%d routes for 10,000 adjacent exclusions", n)
	}
}

func BenchmarkPlan(b *testing.B) {
	for _, v6 := range []bool{false, true} {
		b.Run(fmt.Sprintf("16384 random hosts, v6=%v", v6), func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 2))
			c := routing.Config{Link: routing.Link{Index: 7}, MTU: 1500, Addresses: prefixes("10.8.0.2/24", "fd00::2/64")}
			for range 16384 {
				var a [16]byte
				for i := range a {
					a[i] = byte(r.Uint32())
				}
				a[0] = 0x20
				p := netip.PrefixFrom(netip.AddrFrom16(a), 128)
				if !v6 {
					p = netip.PrefixFrom(netip.AddrFrom4([4]byte(a[:4])), 32)
				}
				c.Exclude = append(c.Exclude, p)
			}
			for b.Loop() {
				routing.Plan(c, false, routing.Facts{IPv6: true, LinkIPv6: true})
			}
		})
	}
}
