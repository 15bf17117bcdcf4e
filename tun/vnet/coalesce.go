package vnet

import (
	"bytes"
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Coalescer makes super-packets of packets that follow each other in a flow
// and differ in nothing but what the kernel can make again: their place in the
// flow, their length and their checksums, which it verifies first. What it
// cannot merge it passes on alone and as it is. Packets of one flow keep their
// order; flows do not keep theirs among each other.
type Coalescer struct {
	offload Offload
	packets []member
	groups  []group
	headers []byte // one after the other, of the groups

	// flows has the group that the next packet of a flow may join, counted
	// from 1, at a number made of the flow. Another flow with the same number
	// takes its place.
	flows [256]uint16
}

// member is a packet, and which is the next one of its group.
type member struct {
	data []byte
	next uint16 // 0: it is the last
}

// group is what becomes one message.
type group struct {
	first, last uint16 // in packets
	count       int
	length      int // bytes, with the headers of the first packet alone

	transport
	headers int  // bytes; 0: the packets of this group cannot merge
	size    int  // bytes of payload in each packet but the last
	valid   bool // the checksum of the first packet was verified
	push    bool // the last packet has PSH
}

const (
	maxHeaders  = ip6Header + 60         // bytes; of what can merge
	groupHeader = HeaderLen + maxHeaders // bytes; of memory for each group

	// longestMerged is the length in bytes of what every kernel takes.
	longestMerged = 1<<16 - 1

	// mergedUDP is how many datagrams every kernel takes as one.
	mergedUDP = 64
)

// NewCoalescer makes one for at most capacity packets at a time. With NoOffload
// every packet stays alone.
func NewCoalescer(capacity int, offload Offload) *Coalescer {
	return &Coalescer{
		offload: offload,
		packets: make([]member, 0, capacity),
		groups:  make([]group, 0, capacity),
		headers: make([]byte, capacity*groupHeader),
	}
}

// Reset forgets all packets.
func (c *Coalescer) Reset() {
	c.packets, c.groups = c.packets[:0], c.groups[:0]
	clear(c.flows[:])
}

// Add takes one more packet, or anything else. It must stay as it is until
// Reset.
func (c *Coalescer) Add(packet []byte) {
	i := uint16(len(c.packets))
	c.packets = append(c.packets, member{data: packet})
	g := group{first: i, last: i, count: 1, length: len(packet)}
	flow := c.classify(&g, packet)
	if flow < 0 {
		c.groups = append(c.groups, g)
		return
	}
	at := c.flows[flow]
	if at == 0 || !c.join(&c.groups[at-1], &g, packet) {
		c.groups = append(c.groups, g)
		at = uint16(len(c.groups))
	}
	// Nothing comes behind what cannot merge, is the last of a burst, or is
	// shorter than the others.
	if g.headers == 0 || g.push || g.size < c.groups[at-1].size {
		at = 0
	}
	c.flows[flow] = at
}

// classify fills in what joining needs to know of a packet, and returns the
// number of its flow, -1 if nothing of its flow can merge.
func (c *Coalescer) classify(g *group, b []byte) (flow int) {
	if c.offload == NoOffload || len(b) < ip4Header || len(b) > longestMerged {
		return -1
	}
	switch {
	case b[0] == 0x45 && binary.BigEndian.Uint16(b[6:])&0x3fff == 0:
		g.protocol, g.start = b[9], ip4Header
	case b[0]>>4 == 6 && len(b) >= ip6Header && !isExtension(b[6]):
		g.protocol, g.start = b[6], ip6Header
	default: // the flow is hidden, so it may be any
		clear(c.flows[:])
		return -1
	}
	switch {
	case g.protocol == tcp && len(b) >= g.start+tcpHeader:
		flags, end := b[g.start+13], g.end(b)
		g.push = flags&psh != 0
		if flags&^psh == ack && end >= g.start+tcpHeader && end < len(b) && g.consistent(b) {
			g.headers = end
		}
	case g.protocol == udp && c.offload == OffloadAll && len(b) >= g.start+udpHeader:
		end := g.start + udpHeader
		if end < len(b) && binary.NativeEndian.Uint16(b[end-2:]) != 0 && g.consistent(b) {
			g.headers = end
		}
	default:
		return -1
	}
	g.size = len(b) - g.headers
	return flowOf(b, g.start)
}

// isExtension tells whether the header number is of IPv6 itself.
func isExtension(number byte) bool {
	switch number {
	case 0, 43, 44, 51, 60:
		return true
	}
	return false
}

// flowOf makes a number of the addresses and ports.
func flowOf(b []byte, start int) int {
	h := uint64(binary.NativeEndian.Uint32(b[start:])) // the ports
	if start == ip4Header {
		h ^= binary.NativeEndian.Uint64(b[12:]) * 0x9e3779b97f4a7c15
	} else {
		for i := 8; i < ip6Header; i += 8 {
			h = (h ^ binary.NativeEndian.Uint64(b[i:])) * 0x9e3779b97f4a7c15
		}
	}
	return int(h * 0x9e3779b97f4a7c15 >> 56)
}

// join makes the only packet of n the next one of g, if it is.
func (c *Coalescer) join(g, n *group, packet []byte) bool {
	first := c.packets[g.first].data
	payload := n.length - n.headers
	switch {
	case n.headers == 0, n.headers != g.headers, n.protocol != g.protocol,
		n.size > g.size, g.length+payload > longestMerged,
		g.protocol == udp && g.count == mergedUDP,
		!sameFlow(first, packet, g.start),
		!follows(g, first, packet):
		return false
	}
	if g.valid = g.valid || valid(first, g.transport); !g.valid || !valid(packet, g.transport) {
		return false
	}
	c.packets[g.last].next = n.first
	g.last = n.first
	g.count++
	g.length += payload
	g.push = n.push
	return true
}

// sameFlow tells whether two packets are equal in all that one header has to
// say for both.
func sameFlow(a, b []byte, start int) bool {
	a, b = a[:start+4], b[:start+4]
	if start == ip6Header {
		// Version, traffic class and flow label; next header and hop limit;
		// addresses and ports.
		return binary.NativeEndian.Uint32(a) == binary.NativeEndian.Uint32(b) &&
			binary.NativeEndian.Uint16(a[6:]) == binary.NativeEndian.Uint16(b[6:]) &&
			bytes.Equal(a[8:], b[8:])
	}
	// Version, length and type of service; flags; time to live and protocol.
	return binary.NativeEndian.Uint16(a) == binary.NativeEndian.Uint16(b) &&
		binary.NativeEndian.Uint32(a[6:]) == binary.NativeEndian.Uint32(b[6:]) &&
		bytes.Equal(a[12:], b[12:])
}

// follows tells whether the packet b of the flow comes directly behind the
// ones of g, which begin with a.
func follows(g *group, a, b []byte) bool {
	if g.start == ip4Header && a[6]&0x40 == 0 {
		// The identification counts up, or could not be made again. It does
		// not matter where fragmentation is forbidden (RFC 6864).
		if binary.BigEndian.Uint16(b[4:])-binary.BigEndian.Uint16(a[4:]) != uint16(g.count) {
			return false
		}
	}
	if g.protocol == udp {
		return true
	}
	a, b = a[g.start:g.headers], b[g.start:g.headers]
	sent := uint32(g.length - g.headers)
	return binary.BigEndian.Uint32(b[4:])-binary.BigEndian.Uint32(a[4:]) == sent &&
		bytes.Equal(a[8:13], b[8:13]) && // acknowledgement and length of the header
		bytes.Equal(a[14:16], b[14:16]) && // window
		bytes.Equal(a[18:], b[18:]) // urgent pointer and options
}

// valid verifies the checksums of a packet.
func valid(b []byte, t transport) bool {
	if t.start == ip4Header && fold(sum(b[:ip4Header], 0)) != 0xffff {
		return false
	}
	return fold(sum(b[t.start:], pseudo(b, t, len(b)-t.start))) == 0xffff
}

// Groups returns of how many messages the packets are now.
func (c *Coalescer) Groups() int { return len(c.groups) }

// Group returns how many packets are in message i, and the length in bytes of
// all of them.
func (c *Coalescer) Group(i int) (packets, bytes int) {
	g := &c.groups[i]
	return g.count, g.length + (g.count-1)*g.headers
}

// Vectors appends what makes up message i to v: the virtio_net_hdr, with
// headers behind it where there are new ones, and parts of the packets. It
// refers to memory of c and of the packets, and holds until Reset.
func (c *Coalescer) Vectors(i int, v []unix.Iovec) []unix.Iovec {
	g := &c.groups[i]
	head := c.headers[i*groupHeader:][:groupHeader]
	if g.count == 1 {
		Header{}.Encode(head)
		return appendVector(appendVector(v, head[:HeaderLen]), c.packets[g.first].data)
	}
	c.makeHeaders(g, head)
	v = appendVector(v, head[:HeaderLen+g.headers])
	for n := g.first; ; n = c.packets[n].next {
		v = appendVector(v, c.packets[n].data[g.headers:])
		if n == g.last {
			return v
		}
	}
}

func appendVector(v []unix.Iovec, b []byte) []unix.Iovec {
	v = append(v, unix.Iovec{Base: unsafe.SliceData(b)})
	v[len(v)-1].SetLen(len(b))
	return v
}

// makeHeaders writes the headers of a super-packet.
func (c *Coalescer) makeHeaders(g *group, head []byte) {
	h := Header{
		Flags: NeedsChecksum, GSOType: UDP, HeadersLen: uint16(g.headers), SegmentSize: uint16(g.size),
		ChecksumStart: uint16(g.start), ChecksumOffset: uint16(g.checksum()),
	}
	b := head[HeaderLen:][:g.headers]
	copy(b, c.packets[g.first].data)
	if b[0]>>4 == 4 {
		binary.BigEndian.PutUint16(b[2:], uint16(g.length))
		b[10], b[11] = 0, 0
		put(b[10:], ^fold(sum(b[:ip4Header], 0)))
		h.GSOType = TCP4
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(g.length-ip6Header))
		h.GSOType = TCP6
	}
	if g.protocol == udp {
		h.GSOType = UDP
		binary.BigEndian.PutUint16(b[g.start+4:], uint16(g.length-g.start))
	} else if g.push {
		b[g.start+13] |= psh
	}
	put(b[g.start+g.checksum():], fold(pseudo(b, g.transport, g.length-g.start)))
	h.Encode(head)
}
