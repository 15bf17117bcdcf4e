package routing_test

import (
	"math/rand/v2"
	"net/netip"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// randomPrefix draws from few addresses, so that blocks nest and meet often.
func randomPrefix(r *rand.Rand, v6 bool) netip.Prefix {
	a := randomAddr(r, v6)
	lengths := []int{0, 1, 2, 7, 8, 9, 10, 15, 16, 17, 24, 31, 32}
	bits := lengths[r.IntN(len(lengths))]
	if v6 && r.IntN(3) == 0 {
		bits = 128 - bits
	}
	p, _ := a.Prefix(bits)
	return p
}

func randomAddr(r *rand.Rand, v6 bool) netip.Addr {
	first := []byte{10, 11, 64, 128, 192}
	if v6 {
		var a [16]byte
		a[0], a[1], a[2], a[15] = 0x20|byte(r.IntN(2)), byte(r.IntN(3)), byte(r.IntN(2)<<7), byte(r.IntN(3))
		return netip.AddrFrom16(a)
	}
	return netip.AddrFrom4([4]byte{first[r.IntN(len(first))], byte(r.IntN(3)), byte(r.IntN(2) << 7), byte(r.IntN(3))})
}

func randomBlocks(r *rand.Rand) []netip.Prefix {
	list := make([]netip.Prefix, r.IntN(7))
	for i := range list {
		list[i] = randomPrefix(r, r.IntN(3) == 0)
	}
	return list
}

// randomConfig is one that can be carried out, on link 7 or 8.
func randomConfig(r *rand.Rand) routing.Config {
	if r.IntN(8) == 0 {
		return routing.Config{}
	}
	slot := r.IntN(2)
	c := routing.Config{
		Link:      routing.Link{Name: []string{"vpn0", "vpn1"}[slot], Index: 7 + slot, Slot: slot},
		MTU:       []uint32{1500, 1400, 1280}[r.IntN(3)],
		Include:   randomBlocks(r),
		Exclude:   randomBlocks(r),
		AllowLAN:  r.IntN(2) == 0,
		AllowIPv4: r.IntN(4) == 0, AllowIPv6: r.IntN(4) == 0,
	}
	v6 := r.IntN(2) == 0
	for range 1 + r.IntN(2) {
		a := randomAddr(r, false)
		c.Addresses = append(c.Addresses, netip.PrefixFrom(a, []int{24, 16, 31}[r.IntN(3)]))
		if v6 {
			c.Addresses = append(c.Addresses, netip.PrefixFrom(randomAddr(r, true), 64))
		}
	}
	switch r.IntN(6) {
	case 0: // IPv6 alone
		c.Addresses = []netip.Prefix{netip.PrefixFrom(randomAddr(r, true), 64)}
	case 1: // IPv4 alone, below the MTU that IPv6 needs
		c.Addresses = c.Addresses[:1]
		c.MTU = 1000
	}
	if r.IntN(2) == 0 {
		c.DNS = routing.DNS{Servers: []netip.Addr{randomAddr(r, false)}, Search: []string{"example.com"}}
	}
	return c
}

func randomFacts(r *rand.Rand) routing.Facts {
	f := routing.Facts{IPv6: true, LinkIPv6: true}
	for range r.IntN(4) {
		v6 := r.IntN(3) == 0
		p, _ := randomAddr(r, v6).Prefix([]int{16, 24}[r.IntN(2)])
		f.Subnets = append(f.Subnets, routing.Subnet{Prefix: p, Link: 3, Virtual: r.IntN(2) == 0})
	}
	for link := 4; link < 6; link++ {
		if r.IntN(2) == 0 {
			f.Strict = append(f.Strict, routing.StrictLink{Link: link, Marked: r.IntN(3) == 0})
		}
	}
	return f
}
