package tun

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// Batch is the largest number of packets that are received from a channel in
// one system call: more in one go bring a client nothing.
const Batch = 128

// batchBytes bounds the memory of a batch where packets are large.
const batchBytes = 1 << 20

// OffloadBatch is Batch for channels of FormatOffload.
const OffloadBatch = batchBytes / (1 << 16)

// packetFeed merges packets as far as the TUN takes super-packets.
type packetFeed struct {
	*Tunnel
	merged *vnet.Coalescer
	next   int // the first group of merged that is not done
	parts  []unix.Iovec
}

func newPacketFeed(t *Tunnel) *packetFeed {
	return &packetFeed{Tunnel: t, merged: vnet.NewCoalescer(Batch, t.offload), parts: make([]unix.Iovec, 0, 1+Batch)}
}

func (p *packetFeed) judge(received intake, got int) {
	p.merged.Reset()
	p.next = 0
	for i := range got {
		packet, truncated := received.received(i)
		f := p.filter.Load() // for each packet: a new policy holds at once
		r := f.fromClient(packet)
		if truncated && f != nil {
			r = tooBig
		}
		if r != pass {
			p.stats.drop(r, 1)
			continue
		}
		p.merged.Add(packet)
	}
}

func (p *packetFeed) frame() (parts []unix.Iovec, packets, bytes int) {
	if p.next == p.merged.Groups() {
		return nil, 0, 0
	}
	p.parts = p.merged.Vectors(p.next, p.parts[:0])
	packets, bytes = p.merged.Group(p.next)
	return p.parts, packets, bytes
}

func (p *packetFeed) done() { p.next++ }

// messageFeed passes messages on as they are where the TUN takes them so, and
// takes the others apart.
type messageFeed struct {
	*Tunnel
	packets [OffloadBatch]vnet.Packet
	count   int
	next    int // the first of packets that is not done
	segment int // and of this, where it goes in segments

	headers [1 << 14]byte // of a segment: there is none with more
	parts   [3]unix.Iovec
}

func (m *messageFeed) judge(received intake, got int) {
	m.count, m.next, m.segment = 0, 0, 0
	for i := range got {
		message, truncated := received.received(i)
		f, p := m.filter.Load(), &m.packets[m.count]
		r := f.messageFromClient(p, message)
		if truncated && f != nil {
			r = tooBig
		}
		if r != pass {
			m.stats.drop(r, p.Segments())
			continue
		}
		m.count++
	}
}

func (m *messageFeed) frame() (parts []unix.Iovec, packets, bytes int) {
	if m.next == m.count {
		return nil, 0, 0
	}
	p := &m.packets[m.next]
	switch {
	case m.takes(p):
		setPart(&m.parts[0], p.Message())
		return m.parts[:1], p.Segments(), p.Total()
	case !p.Super():
		p.Complete()
		setPart(&m.parts[0], m.none[:])
		setPart(&m.parts[1], p.Bytes())
		return m.parts[:2], 1, len(p.Bytes())
	}
	headers := m.headers[:p.HeadersLen()]
	payload := p.Segment(m.segment, headers)
	setPart(&m.parts[0], m.none[:])
	setPart(&m.parts[1], headers)
	setPart(&m.parts[2], payload)
	return m.parts[:3], 1, len(headers) + len(payload)
}

// takes tells whether the TUN takes p as it is.
func (m *messageFeed) takes(p *vnet.Packet) bool {
	return m.offload == vnet.OffloadAll || m.offload == vnet.OffloadTCP && !p.UDP()
}

func (m *messageFeed) done() {
	p := &m.packets[m.next]
	if m.segment++; m.takes(p) || m.segment >= p.Segments() {
		m.next, m.segment = m.next+1, 0
	}
}

func setPart(v *unix.Iovec, b []byte) {
	v.Base = unsafe.SliceData(b)
	v.SetLen(len(b))
}
