package tun

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

const (
	header4 = 20 // bytes of an IPv4 header without options
	header6 = 40 // bytes of an IPv6 header
)

// messageFromClient judges a message that the client wants to put into the
// TUN, and makes p of it, as far as it is in order. A nil filter refuses all.
func (f *filter) messageFromClient(p *vnet.Packet, message []byte) reason {
	err := p.Check(message)
	if f != nil && err == nil {
		return f.fromClientUpTo(p.Longest(), p.Bytes())
	}
	*p = vnet.Packet{}
	switch {
	case f == nil:
		return notConfigured
	case errors.Is(err, vnet.ErrChecksum):
		return checksum
	}
	return header
}

// messageToClient judges a message of the TUN's, and makes p of it, as far as
// it is in order.
func (f *filter) messageToClient(p *vnet.Packet, message []byte) reason {
	if p.Parse(message) != nil {
		*p = vnet.Packet{}
		return header
	}
	return f.toClientUpTo(p.Longest(), p.Bytes())
}

// fromClient judges a packet that the client wants to put into the TUN. A nil
// filter refuses all.
//
// The checks come in the order of the reasons a client would want to know
// about first: a packet that cannot be what it says, then where it goes, then
// where it says it comes from, then what it carries.
func (f *filter) fromClient(packet []byte) reason { return f.fromClientUpTo(len(packet), packet) }

// fromClientUpTo is fromClient for what stands for packets that have up to
// longest bytes.
func (f *filter) fromClientUpTo(longest int, packet []byte) reason {
	switch {
	case f == nil:
		return notConfigured
	case longest > f.mtu:
		return tooBig
	case len(packet) < header4:
		return length
	}
	switch packet[0] >> 4 {
	case 4:
		return f.fromClient4(packet)
	case 6:
		return f.fromClient6(packet)
	}
	return version
}

func (f *filter) fromClient4(packet []byte) reason {
	size := int(packet[0]&0x0f) * 4
	switch {
	case int(binary.BigEndian.Uint16(packet[2:])) != len(packet):
		return length
	case size < header4 || size > len(packet):
		return header
	case !validChecksum(packet[:size]):
		return checksum
	case sourceRouted(packet[header4:size]):
		return header
	case !f.isOwn(netip.AddrFrom4([4]byte(packet[16:20]))):
		return destination
	case neverSource4([4]byte(packet[12:16])):
		return source
	case !f.mayClaim(netip.AddrFrom4([4]byte(packet[12:16]))):
		return source
	}
	return allowed4(packet, size)
}

func (f *filter) fromClient6(packet []byte) reason {
	switch {
	case len(packet) < header6:
		return length
	case int(binary.BigEndian.Uint16(packet[4:]))+header6 != len(packet):
		return length
	case !f.isOwn(netip.AddrFrom16([16]byte(packet[24:40]))):
		return destination
	}
	from := netip.AddrFrom16([16]byte(packet[8:24]))
	if neverSource6(from) || !f.mayClaim(from) {
		return source
	}
	return allowed6(packet)
}

// toClient judges a frame that the host sent through the TUN. A nil filter
// has no addresses and therefore refuses all.
func (f *filter) toClient(frame []byte) reason { return f.toClientUpTo(len(frame), frame) }

// toClientUpTo is toClient for what stands for packets that have up to longest
// bytes.
func (f *filter) toClientUpTo(longest int, frame []byte) reason {
	switch {
	case f == nil:
		return notConfigured
	case longest > f.mtu:
		return tooBig
	case len(frame) < header4:
		return length
	}
	switch frame[0] >> 4 {
	case 4:
		if !f.isOwn(netip.AddrFrom4([4]byte(frame[12:16]))) {
			return outSource
		}
		if neverDestination4([4]byte(frame[16:20])) {
			return outDestination
		}
		return pass
	case 6:
		if len(frame) < header6 {
			return length
		}
		if !f.isOwn(netip.AddrFrom16([16]byte(frame[8:24]))) {
			return outSource
		}
		if to := netip.AddrFrom16([16]byte(frame[24:40])); to.IsMulticast() || to.IsLinkLocalUnicast() {
			return outDestination
		}
		return pass
	}
	return version
}

// isOwn tells whether a is an address of the tunnel. There are at most a few.
func (f *filter) isOwn(a netip.Addr) bool { return slices.Contains(f.addresses, a) }

// mayClaim tells whether a is included and not excluded.
func (f *filter) mayClaim(a netip.Addr) bool {
	included, known := f.sources.Lookup(a)
	return included && known
}

// neverSource4: no policy makes these a source: this network, loopback,
// link-local, multicast, reserved, broadcast. The firewall refuses the same.
func neverSource4(a [4]byte) bool {
	return a[0] == 0 || a[0] == 127 || a[0] == 169 && a[1] == 254 || a[0] >= 224
}

// neverDestination4: multicast, broadcast and link-local stay on the host.
func neverDestination4(a [4]byte) bool {
	return a[0]&0xf0 == 0xe0 ||
		a[0] == 169 && a[1] == 254 ||
		a == [4]byte{255, 255, 255, 255}
}

// neverSource6: as neverSource4, and IPv4 addresses in IPv6 form, which
// would evade the IPv4 rules.
func neverSource6(a netip.Addr) bool {
	return a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() ||
		a.IsLinkLocalUnicast() || a.Is4In6()
}

// validChecksum verifies an IPv4 header, whose length is a multiple of four.
// The kernel would drop a wrong one too, but silently.
func validChecksum(header []byte) bool {
	var sum uint64
	for ; len(header) >= 4; header = header[4:] {
		sum += uint64(binary.BigEndian.Uint32(header))
	}
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return sum == 0xffff
}

// sourceRouted tells whether IPv4 options are malformed or name further hops:
// a host that honours source routes would send such a packet on, so its
// destination address says nothing.
func sourceRouted(options []byte) bool {
	const (
		end    = 0
		noop   = 1
		loose  = 131
		strict = 137
	)
	for len(options) > 0 {
		switch options[0] {
		case end:
			return false
		case noop:
			options = options[1:]
			continue
		case loose, strict:
			return true
		}
		if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
			return true
		}
		options = options[options[1]:]
	}
	return false
}

// allowed4 refuses ICMP redirects. Only the first fragment has the type; the
// kernel drops a datagram whose fragments overlap, so no later one can change
// it.
func allowed4(packet []byte, size int) reason {
	const (
		icmp     = 1
		redirect = 5
	)
	if packet[9] != icmp || fragmentOffset(packet[6:]) != 0 {
		return pass
	}
	if len(packet) == size {
		return header
	}
	if packet[size] == redirect {
		return protocol
	}
	return pass
}

// fragmentOffset returns the offset of the IPv4 fields at b in units of eight
// bytes.
func fragmentOffset(b []byte) uint16 { return binary.BigEndian.Uint16(b) & 0x1fff }

// Next header numbers of IPv6.
const (
	hopByHop           = 0
	routing            = 43
	fragment           = 44
	authentication     = 51
	icmp6              = 58
	destinationOptions = 60
)

// longestChain bounds the extension headers; real packets have one or two.
const longestChain = 7

// allowed6 finds the upper-layer header behind the extension headers and
// refuses router and neighbour discovery and redirects (ICMPv6 133-137),
// which only the host's own links may speak.
//
// A first fragment must hold the whole chain (RFC 7112); a later fragment
// passes, since it can hold no header that the first did not announce and the
// kernel drops overlapping ones. A routing header with segments left is
// refused: the packet is not meant for its destination. What follows an
// encrypted header only its own protocol can tell.
func allowed6(packet []byte) reason {
	next, rest := packet[6], packet[header6:]
	for range longestChain + 1 {
		size := extensionSize(next, rest)
		switch {
		case next == icmp6 && len(rest) == 0:
			return header
		case next == icmp6 && rest[0] >= 133 && rest[0] <= 137:
			return protocol
		case size == 0:
			return pass
		case len(rest) < size:
			return header
		case next == routing && rest[3] != 0:
			return header
		case next == fragment && binary.BigEndian.Uint16(rest[2:])>>3 != 0:
			return pass
		}
		next, rest = rest[0], rest[size:]
	}
	return header
}

// extensionSize returns how many bytes the extension header at the start of b
// has, at least 8 even if b is shorter; 0 if the number is of no extension
// header.
func extensionSize(number byte, b []byte) int {
	units := 0
	if len(b) >= 2 {
		units = int(b[1])
	}
	switch number {
	case hopByHop, routing, destinationOptions:
		return 8 + units*8
	case authentication:
		return 8 + units*4
	case fragment:
		return 8
	}
	return 0
}
