package vnet

import "encoding/binary"

// Complete makes the checksum of a packet, if it is still partial and p is no
// super-packet.
func (p *Packet) Complete() {
	if !p.Partial() || p.size != 0 {
		return
	}
	start, at := int(p.header.ChecksumStart), int(p.header.ChecksumStart)+int(p.header.ChecksumOffset)
	s := ^fold(sum(p.data[start:], 0))
	if s == 0 && p.header.ChecksumOffset == udpChecksum {
		s = 0xffff // 0 says that there is none
	}
	put(p.data[at:], s)
	p.setHeader(Header{})
}

// HeadersLen returns how much room Segment needs for headers.
func (p *Packet) HeadersLen() int { return p.headers }

// Segment makes packet i of those that a super-packet stands for: it writes the
// headers to the start of headers, which has room for HeadersLen bytes, and
// returns the payload, which is part of p.
func (p *Packet) Segment(i int, headers []byte) (payload []byte) {
	from := p.headers + i*p.size
	payload = p.data[from:min(from+p.size, len(p.data))]
	headers = headers[:p.headers]
	copy(headers, p.data)
	length := p.headers + len(payload)
	if headers[0]>>4 == 4 {
		id := int(binary.BigEndian.Uint16(headers[4:])) + i
		binary.BigEndian.PutUint16(headers[2:], uint16(length))
		binary.BigEndian.PutUint16(headers[4:], uint16(id))
		put(headers[10:], ^fold(p.ipSum+word(length)+word(id)))
	} else {
		binary.BigEndian.PutUint16(headers[4:], uint16(length-ip6Header))
	}
	start := int(p.header.ChecksumStart)
	h, length := headers[start:], length-start
	s := sum(payload, add(p.transportSum, word(length)))
	if p.header.GSOType == UDP {
		binary.BigEndian.PutUint16(h[4:], uint16(length))
		if s = add(s, word(length)); fold(s) == 0xffff {
			s = 0 // becomes 0xffff: 0 says that there is no checksum
		}
		put(h[udpChecksum:], ^fold(s))
		return payload
	}
	binary.BigEndian.PutUint32(h[4:], binary.BigEndian.Uint32(h[4:])+uint32(i*p.size))
	if from+p.size < len(p.data) {
		h[13] &^= fin | psh
	}
	if i > 0 {
		h[13] &^= cwr
	}
	varying := [6]byte{h[4], h[5], h[6], h[7], 0, h[13]}
	put(h[tcpChecksum:], ^fold(sum(varying[:], s)))
	return payload
}

// sumUp prepares the sums of what is the same in each segment: all of the
// headers but lengths, the IPv4 identification, the sequence number and the
// flags.
func (p *Packet) sumUp(t transport) {
	b := p.data
	if b[0]>>4 == 4 {
		p.ipSum = add(sum(b[:2], 0), add(sum(b[6:10], 0), sum(b[12:t.start], 0)))
	}
	p.header.ChecksumStart = uint16(t.start)
	p.transportSum = pseudo(b, t, 0)
	h := b[t.start:]
	if t.protocol == udp {
		p.transportSum = sum(h[:4], p.transportSum)
		return
	}
	// Of the fourth word, the first byte.
	p.transportSum = sum(h[:4], p.transportSum)
	p.transportSum = sum(h[8:13], p.transportSum)
	p.transportSum = sum(h[14:16], p.transportSum)
	p.transportSum = sum(h[18:p.headers-t.start], p.transportSum)
}
