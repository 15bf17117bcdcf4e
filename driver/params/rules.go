package params

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The functions here say what is wrong with one value as the end of a
// sentence, "" for nothing.

// isBroadcast is for the limited broadcast address.
func isBroadcast(a netip.Addr) bool {
	return a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// forbidden are the ranges of which no part may be sent into a tunnel: the
// host itself, its links, and what is no destination at all. A block that is
// wider than such a range is harmless, as the kernel handles these addresses
// before it looks at our routes.
func forbidden() [8]netip.Prefix {
	return [...]netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{0}), 8),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{240}), 4),
		netip.PrefixFrom(netip.IPv6Loopback(), 128),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfe, 0x80}), 10),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0xff}), 8),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff}), 96),
	}
}

// inclusionFault is for a masked block.
func inclusionFault(block netip.Prefix) string {
	for _, f := range forbidden() {
		if block.Bits() >= f.Bits() && f.Contains(block.Addr()) {
			return "lies inside " + f.String() + ", which cannot go into a tunnel"
		}
	}
	return ""
}

const notAddress = "is not an IP address"

// parseAddr takes neither zones nor IPv4 in IPv6 clothes: the first mean
// another interface, the second would slip past every IPv4 rule.
func parseAddr(s string) (netip.Addr, string) {
	addr, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return netip.Addr{}, notAddress
	case addr.Zone() != "":
		return netip.Addr{}, "has a zone, write " + addr.WithZone("").String()
	case addr.Is4In6():
		return netip.Addr{}, "is an IPv4 address mapped into IPv6, write " + addr.Unmap().String()
	}
	return addr, ""
}

// parsePrefix reads address/length, or an address alone as a host.
func parsePrefix(s string) (netip.Prefix, string) {
	address, _, cidr := strings.Cut(s, "/")
	addr, fault := parseAddr(address)
	switch {
	case fault == notAddress:
		return netip.Prefix{}, "is not a CIDR block"
	case fault != "":
		return netip.Prefix{}, fault
	case !cidr:
		return netip.PrefixFrom(addr, addr.BitLen()), ""
	}
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, "has no valid prefix length"
	}
	return prefix, ""
}

// unusable are the addresses that are nobody's: neither a tunnel nor a server
// can have them.
func unusable(a netip.Addr) string {
	switch {
	case a.Is4() && a.As4()[0] == 0, a.IsUnspecified():
		return "is unspecified"
	case a.IsMulticast():
		return "is multicast"
	case isBroadcast(a):
		return "is broadcast"
	}
	return ""
}

func addressFault(prefix netip.Prefix) string {
	a := prefix.Addr()
	if fault := unusable(a); fault != "" {
		return fault
	}
	switch {
	case a.IsLoopback():
		return "is loopback"
	case a.IsLinkLocalUnicast():
		return "is link-local"
	}
	if last, ok := directedBroadcast(prefix); ok && a == last {
		return "is the broadcast address of its own subnet"
	}
	return ""
}

func textFault(s string) string {
	switch {
	case len(s) > MaxText:
		return fmt.Sprintf("is longer than %d bytes", MaxText)
	case !utf8.ValidString(s):
		return "is not valid UTF-8"
	case strings.ContainsFunc(s, unicode.IsControl):
		return "has a control character"
	}
	return ""
}

const (
	maxDomain = 253 // bytes without the final dot, RFC 1035 and its wire form
	maxLabel  = 63
)

// domainFault is for a name without its final dot.
func domainFault(name string) string {
	switch {
	case name == "":
		return "is not a domain name"
	case strings.HasPrefix(name, "~"):
		return "begins with ~, which is resolved's own notation: write the domain alone, and into matchDomains to limit the servers to it"
	case len(name) > maxDomain:
		return "is longer than a domain name may be"
	}
	for label := range strings.SplitSeq(name, ".") {
		switch {
		case label == "":
			return "is not a domain name: it has an empty label"
		case len(label) > maxLabel:
			return "is not a domain name: a label is longer than 63 bytes"
		case label[0] == '-' || label[len(label)-1] == '-':
			return "is not a domain name: a label begins or ends with a hyphen"
		case strings.ContainsFunc(label, notInLabel):
			return "is not a domain name: letters, digits, - and _ are allowed, other scripts as xn--"
		}
	}
	return ""
}

func notInLabel(r rune) bool {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
	return !strings.ContainsRune(allowed, r)
}
