package params

import (
	"fmt"
	"net/netip"
	"slices"
)

// blocks reads both lists. The exclusion list comes first, so a block in both
// stays out of the tunnel, whichever way the client ordered them.
func (p *parser) blocks() {
	listOf := map[netip.Prefix]string{}
	p.out.Exclusion = p.blockList(keyExclusion, listOf, func(netip.Prefix) string { return "" })
	p.dropExclusionOfAll(listOf)
	p.out.Inclusion = p.blockList(keyInclusion, listOf, inclusionFault)
}

// blockList reads one list and notes in listOf which list has a block.
func (p *parser) blockList(key string, listOf map[netip.Prefix]string, faultOf func(netip.Prefix) string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range p.list(key, MaxBlocks) {
		block, fault := parsePrefix(s)
		if fault == "" {
			block = block.Masked()
			fault = faultOf(block)
		}
		if fault != "" {
			p.refuse(key, s, fault)
			continue
		}
		switch list, twice := listOf[block]; {
		case !twice:
			listOf[block] = key
			out = append(out, block)
		case list == key:
			p.warn(key, s, fmt.Sprintf("is dropped: %v is in the list already", block))
		default:
			p.warn(key, s, fmt.Sprintf("is dropped: %v is in %s, which wins", block, list))
		}
	}
	return out
}

// dropExclusionOfAll: 0.0.0.0/0 as the only IPv4 exclusion means that nothing
// is excluded. Clients of chrome.vpnProvider, which demands an exclusion list,
// pass it to say so. It then does not win over an inclusion of 0.0.0.0/0
// either: that would send in clear what the client wanted in the tunnel.
func (p *parser) dropExclusionOfAll(listOf map[netip.Prefix]string) {
	is4 := func(b netip.Prefix) bool { return b.Addr().Is4() }
	at := slices.IndexFunc(p.out.Exclusion, is4)
	if at < 0 || p.out.Exclusion[at].Bits() != 0 || slices.ContainsFunc(p.out.Exclusion[at+1:], is4) {
		return
	}
	all4 := p.out.Exclusion[at]
	delete(listOf, all4)
	p.warn(keyExclusion, all4.String(), "alone means that nothing is excluded")
	if p.out.Exclusion = slices.Delete(p.out.Exclusion, at, at+1); len(p.out.Exclusion) == 0 {
		p.out.Exclusion = nil
	}
}
