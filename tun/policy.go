package tun

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// Policy is what the filter lets through. It is a value: SetPolicy keeps its
// own copy, the caller may change its slices afterwards.
type Policy struct {
	// Addresses are the tunnel's own. Packets from the client must go to one
	// of them, packets to the client must come from one of them.
	Addresses []netip.Addr

	// Include and Exclude are the blocks that the client may, or may not,
	// send packets from. The longest prefix over both decides; a block in
	// both is excluded.
	Include, Exclude []netip.Prefix

	// Host are the host's other addresses: never a source from the client.
	Host []netip.Addr

	// MTU in bytes, 576..65535.
	MTU int
}

// filter is a Policy in the form that the pump asks. It never changes once
// it is made.
type filter struct {
	mtu       int
	addresses []netip.Addr

	// sources has true for what is included, false for what is excluded. The
	// addresses of the tunnel and of the host are host routes in it, which
	// nothing outweighs. Of bart's tables this is the one that is fastest to
	// ask, at the cost of memory: 7 MB for the largest policy.
	sources bart.Fast[bool]
}

func newFilter(p Policy) (*filter, error) {
	if p.MTU < 576 || p.MTU > 65535 {
		return nil, fmt.Errorf("cannot set policy: MTU %d is not in 576..65535", p.MTU)
	}
	f := &filter{mtu: p.MTU, addresses: slices.Clone(p.Addresses)}
	for _, block := range p.Include {
		if !block.IsValid() {
			return nil, fmt.Errorf("cannot set policy: invalid included block")
		}
		f.sources.Insert(block, true)
	}
	for _, block := range p.Exclude {
		if !block.IsValid() {
			return nil, fmt.Errorf("cannot set policy: invalid excluded block")
		}
		f.sources.Insert(block, false)
	}
	for _, list := range [][]netip.Addr{p.Host, p.Addresses} {
		for _, address := range list {
			if !address.IsValid() || address.Is4In6() || address.Zone() != "" {
				return nil, fmt.Errorf("cannot set policy: invalid address %q", address)
			}
			f.sources.Insert(netip.PrefixFrom(address, address.BitLen()), false)
		}
	}
	return f, nil
}
