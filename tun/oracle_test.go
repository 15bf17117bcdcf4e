package tun

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
)

// The oracle states the rules of the filter one by one, each for itself and
// as slowly as it likes. It returns every reason for which a packet may be
// refused; the filter must give one of them, and must let pass what has none.

func oracleIn(p Policy, b []byte) (why []reason) {
	complain := func(r reason, is bool) {
		if is {
			why = append(why, r)
		}
	}
	complain(tooBig, len(b) > p.MTU)
	if len(b) < 20 {
		return append(why, length)
	}
	var from, to netip.Addr
	switch b[0] / 16 {
	case 4:
		size := int(b[0]%16) * 4
		complain(length, len(b) != int(b[2])*256+int(b[3]))
		if size < 20 || size > len(b) {
			return append(why, header)
		}
		complain(checksum, !oracleChecksum(b[:size]))
		complain(header, !oracleOptions(b[20:size]))
		from, _ = netip.AddrFromSlice(b[12:16])
		to, _ = netip.AddrFromSlice(b[16:20])
		if later := b[6]&0x1f != 0 || b[7] != 0; b[9] == 1 && !later {
			complain(header, len(b) == size)
			complain(protocol, len(b) > size && b[size] == 5)
		}
	case 6:
		if len(b) < 40 {
			return append(why, length)
		}
		complain(length, len(b) != 40+int(b[4])*256+int(b[5]))
		from, _ = netip.AddrFromSlice(b[8:24])
		to, _ = netip.AddrFromSlice(b[24:40])
		kind, ok := oracleChain(b[6], b[40:], 8)
		complain(header, !ok)
		complain(protocol, slices.Contains([]int{133, 134, 135, 136, 137}, kind))
	default:
		return append(why, version)
	}
	complain(destination, !slices.Contains(p.Addresses, to))
	complain(source, !oracleSource(p, from))
	return why
}

func oracleOut(p Policy, b []byte) (why []reason) {
	complain := func(r reason, is bool) {
		if is {
			why = append(why, r)
		}
	}
	complain(tooBig, len(b) > p.MTU)
	if len(b) < 20 {
		return append(why, length)
	}
	var from, to netip.Addr
	switch b[0] / 16 {
	case 4:
		from, _ = netip.AddrFromSlice(b[12:16])
		to, _ = netip.AddrFromSlice(b[16:20])
	case 6:
		if len(b) < 40 {
			return append(why, length)
		}
		from, _ = netip.AddrFromSlice(b[8:24])
		to, _ = netip.AddrFromSlice(b[24:40])
	default:
		return append(why, version)
	}
	complain(outSource, !slices.Contains(p.Addresses, from))
	complain(outDestination, inside(to, "224.0.0.0/4", "255.255.255.255/32", "169.254.0.0/16", "ff00::/8", "fe80::/10"))
	return why
}

func inside(a netip.Addr, blocks ...string) bool {
	return slices.ContainsFunc(prefixes(blocks...), func(b netip.Prefix) bool { return b.Contains(a) })
}

func oracleSource(p Policy, a netip.Addr) bool {
	if inside(a, "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3",
		"::/128", "::1/128", "fe80::/10", "ff00::/8") || a.Is4In6() {
		return false
	}
	if slices.Contains(p.Addresses, a) || slices.Contains(p.Host, a) {
		return false
	}
	longest := func(blocks []netip.Prefix) int {
		n := -1
		for _, b := range blocks {
			if b.Contains(a) {
				n = max(n, b.Bits())
			}
		}
		return n
	}
	return longest(p.Include) > longest(p.Exclude)
}

// oracleChecksum adds up with end-around carry, bit by bit of the standard.
func oracleChecksum(header []byte) bool {
	var sum uint16
	for i := 0; i < len(header); i += 2 {
		word := binary.BigEndian.Uint16(header[i:])
		before := sum
		sum += word
		if sum < before {
			sum++
		}
	}
	return sum == 0xffff
}

// oracleOptions: well-formed and without a source route.
func oracleOptions(b []byte) bool {
	for i := 0; i < len(b); {
		switch {
		case b[i] == 0:
			return true
		case b[i] == 1:
			i++
		case b[i] == 131 || b[i] == 137 || i+1 >= len(b) || b[i+1] < 2 || i+int(b[i+1]) > len(b):
			return false
		default:
			i += int(b[i+1])
		}
	}
	return true
}

// oracleChain returns the type of the ICMPv6 message that b starts or holds
// behind headers, -1 if it is none, and whether the chain is in order.
func oracleChain(next byte, b []byte, more int) (kind int, ok bool) {
	at := func(i int) int {
		if i < len(b) {
			return int(b[i])
		}
		return 0
	}
	var size int
	switch {
	case next != 0 && next != 43 && next != 44 && next != 51 && next != 58 && next != 60:
		return -1, more > 0
	case more == 0:
		return -1, false
	case next == 58:
		if len(b) == 0 {
			return -1, false
		}
		return int(b[0]), true
	case next == 44:
		size = 8
	case next == 51:
		size = 8 + at(1)*4
	default:
		size = 8 + at(1)*8
	}
	if len(b) < size || len(b) < 8 {
		return -1, false
	}
	if next == 43 && b[3] > 0 {
		return -1, false
	}
	if next == 44 && (b[2] > 0 || b[3] >= 8) {
		return -1, true
	}
	return oracleChain(b[0], b[size:], more-1)
}

func compare(t *testing.T, what string, packet []byte, got reason, allowed []reason) {
	t.Helper()
	if len(allowed) == 0 && got != pass || len(allowed) > 0 && !slices.Contains(allowed, got) {
		t.Errorf("%s: %v, oracle says %v: %x", what, got, allowed, packet)
	}
}

// repair makes a packet consistent, so that the later rules come to bear.
func repair(packet []byte) {
	if len(packet) < 20 {
		return
	}
	switch packet[0] >> 4 {
	case 4:
		binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
		if size := int(packet[0]&15) * 4; size >= 20 && size <= len(packet) {
			tuntest.FixHeader(packet)
		}
	case 6:
		if len(packet) >= 40 {
			binary.BigEndian.PutUint16(packet[4:], uint16(len(packet)-40))
		}
	}
}

func FuzzFilterIn(f *testing.F) {
	for _, v := range judged() {
		f.Add(v.packet, false)
		f.Add(v.packet, true)
	}
	p := testPolicy()
	filter := testFilter(f, p)
	f.Fuzz(func(t *testing.T, packet []byte, fix bool) {
		if fix {
			repair(packet)
		}
		before := bytes.Clone(packet)
		got := filter.fromClient(packet)
		compare(t, "fromClient", packet, got, oracleIn(p, packet))
		if !bytes.Equal(before, packet) {
			t.Error("the packet was changed")
		}
	})
}

func FuzzFilterOut(f *testing.F) {
	for _, v := range judged() {
		f.Add(v.packet)
	}
	f.Add(tuntest.Echo(addr("10.9.0.2"), addr("8.8.8.8"), 1, 2, nil))
	f.Add(tuntest.Echo(addr("fd00:9::2"), addr("2a00::1"), 1, 2, nil))
	p := testPolicy()
	filter := testFilter(f, p)
	f.Fuzz(func(t *testing.T, frame []byte) {
		before := bytes.Clone(frame)
		got := filter.toClient(frame)
		compare(t, "toClient", frame, got, oracleOut(p, frame))
		if !bytes.Equal(before, frame) {
			t.Error("the frame was changed")
		}
	})
}

// TestFilterAgainstOracle mutates a million good and bad packets at random, under
// random policies.
func TestFilterAgainstOracle(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	seeds := judged()
	interesting := []byte{0, 1, 5, 44, 58, 60, 127, 133, 134, 137, 169, 192, 224, 254, 255}
	rounds := 1000
	if testing.Short() {
		rounds = 30
	}
	for range rounds {
		p := randomPolicy(random)
		f := testFilter(t, p)
		for range 1000 {
			packet := bytes.Clone(seeds[random.IntN(len(seeds))].packet)
			for range random.IntN(4) {
				if len(packet) > 0 {
					packet[random.IntN(min(len(packet), 64))] = interesting[random.IntN(len(interesting))]
				}
			}
			if len(packet) >= 20 && packet[0]>>4 == 4 && random.IntN(2) == 0 {
				copy(packet[12:], randomAddr(random, p, true).AsSlice())
			} else if len(packet) >= 40 && packet[0]>>4 == 6 && random.IntN(2) == 0 {
				copy(packet[8:], randomAddr(random, p, false).AsSlice())
			}
			if random.IntN(4) > 0 {
				repair(packet)
			}
			compare(t, "fromClient", packet, f.fromClient(packet), oracleIn(p, packet))
			compare(t, "toClient", packet, f.toClient(packet), oracleOut(p, packet))
		}
	}
}

func randomPolicy(random *rand.Rand) Policy {
	p := testPolicy()
	p.MTU = 576 + random.IntN(2000)
	for range random.IntN(20) {
		block := netip.PrefixFrom(randomAddr(random, p, true), random.IntN(33))
		if random.IntN(2) == 0 {
			block = netip.PrefixFrom(randomAddr(random, p, false), random.IntN(129))
		}
		switch random.IntN(3) {
		case 0:
			p.Include = append(p.Include, block)
		case 1:
			p.Exclude = append(p.Exclude, block)
		default:
			p.Include, p.Exclude = append(p.Include, block), append(p.Exclude, block)
		}
	}
	if random.IntN(4) == 0 {
		p.Include = p.Include[2:] // no default routes
	}
	return p
}

// randomAddr returns an address near the edges of what the policy names.
func randomAddr(random *rand.Rand, p Policy, is4 bool) netip.Addr {
	var near []netip.Addr
	for _, list := range [][]netip.Prefix{p.Include, p.Exclude} {
		for _, block := range list {
			first := block.Masked().Addr()
			near = append(near, first, first.Prev(), first.Next(), last(block), last(block).Next())
		}
	}
	near = slices.Concat(near, p.Host, p.Addresses)
	near = slices.DeleteFunc(near, func(a netip.Addr) bool { return !a.IsValid() || a.Is4() != is4 })
	return near[random.IntN(len(near))]
}

func last(block netip.Prefix) netip.Addr {
	b := block.Masked().Addr().AsSlice()
	for i := block.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
