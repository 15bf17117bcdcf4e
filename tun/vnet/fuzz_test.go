package vnet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
)

// seeds are messages of the kernel's and of clients, good and bad.
func seeds() (messages [][]byte) {
	random := rand.New(rand.NewPCG(7, 8))
	for range 20 {
		packet, protocol, start, size := randomSuper(random)
		if len(packet) < 5000 {
			messages = append(messages, super(packet, protocol, start, size))
		}
	}
	for _, message := range hostile() {
		if len(message) < 200 {
			messages = append(messages, message)
		}
	}
	return append(messages,
		super(tuntest.Segment(a4, b4, 1, tuntest.ACK, timestamps, make([]byte, 100)), tuntest.TCP, 20, 30),
		super(tuntest.Datagram(a6, b6, make([]byte, 100)), tuntest.UDP, 40, 30),
		append(make([]byte, HeaderLen), tuntest.Datagram(a4, b4, make([]byte, 100))...))
}

// repair makes the lengths and sums of a message true, so that what is behind
// them is reached.
func repair(message []byte) {
	if len(message) < HeaderLen {
		return
	}
	h, b := Decode(message), message[HeaderLen:]
	t, ok := findTransport(b)
	if !ok {
		return
	}
	if b[0]>>4 == 4 {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		tuntest.FixHeader(b)
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	}
	if t.protocol == udp {
		binary.BigEndian.PutUint16(b[t.start+4:], uint16(len(b)-t.start))
	}
	if h.Flags == NeedsChecksum {
		h.ChecksumStart, h.ChecksumOffset = uint16(t.start), uint16(t.checksum())
		binary.BigEndian.PutUint16(b[t.start+t.checksum():], tuntest.PseudoSum(b, t.protocol, t.start, false))
	}
	if h.GSOType != None {
		h.HeadersLen = max(h.HeadersLen, uint16(t.end(b)))
	}
	h.Encode(message)
}

// linux states, one by one, what the kernel does with a header that it must
// not be able to get wrong.
func linux(t *testing.T, message []byte) {
	t.Helper()
	h, b := Decode(message), message[HeaderLen:]
	if h.Flags&^NeedsChecksum != 0 {
		t.Errorf("flags %#x", h.Flags)
	}
	if h.Flags == 0 {
		if h != (Header{}) {
			t.Errorf("header %+v", h)
		}
		return
	}
	at, protocol := int(h.ChecksumStart), b[6]
	if b[0]>>4 == 4 {
		protocol = b[9]
		if at != int(b[0]&15)*4 || b[6]&0x3f != 0 || b[7] != 0 || int(binary.BigEndian.Uint16(b[2:])) != len(b) {
			t.Errorf("IPv4 header %x, checksum from %d", b[:20], at)
		}
	} else {
		if b[0]>>4 != 6 || at < 40 || int(binary.BigEndian.Uint16(b[4:]))+40 != len(b) {
			t.Errorf("IPv6 header %x, checksum from %d", b[:40], at)
		}
		for i := 40; i < at; i += 8 + int(b[i+1])*8 {
			if protocol != 0 && protocol != 43 && protocol != 60 {
				t.Errorf("extension header %d", protocol)
			}
			protocol = b[i]
		}
	}
	end := at + 8
	if protocol == tuntest.TCP {
		end = at + int(b[at+12]>>4)*4
	}
	if end > len(b) || h.ChecksumOffset != map[byte]uint16{tuntest.TCP: 16, tuntest.UDP: 6}[protocol] || h.ChecksumOffset == 0 {
		t.Errorf("protocol %d, checksum at %d+%d, headers of %d bytes", protocol, at, h.ChecksumOffset, end)
	}
	want := map[bool]byte{true: TCP4, false: TCP6}[b[0]>>4 == 4]
	if protocol == tuntest.UDP {
		want = UDP
	} else if b[at+13]&tuntest.CWR != 0 {
		want |= ECN
	}
	switch {
	case h.GSOType == None:
		if h.HeadersLen != 0 || h.SegmentSize != 0 {
			t.Errorf("header %+v", h)
		}
	case h.GSOType != want, int(h.HeadersLen) != end, h.SegmentSize == 0, h.SegmentSize == 0xffff, len(b)-end <= int(h.SegmentSize),
		protocol == tuntest.UDP && len(b)-end > 128*int(h.SegmentSize):
		t.Errorf("header %+v", h)
	}
}

// FuzzVirtioHeader looks for a client's message that is let through although
// its header is wrong, or that is not taken apart rightly.
func FuzzVirtioHeader(f *testing.F) {
	for _, message := range seeds() {
		f.Add(message, false)
		f.Add(message, true)
	}
	f.Fuzz(func(t *testing.T, message []byte, fix bool) {
		if len(message) > MaxMessage {
			return
		}
		if fix {
			repair(message)
		}
		before := bytes.Clone(message)
		var p, kernel Packet
		if err := p.Check(message); err != nil {
			if !bytes.Equal(before, message) {
				t.Error("a refused message was changed")
			}
			return
		}
		if !bytes.Equal(before[HeaderLen:], message[HeaderLen:]) {
			t.Error("the packet was changed")
		}
		linux(t, message)
		after := bytes.Clone(message)
		if err := p.Check(message); err != nil || !bytes.Equal(after, message) {
			t.Errorf("checked again: %v, %x, before %x", err, message[:HeaderLen], after[:HeaderLen])
		}
		if err := kernel.Parse(after); err != nil {
			t.Fatalf("Parse: %v", err)
		}
		if !p.Partial() {
			return
		}
		start := int(Decode(message).ChecksumStart)
		got, want := split(&p), split(&kernel)
		equal(t, "Check and Parse", got, want)
		for _, packet := range got {
			protocol := byte(tuntest.TCP)
			if Decode(before).ChecksumOffset == 6 {
				protocol = tuntest.UDP
			}
			if sum := tuntest.PseudoSum(packet, protocol, start, true); sum != 0xffff {
				t.Errorf("a packet of the sum %#x: %x", sum, packet)
			}
		}
	})
}

// FuzzSplit takes anything for a message of the kernel's, whose payload must
// come out whole.
func FuzzSplit(f *testing.F) {
	for _, message := range seeds() {
		f.Add(message)
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		if len(message) > MaxMessage {
			return
		}
		var p Packet
		if p.Parse(message) != nil {
			return
		}
		packets, headers := split(&p), p.HeadersLen()
		total, longest := 0, 0
		var payload []byte
		for _, packet := range packets {
			total, longest = total+len(packet), max(longest, len(packet))
			payload = append(payload, packet[headers:]...)
		}
		if p.Segments() != len(packets) || p.Total() != total || p.Longest() != longest {
			t.Errorf("%d of %d bytes, %d at most, want %d of %d, %d", p.Segments(), p.Total(), p.Longest(), len(packets), total, longest)
		}
		if p.Super() && !bytes.Equal(payload, message[HeaderLen+headers:]) {
			t.Error("another payload")
		}
	})
}

// FuzzCoalesce cuts data into packets, which must come out again whatever they
// are.
func FuzzCoalesce(f *testing.F) {
	join := func(packets [][]byte) (b []byte) {
		for _, p := range packets {
			b = binary.BigEndian.AppendUint16(b, uint16(len(p)))
			b = append(b, p...)
		}
		return b
	}
	random := rand.New(rand.NewPCG(9, 10))
	for range 10 {
		f.Add(join(mix(random)), false)
	}
	f.Add(join(burst(a4, b4, 1, 100, 30)), true)
	f.Add(join(datagrams(a6, b6, 1, 3, 30)), true)
	c := NewCoalescer(128, OffloadAll)
	f.Fuzz(func(t *testing.T, data []byte, fix bool) {
		var packets [][]byte
		for len(data) > 2 && len(packets) < 128 {
			n := min(int(binary.BigEndian.Uint16(data)), len(data)-2)
			if packet := data[2 : 2+n]; n > 0 {
				if fix {
					if at, ok := findTransport(packet); ok {
						repair(append(make([]byte, HeaderLen), packet...))
						tuntest.FixTransport(packet, at.protocol, at.start)
					}
				}
				packets = append(packets, packet)
			}
			data = data[2+n:]
		}
		same(t, apart(t, coalesced(c, packets...)), packets)
	})
}
