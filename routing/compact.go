package routing

import (
	"maps"
	"net/netip"
	"slices"
)

// blocks says what happens to the packets to a block, as far as no longer
// prefix says otherwise.
type blocks map[netip.Prefix]RouteType

// compact merges neighbours that have the same fate, then drops what a wider
// block says as well. No destination's longest prefix gives another result.
func (b blocks) compact() {
	b.merge()
	b.prune()
}

// merge replaces two halves of a block with the same fate by the block. What
// was said of the block itself held nowhere: its halves cover it.
func (b blocks) merge() {
	var byLength [129][]netip.Prefix
	for p := range b {
		byLength[p.Bits()] = append(byLength[p.Bits()], p)
	}
	for bits := 128; bits > 0; bits-- {
		for _, p := range byLength[bits] {
			fate, still := b[p]
			if !still {
				continue // went with its other half
			}
			other := sibling(p)
			if theirs, ok := b[other]; !ok || theirs != fate {
				continue
			}
			delete(b, p)
			delete(b, other)
			whole, _ := p.Addr().Prefix(bits - 1) // bits is in range
			if _, known := b[whole]; !known {
				byLength[bits-1] = append(byLength[bits-1], whole)
			}
			b[whole] = fate
		}
	}
}

// sibling is the other half of the block that is one bit wider.
func sibling(p netip.Prefix) netip.Prefix {
	bit := p.Bits() - 1
	if p.Addr().Is4() {
		a := p.Addr().As4()
		a[bit/8] ^= 0x80 >> (bit % 8)
		return netip.PrefixFrom(netip.AddrFrom4(a), p.Bits())
	}
	a := p.Addr().As16()
	a[bit/8] ^= 0x80 >> (bit % 8)
	return netip.PrefixFrom(netip.AddrFrom16(a), p.Bits())
}

// prune drops each block whose nearest wider one has the same fate.
func (b blocks) prune() {
	var covers []netip.Prefix // the kept blocks around the present one, widest first
	for _, p := range slices.SortedFunc(maps.Keys(b), netip.Prefix.Compare) {
		for len(covers) > 0 && !covers[len(covers)-1].Overlaps(p) {
			covers = covers[:len(covers)-1]
		}
		if len(covers) > 0 && b[covers[len(covers)-1]] == b[p] {
			delete(b, p)
			continue
		}
		covers = append(covers, p)
	}
}

// coversAll says whether the blocks cover the whole family of all.
func coversAll(list []netip.Prefix, all netip.Prefix) bool {
	b := blocks{}
	for _, p := range list {
		if p.Addr().Is4() == all.Addr().Is4() {
			b[p.Masked()] = Unicast
		}
	}
	b.merge()
	return b[all] == Unicast
}
