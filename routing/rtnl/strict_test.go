package rtnl

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// The mark counts where the kernel is strict about the way back, for as long as
// a tunnel is there; it was as it was afterwards, also when the process that
// changed it was killed.
func TestStrictLinks(t *testing.T) {
	n := enter(t)
	n.openTUN("vpn0")
	up := n.link("up0").Attrs().Index
	marked := func(when string, want bool) {
		t.Helper()
		if got := must(n.kernel.conn.link(up))(t).srcValidMark; got != want {
			t.Errorf("%s: src_valid_mark %v, want %v", when, got, want)
		}
	}
	for name, c := range map[string]struct {
		all, link, mark string
		strict, after   bool
	}{
		"off":           {"0", "0", "0", false, false},
		"loose":         {"0", "2", "0", false, false},
		"strict":        {"0", "1", "0", true, true},
		"strict by all": {"1", "0", "0", true, true},
		"loose wins":    {"2", "1", "0", false, false},
		"marked":        {"1", "1", "1", true, true},
	} {
		n.sysctl("ipv4/conf/all/rp_filter", c.all)
		n.sysctl("ipv4/conf/up0/rp_filter", c.link)
		n.sysctl("ipv4/conf/up0/src_valid_mark", c.mark)
		var want []routing.StrictLink
		if c.strict {
			want = []routing.StrictLink{{Link: up, Marked: c.mark == "1"}}
		}
		if diff := cmp.Diff(want, must(n.kernel.Facts(t.Context(), 0))(t).Strict); diff != "" {
			t.Errorf("%s: without a link: %s", name, diff)
		}
		before := n.dumpAll()
		network := n.network()
		n.must(network.Apply(t.Context(), n.config("0.0.0.0/0")))
		marked(name, c.after)
		n.must(network.Refresh(t.Context()))
		marked(name, c.after)
		if c.mark == "0" {
			n.sysctl("ipv4/conf/up0/src_valid_mark", "0") // another program did
			n.must(network.Refresh(t.Context()))
			marked(name, c.after)
		}
		n.must(network.Apply(t.Context(), routing.Config{}))
		if diff := cmp.Diff(before, n.dumpAll()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	n.sysctl("ipv4/conf/up0/src_valid_mark", "0")
	n.sysctl("ipv4/conf/all/rp_filter", "1")

	// A new uplink, and one that is gone, and the restart of a killed process.
	firewall := noFirewall()
	network := routing.New(n.kernel, firewall, noDNS(), discard())
	n.must(network.Apply(t.Context(), n.config("0.0.0.0/0")))
	n.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up1"}, PeerName: "r1", PeerNamespace: netlink.NsFd(n.router)}))
	n.uplink("up1", "192.168.7.2/24")
	n.in(n.router, func() { n.uplink("r1", "192.168.7.1/24") })
	n.defaultRoutes("up1", "192.168.7.1")
	n.must(network.Refresh(t.Context()))
	second := n.link("up1").Attrs().Index
	if !must(n.kernel.conn.link(second))(t).srcValidMark {
		t.Error("the new uplink is not marked")
	}
	next := routing.New(n.kernel, firewall, noDNS(), discard())
	n.must(netlink.LinkDel(n.link("up1")))
	n.must(next.Sweep(t.Context(), false))
	marked("swept", false)
}
