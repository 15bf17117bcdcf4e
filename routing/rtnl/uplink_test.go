package rtnl

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The best route decides, and while it leads nowhere its family has no uplink.
func TestLeading(t *testing.T) {
	good := func(metric, link int) hop { return hop{metric: metric, link: link} }
	lost := func(metric, link int) hop { return hop{metric: metric, link: link, noCarrier: true} }
	dead := hop{metric: 0, link: 9, noCarrier: true, unused: true}
	six := hop{v6: true, metric: 5, link: 7}
	for name, tt := range map[string]struct{ hops, want []hop }{
		"none":                            {nil, nil},
		"one":                             {[]hop{good(1, 1)}, []hop{good(1, 1)}},
		"two":                             {[]hop{good(1, 1), good(2, 2)}, []hop{good(1, 1), good(2, 2)}},
		"no carrier":                      {[]hop{lost(1, 1)}, nil},
		"no carrier, and a worse one":     {[]hop{lost(1, 1), good(2, 2)}, nil},
		"no carrier, and one as good":     {[]hop{lost(1, 1), good(1, 2), good(2, 3)}, []hop{good(1, 2)}},
		"no carrier, and IPv6":            {[]hop{lost(1, 1), good(2, 2), six}, []hop{six}},
		"not used by the kernel":          {[]hop{dead, good(2, 2)}, []hop{good(2, 2)}},
		"a worse one without a carrier":   {[]hop{good(1, 1), lost(2, 2)}, []hop{good(1, 1)}},
		"IPv6 without a carrier":          {[]hop{good(1, 1), {v6: true, noCarrier: true}}, []hop{good(1, 1)}},
		"IPv6 alone, without its carrier": {[]hop{{v6: true, noCarrier: true}}, nil},
	} {
		if diff := cmp.Diff(tt.want, leading(tt.hops), cmp.AllowUnexported(hop{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// The uplink as the kernel has it: cables that are pulled, routes that come and
// go, IPv6 alone, and what is no way out.
func TestUplink(t *testing.T) {
	n := enter(t)
	var last Uplink
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the last was %+v", last)
		}
	})
	expect := func(link, gateway string) {
		t.Helper()
		n.eventually(func() bool {
			h, err := n.kernel.Host(t.Context(), 0)
			n.must(err)
			got := ""
			if h.Uplink.Gateway.IsValid() {
				got = h.Uplink.Gateway.String()
			}
			if h.Uplink.Interface == link && got == gateway && h.Uplink.IPv6 == strings.Contains(gateway, ":") {
				return true
			}
			last = h.Uplink
			return false
		})
	}
	route := func(metric int, gw string) *netlink.Route {
		return &netlink.Route{LinkIndex: n.link("up0").Attrs().Index, Gw: net.ParseIP(gw), Priority: metric}
	}
	peer := func(up bool) {
		n.in(n.router, func() {
			set := netlink.LinkSetDown
			if up {
				set = netlink.LinkSetUp
			}
			n.must(set(n.link("r0")))
		})
	}
	expect("up0", "192.0.2.1") // at first
	peer(false)
	expect("", "") // the cable is out
	peer(true)
	expect("up0", "192.0.2.1") // and in
	if h, err := n.kernel.Host(t.Context(), 0); err != nil || len(h.Gateways) != 2 {
		t.Errorf("gateways %v, %v", h.Gateways, err)
	}
	n.must(netlink.RouteAdd(route(10, "192.0.2.9")))
	expect("up0", "192.0.2.1") // a worse one
	n.must(netlink.RouteDel(route(0, "192.0.2.1")))
	expect("up0", "192.0.2.9") // which is the last
	n.must(netlink.RouteDel(route(10, "192.0.2.9")))
	expect("up0", "2001:db8::1") // IPv6 alone
	n.must(netlink.RouteDel(&netlink.Route{LinkIndex: n.link("up0").Attrs().Index, Gw: net.ParseIP("2001:db8::1")}))
	_, all, _ := net.ParseCIDR("::/0")
	n.must(netlink.RouteAdd(&netlink.Route{Dst: all, Type: unix.RTN_UNREACHABLE}))
	expect("", "") // a route that refuses
}
