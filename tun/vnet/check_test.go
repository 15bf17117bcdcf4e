package vnet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
)

// hostile are messages that nobody may bring to the kernel, each one step away
// from a good one.
func hostile() map[string][]byte {
	all := map[string][]byte{}
	tcp4, udp4 := tuntest.Segment(a4, b4, 1, tuntest.ACK, timestamps, make([]byte, 5000)), tuntest.Datagram(a4, b4, make([]byte, 5000))
	tcp6, udp6 := tuntest.Segment(a6, b6, 1, tuntest.ACK, timestamps, make([]byte, 5000)), tuntest.Datagram(a6, b6, make([]byte, 5000))
	header := func(name string, packet []byte, change func(*Header)) {
		protocol, at := start(packet)
		message := super(packet, protocol, at, 1000)
		h := Decode(message)
		change(&h)
		h.Encode(message)
		all[name] = message
	}
	inner := func(name string, packet []byte, change func(p []byte, at int) []byte) {
		protocol, at := start(packet)
		packet = change(bytes.Clone(packet), at)
		if packet[0]>>4 == 4 && packet[0]&15 >= 5 {
			tuntest.FixHeader(packet)
		}
		all[name] = super(packet, protocol, at, 1000)
	}
	// single is inner for a packet whose checksum is partial.
	single := func(name string, packet []byte, change func(p []byte, at int) []byte) {
		inner(name, packet, change)
		h := Decode(all[name])
		h.GSOType, h.HeadersLen, h.SegmentSize = None, 0, 0
		h.Encode(all[name])
	}
	for n := range HeaderLen {
		all["shorter than a header: "+string(rune('0'+n))] = make([]byte, n)
	}
	for kind := range 256 {
		if kind != None && kind != TCP4 && kind != TCP4|ECN {
			header("kind "+string(rune(kind))+" for TCP", tcp4, func(h *Header) { h.GSOType = byte(kind) })
		}
		if kind != None && kind != TCP6 && kind != TCP6|ECN {
			header("kind "+string(rune(kind))+" for TCP in IPv6", tcp6, func(h *Header) { h.GSOType = byte(kind) })
		}
		if kind != None && kind != UDP {
			header("kind "+string(rune(kind))+" for UDP", udp4, func(h *Header) { h.GSOType = byte(kind) })
			header("kind "+string(rune(kind))+" for UDP in IPv6", udp6, func(h *Header) { h.GSOType = byte(kind) })
		}
		if kind != NeedsChecksum {
			header("flags "+string(rune(kind)), tcp4, func(h *Header) { h.Flags = byte(kind) })
		}
		if kind != NeedsChecksum && kind != 0 && kind != DataValid {
			header("flags "+string(rune(kind))+" of a packet", tcp4, func(h *Header) { h.Flags, h.GSOType = byte(kind), None })
		}
	}
	for name, packet := range map[string][]byte{"TCP": tcp4, "UDP": udp4, "TCP in IPv6": tcp6, "UDP in IPv6": udp6} {
		header(name+": no segment size", packet, func(h *Header) { h.SegmentSize = 0 })
		header(name+": fragments for segments", packet, func(h *Header) { h.SegmentSize = 0xffff })
		header(name+": no headers", packet, func(h *Header) { h.HeadersLen = 0 })
		header(name+": short headers", packet, func(h *Header) { h.HeadersLen-- })
		header(name+": headers beyond the packet", packet, func(h *Header) { h.HeadersLen = 6000 })
		for _, kind := range []byte{None, TCP4, TCP6, UDP} {
			keep := func(h *Header) {
				if kind == None {
					h.GSOType = None
				}
			}
			header(name+": checksum starts early "+string(rune(kind)), packet, func(h *Header) { h.ChecksumStart--; keep(h) })
			header(name+": checksum starts late "+string(rune(kind)), packet, func(h *Header) { h.ChecksumStart += 2; keep(h) })
			header(name+": checksum starts at 0 "+string(rune(kind)), packet, func(h *Header) { h.ChecksumStart = 0; keep(h) })
			header(name+": checksum starts far away "+string(rune(kind)), packet, func(h *Header) { h.ChecksumStart = 0xffff; keep(h) })
			header(name+": checksum in an address "+string(rune(kind)), packet, func(h *Header) { h.ChecksumStart, h.ChecksumOffset = 0, 16; keep(h) })
			header(name+": checksum elsewhere "+string(rune(kind)), packet, func(h *Header) { h.ChecksumOffset += 2; keep(h) })
			header(name+": checksum far away "+string(rune(kind)), packet, func(h *Header) { h.ChecksumOffset = 0xffff; keep(h) })
		}
		for what, do := range map[string]func(string, []byte, func([]byte, int) []byte){"": inner, " of a packet": single} {
			inV4 := packet[0]>>4 == 4
			lengthAt := map[bool]int{true: 2, false: 4}[inV4]
			do(name+": length too small"+what, packet, func(p []byte, _ int) []byte { p[lengthAt]--; return p })
			do(name+": length too big"+what, packet, func(p []byte, _ int) []byte { p[lengthAt+1]++; return p })
			do(name+": cut"+what, packet, func(p []byte, at int) []byte { return p[:at+4+18] })
			if inV4 {
				do(name+": first fragment"+what, packet, func(p []byte, _ int) []byte { p[6] = 0x20; return p })
				do(name+": later fragment"+what, packet, func(p []byte, _ int) []byte { p[7] = 1; return p })
				do(name+": last fragment"+what, packet, func(p []byte, _ int) []byte { p[6] = 0x1f; return p })
				do(name+": another protocol"+what, packet, func(p []byte, _ int) []byte { p[9] = 136; return p })
				do(name+": short IPv4 header"+what, packet, func(p []byte, _ int) []byte { p[0] = 0x44; return p })
				do(name+": long IPv4 header"+what, packet, func(p []byte, _ int) []byte { p[0] = 0x46; return p })
			} else {
				for _, next := range []byte{44, 50, 51, 58, 59, 136} {
					do(name+": next header "+string(rune(next))+what, packet, func(p []byte, _ int) []byte { p[6] = next; return p })
				}
				do(name+": chain of extensions"+what, packet, func(p []byte, _ int) []byte { p[6] = 60; return p })
			}
			do(name+": version"+what, packet, func(p []byte, _ int) []byte { p[0] = 0x55; return p })
		}
	}
	for name, packet := range map[string][]byte{"IPv4": tcp4, "IPv6": tcp6} {
		for flag, is := range map[string]byte{"SYN": tuntest.SYN, "RST": tuntest.RST, "URG": tuntest.URG} {
			inner(name+": segments with "+flag, packet, func(p []byte, at int) []byte { p[at+13] |= is; return p })
		}
		inner(name+": short TCP header", packet, func(p []byte, at int) []byte { p[at+12] = 0x40; return p })
		single(name+": short TCP header of a packet", packet, func(p []byte, at int) []byte { p[at+12] = 0x40; return p })
	}
	for name, packet := range map[string][]byte{"IPv4": udp4, "IPv6": udp6} {
		inner(name+": short datagram", packet, func(p []byte, at int) []byte { p[at+5]--; return p })
		inner(name+": long datagram", packet, func(p []byte, at int) []byte { p[at+5]++; return p })
		single(name+": short datagram of a packet", packet, func(p []byte, at int) []byte { p[at+5]--; return p })
		header(name+": 129 datagrams", packet, func(h *Header) { h.SegmentSize = 5000 / 129 })
	}
	nothing4, nothing6 := tuntest.Segment(a4, b4, 1, tuntest.ACK, nil, nil), tuntest.Segment(a6, b6, 1, tuntest.ACK, nil, nil)
	header("IPv4: no payload", nothing4, func(*Header) {})
	header("IPv6: no payload", nothing6, func(*Header) {})
	header("too many segments", tuntest.Segment(a4, b4, 1, tuntest.ACK, nil, make([]byte, 2049)), func(h *Header) { h.SegmentSize = 1 })
	return all
}

func TestCheckRefusesHostileHeaders(t *testing.T) {
	for name, message := range hostile() {
		before := bytes.Clone(message)
		var p Packet
		if err := p.Check(message); !errors.Is(err, ErrHeader) {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(before, message) {
			t.Errorf("%s: the message was changed", name)
		}
	}
}

// The kernel would take the sum as it is, and nobody would look again.
func TestCheckRefusesWrongSums(t *testing.T) {
	for _, packet := range [][]byte{
		tuntest.Segment(a4, b4, 1, tuntest.ACK, nil, make([]byte, 3000)), tuntest.Segment(a6, b6, 1, tuntest.ACK, nil, make([]byte, 3000)),
		tuntest.Datagram(a4, b4, make([]byte, 3000)), tuntest.Datagram(a6, b6, make([]byte, 3000)),
	} {
		protocol, at := start(packet)
		message := super(packet, protocol, at, 1000)
		place := message[HeaderLen+at+int(Decode(message).ChecksumOffset):]
		right := binary.BigEndian.Uint16(place)
		for _, wrong := range []uint16{0, ^right, right + 1, 0xffff} {
			binary.BigEndian.PutUint16(place, wrong)
			for _, kind := range []byte{message[1], None} {
				other := bytes.Clone(message)
				other[1] = kind
				var p Packet
				if err := p.Check(other); !errors.Is(err, ErrChecksum) {
					t.Errorf("%#x for %#x: %v", wrong, right, err)
				}
			}
		}
	}
}

// What is accepted is stated anew, and nothing more than what was verified.
func TestCheckWritesTheHeaderAnew(t *testing.T) {
	segment := tuntest.Segment(a4, b4, 1, tuntest.ACK|tuntest.CWR, timestamps, make([]byte, 2500))
	plain := tuntest.Segment(a4, b4, 1, tuntest.ACK, timestamps, make([]byte, 2500))
	partial := Header{Flags: NeedsChecksum, ChecksumStart: 20, ChecksumOffset: 16}
	whole := Header{Flags: NeedsChecksum, GSOType: TCP4, HeadersLen: 52, SegmentSize: 1000, ChecksumStart: 20, ChecksumOffset: 16}
	congested := whole
	congested.GSOType |= ECN
	with := func(h Header, change func(*Header)) Header { change(&h); return h }
	for name, c := range map[string]struct {
		packet    []byte
		has, want Header
	}{
		"nothing":                  {segment, Header{}, Header{}},
		"verified":                 {segment, Header{Flags: DataValid}, Header{}},
		"what does not count":      {segment, Header{HeadersLen: 90, SegmentSize: 5, ChecksumStart: 0xffff, ChecksumOffset: 0xffff}, Header{}},
		"partial":                  {segment, with(partial, func(h *Header) { h.HeadersLen, h.SegmentSize = 100, 7 }), partial},
		"super-packet":             {plain, whole, whole},
		"all in one piece":         {plain, with(whole, func(h *Header) { h.HeadersLen = 2552 }), whole},
		"congestion window":        {segment, congested, congested},
		"congestion window, late":  {segment, whole, congested},
		"no congestion window":     {plain, congested, whole},
		"as long as one segment":   {plain, with(whole, func(h *Header) { h.SegmentSize = 2500 }), partial},
		"shorter than one segment": {plain, with(whole, func(h *Header) { h.SegmentSize = 60000 }), partial},
	} {
		message := super(c.packet, tuntest.TCP, 20, 1000)
		c.has.Encode(message)
		var p Packet
		if err := p.Check(message); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := Decode(message); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
		if !bytes.Equal(p.Message(), message) || !bytes.Equal(p.Bytes(), message[HeaderLen:]) {
			t.Errorf("%s: not the message", name)
		}
		if p.Super() != (c.want.GSOType != None) || p.Partial() != (c.want.Flags != 0) || p.UDP() {
			t.Errorf("%s: super %v, partial %v", name, p.Super(), p.Partial())
		}
	}
}

// The packet itself is not looked at where nothing depends on it.
func TestCheckLeavesPacketsAlone(t *testing.T) {
	for _, packet := range [][]byte{nil, {0x45}, make([]byte, 100), bytes.Repeat([]byte{0xff}, 65536)} {
		message := append(make([]byte, HeaderLen), packet...)
		var p Packet
		if err := p.Check(message); err != nil || !bytes.Equal(p.Bytes(), packet) || p.Longest() != len(packet) || p.Segments() != 1 {
			t.Errorf("%d bytes: %v", len(packet), err)
		}
		if err := p.Parse(message); err != nil || !bytes.Equal(p.Bytes(), packet) {
			t.Errorf("%d bytes: Parse: %v", len(packet), err)
		}
	}
}

// The kernel has checksums to complete that are not of the packet's own
// transport header, as in a tunnel.
func TestParseCompletesAnywhere(t *testing.T) {
	message := append(make([]byte, HeaderLen), tuntest.Packet(a4.Addr(), b4.Addr(), 47, []byte{0, 0, 0, 0, 1, 2, 0, 0, 3, 4})...)
	Header{Flags: NeedsChecksum, ChecksumStart: 24, ChecksumOffset: 2}.Encode(message)
	var p Packet
	if err := p.Check(message); !errors.Is(err, ErrHeader) {
		t.Errorf("Check: %v", err)
	}
	if err := p.Parse(message); err != nil {
		t.Fatal(err)
	}
	p.Complete()
	if got := p.Bytes()[24:]; !bytes.Equal(got, []byte{1, 2, 0xfb, 0xf9, 3, 4}) {
		t.Errorf("%x", got)
	}
	Header{Flags: NeedsChecksum, ChecksumStart: 24, ChecksumOffset: 5}.Encode(message)
	if err := p.Parse(message); !errors.Is(err, ErrHeader) {
		t.Errorf("beyond the packet: %v", err)
	}
}
