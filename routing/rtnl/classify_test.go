package rtnl

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"

	"github.com/vpnprovider/vpnproviderd/routing"
)

func TestClassify(t *testing.T) {
	attrs := func(index int, encap string, change ...func(*netlink.LinkAttrs)) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Index, a.EncapType, a.NetNsID = index, encap, -1
		for _, c := range change {
			c(&a)
		}
		return a
	}
	master := func(m int) func(*netlink.LinkAttrs) { return func(a *netlink.LinkAttrs) { a.MasterIndex = m } }
	parent := func(p int) func(*netlink.LinkAttrs) { return func(a *netlink.LinkAttrs) { a.ParentIndex = p } }
	foreign := func(a *netlink.LinkAttrs) { a.NetNsID = 3 }
	links := []netlink.Link{
		&netlink.Device{LinkAttrs: attrs(1, "loopback")},
		&netlink.Device{LinkAttrs: attrs(2, "ether")}, // eth0, wlan0
		&netlink.Bridge{LinkAttrs: attrs(10, "ether")},
		&netlink.Veth{LinkAttrs: attrs(11, "ether", master(10), parent(99))},
		&netlink.Bridge{LinkAttrs: attrs(12, "ether")},
		&netlink.Device{LinkAttrs: attrs(13, "ether", master(12))},
		&netlink.Bridge{LinkAttrs: attrs(14, "ether")}, // over a VLAN of eth0
		&netlink.Vlan{LinkAttrs: attrs(15, "ether", parent(2), master(14))},
		&netlink.Vlan{LinkAttrs: attrs(16, "ether", parent(10))},
		&netlink.Macvlan{LinkAttrs: attrs(17, "ether", parent(2), foreign)},
		&netlink.Veth{LinkAttrs: attrs(20, "ether", parent(21))},
		&netlink.Veth{LinkAttrs: attrs(22, "ether", parent(5), foreign)}, // the uplink of a container
		&netlink.Dummy{LinkAttrs: attrs(30, "ether")},
		&netlink.Tuntap{LinkAttrs: attrs(31, "ether")},
		&netlink.Tuntap{LinkAttrs: attrs(32, "none")},
		&netlink.Wireguard{LinkAttrs: attrs(33, "none")}, // has a default route
		&netlink.Vxlan{LinkAttrs: attrs(34, "ether")},
		&netlink.Bond{LinkAttrs: attrs(35, "ether")},
		&netlink.Vlan{LinkAttrs: attrs(40, "ether", parent(41))}, // a ring
		&netlink.Vlan{LinkAttrs: attrs(41, "ether", parent(40))},
	}
	got := classify(links, []hop{{link: 22}, {link: 33}, {link: 2}})
	want := map[int]place{
		1: elsewhere, 2: physical, 10: virtual, 11: virtual, 12: physical, 13: physical, 14: physical, 15: physical,
		16: virtual, 17: physical, 20: virtual, 22: physical, 30: virtual, 31: virtual, 32: elsewhere, 33: elsewhere,
		34: elsewhere, 35: physical, 40: elsewhere, 41: elsewhere,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestSubnets(t *testing.T) {
	places := map[int]place{2: physical, 3: virtual, 4: elsewhere, 5: virtual}
	var addrs []netlink.Addr
	for link, list := range map[int][]string{
		2: {"192.168.1.2/24", "192.168.1.3/24", "fd00:1::2/64", "fe80::1/64", "10.0.0.9/32"},
		3: {"172.17.0.1/16", "0.0.0.1/0", "10.3.0.1/24"},
		4: {"10.4.0.1/24"},
		5: {"10.5.0.1/24"},
	} {
		for _, s := range list {
			a, err := netlink.ParseAddr(s)
			if err != nil {
				t.Fatal(err)
			}
			a.LinkIndex = link
			if s == "10.3.0.1/24" { // a point-to-point address is no subnet
				a.Peer, _ = netlink.ParseIPNet("10.3.0.2/24")
			}
			addrs = append(addrs, *a)
		}
	}
	want := []routing.Subnet{
		{Prefix: netip.MustParsePrefix("192.168.1.0/24"), Link: 2},
		{Prefix: netip.MustParsePrefix("fd00:1::/64"), Link: 2},
		{Prefix: netip.MustParsePrefix("172.17.0.0/16"), Link: 3, Virtual: true},
	}
	opts := cmp.Options{
		cmpopts.EquateComparable(netip.Prefix{}),
		cmpopts.SortSlices(func(a, b routing.Subnet) bool { return a.Prefix.String() < b.Prefix.String() }),
	}
	if diff := cmp.Diff(want, subnets(places, addrs, 5), opts); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
