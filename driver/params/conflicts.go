package params

import (
	"fmt"
	"net/netip"
)

// Host is what the parameters must not collide with on this host.
type Host struct {
	Addresses   []netip.Addr // of every interface but the tunnel
	Gateways    []netip.Addr // of the default routes
	Nameservers []netip.Addr // of the physical network

	// NoIPv6: it is switched off on the tunnel's interface, whose IPv6 addresses
	// are left out then.
	NoIPv6 bool
}

// Omitted is a warning for each address that this host leaves out, one sentence
// each. nil: none.
func (p Parameters) Omitted(h Host) (warnings []string) {
	for _, prefix := range p.Addresses {
		if h.NoIPv6 && prefix.Addr().Is6() {
			warnings = append(warnings, fmt.Sprintf("address %q is left out: IPv6 is switched off on this host (disable_ipv6)", prefix))
		}
	}
	return warnings
}

// Conflicts names every address of p that this host or its network uses
// already. With such an address the host would answer itself where it means
// its gateway or name server. The broadcast address counts too, a derived one
// as well: the kernel routes it before any table of ours. nil: none.
func (p Parameters) Conflicts(h Host) Problems {
	// The first to say wins: an address of the host is the clearest answer.
	uses := map[netip.Addr]string{}
	note := func(list []netip.Addr, use string) {
		for _, a := range list {
			a = a.Unmap().WithZone("")
			if _, ok := uses[a]; !ok {
				uses[a] = use
			}
		}
	}
	note(h.Addresses, "is assigned to another interface of this host")
	note(h.Gateways, "is the gateway of the physical network")
	note(h.Nameservers, "is a name server of the physical network")

	var problems Problems
	check := func(key, value, text string, a netip.Addr) {
		if use, ok := uses[a]; ok {
			problems = append(problems, Problem{key, quote(value), text + use})
		}
	}
	for i, prefix := range p.Addresses {
		check(addressKey(i), prefix.String(), "", prefix.Addr())
		if derived, ok := directedBroadcast(prefix); ok && !p.Broadcast.IsValid() {
			text := fmt.Sprintf("has the broadcast address %v, which ", derived)
			check(addressKey(i), prefix.String(), text, derived)
		}
	}
	if p.Broadcast.IsValid() {
		check(keyBroadcast, p.Broadcast.String(), "", p.Broadcast)
	}
	return problems
}

// addressKey is the key under which Dict has the i-th address.
func addressKey(i int) string {
	if i == 0 {
		return keyAddress
	}
	return keyAddresses
}

// directedBroadcast is the last address of an IPv4 prefix; prefixes of one or
// two addresses have none.
func directedBroadcast(p netip.Prefix) (netip.Addr, bool) {
	if !p.Addr().Is4() || p.Bits() > 30 {
		return netip.Addr{}, false
	}
	a := p.Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(a), true
}
