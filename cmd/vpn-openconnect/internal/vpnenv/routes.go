package vpnenv

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/blocks"
)

// The lists of routes. Each is a count, and by number _n_ADDR and _n_MASKLEN.
const (
	splitInclude4 = "CISCO_SPLIT_INC"
	splitInclude6 = "CISCO_IPV6_SPLIT_INC"
	splitExclude4 = "CISCO_SPLIT_EXC"
	splitExclude6 = "CISCO_IPV6_SPLIT_EXC"
)

// exclusions come before inclusions: a block in both stays out of the tunnel.
func (r *reader) exclusions() {
	r.gateway()
	for _, block := range append(r.list(splitExclude4, true), r.list(splitExclude6, false)...) {
		switch {
		case block == host(netip.IPv4Unspecified()): // how Cisco's servers write 'the local network'
			r.out.AllowLAN = true
		case unroutable(block):
			r.notice("the server's exclusion of %v is ignored: it is never routed", block)
		default:
			r.add(&r.out.Exclude, block)
		}
	}
}

// gateway keeps openconnect's own packets out of the tunnel. A proxy on this
// host needs no exemption, and loopback can have none.
func (r *reader) gateway() {
	const name = "VPNGATEWAY"
	text := r.value(name)
	if text == "" {
		return
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		r.fault(name, "is not an IP address: %q", shorten(text))
		return
	}
	r.out.Gateway = addr.Unmap()
	addr = r.out.Gateway.WithZone("")
	switch {
	case addr.IsLoopback():
		r.notice("openconnect goes through a proxy at %v: exempt the proxy's own connections yourself", addr)
	case !addr.IsLinkLocalUnicast():
		r.add(&r.out.Exclude, host(addr))
	}
}

// inclusions follow vpnc-script: the network of the own address, the blocks
// that the server lists, or where it lists none of a family that it assigned
// an address of, everything. DNS servers inside are reachable.
func (r *reader) inclusions() {
	for _, family := range [...]struct {
		ipv4    bool
		list    string
		all     netip.Prefix
		network func() (netip.Prefix, bool)
	}{
		{true, splitInclude4, netip.PrefixFrom(netip.IPv4Unspecified(), 0), r.network4},
		{false, splitInclude6, netip.PrefixFrom(netip.IPv6Unspecified(), 0), r.network6},
	} {
		listed := r.list(family.list, family.ipv4)
		network, known := family.network()
		switch {
		case !r.has(family.ipv4):
			if len(listed) > 0 {
				r.notice("the server's %d blocks of %s are ignored: it assigned no address for them", len(listed), family.list)
			}
			continue
		case len(listed) == 0:
			r.add(&r.out.Include, family.all)
			continue
		}
		if known && network.Bits() < network.Addr().BitLen() {
			r.add(&r.out.Include, network)
		}
		for _, block := range listed {
			if blocks.IsLocal(block) {
				r.notice("the server's block %v is not routed into the tunnel: such addresses stay on their link", block)
				continue
			}
			r.add(&r.out.Include, block)
		}
	}
}

// add appends a block that is in neither list yet. Exclusions come first: a
// block in both stays outside.
func (r *reader) add(list *[]netip.Prefix, block netip.Prefix) {
	if !r.listed[block] {
		r.listed[block] = true
		*list = append(*list, block)
	}
}

// limits come last: names add blocks too.
func (r *reader) limits() {
	r.limit(splitExclude4, r.out.Exclude)
	r.limit(splitInclude4, r.out.Include)
}

func (r *reader) limit(name string, blocks []netip.Prefix) {
	if len(blocks) > maxBlocks {
		r.fault(name, "and its IPv6 sibling make %d blocks, at most %d are allowed", len(blocks), maxBlocks)
	}
}

// list reads one list. A count beyond the limit is refused before anything is
// looked up.
func (r *reader) list(name string, ipv4 bool) []netip.Prefix {
	text := r.value(name)
	if text == "" {
		return nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > maxBlocks {
		r.fault(name, "is not a number up to %d: %q", maxBlocks, shorten(text))
		return nil
	}
	var blocks []netip.Prefix
	for i := range n {
		addr, length := fmt.Sprintf("%s_%d_ADDR", name, i), fmt.Sprintf("%s_%d_MASKLEN", name, i)
		if block, ok := r.block(addr, r.value(addr), length, r.value(length), ipv4); ok {
			blocks = append(blocks, block)
		}
	}
	return blocks
}

// block is an address and a prefix length, masked.
func (r *reader) block(addrName, addr, lengthName, length string, ipv4 bool) (netip.Prefix, bool) {
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Zone() != "" || a.Is4() != ipv4 || a.Is4In6() {
		r.fault(addrName, "is no address of a block: %q", shorten(addr))
		return netip.Prefix{}, false
	}
	bits, err := strconv.Atoi(length)
	if err != nil || bits < 0 || bits > a.BitLen() {
		r.fault(lengthName, "is no prefix length: %q", shorten(length))
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, bits).Masked(), true
}

// unroutable blocks do not leave this host or its link, whatever the routes.
func unroutable(block netip.Prefix) bool {
	a := block.Addr()
	return a.Is4() && a.As4()[0] == 0 || a.IsLoopback() || a.IsLinkLocalUnicast()
}
