package tun

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"testing"

	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
)

var addr = netip.MustParseAddr

func prefixes(s ...string) (p []netip.Prefix) {
	for _, s := range s {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

// testPolicy includes everything with holes, so that each rule is what
// decides about some address.
func testPolicy() Policy {
	return Policy{
		Addresses: []netip.Addr{addr("10.9.0.2"), addr("10.9.0.3"), addr("fd00:9::2")},
		Include: prefixes("0.0.0.0/0", "::/0", "192.168.7.0/24", "2001:db8:7::/48", "127.5.0.0/16",
			"169.254.7.0/24", "fe80:7::/32", "203.0.113.0/24"),
		Exclude: prefixes("192.168.0.0/16", "192.168.7.128/25", "2001:db8::/32", "2001:db8:7:8::/64", "203.0.113.0/24"),
		Host:    []netip.Addr{addr("198.51.100.7"), addr("192.168.7.7"), addr("2001:db8:7::7")},
		MTU:     1500,
	}
}

func testFilter(tb testing.TB, p Policy) *filter {
	tb.Helper()
	f, err := newFilter(p)
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

func echoFrom(from string) []byte {
	to := addr("10.9.0.2")
	if addr(from).Is6() {
		to = addr("fd00:9::2")
	}
	return tuntest.Echo(addr(from), to, 1, 2, []byte("payload"))
}

// change returns the packet with bytes replaced from offset on, and a valid
// IPv4 checksum.
func change(packet []byte, offset int, b ...byte) []byte {
	packet = bytes.Clone(packet)
	copy(packet[offset:], b)
	if packet[0]>>4 == 4 && packet[0]&15 >= 5 {
		tuntest.FixHeader(packet)
	}
	return packet
}

// options4 returns an echo with IPv4 options, which have a multiple of four
// bytes.
func options4(options ...byte) []byte {
	packet := echoFrom("8.8.8.8")
	packet = slices.Insert(packet, header4, options...)
	packet[0] += byte(len(options) / 4)
	binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
	tuntest.FixHeader(packet)
	return packet
}

// chain6 returns an IPv6 packet whose payload starts with the header of the
// given protocol number.
func chain6(next byte, payload ...byte) []byte {
	return tuntest.Packet(addr("2a00::1"), addr("fd00:9::2"), next, payload)
}

func message6(kind byte) []byte { return append([]byte{kind}, make([]byte, 23)...) }

func join(parts ...[]byte) []byte { return slices.Concat(parts...) }

// extension returns an extension header of 8 bytes.
func extension(next byte) []byte { return []byte{next, 0, 1, 0, 0, 0, 0, 0} }

func fragment6(next byte, offset uint16, more byte) []byte {
	return []byte{next, 0, byte(offset >> 5), byte(offset<<3) | more, 0, 0, 0, 1}
}

type verdict struct {
	name   string
	packet []byte
	want   reason
}

func judged() []verdict {
	echo4, echo6 := echoFrom("8.8.8.8"), echoFrom("2a00::1")
	redirect := change(echo4, 20, 5)
	return slices.Concat([]verdict{
		{"IPv4", echo4, pass},
		{"IPv6", echo6, pass},
		{"second address", change(echo4, 16, 10, 9, 0, 3), pass},
		{"UDP", tuntest.Datagram(netip.MustParseAddrPort("8.8.8.8:53"), netip.MustParseAddrPort("10.9.0.2:9"), []byte("x")), pass},
		{"UDP over IPv6", tuntest.Datagram(netip.MustParseAddrPort("[2a00::1]:53"), netip.MustParseAddrPort("[fd00:9::2]:9"), nil), pass},
		{"no payload", tuntest.Packet(addr("8.8.8.8"), addr("10.9.0.2"), tuntest.TCP, nil), pass},
		{"no payload in IPv6", chain6(tuntest.TCP), pass},
		{"no next header", chain6(59), pass},
		{"as long as the MTU", tuntest.Packet(addr("8.8.8.8"), addr("10.9.0.2"), tuntest.UDP, make([]byte, 1480)), pass},

		{"nothing", nil, length},
		{"one byte", []byte{0x45}, length},
		{"19 bytes", echo4[:19], length},
		{"39 bytes of IPv6", echo6[:39], length},
		{"shorter than it says", echo4[:len(echo4)-1], length},
		{"longer than it says", append(bytes.Clone(echo4), 0), length},
		{"IPv6 shorter than it says", echo6[:len(echo6)-1], length},
		{"IPv6 longer than it says", append(bytes.Clone(echo6), 0), length},
		{"jumbogram", change(echo6, 4, 0, 0), length},
		{"longer than the MTU", tuntest.Packet(addr("8.8.8.8"), addr("10.9.0.2"), tuntest.UDP, make([]byte, 1481)), tooBig},
		{"IPv6 longer than the MTU", chain6(tuntest.UDP, make([]byte, 1461)...), tooBig},

		{"version 0", change(echo4, 0, 0x05), version},
		{"version 5", change(echo4, 0, 0x55), version},
		{"version 7", change(echo6, 0, 0x70), version},
		{"version 15", bytes.Repeat([]byte{0xff}, 40), version},

		{"IHL 0", change(echo4, 0, 0x40), header},
		{"IHL 4", change(echo4, 0, 0x44), header},
		{"IHL beyond the packet", change(tuntest.Packet(addr("8.8.8.8"), addr("10.9.0.2"), tuntest.TCP, nil), 0, 0x46)[:20:20], header},
		{"checksum", func() []byte { p := bytes.Clone(echo4); p[10]++; return p }(), checksum},
		{"checksum 0", func() []byte { p := bytes.Clone(echo4); p[10], p[11] = 0, 0; return p }(), checksum},

		{"to another", change(echo4, 16, 10, 9, 0, 4), destination},
		{"to the peer", change(echo4, 16, 8, 8, 8, 8), destination},
		{"to loopback", change(echo4, 16, 127, 0, 0, 1), destination},
		{"to multicast", change(echo4, 16, 224, 0, 0, 1), destination},
		{"to broadcast", change(echo4, 16, 255, 255, 255, 255), destination},
		{"to the host", change(echo4, 16, 198, 51, 100, 7), destination},
		{"to another in IPv6", change(echo6, 39, 3), destination},
		{"to all nodes", change(echo6, 24, addr("ff02::1").AsSlice()...), destination},
	}, judgedSources(), judgedProtocols(echo4, redirect))
}

func judgedSources() (all []verdict) {
	for want, froms := range map[reason][]string{
		pass: {
			"8.8.8.8", "1.0.0.1", "192.168.7.1", "192.167.255.255", "198.51.100.8", "2a00::1", "2001:db8:7::1", "2001:db9::1", "10.9.0.1",
			"100.64.0.1", "223.255.255.255",
		},
		source: {
			"192.168.1.1",          // excluded
			"192.168.7.128",        // included, excluded again inside
			"203.0.113.5",          // in both
			"2001:db8:8::1",        // excluded
			"2001:db8:7:8::1",      // excluded again inside
			"10.9.0.2", "10.9.0.3", // the tunnel's own
			"fd00:9::2",                   //
			"198.51.100.7", "192.168.7.7", // the host's
			"2001:db8:7::7",          //
			"127.0.0.1", "127.5.0.1", // loopback, even if included
			"0.0.0.0", "0.1.2.3", // this network
			"224.0.0.1", "239.255.255.255", // multicast
			"240.0.0.1", "255.255.255.255", // reserved, broadcast
			"169.254.1.1", "169.254.7.1", // link-local, even if included
			"::", "::1", "ff02::1", "fe80::1", "fe80:7::1", "febf::1", "::ffff:8.8.8.8",
		},
	} {
		for _, from := range froms {
			all = append(all, verdict{"from " + from, echoFrom(from), want})
		}
	}
	return all
}

func judgedProtocols(echo4, redirect []byte) []verdict {
	all := []verdict{
		{"redirect", redirect, protocol},
		{"unreachable", change(echo4, 20, 3), pass},
		{"first fragment of a redirect", change(redirect, 6, 0x20, 0), protocol},
		{"later fragment that looks like a redirect", change(redirect, 6, 0, 1), pass},
		{"ICMP without a type", tuntest.Packet(addr("8.8.8.8"), addr("10.9.0.2"), tuntest.ICMP, nil), header},
		{"other protocol that looks like a redirect", change(redirect, 9, tuntest.UDP), pass},

		{"record route", options4(7, 7, 4, 0, 0, 0, 0, 0), pass},
		{"router alert", options4(148, 4, 0, 0), pass},
		{"padding", options4(1, 1, 1, 0), pass},
		{"after the end", options4(0, 131, 3, 4), pass},
		{"loose source route", options4(131, 7, 4, 8, 8, 8, 8, 0), header},
		{"strict source route", options4(1, 137, 3, 4), header},
		{"option without a length", options4(1, 1, 1, 7), header},
		{"option of length 1", options4(7, 1, 0, 0), header},
		{"option beyond the header", options4(7, 5, 0, 0), header},

		{"ICMPv6 without a type", chain6(58), header},
		{"first fragment without a type", chain6(44, fragment6(58, 0, 1)...), header},
		{"later fragment", chain6(44, join(fragment6(58, 1, 0), message6(134))...), pass},
		{"later fragment of a chain", chain6(44, join(fragment6(60, 1, 0), message6(134))...), pass},
		{"first fragment without the whole chain", chain6(44, join(fragment6(60, 0, 1), []byte{58, 9, 1, 0, 0, 0, 0, 0})...), header},
		{"cut extension", chain6(60, 58, 1, 0, 0, 0, 0, 0, 0), header},
		{"extension of two bytes", chain6(0, 58, 0), header},
		{"cut fragment header", chain6(44, 58, 0, 0, 0), header},
		{"segments left", chain6(43, join([]byte{17, 2, 0, 1}, make([]byte, 20), make([]byte, 8))...), header},
		{"no segments left", chain6(43, join([]byte{17, 2, 0, 0}, make([]byte, 20), make([]byte, 8))...), pass},
		{"chain without end", chain6(60, bytes.Repeat(extension(60), 20)...), header},
		{"eight extensions", chain6(60, join(bytes.Repeat(extension(60), 7), extension(59))...), header},
		{"seven extensions", chain6(60, join(bytes.Repeat(extension(60), 6), extension(59))...), pass},
		{"encrypted", chain6(50, message6(134)...), pass},
		{"UDP that looks like ICMPv6", chain6(17, message6(134)...), pass},
	}
	for kind := range 256 {
		want := pass
		if kind >= 133 && kind <= 137 {
			want = protocol
		}
		for name, packet := range map[string][]byte{
			"bare":                     chain6(58, message6(byte(kind))...),
			"behind hop-by-hop":        chain6(0, join(extension(58), message6(byte(kind)))...),
			"behind destination":       chain6(60, join(extension(58), message6(byte(kind)))...),
			"behind routing":           chain6(43, join(extension(58), message6(byte(kind)))...),
			"behind long hop-by-hop":   chain6(0, join([]byte{58, 1}, make([]byte, 14), message6(byte(kind)))...),
			"behind authentication":    chain6(51, join([]byte{58, 4}, make([]byte, 22), message6(byte(kind)))...),
			"in a first fragment":      chain6(44, join(fragment6(58, 0, 1), message6(byte(kind)))...),
			"in an atomic fragment":    chain6(44, join(fragment6(58, 0, 0), message6(byte(kind)))...),
			"behind all":               chain6(0, join(extension(60), extension(43), extension(44), fragment6(60, 0, 1), extension(58), message6(byte(kind)))...),
			"behind a second fragment": chain6(44, join(fragment6(44, 0, 0), fragment6(58, 0, 0), message6(byte(kind)))...),
		} {
			all = append(all, verdict{"ICMPv6 " + name, packet, want})
		}
	}
	return all
}

func TestFromClient(t *testing.T) {
	f := testFilter(t, testPolicy())
	for _, v := range judged() {
		before := bytes.Clone(v.packet)
		if got := f.fromClient(v.packet); got != v.want {
			t.Errorf("%s: %v, want %v: %x", v.name, got, v.want, v.packet)
		}
		if !bytes.Equal(before, v.packet) {
			t.Errorf("%s: the packet was changed", v.name)
		}
		if got := (*filter)(nil).fromClient(v.packet); got != notConfigured {
			t.Errorf("%s: %v without a policy", v.name, got)
		}
		if got := testFilter(t, Policy{MTU: 1500}).fromClient(v.packet); got == pass {
			t.Errorf("%s: passes the empty policy", v.name)
		}
	}
}

func TestToClient(t *testing.T) {
	f := testFilter(t, testPolicy())
	out4 := tuntest.Echo(addr("10.9.0.2"), addr("8.8.8.8"), 1, 2, []byte("payload"))
	out6 := tuntest.Echo(addr("fd00:9::2"), addr("2a00::1"), 1, 2, []byte("payload"))
	to := func(s string) []byte {
		if a := addr(s); a.Is6() {
			return change(out6, 24, a.AsSlice()...)
		}
		return change(out4, 16, addr(s).AsSlice()...)
	}
	from := func(s string) []byte {
		if a := addr(s); a.Is6() {
			return change(out6, 8, a.AsSlice()...)
		}
		return change(out4, 12, addr(s).AsSlice()...)
	}
	for _, v := range []verdict{
		{"IPv4", out4, pass},
		{"IPv6", out6, pass},
		{"second address", from("10.9.0.3"), pass},
		{"anywhere", to("192.168.1.1"), pass}, // what is routed into the tunnel is the routes' affair
		{"the LAN address", from("198.51.100.7"), outSource},
		{"another", from("10.9.0.4"), outSource},
		{"unspecified", from("0.0.0.0"), outSource},
		{"link-local source", from("fe80::1"), outSource},
		{"router solicitation", tuntest.Packet(addr("fe80::1"), addr("ff02::2"), tuntest.ICMPv6, message6(133)), outSource},
		{"multicast DNS", to("224.0.0.251"), outDestination},
		{"multicast", to("239.255.255.250"), outDestination},
		{"broadcast", to("255.255.255.255"), outDestination},
		{"link-local", to("169.254.169.254"), outDestination},
		{"multicast in IPv6", to("ff02::fb"), outDestination},
		{"wide multicast in IPv6", to("ff0e::1"), outDestination},
		{"link-local in IPv6", to("fe80::1"), outDestination},
		{"nothing", nil, length},
		{"19 bytes", out4[:19], length},
		{"39 bytes", out6[:39], length},
		{"version 5", change(out4, 0, 0x55), version},
		{"longer than the MTU", tuntest.Packet(addr("10.9.0.2"), addr("8.8.8.8"), tuntest.UDP, make([]byte, 1481)), tooBig},
	} {
		if got := f.toClient(v.packet); got != v.want {
			t.Errorf("%s: %v, want %v: %x", v.name, got, v.want, v.packet)
		}
		if got := (*filter)(nil).toClient(v.packet); got != notConfigured {
			t.Errorf("%s: %v without a policy", v.name, got)
		}
	}
}

// Headers that other hosts sent, so that the checksum here is not merely
// consistent with itself.
func TestChecksumOfRealHeaders(t *testing.T) {
	for _, s := range []string{
		"45000073000040004011b861c0a80001c0a800c7",
		"45000030442240008006442e8c7c19acae241e2b",
	} {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		if !validChecksum(b) {
			t.Errorf("%s: refused", s)
		}
		tuntest.FixHeader(b)
		if fixed := hex.EncodeToString(b); fixed != s {
			t.Errorf("%s: made %s of it", s, fixed)
		}
	}
}

// Each bit of a header is covered.
func TestChecksumFindsEveryFlippedBit(t *testing.T) {
	for _, packet := range [][]byte{echoFrom("8.8.8.8"), options4(7, 7, 4, 0, 0, 0, 0, 0), options4(bytes.Repeat([]byte{1}, 40)...)} {
		header := packet[:int(packet[0]&15)*4]
		if !validChecksum(header) {
			t.Fatalf("%x: refused", header)
		}
		for bit := range len(header) * 8 {
			header[bit/8] ^= 1 << (bit % 8)
			if validChecksum(header) {
				t.Errorf("flipped bit %d was not found", bit)
			}
			header[bit/8] ^= 1 << (bit % 8)
		}
	}
}

func TestFilterAllocatesNothing(t *testing.T) {
	f := testFilter(t, testPolicy())
	all := judged()
	if n := testing.AllocsPerRun(10, func() {
		for i := range all {
			f.fromClient(all[i].packet)
			f.toClient(all[i].packet)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkFilter(b *testing.B) {
	f := testFilter(b, testPolicy())
	full := make([]byte, 1400)
	for name, packet := range map[string][]byte{
		"IPv4":      tuntest.Packet(addr("192.168.7.1"), addr("10.9.0.2"), tuntest.TCP, full),
		"IPv6":      tuntest.Packet(addr("2001:db8:7::1"), addr("fd00:9::2"), tuntest.TCP, full),
		"extension": chain6(0, join(extension(58), message6(128))...),
		"refused":   echoFrom("192.168.1.1"),
	} {
		b.Run("in/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f.fromClient(packet)
			}
		})
	}
	for name, packet := range map[string][]byte{
		"IPv4": tuntest.Packet(addr("10.9.0.2"), addr("8.8.8.8"), tuntest.TCP, full),
		"IPv6": tuntest.Packet(addr("fd00:9::2"), addr("2a00::1"), tuntest.TCP, full),
	} {
		b.Run("out/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f.toClient(packet)
			}
		})
	}
}

// The largest policy that a client can set, for the time SetPolicy takes.
func BenchmarkLargestPolicy(b *testing.B) {
	p := testPolicy()
	for i := range 16384 {
		block := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 0}), 24)
		p.Include = append(p.Include, block)
		p.Exclude = append(p.Exclude, netip.PrefixFrom(block.Addr(), 28))
	}
	for b.Loop() {
		testFilter(b, p)
	}
}
