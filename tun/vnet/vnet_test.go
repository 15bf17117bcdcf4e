package vnet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
)

var (
	a4, b4 = netip.MustParseAddrPort("192.0.2.1:1000"), netip.MustParseAddrPort("192.0.2.2:2000")
	a6, b6 = netip.MustParseAddrPort("[2001:db8::1]:1000"), netip.MustParseAddrPort("[2001:db8::2]:2000")

	// timestamps are the options of about every TCP segment.
	timestamps = []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}
)

func noise(random *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return b
}

// start is where the transport header of a packet without extension headers
// is, and protocol which one it is.
func start(packet []byte) (protocol byte, at int) {
	if packet[0]>>4 == 4 {
		return packet[9], int(packet[0]&15) * 4
	}
	return packet[6], 40
}

// super makes a message of the kernel's: packet, whose transport header is at
// start, as a super-packet with segments of size bytes.
func super(packet []byte, protocol byte, start, size int) []byte {
	h := Header{Flags: NeedsChecksum, SegmentSize: uint16(size), ChecksumStart: uint16(start)}
	var at int
	switch {
	case protocol == tuntest.UDP:
		h.GSOType, h.HeadersLen, at = UDP, uint16(start+8), 6
	case packet[0]>>4 == 4:
		h.GSOType, h.HeadersLen, at = TCP4, uint16(start+int(packet[start+12]>>4)*4), 16
	default:
		h.GSOType, h.HeadersLen, at = TCP6, uint16(start+int(packet[start+12]>>4)*4), 16
	}
	h.ChecksumOffset = uint16(at)
	message := append(make([]byte, HeaderLen, HeaderLen+len(packet)), packet...)
	h.Encode(message)
	binary.BigEndian.PutUint16(message[HeaderLen+start+at:], tuntest.PseudoSum(packet, protocol, start, false))
	return message
}

// split gives the packets that p stands for.
func split(p *Packet) (packets [][]byte) {
	if !p.Super() {
		p.Complete()
		return [][]byte{p.Bytes()}
	}
	for i := range p.Segments() {
		headers := bytes.Repeat([]byte{0xee}, p.HeadersLen())
		payload := p.Segment(i, headers)
		packets = append(packets, append(headers, payload...))
	}
	return packets
}

// expected says the same one by one and as slowly as it likes.
func expected(packet []byte, protocol byte, start, size int) (packets [][]byte) {
	end := start + 8
	if protocol == tuntest.TCP {
		end = start + int(packet[start+12]>>4)*4
	}
	for rest, i := packet[end:], 0; len(rest) > 0; i++ {
		n := min(size, len(rest))
		p := append(bytes.Clone(packet[:end]), rest[:n]...)
		rest = rest[n:]
		if p[0]>>4 == 4 {
			binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
			binary.BigEndian.PutUint16(p[4:], binary.BigEndian.Uint16(p[4:])+uint16(i))
			tuntest.FixHeader(p)
		} else {
			binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		}
		if protocol == tuntest.UDP {
			binary.BigEndian.PutUint16(p[start+4:], uint16(8+n))
		} else {
			binary.BigEndian.PutUint32(p[start+4:], binary.BigEndian.Uint32(p[start+4:])+uint32(i*size))
			if len(rest) > 0 {
				p[start+13] &^= tuntest.FIN | tuntest.PSH
			}
			if i > 0 {
				p[start+13] &^= tuntest.CWR
			}
		}
		tuntest.FixTransport(p, protocol, start)
		packets = append(packets, p)
	}
	return packets
}

func equal(t *testing.T, what string, got, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d packets, want %d", what, len(got), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("%s: packet %d is\n%x, want\n%x", what, i, got[i], want[i])
		}
	}
}

// randomSuper makes a packet that is longer than size, of any kind that can be
// a super-packet.
func randomSuper(random *rand.Rand) (packet []byte, protocol byte, start, size int) {
	size = []int{1, 2, 7, 8, 536, 1000, 1220, 1448, 8948}[random.IntN(9)]
	segments := 2 + random.IntN(60)
	length := min(size*segments-random.IntN(size), 65535-40-60-24)
	payload := noise(random, length)
	from, to := a4, b4
	if random.IntN(2) == 0 {
		from, to = a6, b6
	}
	protocol = tuntest.TCP
	if random.IntN(2) == 0 {
		protocol = tuntest.UDP
		packet = tuntest.Datagram(from, to, payload)
	} else {
		options := noise(random, 4*random.IntN(11))
		flags := byte(tuntest.ACK | random.IntN(256)&(tuntest.FIN|tuntest.PSH|tuntest.CWR|tuntest.ECE))
		packet = tuntest.Segment(from, to, random.Uint32(), flags, options, payload)
	}
	start = 40
	if from == a4 {
		binary.BigEndian.PutUint16(packet[4:], uint16(random.Uint32()))
		packet[1], packet[6] = byte(random.Uint32()), byte(random.IntN(2))<<6
		start = 20
		if random.IntN(4) == 0 { // options
			packet = append(append(bytes.Clone(packet[:20]), 7, 7, 4, 0, 0, 0, 0, 0), packet[20:]...)
			packet[0], start = 0x47, 28
		}
		binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
		tuntest.FixHeader(packet)
	} else if random.IntN(4) == 0 { // extension headers
		extension := []byte{60, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, protocol, 0, 1, 4, 0, 0, 0, 0}
		packet = append(append(bytes.Clone(packet[:40]), extension...), packet[40:]...)
		packet[6], start = 0, 64
		binary.BigEndian.PutUint16(packet[4:], uint16(len(packet)-40))
	}
	tuntest.FixTransport(packet, protocol, start)
	return packet, protocol, start, size
}

func rounds(n int) int {
	if testing.Short() || raceEnabled {
		return n / 20
	}
	return n
}

// Super-packets come apart as the definition says, the kernel's and those of
// somebody who is not trusted alike.
func TestSegments(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range rounds(6000) {
		packet, protocol, start, size := randomSuper(random)
		want := expected(packet, protocol, start, size)
		for what, parse := range map[string]func(*Packet, []byte) error{"Parse": (*Packet).Parse, "Check": (*Packet).Check} {
			var p Packet
			message := super(packet, protocol, start, size)
			before := bytes.Clone(message)
			if err := parse(&p, message); err != nil {
				if what == "Check" && protocol == tuntest.UDP && len(want) > 128 {
					continue
				}
				t.Fatalf("%s: %v: %x", what, err, message[:80])
			}
			equal(t, what, split(&p), want)
			if p.Super() && !bytes.Equal(message[HeaderLen:], before[HeaderLen:]) {
				t.Fatalf("%s: the message was changed", what)
			}
			total, longest := 0, 0
			for _, w := range want {
				total, longest = total+len(w), max(longest, len(w))
			}
			if p.Segments() != len(want) || p.Total() != total || p.Longest() != longest {
				t.Fatalf("%s: %d segments, %d bytes, %d at most; want %d, %d, %d", what, p.Segments(), p.Total(), p.Longest(), len(want), total, longest)
			}
		}
	}
}

// A datagram whose sum is 0 has 0xffff in its place, since 0 says that there
// is none.
func TestChecksumZero(t *testing.T) {
	for _, c := range []struct{ from, to netip.AddrPort }{{a4, b4}, {a6, b6}} {
		payload := make([]byte, 3*100)
		packet := tuntest.Datagram(c.from, c.to, payload)
		_, at := start(packet)
		segment := tuntest.Datagram(c.from, c.to, payload[:100])
		// What is missing to the sum 0xffff.
		binary.BigEndian.PutUint16(payload, ^tuntest.PseudoSum(segment, tuntest.UDP, at, true)+binary.BigEndian.Uint16(segment[at+6:]))
		payload = payload[:100]
		payload = bytes.Repeat(payload, 3)
		packet = tuntest.Datagram(c.from, c.to, payload)
		var p Packet
		if err := p.Check(super(packet, tuntest.UDP, at, 100)); err != nil {
			t.Fatal(err)
		}
		for _, s := range split(&p) {
			if sum := binary.BigEndian.Uint16(s[at+6:]); sum != 0xffff {
				t.Errorf("checksum %#x", sum)
			}
		}
		single := append(make([]byte, HeaderLen), tuntest.Datagram(c.from, c.to, payload[:100])...)
		Header{Flags: NeedsChecksum, ChecksumStart: uint16(at), ChecksumOffset: 6}.Encode(single)
		binary.BigEndian.PutUint16(single[HeaderLen+at+6:], tuntest.PseudoSum(single[HeaderLen:], tuntest.UDP, at, false))
		if err := p.Check(single); err != nil {
			t.Fatal(err)
		}
		if p.Complete(); binary.BigEndian.Uint16(p.Bytes()[at+6:]) != 0xffff {
			t.Errorf("completed to %x", p.Bytes()[at:at+8])
		}
	}
}

func TestComplete(t *testing.T) {
	for _, want := range [][]byte{
		tuntest.Datagram(a4, b4, []byte("odd")), tuntest.Datagram(a6, b6, []byte("even")), tuntest.Datagram(a4, b4, nil),
		tuntest.Segment(a4, b4, 1, tuntest.SYN, timestamps, nil), tuntest.Segment(a6, b6, 1, tuntest.RST, nil, []byte("x")),
	} {
		protocol, at := start(want)
		message := super(want, protocol, at, 0)
		h := Decode(message)
		h.GSOType, h.HeadersLen = None, 0
		h.Encode(message)
		for what, parse := range map[string]func(*Packet, []byte) error{"Parse": (*Packet).Parse, "Check": (*Packet).Check} {
			var p Packet
			if err := parse(&p, bytes.Clone(message)); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if !p.Partial() || p.Super() || p.Segments() != 1 || p.Longest() != len(want) || p.Total() != len(want) {
				t.Errorf("%s: %+v", what, p)
			}
			p.Complete()
			p.Complete() // once is enough
			if !bytes.Equal(p.Bytes(), want) || p.Partial() {
				t.Errorf("%s: %x, want %x", what, p.Bytes(), want)
			}
			if !bytes.Equal(p.Message(), append(make([]byte, HeaderLen), want...)) {
				t.Errorf("%s: message %x", what, p.Message())
			}
		}
	}
}

func TestSum(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for n := range 300 {
		b := noise(random, n+8)
		for _, fill := range []bool{false, true} {
			if fill {
				b = bytes.Repeat([]byte{0xff}, n+8)
			}
			for at := range 8 {
				initial := uint16(random.Uint32())
				want := uint32(initial)
				for i, v := range b[at : at+n] {
					want += uint32(v) << (8 * (1 - i%2))
				}
				for want > 0xffff {
					want = want>>16 + want&0xffff
				}
				var got [2]byte
				put(got[:], fold(sum(b[at:at+n], word(int(initial)))))
				if binary.BigEndian.Uint16(got[:]) != uint16(want) {
					t.Fatalf("%d bytes from %d: %x, want %#x", n, at, got, want)
				}
			}
		}
	}
}

func TestHeader(t *testing.T) {
	h := Header{Flags: 1, GSOType: TCP6, HeadersLen: 72, SegmentSize: 1448, ChecksumStart: 40, ChecksumOffset: 16}
	b := make([]byte, HeaderLen)
	h.Encode(b)
	if got := Decode(b); got != h {
		t.Errorf("%+v", got)
	}
	for _, c := range []struct{ got, want int }{
		{NeedsChecksum, unix.VIRTIO_NET_HDR_F_NEEDS_CSUM},
		{DataValid, unix.VIRTIO_NET_HDR_F_DATA_VALID},
		{None, unix.VIRTIO_NET_HDR_GSO_NONE},
		{TCP4, unix.VIRTIO_NET_HDR_GSO_TCPV4},
		{TCP6, unix.VIRTIO_NET_HDR_GSO_TCPV6},
		{UDP, unix.VIRTIO_NET_HDR_GSO_UDP_L4},
		{ECN, unix.VIRTIO_NET_HDR_GSO_ECN},
	} {
		if c.got != c.want {
			t.Errorf("%#x, Linux has %#x", c.got, c.want)
		}
	}
}
