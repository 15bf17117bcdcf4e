package vpnenv

import (
	"net/netip"
	"strconv"
	"strings"
)

// addresses takes the tunnel's own addresses as hosts: the prefix that comes
// with one only says what the server's network is, see inclusions.
func (r *reader) addresses() {
	for _, name := range [...]string{"INTERNAL_IP4_ADDRESS", "INTERNAL_IP6_ADDRESS"} {
		text := r.value(name)
		if text == "" {
			continue
		}
		addr, fault := parseAddr(text)
		if fault == "" && addr.Is4() != (name == "INTERNAL_IP4_ADDRESS") {
			fault = "is of the other IP version"
		}
		if fault != "" {
			r.fault(name, "%s: %q", fault, shorten(text))
			continue
		}
		r.out.Addresses = append(r.out.Addresses, host(addr))
	}
	if len(r.out.Addresses) == 0 && len(r.faults) == 0 {
		r.fault("INTERNAL_IP4_ADDRESS", "and INTERNAL_IP6_ADDRESS are missing: the server assigned no address")
	}
}

// mtu also decides about IPv6, which cannot be below 1280. Raising the MTU is
// no way out: openconnect cuts packets that are longer than what it announced.
func (r *reader) mtu() {
	const name = "INTERNAL_IP4_MTU"
	r.out.MTU = fallbackMTU
	if text := r.value(name); text != "" && text != "0" {
		n, err := strconv.Atoi(text)
		if err != nil || n < minMTU || n > maxMTU {
			r.fault(name, "is not a number from %d to %d: %q", minMTU, maxMTU, shorten(text))
			return
		}
		r.out.MTU = n
	}
	r.fitMTU()
}

func (r *reader) fitMTU() {
	if r.out.MTU >= minMTUIPv6 || !r.has(false) {
		return
	}
	if !r.has(true) {
		r.fault("INTERNAL_IP4_MTU", "is %d, below the %d that IPv6 needs", r.out.MTU, minMTUIPv6)
		return
	}
	r.notice("no IPv6 in the tunnel: it needs an MTU of %d, the server allows %d", minMTUIPv6, r.out.MTU)
	r.out.Addresses = r.out.Addresses[:1]
}

// has tells whether there is an address of IPv4, or of IPv6.
func (r *reader) has(ipv4 bool) bool {
	for _, a := range r.out.Addresses {
		if a.Addr().Is4() == ipv4 {
			return true
		}
	}
	return false
}

// parseAddr takes no zones, which are interfaces of this host, and no IPv4 in
// IPv6 clothes. fault is the end of a sentence, "" for none.
func parseAddr(text string) (addr netip.Addr, fault string) {
	addr, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return addr, "is not an IP address"
	case addr.Zone() != "":
		return addr, "has a zone"
	case addr.Is4In6():
		return addr, "is an IPv4 address in IPv6 notation"
	case addr.IsUnspecified(), addr.IsLoopback(), addr.IsMulticast(), addr.IsLinkLocalUnicast():
		return addr, "is no usable address"
	}
	return addr, ""
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// network4 is the IPv4 network of the tunnel's address, as the server has it.
func (r *reader) network4() (netip.Prefix, bool) {
	const name, length = "INTERNAL_IP4_NETADDR", "INTERNAL_IP4_NETMASKLEN"
	text, bits := r.value(name), r.value(length)
	if text == "" || bits == "" {
		return netip.Prefix{}, false
	}
	return r.block(name, text, length, bits, true)
}

// network6 is the same of IPv6: address and length in one variable.
func (r *reader) network6() (netip.Prefix, bool) {
	const name = "INTERNAL_IP6_NETMASK"
	text, bits, ok := strings.Cut(r.value(name), "/")
	if !ok {
		return netip.Prefix{}, false
	}
	return r.block(name, text, name, bits, false)
}
