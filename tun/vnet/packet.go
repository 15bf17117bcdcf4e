package vnet

import (
	"encoding/binary"
	"errors"
)

// ErrHeader says that a header does not belong to its packet.
var ErrHeader = errors.New("invalid virtio-net header")

// ErrChecksum says that a packet whose checksum is to be completed does not
// begin with the sum of its pseudo header.
var ErrChecksum = errors.New("invalid sum of the pseudo header")

// Packet is one packet, or a super-packet that stands for many. It refers to
// the message that it was made of, which must stay as it is.
type Packet struct {
	data    []byte // from the IP header on
	head    []byte // the virtio_net_hdr before it
	header  Header
	headers int // bytes of IP and transport header; only of a super-packet
	size    int // bytes of payload in each segment; 0: no super-packet

	// Of a super-packet, the sums of what is the same in each segment.
	ipSum, transportSum uint64
}

const (
	tcp = 6
	udp = 17

	ip4Header = 20
	ip6Header = 40
	tcpHeader = 20
	udpHeader = 8

	tcpChecksum = 16 // offset in the TCP header
	udpChecksum = 6

	// byFrags is a segment size that means something else to the kernel.
	byFrags = 0xffff

	// maxUDPSegments is how many packets the kernel makes of one of UDP.
	maxUDPSegments = 128

	// maxTCPSegments keeps a small message from becoming 65,000 packets. No
	// sender has segments of less than 36 bytes (tcp_min_snd_mss).
	maxTCPSegments = 2048
)

// Bits of the byte of flags in a TCP header.
const (
	fin = 0x01
	syn = 0x02
	rst = 0x04
	psh = 0x08
	ack = 0x10
	urg = 0x20
	cwr = 0x80
)

// Parse makes p a message of the kernel. ErrHeader: it cannot be told apart
// into packets. The packet itself may be anything.
func (p *Packet) Parse(message []byte) error {
	if len(message) < HeaderLen {
		return ErrHeader
	}
	*p = Packet{data: message[HeaderLen:], head: message[:HeaderLen], header: Decode(message)}
	if p.Partial() && int(p.header.ChecksumStart)+int(p.header.ChecksumOffset)+2 > len(p.data) {
		return ErrHeader
	}
	if p.header.GSOType == None {
		return nil
	}
	if t, ok := findTransport(p.data); !ok || !p.divide(t) {
		return ErrHeader
	}
	return nil
}

// Check makes p a message of somebody who is not trusted. With an error the
// message must go no further. Without one its header is written anew, and
// states nothing but what was verified here: a kernel that follows it touches
// no bytes but the checksum, and makes the packets that Segment makes. The
// packet itself, if its checksum is complete, may be anything.
func (p *Packet) Check(message []byte) error {
	if len(message) < HeaderLen {
		return ErrHeader
	}
	*p = Packet{data: message[HeaderLen:], head: message[:HeaderLen], header: Decode(message)}
	h := &p.header
	switch {
	case h.Flags != 0 && h.Flags != NeedsChecksum && h.Flags != DataValid, int(h.HeadersLen) > len(p.data):
		return ErrHeader
	case h.GSOType == None && !p.Partial():
		p.setHeader(Header{})
		return nil
	case !p.Partial():
		return ErrHeader
	}
	t, ok := findTransport(p.data)
	switch {
	case !ok, int(h.ChecksumStart) != t.start, int(h.ChecksumOffset) != t.checksum(), !t.consistent(p.data):
		return ErrHeader
	case h.GSOType != None && !p.mayDivide(t):
		return ErrHeader
	}
	expected := fold(pseudo(p.data, t, len(p.data)-t.start))
	got := binary.NativeEndian.Uint16(p.data[t.start+t.checksum():])
	if got != expected && (got != 0 || expected != 0xffff) { // which are the same
		return ErrChecksum
	}
	p.setHeader(p.canonical(t))
	return nil
}

// canonical is the header that says what was found out about p.
func (p *Packet) canonical(t transport) Header {
	h := Header{Flags: NeedsChecksum, ChecksumStart: uint16(t.start), ChecksumOffset: uint16(t.checksum())}
	if p.size == 0 {
		return h
	}
	h.GSOType, h.HeadersLen, h.SegmentSize = p.header.GSOType&^ECN, uint16(p.headers), uint16(p.size)
	if t.protocol == tcp && p.data[t.start+13]&cwr != 0 {
		h.GSOType |= ECN
	}
	return h
}

func (p *Packet) setHeader(h Header) {
	p.header = h
	h.Encode(p.head)
}

// divide finds out where p divides into segments. A super-packet that is no
// longer than one segment is a packet.
func (p *Packet) divide(t transport) bool {
	var want byte = TCP4
	switch {
	case t.protocol == udp:
		want = UDP
	case p.data[0]>>4 == 6:
		want = TCP6
	}
	if kind := p.header.GSOType; kind != want && (kind != want|ECN || want == UDP) {
		return false
	}
	p.headers = t.end(p.data)
	if p.headers >= len(p.data) || p.header.SegmentSize == 0 {
		return false
	}
	if len(p.data)-p.headers > int(p.header.SegmentSize) {
		p.size = int(p.header.SegmentSize)
		p.sumUp(t)
	}
	return true
}

// mayDivide is divide for somebody who is not trusted.
func (p *Packet) mayDivide(t transport) bool {
	if !p.divide(t) || p.header.SegmentSize == byFrags || int(p.header.HeadersLen) < p.headers {
		return false
	}
	if t.protocol == udp {
		return p.Segments() <= maxUDPSegments
	}
	return p.Segments() <= maxTCPSegments && p.data[t.start+13]&(syn|rst|urg) == 0
}

// Bytes returns the packet without its virtio_net_hdr.
func (p *Packet) Bytes() []byte { return p.data }

// Message returns the packet with its virtio_net_hdr.
func (p *Packet) Message() []byte { return p.head[:HeaderLen+len(p.data)] }

// Super tells whether p is a super-packet.
func (p *Packet) Super() bool { return p.size != 0 }

// UDP tells whether p is a super-packet of UDP, which not every kernel takes.
func (p *Packet) UDP() bool { return p.size != 0 && p.header.GSOType == UDP }

// Partial tells whether the checksum of p is still to be completed. It always
// is in a super-packet, whose segments have theirs.
func (p *Packet) Partial() bool { return p.header.Flags&NeedsChecksum != 0 }

// Segments returns how many packets p stands for.
func (p *Packet) Segments() int {
	if p.size == 0 {
		return 1
	}
	return (len(p.data) - p.headers + p.size - 1) / p.size
}

// Longest returns the length in bytes of the longest packet that p stands for.
func (p *Packet) Longest() int {
	if p.size == 0 {
		return len(p.data)
	}
	return p.headers + p.size
}

// Total returns the length in bytes of all packets that p stands for.
func (p *Packet) Total() int { return len(p.data) + (p.Segments()-1)*p.headers }

// transport is where a packet has its TCP or UDP header.
type transport struct {
	protocol byte
	start    int
}

// findTransport finds the header that is wholly in the packet. Fragments have
// none.
func findTransport(b []byte) (t transport, ok bool) {
	switch {
	case len(b) >= ip4Header && b[0]>>4 == 4:
		t = transport{protocol: b[9], start: int(b[0]&0x0f) * 4}
		if t.start < ip4Header || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
			return t, false
		}
	case len(b) >= ip6Header && b[0]>>4 == 6:
		t = skipExtensions(b)
	default:
		return t, false
	}
	switch t.protocol {
	case tcp:
		return t, len(b) >= t.start+tcpHeader && b[t.start+12]>>4 >= tcpHeader/4 && t.end(b) <= len(b)
	case udp:
		return t, len(b) >= t.start+udpHeader
	}
	return t, false
}

// skipExtensions passes over the extension headers that may be before TCP and
// UDP without a say in what they mean.
func skipExtensions(b []byte) transport {
	const (
		hopByHop           = 0
		routing            = 43
		destinationOptions = 60
		longestChain       = 7
	)
	t := transport{protocol: b[6], start: ip6Header}
	for range longestChain {
		if t.protocol != hopByHop && t.protocol != routing && t.protocol != destinationOptions || len(b) < t.start+8 {
			break
		}
		t.protocol, t.start = b[t.start], t.start+8+int(b[t.start+1])*8
	}
	return t
}

// end is where the payload starts.
func (t transport) end(b []byte) int {
	if t.protocol == udp {
		return t.start + udpHeader
	}
	return t.start + int(b[t.start+12]>>4)*4
}

// checksum is the offset of the checksum in the header.
func (t transport) checksum() int {
	if t.protocol == udp {
		return udpChecksum
	}
	return tcpChecksum
}

// consistent tells whether every length in the headers is that of b.
func (t transport) consistent(b []byte) bool {
	if t.protocol == udp && int(binary.BigEndian.Uint16(b[t.start+4:])) != len(b)-t.start {
		return false
	}
	if b[0]>>4 == 4 {
		return int(binary.BigEndian.Uint16(b[2:])) == len(b)
	}
	return int(binary.BigEndian.Uint16(b[4:])) == len(b)-ip6Header
}

// pseudo sums the pseudo header of a transport header and payload of length
// bytes.
func pseudo(b []byte, t transport, length int) uint64 {
	from, to := 8, ip6Header
	if b[0]>>4 == 4 {
		from, to = 12, ip4Header
	}
	return sum(b[from:to], word(int(t.protocol))+word(length))
}
