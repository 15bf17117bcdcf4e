package tun_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vpnprovider/vpnproviderd/tun"
	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// pair is who talks to whom, and how.
type pair struct {
	name     string
	from, to netip.AddrPort
	protocol byte
	headers  int // bytes
}

func ports(from, to netip.Addr) (f, t netip.AddrPort) {
	return netip.AddrPortFrom(from, 1000), netip.AddrPortFrom(to, 2000)
}

// pairs are all that can be super-packets, to the client or from it.
func pairs(toClient bool) (all []pair) {
	for _, p := range []pair{
		{name: "TCP", protocol: tuntest.TCP, headers: 40},
		{name: "UDP", protocol: tuntest.UDP, headers: 28},
		{name: "TCP over IPv6", protocol: tuntest.TCP, headers: 60},
		{name: "UDP over IPv6", protocol: tuntest.UDP, headers: 48},
	} {
		own, peer := own4, peer4
		if p.headers > 40 {
			own, peer = own6, peer6
		}
		if p.from, p.to = ports(peer, own); toClient {
			p.from, p.to = ports(own, peer)
		}
		all = append(all, p)
	}
	return all
}

// packet makes packet i of a flow with payloads of size bytes.
func (p pair) packet(i, size int, payload []byte) []byte {
	var packet []byte
	if p.protocol == tuntest.UDP {
		packet = tuntest.Datagram(p.from, p.to, payload)
	} else {
		packet = tuntest.Segment(p.from, p.to, uint32(1+i*size), tuntest.ACK, nil, payload)
	}
	if packet[0]>>4 == 4 {
		binary.BigEndian.PutUint16(packet[4:], uint16(i))
		tuntest.FixHeader(packet)
	}
	return packet
}

// packets are count packets whose payload is 1000 bytes each.
func (p pair) packets(count int) (all [][]byte) {
	for i := range count {
		all = append(all, p.packet(i, 1000, bytes.Repeat([]byte{byte(i + 1)}, 1000)))
	}
	return all
}

// super is one message that stands for the same packets.
func (p pair) super(count, size int) []byte {
	var payload []byte
	for i := range count {
		payload = append(payload, bytes.Repeat([]byte{byte(i + 1)}, size)...)
	}
	packet := p.packet(0, size, payload)
	h := vnet.Header{
		Flags: vnet.NeedsChecksum, GSOType: vnet.UDP, HeadersLen: uint16(p.headers), SegmentSize: uint16(size),
		ChecksumStart: 20, ChecksumOffset: 6,
	}
	if p.from.Addr().Is6() {
		h.ChecksumStart = 40
	}
	if p.protocol == tuntest.TCP {
		h.GSOType, h.ChecksumOffset = vnet.TCP4, 16
		if p.from.Addr().Is6() {
			h.GSOType = vnet.TCP6
		}
	}
	start := int(h.ChecksumStart)
	binary.BigEndian.PutUint16(packet[start+int(h.ChecksumOffset):], tuntest.PseudoSum(packet, p.protocol, start, false))
	return message(h, packet)
}

func message(h vnet.Header, packet []byte) []byte {
	m := make([]byte, vnet.HeaderLen, vnet.HeaderLen+len(packet))
	h.Encode(m)
	return append(m, packet...)
}

// messages are packets with the header of those that are complete.
func messages(packets [][]byte) (all [][]byte) {
	for _, p := range packets {
		all = append(all, message(vnet.Header{}, p))
	}
	return all
}

// expect reads what is wanted, in this order and no more.
func expect(tb testing.TB, what string, f *os.File, want [][]byte) {
	tb.Helper()
	for i, w := range want {
		if got := get(tb, f); !bytes.Equal(got, w) {
			tb.Fatalf("%s: %d of %d is %d bytes, want %d:\n%.100x\n%.100x", what, i, len(want), len(got), len(w), got, w)
		}
	}
	nothing(tb, f)
}

func TestSuperPacketsToTheClient(t *testing.T) {
	b := newOffloadBench(t, vnet.OffloadAll).configure(t)
	packets, size := 0, 0
	count := func(n, bytes int) {
		packets, size = packets+n, size+bytes
		b.counts(t, "txPackets", uint64(packets))
		b.counts(t, "txBytes", uint64(size))
	}
	for _, format := range []tun.Format{tun.FormatPacket, tun.FormatOffload, tun.FormatPacket} {
		client := b.connectBy(t, format)
		for _, p := range pairs(true) {
			want := p.packets(20)
			if format == tun.FormatOffload {
				want = [][]byte{p.super(20, 1000)}
			}
			put(t, b.host, p.super(20, 1000))
			expect(t, p.name, client, want)
			count(20, 20*(p.headers+1000))

			// Alone, with the checksum complete, and left to us.
			single, partial := p.packet(1, 1000, []byte("single")), partialOf(p, []byte("partial"))
			complete := p.packet(0, 1000, []byte("partial"))
			want = [][]byte{single, complete}
			if format == tun.FormatOffload {
				want = [][]byte{message(vnet.Header{}, single), partial}
			}
			put(t, b.host, message(vnet.Header{}, single))
			put(t, b.host, partial)
			expect(t, p.name+", alone", client, want)
			count(2, 2*p.headers+6+7)
		}
	}
}

// partialOf is a message of a packet whose checksum is not complete.
func partialOf(p pair, payload []byte) []byte {
	m := p.super(2, 1)
	h := vnet.Decode(m)
	h.GSOType, h.HeadersLen, h.SegmentSize = vnet.None, 0, 0
	packet := p.packet(0, 1000, payload)
	binary.BigEndian.PutUint16(packet[h.ChecksumStart+h.ChecksumOffset:], tuntest.PseudoSum(packet, p.protocol, int(h.ChecksumStart), false))
	return message(h, packet)
}

// Packets that wait in the channel together become super-packets.
func TestPacketsAreMerged(t *testing.T) {
	for _, p := range pairs(false) {
		b := newOffloadBench(t, vnet.OffloadAll).configure(t)
		b.connectBy(t, tun.FormatPacket, p.packets(20)...)
		expect(t, p.name, b.host, [][]byte{p.super(20, 1000)})
		b.counts(t, "rxPackets", 20)
		b.counts(t, "rxBytes", uint64(20*(p.headers+1000)))
		b.Close()

		// Each is judged before.
		b = newOffloadBench(t, vnet.OffloadAll).configure(t)
		packets := p.packets(21)
		for i := range 3 { // from another
			if at := 15; p.from.Addr().Is4() {
				packets[i+10][at] = 99
				packets[i+10][14] = 9
				tuntest.FixHeader(packets[i+10])
			} else {
				packets[i+10][23] = 99
				packets[i+10][13] = 9
			}
		}
		b.connectBy(t, tun.FormatPacket, packets...)
		// The gap ends the first part of TCP, and of IPv4, whose packets are
		// counted.
		b.counts(t, "rxPackets", 18)
		b.counts(t, "dropped.source", 3)
		b.Close()
	}
	// The kernel takes no super-packets of UDP, or none at all.
	for _, p := range pairs(false) {
		b := newOffloadBench(t, vnet.OffloadTCP).configure(t)
		b.connectBy(t, tun.FormatPacket, p.packets(20)...)
		want := [][]byte{p.super(20, 1000)}
		if p.protocol == tuntest.UDP {
			want = messages(p.packets(20))
		}
		expect(t, p.name, b.host, want)
		b.Close()
		b = newBench(t).configure(t)
		b.connectBy(t, tun.FormatPacket, p.packets(20)...)
		expect(t, p.name, b.host, p.packets(20))
	}
}

// A packet with a wrong checksum is for the kernel to refuse: it is not hidden
// in a super-packet.
func TestWrongChecksumsAreNotMerged(t *testing.T) {
	for _, p := range pairs(false) {
		b := newOffloadBench(t, vnet.OffloadAll).configure(t)
		packets := p.packets(9)
		packets[4][len(packets[4])-1]++
		b.connectBy(t, tun.FormatPacket, packets...)
		last := p.packets(9)[5:]
		expect(t, p.name, b.host, [][]byte{p.super(4, 1000), message(vnet.Header{}, packets[4]), superOf(t, p, last)})
	}
}

// superOf merges packets that do not begin at 0.
func superOf(t *testing.T, p pair, packets [][]byte) []byte {
	t.Helper()
	b := newOffloadBench(t, vnet.OffloadAll).configure(t)
	b.connectBy(t, tun.FormatPacket, packets...)
	m := get(t, b.host)
	var super vnet.Packet
	if err := super.Check(m); err != nil || super.Segments() != len(packets) {
		t.Fatalf("%s: %v, %d segments", p.name, err, super.Segments())
	}
	return m
}

func TestMessagesFromTheClient(t *testing.T) {
	for _, p := range pairs(false) {
		super, packets := p.super(20, 1000), p.packets(20)
		single, partial, complete := p.packet(1, 1000, []byte("single")), partialOf(p, []byte("partial")), p.packet(0, 1000, []byte("partial"))
		sent := [][]byte{super, message(vnet.Header{}, single), partial}
		for offload, want := range map[vnet.Offload][][]byte{
			vnet.OffloadAll: sent,
			vnet.OffloadTCP: sent,
			vnet.NoOffload:  append(slices.Clone(packets), single, complete),
		} {
			if offload == vnet.OffloadTCP && p.protocol == tuntest.UDP { // not taken: split here
				want = append(messages(packets), sent[1:]...)
			}
			b := newOffloadBench(t, offload).configure(t)
			b.connectBy(t, tun.FormatOffload, sent...)
			expect(t, fmt.Sprint(p.name, offload), b.host, want)
			b.counts(t, "rxPackets", 22)
			b.counts(t, "rxBytes", uint64(20*(p.headers+1000)+2*p.headers+6+7))
			b.Close()
		}
	}
}

// The TUN may have no headers where the channel has them.
func TestMessagesOfAPlainTUN(t *testing.T) {
	b := newBench(t).configure(t)
	client := b.connectBy(t, tun.FormatOffload)
	for _, p := range pairs(true) {
		packet := p.packet(0, 1000, []byte("hello"))
		put(t, b.host, packet)
		if got := get(t, client); !bytes.Equal(got, message(vnet.Header{}, packet)) {
			t.Errorf("%s: %x", p.name, got)
		}
	}
}

func TestHostileMessages(t *testing.T) {
	b := newOffloadBench(t, vnet.OffloadAll).configure(t)
	client := b.connectBy(t, tun.FormatOffload)
	dropped := map[string]uint64{}
	send := func(reason string, packets uint64, m []byte) {
		t.Helper()
		put(t, client, m)
		dropped[reason] += packets
		b.counts(t, "dropped."+reason, dropped[reason])
	}
	for _, p := range pairs(false) {
		for _, change := range []func(*vnet.Header){
			func(h *vnet.Header) { h.Flags = 4 },
			func(h *vnet.Header) { h.Flags = 0 },
			func(h *vnet.Header) { h.Flags |= vnet.DataValid },
			func(h *vnet.Header) { h.GSOType = 3 },
			func(h *vnet.Header) { h.GSOType ^= 0x81 },
			func(h *vnet.Header) { h.HeadersLen = 0xffff },
			func(h *vnet.Header) { h.SegmentSize = 0 },
			func(h *vnet.Header) { h.SegmentSize = 0xffff },
			func(h *vnet.Header) { h.ChecksumStart = 0 },
			func(h *vnet.Header) { h.ChecksumStart, h.ChecksumOffset = 0, 12 },
			func(h *vnet.Header) { h.ChecksumOffset = 0xfff0 },
		} {
			m := p.super(20, 1000)
			h := vnet.Decode(m)
			change(&h)
			h.Encode(m)
			send("header", 1, m)
		}
		m := p.super(20, 1000)
		m[vnet.HeaderLen+int(vnet.Decode(m).ChecksumStart+vnet.Decode(m).ChecksumOffset)]++
		send("checksum", 1, m)
		send("tooBig", 3, p.super(3, 1501-p.headers))
		backwards := p
		backwards.from, backwards.to = p.to, p.from
		send("destination", 20, backwards.super(20, 1000))
		elsewhere := p
		elsewhere.from = netip.AddrPortFrom(p.to.Addr(), 9)
		send("source", 20, elsewhere.super(20, 1000))
	}
	send("header", 1, []byte{0})
	send("header", 1, make([]byte, vnet.HeaderLen-1))
	send("length", 1, make([]byte, vnet.HeaderLen))
	send("version", 1, make([]byte, vnet.HeaderLen+20))
	send("tooBig", 1, message(vnet.Header{}, tuntest.Packet(peer4, own4, 17, make([]byte, 1481))))
	send("tooBig", 1, make([]byte, vnet.MaxMessage+1))
	nothing(t, b.host)
	put(t, client, message(vnet.Header{}, echo(peer4, own4, 1)))
	get(t, b.host)
	if n := b.Statistics()["rxPackets"]; n != 1 {
		t.Errorf("%d packets received", n)
	}
}

// What the kernel could send that nobody can take apart is lost alone.
func TestStrangeFrames(t *testing.T) {
	b := newOffloadBench(t, vnet.OffloadAll).configure(t)
	client := b.connect(t)
	p := pairs(true)[0]
	for i, change := range []func(*vnet.Header){
		func(h *vnet.Header) { h.GSOType = 3 },
		func(h *vnet.Header) { h.SegmentSize = 0 },
		func(h *vnet.Header) { h.ChecksumStart = 0xffff },
	} {
		m := p.super(20, 1000)
		h := vnet.Decode(m)
		change(&h)
		h.Encode(m)
		put(t, b.host, m)
		b.counts(t, "dropped.header", uint64(i+1))
	}
	put(t, b.host, p.super(20, 1461)) // longer than the MTU
	b.counts(t, "dropped.tooBig", 20)
	q := pairs(false)[0]
	put(t, b.host, q.super(20, 1000)) // of another
	b.counts(t, "dropped.outSource", 20)
	put(t, b.host, p.super(2, 1000))
	expect(t, "afterwards", client, p.packets(2))
}

// A sink gets the packets one by one.
func TestSinkOfSuperPackets(t *testing.T) {
	b := newOffloadBench(t, vnet.OffloadAll).configure(t)
	got := make(chan []byte)
	b.SetSink(func(packet []byte) error { got <- bytes.Clone(packet); return nil })
	for _, p := range pairs(true) {
		put(t, b.host, p.super(20, 1000))
		put(t, b.host, partialOf(p, []byte("partial")))
		for i, want := range append(p.packets(20), p.packet(0, 1000, []byte("partial"))) {
			if packet := wait(t, got); !bytes.Equal(packet, want) {
				t.Fatalf("%s: packet %d is %x", p.name, i, packet)
			}
		}
	}
	b.counts(t, "txPackets", 84)
}

// The rest of a super-packet that a channel had in part goes to the next
// consumer, whatever it is.
func TestAttachWithinASuperPacket(t *testing.T) {
	for _, formats := range [][2]tun.Format{
		{tun.FormatPacket, tun.FormatPacket},
		{tun.FormatPacket, tun.FormatOffload},
		{tun.FormatOffload, tun.FormatPacket},
		{tun.FormatOffload, tun.FormatOffload},
	} {
		b := newOffloadBench(t, vnet.OffloadAll).configure(t)
		former := b.connectBy(t, formats[0])
		p := pairs(true)[0]
		sent := b.fill(t, func(i int) []byte {
			super := p.super(40, 1000)
			binary.BigEndian.PutUint32(super[vnet.HeaderLen+20+4:], uint32(1+i*40*1000))
			return super
		})
		had := map[uint32]bool{} // by sequence number
		read := func(f *os.File, format tun.Format) bool {
			deadline(t, f)
			m := make([]byte, vnet.MaxMessage)
			n, err := f.Read(m)
			if err != nil {
				return false
			}
			if format == tun.FormatPacket {
				had[binary.BigEndian.Uint32(m[24:])] = true
				return true
			}
			var super vnet.Packet
			if err := super.Parse(m[:n]); err != nil {
				t.Fatal(err)
			}
			for i := range super.Segments() {
				had[binary.BigEndian.Uint32(m[vnet.HeaderLen+24:])+uint32(i*1000)] = true
			}
			return true
		}
		took := int(b.Statistics()["txPackets"])
		if took == 0 || took >= sent*40 {
			t.Fatalf("%d of %d packets are with the client", took, sent*40)
		}
		client := b.connectBy(t, formats[1])
		for read(former, formats[0]) {
		}
		for len(had) < sent*40 && read(client, formats[1]) {
		}
		if len(had) != sent*40 {
			t.Errorf("%v: %d of %d packets came", formats, len(had), sent*40)
		}
		b.Close()
	}
}

// Super-packets are not counted otherwise than packets; a full client costs no
// memory.
func TestSlowClientCostsNoMemory(t *testing.T) {
	for _, format := range []tun.Format{tun.FormatPacket, tun.FormatOffload} {
		b := newOffloadBench(t, vnet.OffloadAll).configure(t)
		client := b.connectBy(t, format)
		super := pairs(true)[0].super(40, 1400)
		used := func() uint64 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		before := used()
		for range 2000 {
			b.host.SetWriteDeadline(time.Now().Add(100 * time.Microsecond))
			b.host.Write(super)
		}
		for range 50 { // slowly
			get(t, client)
			b.host.SetWriteDeadline(time.Now().Add(time.Millisecond))
			b.host.Write(super)
		}
		if after := used(); after > before+1<<20 {
			t.Errorf("%d bytes in use, %d before", after, before)
		}
		b.Close()
	}
}
