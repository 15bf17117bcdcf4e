package rtnl

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// Host is what of the host's network is not ours.
type Host struct {
	// Addresses of every link but the one left out, the loopback's included.
	Addresses []netip.Addr

	// Gateways of the default routes in the main table.
	Gateways []netip.Addr

	// Uplink is zero while there is none.
	Uplink Uplink

	// NoIPv6: there is none on the link that was left out.
	NoIPv6 bool
}

// Uplink is where the host's traffic leaves: the best default route of the main
// table, of IPv4 where there is one, else of IPv6, unless its link has lost the
// carrier. Two are equal when they are the same link and gateway.
type Uplink struct {
	Interface string
	Index     int
	Gateway   netip.Addr // not valid on a link that needs none
	IPv6      bool
}

// Host looks at the host. The addresses of the link except, and a default
// route over it, are left out; 0 leaves out none.
func (k *Kernel) Host(ctx context.Context, except int) (Host, error) {
	var h Host
	addrs, err := k.addresses(ctx)
	if err != nil {
		return h, err
	}
	for _, a := range addrs {
		if a.LinkIndex != except {
			h.Addresses = append(h.Addresses, addrOf(a.IP))
		}
	}
	hops, err := k.defaults(ctx)
	if err != nil {
		return h, err
	}
	hops = slices.DeleteFunc(hops, func(h hop) bool { return h.link == except })
	for _, hop := range hops {
		if hop.gateway.IsValid() && !slices.Contains(h.Gateways, hop.gateway) {
			h.Gateways = append(h.Gateways, hop.gateway)
		}
	}
	for _, hop := range leading(hops) {
		if link, err := k.handle.LinkByIndex(hop.link); err == nil { // else it went away meanwhile
			h.Uplink = Uplink{Interface: link.Attrs().Name, Index: hop.link, Gateway: hop.gateway, IPv6: hop.v6}
			break
		}
	}
	if except != 0 {
		h.NoIPv6, err = k.withoutIPv6(except)
	}
	return h, err
}

// withoutIPv6 says whether a link, or the host, has IPv6 switched off.
func (k *Kernel) withoutIPv6(index int) (bool, error) {
	lo, err := k.conn.link(loopback)
	if err != nil {
		return false, fmt.Errorf("cannot look at the loopback: %w", err)
	}
	if lo.AddrGen == routing.AddrGenNoIPv6 {
		return true, nil
	}
	link, err := k.conn.link(index)
	if err != nil && !gone(err) {
		return false, fmt.Errorf("cannot look at link %d: %w", index, err)
	}
	return err == nil && link.ipv6Disabled, nil
}

// leading are those of the hops, the best first, by which traffic can leave.
// Where the best route of a family has lost the carrier, the kernel goes on to
// use it, for nothing, and not the next one: then the family has none. Only
// others of the same metric take its place.
func leading(hops []hop) (list []hop) {
	lost := map[bool]hop{} // the best of each family, without carrier
	for _, h := range hops {
		best, held := lost[h.v6]
		switch {
		case h.unused || held && best.metric != h.metric:
		case h.noCarrier:
			lost[h.v6] = h
		default:
			list = append(list, h)
		}
	}
	return list
}

func (k *Kernel) addresses(ctx context.Context) ([]netlink.Addr, error) {
	addrs, err := look(ctx, func() ([]netlink.Addr, error) { return k.handle.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("cannot list addresses: %w", err)
	}
	return addrs, nil
}

// hop is one way that a default route goes.
type hop struct {
	v6      bool
	metric  int
	link    int
	gateway netip.Addr

	noCarrier bool // the link has lost it
	unused    bool // by the kernel, for that or another reason
}

// defaults are the default routes of the main table, the best first.
func (k *Kernel) defaults(ctx context.Context) ([]hop, error) {
	var hops []hop
	for _, v6 := range []bool{false, true} {
		found, err := look(ctx, func() ([]hop, error) { return k.familyDefaults(v6) })
		if err != nil {
			return nil, fmt.Errorf("cannot list default routes: %w", err)
		}
		slices.SortStableFunc(found, func(a, b hop) int { return a.metric - b.metric })
		hops = append(hops, found...)
	}
	return hops, nil
}

func (k *Kernel) familyDefaults(v6 bool) ([]hop, error) {
	var hops []hop
	err := k.eachRoute(v6, netlink.Route{Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}, func(r netlink.Route) {
		if r.Dst == nil || r.Type != unix.RTN_UNICAST {
			return
		}
		if bits, _ := r.Dst.Mask.Size(); bits != 0 {
			return
		}
		add := func(link, flags int, gateway netip.Addr) {
			hops = append(hops, hop{
				v6: v6, metric: r.Priority, link: link, gateway: gateway,
				noCarrier: flags&unix.RTNH_F_LINKDOWN != 0, unused: flags&unix.RTNH_F_DEAD != 0,
			})
		}
		if r.LinkIndex != 0 {
			add(r.LinkIndex, r.Flags, gateway(r.Gw, r.Via))
		}
		for _, n := range r.MultiPath {
			add(n.LinkIndex, n.Flags, gateway(n.Gw, n.Via))
		}
	})
	return hops, err
}

// gateway is via where a route of IPv4 goes over one of IPv6.
func gateway(gw net.IP, via netlink.Destination) netip.Addr {
	if v, ok := via.(*netlink.Via); ok {
		return addrOf(v.Addr)
	}
	return addrOf(gw)
}

// Facts implements routing.Kernel.
func (k *Kernel) Facts(ctx context.Context, index int) (routing.Facts, error) {
	var f routing.Facts
	lo, err := k.conn.link(loopback)
	if err != nil {
		return f, fmt.Errorf("cannot look at the loopback: %w", err)
	}
	f.IPv6 = lo.AddrGen != routing.AddrGenNoIPv6
	if index != 0 {
		link, linkErr := k.conn.link(index)
		if linkErr != nil {
			return f, fmt.Errorf("cannot look at link %d: %w", index, linkErr)
		}
		f.Link = link.LinkState
		f.LinkIPv6 = f.IPv6 && !link.ipv6Disabled
	}
	links, err := look(ctx, k.handle.LinkList)
	if err != nil {
		return f, fmt.Errorf("cannot list links: %w", err)
	}
	hops, err := k.defaults(ctx)
	if err != nil {
		return f, err
	}
	addrs, err := k.addresses(ctx)
	if err != nil {
		return f, err
	}
	places := classify(links, hops)
	f.Subnets = subnets(places, addrs, index)
	f.Strict, err = k.strictLinks(places)
	return f, err
}

// strictLinks are those that lead off this host and are strict about the way
// back, by index.
func (k *Kernel) strictLinks(places map[int]place) ([]routing.StrictLink, error) {
	const strict = 1
	all, err := k.conn.rpFilterOfAll()
	if err != nil {
		return nil, fmt.Errorf("cannot read rp_filter: %w", err)
	}
	var list []routing.StrictLink
	for _, index := range slices.Sorted(maps.Keys(places)) {
		if places[index] != physical {
			continue
		}
		link, err := k.conn.link(index)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot look at link %d: %w", index, err)
		}
		if max(all, link.rpFilter) == strict {
			list = append(list, routing.StrictLink{Link: index, Marked: link.srcValidMark})
		}
	}
	return list, nil
}

// subnets are the connected networks of the links that have a place.
func subnets(places map[int]place, addrs []netlink.Addr, except int) []routing.Subnet {
	var list []routing.Subnet
	for _, a := range addrs {
		at := places[a.LinkIndex]
		ip := addrOf(a.IP)
		bits, _ := a.Mask.Size()
		if a.LinkIndex == except || at == elsewhere || a.Peer != nil && !a.Peer.IP.Equal(a.IP) ||
			ip.IsLinkLocalUnicast() || bits == 0 || bits == ip.BitLen() {
			continue
		}
		p, err := ip.Prefix(bits)
		if err != nil {
			continue
		}
		s := routing.Subnet{Prefix: p, Link: a.LinkIndex, Virtual: at == virtual}
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}
