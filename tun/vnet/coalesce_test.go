package vnet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
)

// coalesced gives the messages that become of the packets.
func coalesced(c *Coalescer, packets ...[]byte) (messages [][]byte) {
	c.Reset()
	for _, p := range packets {
		c.Add(p)
	}
	for i := range c.Groups() {
		var message []byte
		for _, v := range c.Vectors(i, nil) {
			message = append(message, unsafe.Slice(v.Base, v.Len)...)
		}
		messages = append(messages, message)
	}
	return messages
}

// apart gives the packets of messages, none of which may be refused by who
// does not trust us.
func apart(t *testing.T, messages [][]byte) (packets [][]byte) {
	t.Helper()
	for _, m := range messages {
		var p Packet
		before := bytes.Clone(m)
		if err := p.Check(m); err != nil {
			t.Fatalf("%v: %x", err, m[:min(len(m), 100)])
		}
		if !bytes.Equal(before, m) {
			t.Fatalf("the header was not what Check would write: %x, %x", before[:HeaderLen], m[:HeaderLen])
		}
		packets = append(packets, split(&p)...)
	}
	return packets
}

// burst is what a sender makes of length bytes in segments of size.
func burst(from, to netip.AddrPort, sequence uint32, length, size int) (packets [][]byte) {
	payload := make([]byte, length)
	for i := range payload {
		payload[i] = byte(i * 7 / 5)
	}
	all := tuntest.Segment(from, to, sequence, tuntest.ACK|tuntest.PSH, timestamps, payload)
	protocol, at := start(all)
	return expected(all, protocol, at, size)
}

func datagrams(from, to netip.AddrPort, id, count, size int) (packets [][]byte) {
	for i := range count {
		p := tuntest.Datagram(from, to, bytes.Repeat([]byte{byte(i)}, size))
		if from.Addr().Is4() {
			binary.BigEndian.PutUint16(p[4:], uint16(id+i))
			tuntest.FixHeader(p)
		}
		packets = append(packets, p)
	}
	return packets
}

func TestCoalesce(t *testing.T) {
	c := NewCoalescer(128, OffloadAll)
	for _, f := range []struct{ from, to netip.AddrPort }{{a4, b4}, {a6, b6}} {
		for what, packets := range map[string][][]byte{
			"TCP":              burst(f.from, f.to, 0xffffff00, 40*1400, 1400),
			"TCP, odd end":     burst(f.from, f.to, 5, 10*1400+1, 1400),
			"TCP, small":       burst(f.from, f.to, 5, 100, 1),
			"UDP":              datagrams(f.from, f.to, 0xfff0, 46, 1400),
			"UDP, small":       datagrams(f.from, f.to, 0, 64, 1),
			"UDP, shorter end": append(datagrams(f.from, f.to, 0, 3, 1400), datagrams(f.from, f.to, 3, 1, 100)...),
		} {
			before := make([][]byte, len(packets))
			for i := range packets {
				before[i] = bytes.Clone(packets[i])
			}
			messages := coalesced(c, packets...)
			if len(messages) != 1 {
				t.Fatalf("%s: %d messages", what, len(messages))
			}
			total := 0
			for _, p := range packets {
				total += len(p)
			}
			if n, size := c.Group(0); n != len(packets) || size != total {
				t.Errorf("%s: %d packets of %d bytes, want %d of %d", what, n, size, len(packets), total)
			}
			equal(t, what, apart(t, messages), before)
			equal(t, what+", the packets themselves", packets, before)
		}
	}
}

// Whatever differs in more than its place in the flow comes out alone.
func TestCoalesceKeepsApart(t *testing.T) {
	fix := func(p []byte) []byte {
		protocol, at := start(p)
		if p[0]>>4 == 4 {
			tuntest.FixHeader(p)
		}
		tuntest.FixTransport(p, protocol, at)
		return p
	}
	change := func(offset int, b byte) func([]byte) []byte {
		return func(p []byte) []byte {
			p[offset] ^= b
			return fix(p)
		}
	}
	transport := func(offset int, b byte) func([]byte) []byte {
		return func(p []byte) []byte {
			_, at := start(p)
			p[at+offset] ^= b
			return fix(p)
		}
	}
	all := map[string]map[string]func([]byte) []byte{
		"IPv4": {
			"type of service": change(1, 4), "congestion": change(1, 3), "do not fragment": change(6, 0x40),
			"reserved flag": change(6, 0x80), "time to live": change(8, 1), "source": change(15, 1),
			"destination": change(19, 1), "identification": change(4, 1), "first fragment": change(6, 0x20),
			"later fragment": change(7, 1), "header checksum": func(p []byte) []byte { p[10]++; return p },
			"options": func(p []byte) []byte {
				p = slices.Insert(p, 20, 1, 1, 1, 1)
				p[0]++
				binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
				return fix(p)
			},
			"length": func(p []byte) []byte { p = append(p, 0); tuntest.FixHeader(p); return p },
		},
		"IPv6": {
			"traffic class": change(0, 1), "flow label": change(3, 1), "hop limit": change(7, 1), "source": change(23, 1),
			"destination": change(39, 1), "length": func(p []byte) []byte { return append(p, 0) },
			"extension": func(p []byte) []byte {
				p = slices.Insert(p, 40, p[6], 0, 1, 4, 0, 0, 0, 0)
				p[6] = 0
				binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
				return p
			},
		},
		"TCP": {
			"source port": transport(0, 1), "destination port": transport(2, 1), "sequence": transport(6, 1),
			"acknowledgement": transport(11, 1), "reserved bits": transport(12, 1), "window": transport(15, 1),
			"urgent pointer": transport(19, 1), "options": transport(25, 1), "SYN": transport(13, tuntest.SYN),
			"FIN": transport(13, tuntest.FIN), "RST": transport(13, tuntest.RST), "URG": transport(13, tuntest.URG),
			"ECE": transport(13, tuntest.ECE), "CWR": transport(13, tuntest.CWR), "no ACK": transport(13, tuntest.ACK),
			"checksum": func(p []byte) []byte { _, at := start(p); p[at+16]++; return p },
			"payload":  func(p []byte) []byte { p[len(p)-1]++; return p },
			"longer": func(p []byte) []byte {
				p = append(p, 0, 0)
				if p[0]>>4 == 4 {
					binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
				} else {
					binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
				}
				return fix(p)
			},
		},
		"UDP": {
			"source port": transport(0, 1), "destination port": transport(2, 1), "length": transport(5, 1),
			"no checksum": func(p []byte) []byte { _, at := start(p); p[at+6], p[at+7] = 0, 0; return p },
			"checksum":    func(p []byte) []byte { _, at := start(p); p[at+6]++; return p },
		},
	}
	c := NewCoalescer(128, OffloadAll)
	for name, flow := range map[string]func() [][]byte{
		"IPv4 TCP": func() [][]byte { return burst(a4, b4, 5, 5000, 1000) },
		"IPv6 TCP": func() [][]byte { return burst(a6, b6, 5, 5000, 1000) },
		"IPv4 UDP": func() [][]byte { return datagrams(a4, b4, 0, 5, 1000) },
		"IPv6 UDP": func() [][]byte { return datagrams(a6, b6, 0, 5, 1000) },
	} {
		for layer, changes := range all {
			if layer != name[:4] && layer != name[5:] {
				continue
			}
			for what, change := range changes {
				for at := range 5 {
					packets := flow()
					packets[at] = change(bytes.Clone(packets[at]))
					messages := coalesced(c, packets...)
					var got [][]byte
					alone := false
					for _, m := range messages {
						alone = alone || bytes.Equal(m, append(make([]byte, HeaderLen), packets[at]...))
					}
					if !alone {
						t.Errorf("%s, %s of packet %d: merged into one of %d messages", name, what, at, len(messages))
						continue
					}
					got = apart(t, messages)
					sortPackets(got)
					sortPackets(packets)
					equal(t, name+" "+what, got, packets)
				}
			}
		}
	}
}

func sortPackets(p [][]byte) { slices.SortStableFunc(p, bytes.Compare) }

// Identifications do not matter where nobody fragments: they come out counted
// up, and all else is as it was.
func TestCoalesceUnfragmentable(t *testing.T) {
	packets := datagrams(a4, b4, 0, 5, 1000)
	for i, p := range packets {
		binary.BigEndian.PutUint16(p[4:], uint16(i*i*77))
		p[6] = 0x40
		tuntest.FixHeader(p)
	}
	messages := coalesced(NewCoalescer(128, OffloadAll), packets...)
	if len(messages) != 1 {
		t.Fatalf("%d messages", len(messages))
	}
	got := apart(t, messages)
	for i, p := range packets {
		binary.BigEndian.PutUint16(p[4:], uint16(i))
		tuntest.FixHeader(p)
	}
	equal(t, "", got, packets)
}

func TestCoalesceLimits(t *testing.T) {
	c := NewCoalescer(128, OffloadAll)
	for what, f := range map[string]struct {
		packets [][]byte
		want    []int // packets in each message
	}{
		"65 datagrams":     {datagrams(a4, b4, 0, 65, 100), []int{64, 1}},
		"65,535 bytes":     {burst(a4, b4, 1, 65535-52, 1000), []int{66}},
		"65,536 bytes":     {burst(a4, b4, 1, 65536-52, 1000), []int{65, 1}},
		"65,535 of IPv6":   {burst(a6, b6, 1, 65535-72, 1000), []int{66}},
		"65,536 of IPv6":   {burst(a6, b6, 1, 65536-72, 1000), []int{65, 1}},
		"behind PSH":       {slices.Concat(burst(a4, b4, 1, 3000, 1000), burst(a4, b4, 3001, 3000, 1000)), []int{3, 3}},
		"behind a short":   {slices.Concat(datagrams(a4, b4, 0, 2, 100), datagrams(a4, b4, 2, 1, 50), datagrams(a4, b4, 3, 2, 50)), []int{3, 2}},
		"behind a long":    {slices.Concat(datagrams(a4, b4, 0, 2, 100), datagrams(a4, b4, 2, 2, 101)), []int{2, 2}},
		"acknowledgements": {[][]byte{tuntest.Segment(a4, b4, 1, 16, nil, nil), tuntest.Segment(a4, b4, 1, 16, nil, nil)}, []int{1, 1}},
	} {
		coalesced(c, f.packets...)
		var got []int
		for i := range c.Groups() {
			n, _ := c.Group(i)
			got = append(got, n)
		}
		if !slices.Equal(got, f.want) {
			t.Errorf("%s: %v, want %v", what, got, f.want)
		}
	}
}

func TestOffload(t *testing.T) {
	packets := slices.Concat(burst(a4, b4, 1, 3000, 1000), datagrams(a4, b4, 0, 3, 1000), burst(a6, b6, 1, 3000, 1000), datagrams(a6, b6, 0, 3, 1000))
	for offload, want := range map[Offload]int{NoOffload: 12, OffloadTCP: 8, OffloadAll: 4} {
		if n := len(coalesced(NewCoalescer(128, offload), packets...)); n != want {
			t.Errorf("%d: %d messages, want %d", offload, n, want)
		}
	}
}

// orderly is packets as a good tunnel has them: some flows at once, each in
// order, with strange ones between.
func orderly(random *rand.Rand) (packets [][]byte) {
	type flow struct{ packets [][]byte }
	var flows []flow
	for i := range 1 + random.IntN(6) {
		from, to := a4, b4
		if random.IntN(2) == 0 {
			from, to = a6, b6
		}
		from = netip.AddrPortFrom(from.Addr(), uint16(i))
		size := 1 + random.IntN(200)
		var f flow
		switch random.IntN(5) {
		case 0, 1:
			f.packets = burst(from, to, random.Uint32(), 1+random.IntN(size*20), size)
		case 2, 3:
			f.packets = datagrams(from, to, random.IntN(1<<16), 1+random.IntN(20), size)
		default:
			f.packets = [][]byte{tuntest.Echo(from.Addr(), to.Addr(), 1, 1, noise(random, size)), noise(random, size), tuntest.Segment(from, to, 1, 16, nil, nil)}
		}
		flows = append(flows, f)
	}
	for len(flows) > 0 && len(packets) < 128 {
		i := random.IntN(len(flows))
		f := &flows[i]
		n := min(1+random.IntN(8), len(f.packets))
		packets = append(packets, f.packets[:n]...)
		if f.packets = f.packets[n:]; len(f.packets) == 0 {
			flows = slices.Delete(flows, i, i+1)
		}
	}
	return packets[:min(128, len(packets))]
}

// mix is orderly with what networks do to packets.
func mix(random *rand.Rand) [][]byte {
	packets := orderly(random)
	for range random.IntN(4) {
		i := random.IntN(len(packets))
		switch random.IntN(4) {
		case 0: // lost
			packets = slices.Delete(packets, i, i+1)
		case 1: // came twice
			packets = slices.Insert(packets, i, packets[i])
		case 2: // damaged
			p := bytes.Clone(packets[i])
			p[random.IntN(len(p))] ^= 1 << random.IntN(8)
			packets[i] = p
		case 3: // overtaken
			packets = append(packets, packets[i])
			packets = slices.Delete(packets, i, i+1)
		}
		if len(packets) == 0 {
			return mix(random)
		}
	}
	return packets[:min(128, len(packets))]
}

// same checks that got is want, but for the order of what belongs to different
// flows, and for the identification of what cannot be fragmented.
func same(t *testing.T, got, want [][]byte) {
	t.Helper()
	byFlow := func(packets [][]byte) (map[string][][]byte, [][]byte) {
		flows, whole := map[string][][]byte{}, [][]byte{}
		for _, p := range packets {
			p = bytes.Clone(p)
			if len(p) >= 20 && p[0] == 0x45 && p[6]&0x40 != 0 {
				p[4], p[5], p[10], p[11] = 0, 0, 0, 0
			}
			key := "other"
			if at := 20; len(p) >= 28 && p[0] == 0x45 && p[6]&0x3f == 0 && p[7] == 0 {
				key = fmt.Sprintf("%x", append(bytes.Clone(p[9:10]), p[12:at+4]...))
			} else if len(p) >= 48 && p[0]>>4 == 6 {
				key = fmt.Sprintf("%x", append(bytes.Clone(p[6:7]), p[8:44]...))
			}
			flows[key] = append(flows[key], p)
			whole = append(whole, p)
		}
		return flows, whole
	}
	gotFlows, gotAll := byFlow(got)
	wantFlows, wantAll := byFlow(want)
	for key := range wantFlows {
		equal(t, "flow "+key, gotFlows[key], wantFlows[key])
	}
	sortPackets(gotAll)
	sortPackets(wantAll)
	equal(t, "all", gotAll, wantAll)
}

func TestCoalesceMixes(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	c := NewCoalescer(128, OffloadAll)
	merged := 0
	for range rounds(4000) {
		packets := mix(random)
		messages := coalesced(c, packets...)
		merged += len(packets) - len(messages)
		same(t, apart(t, messages), packets)
		seen := 0
		for i := range c.Groups() {
			n, _ := c.Group(i)
			seen += n
		}
		if seen != len(packets) {
			t.Fatalf("%d packets, want %d", seen, len(packets))
		}
	}
	if merged < rounds(4000)*10 {
		t.Errorf("only %d packets were merged", merged)
	}
}

func TestNothingAllocates(t *testing.T) {
	c := NewCoalescer(128, OffloadAll)
	packets := slices.Concat(burst(a4, b4, 1, 40*1000, 1000), datagrams(a6, b6, 0, 64, 900))
	message := super(tuntest.Segment(a4, b4, 1, tuntest.ACK, timestamps, make([]byte, 50000)), tuntest.TCP, 20, 1400)
	vectors := make([]unix.Iovec, 0, 512)
	headers := make([]byte, 100)
	var p Packet
	if n := testing.AllocsPerRun(100, func() {
		c.Reset()
		for _, b := range packets {
			c.Add(b)
		}
		for i := range c.Groups() {
			vectors = c.Vectors(i, vectors[:0])
		}
		if p.Check(message) != nil || p.Parse(message) != nil {
			t.Fatal("refused")
		}
		for i := range p.Segments() {
			p.Segment(i, headers)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCoalesce(b *testing.B) {
	c := NewCoalescer(128, OffloadAll)
	vectors := make([]unix.Iovec, 0, 512)
	for name, packets := range map[string][][]byte{
		"TCP":          burst(a4, b4, 1, 44*1400, 1400),
		"UDP":          datagrams(a4, b4, 0, 44, 1400),
		"UDP of 64 B":  datagrams(a4, b4, 0, 64, 64),
		"UDP of flows": flows(128),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.Reset()
				for _, p := range packets {
					c.Add(p)
				}
				for i := range c.Groups() {
					vectors = c.Vectors(i, vectors[:0])
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(packets)), "ns/packet")
		})
	}
}

func flows(n int) (packets [][]byte) {
	for i := range n {
		packets = append(packets, tuntest.Datagram(a4, netip.AddrPortFrom(b4.Addr(), uint16(i)), make([]byte, 64)))
	}
	return packets
}

func BenchmarkSegment(b *testing.B) {
	var p Packet
	message := super(tuntest.Segment(a4, b4, 1, tuntest.ACK, timestamps, make([]byte, 44*1400)), tuntest.TCP, 20, 1400)
	if err := p.Check(message); err != nil {
		b.Fatal(err)
	}
	headers := make([]byte, p.HeadersLen())
	b.SetBytes(1400)
	i := 0
	for b.Loop() {
		p.Segment(i%44, headers)
		i++
	}
}

func BenchmarkCheck(b *testing.B) {
	var p Packet
	message := super(tuntest.Segment(a4, b4, 1, tuntest.ACK, timestamps, make([]byte, 44*1400)), tuntest.TCP, 20, 1400)
	for b.Loop() {
		if err := p.Check(message); err != nil {
			b.Fatal(err)
		}
	}
}
