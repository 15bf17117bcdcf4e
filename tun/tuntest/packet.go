package tuntest

import (
	"encoding/binary"
	"net/netip"
)

// Protocol numbers of IP that tests use.
const (
	ICMP   = 1
	TCP    = 6
	UDP    = 17
	ICMPv6 = 58
)

// Packet returns a valid IP packet with the payload as it is, in the address
// family of from and to, which must be the same.
func Packet(from, to netip.Addr, protocol byte, payload []byte) []byte {
	if from.Is4() != to.Is4() {
		panic("tuntest: addresses of two families")
	}
	if !from.Is4() {
		p := append(make([]byte, 40, 40+len(payload)), payload...)
		p[0] = 6 << 4
		binary.BigEndian.PutUint16(p[4:], uint16(len(payload)))
		p[6], p[7] = protocol, 64
		copy(p[8:], from.AsSlice())
		copy(p[24:], to.AsSlice())
		return p
	}
	p := append(make([]byte, 20, 20+len(payload)), payload...)
	p[0] = 4<<4 | 5
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	p[8], p[9] = 64, protocol
	copy(p[12:], from.AsSlice())
	copy(p[16:], to.AsSlice())
	FixHeader(p)
	return p
}

// FixHeader sets the checksum of an IPv4 header whose other fields are set.
func FixHeader(packet []byte) {
	header := packet[:int(packet[0]&0x0f)*4]
	header[10], header[11] = 0, 0
	binary.BigEndian.PutUint16(header[10:], ^sum(0, header))
}

// Datagram returns a valid IP packet that carries UDP.
func Datagram(from, to netip.AddrPort, payload []byte) []byte {
	u := append(make([]byte, 8, 8+len(payload)), payload...)
	binary.BigEndian.PutUint16(u[0:], from.Port())
	binary.BigEndian.PutUint16(u[2:], to.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	check := ^pseudo(from.Addr(), to.Addr(), UDP, u)
	if check == 0 {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(u[6:], check)
	return Packet(from.Addr(), to.Addr(), UDP, u)
}

// Flags of a Segment.
const (
	FIN = 0x01
	SYN = 0x02
	RST = 0x04
	PSH = 0x08
	ACK = 0x10
	URG = 0x20
	ECE = 0x40
	CWR = 0x80
)

// Segment returns a valid IP packet that carries TCP. The options have a
// multiple of four bytes.
func Segment(from, to netip.AddrPort, sequence uint32, flags byte, options, payload []byte) []byte {
	t := append(make([]byte, 20, 20+len(options)+len(payload)), options...)
	t = append(t, payload...)
	binary.BigEndian.PutUint16(t[0:], from.Port())
	binary.BigEndian.PutUint16(t[2:], to.Port())
	binary.BigEndian.PutUint32(t[4:], sequence)
	binary.BigEndian.PutUint32(t[8:], 0x01020304) // acknowledgement
	t[12], t[13] = byte(5+len(options)/4)<<4, flags
	binary.BigEndian.PutUint16(t[14:], 500) // window
	binary.BigEndian.PutUint16(t[16:], ^pseudo(from.Addr(), to.Addr(), TCP, t))
	return Packet(from.Addr(), to.Addr(), TCP, t)
}

// FixTransport sets the checksum of the TCP, UDP or ICMPv6 header at start,
// which is in a packet whose other fields are set.
func FixTransport(packet []byte, protocol byte, start int) {
	at := start + map[byte]int{TCP: 16, UDP: 6, ICMPv6: 2}[protocol]
	packet[at], packet[at+1] = 0, 0
	check := ^PseudoSum(packet, protocol, start, true)
	if protocol == UDP && check == 0 {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(packet[at:], check)
}

// PseudoSum sums the pseudo header of the transport header at start and, if
// whole is set, what follows.
func PseudoSum(packet []byte, protocol byte, start int, whole bool) uint16 {
	message := packet[start:]
	addresses := packet[12:20]
	if packet[0]>>4 == 6 {
		addresses = packet[8:40]
	}
	s := sum(0, addresses)
	s = sum(s, []byte{0, protocol, byte(len(message) >> 8), byte(len(message))})
	if whole {
		s = sum(s, message)
	}
	return s
}

// Echo returns a valid echo request (ping).
func Echo(from, to netip.Addr, id, sequence uint16, payload []byte) []byte {
	m := append(make([]byte, 8, 8+len(payload)), payload...)
	binary.BigEndian.PutUint16(m[4:], id)
	binary.BigEndian.PutUint16(m[6:], sequence)
	if from.Is4() {
		m[0] = 8
		binary.BigEndian.PutUint16(m[2:], ^sum(0, m))
		return Packet(from, to, ICMP, m)
	}
	m[0] = 128
	binary.BigEndian.PutUint16(m[2:], ^pseudo(from, to, ICMPv6, m))
	return Packet(from, to, ICMPv6, m)
}

// pseudo sums an upper-layer message with its pseudo header.
func pseudo(from, to netip.Addr, protocol byte, message []byte) uint16 {
	var s uint16
	s = sum(s, from.AsSlice())
	s = sum(s, to.AsSlice())
	s = sum(s, []byte{0, protocol, byte(len(message) >> 8), byte(len(message))})
	return sum(s, message)
}

// sum continues a ones' complement sum.
func sum(start uint16, b []byte) uint16 {
	s := uint32(start)
	for ; len(b) > 1; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
