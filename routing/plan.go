package routing

import (
	"fmt"
	"net/netip"
	"slices"
)

// What an MTU may be, in bytes.
const minMTU, maxMTU = 576, 65535

// family is one of the two that a plan has.
type family struct {
	v6  bool
	all netip.Prefix // its default route

	addressed bool // the tunnel has an address in it
	full      bool // all of it goes into the tunnel
	blocked   bool // none of it leaves this host
}

// Plan says which State carries out c, and the lockdown, on a host with these
// facts. It is pure. The inactive Config without lockdown gives the empty State.
func Plan(c Config, lockdown bool, f Facts) State {
	switch {
	case !c.Active() && lockdown:
		return State{Firewall: c.filter(lockdown, f, State{})}
	case !c.Active():
		return State{}
	}
	l := c.lists()
	s := State{
		Links:     map[int]LinkState{c.Link.Index: c.link(f)},
		Addresses: c.addresses(f),
		Routes:    make(map[RouteKey]Route, 2*len(l.include)+len(l.exclude)),
	}
	v4, v6 := c.families(l, s.Addresses)
	families := []family{v4}
	if f.IPv6 {
		families = append(families, v6)
	}
	table := Table(c.Link.Slot)
	var spared []netip.Prefix
	for _, fam := range families {
		spared = append(spared, c.spared(fam, f.Subnets)...)
		b := c.blocks(l, fam, f.Subnets)
		b.compact()
		if fam.v6 {
			b[linkLocal()] = Throw
		}
		for dst, fate := range b {
			addRoutes(s.Routes, RouteKey{Table: table, Dst: dst}, fate, c.Link.Index)
		}
		s.Rules = append(s.Rules, ourRule(fam.v6, table))
	}
	for _, u := range f.Strict {
		if !u.Marked {
			s.Marked = append(s.Marked, MarkedLink{Link: u.Link})
		}
	}
	if len(c.DNS.Servers) > 0 {
		s.DNS = &Resolution{Link: c.Link, DNS: c.DNS.clone(), Full: v4.full || v6.full}
	}
	s.Firewall = c.filter(lockdown, f, s)
	s.Firewall.Tunnels[0].Spared = sortedPrefixes(spared)
	return s
}

// linkLocal is never the tunnel's: neighbours could not be found any more.
func linkLocal() netip.Prefix { return netip.MustParsePrefix("fe80::/10") }

func ourRule(v6 bool, table uint32) Rule {
	return Rule{
		IPv6: v6, Priority: RulePriority, Table: table,
		Mark: MarkProtected, Mask: MarkMask, Invert: true,
	}
}

// addRoutes adds what makes the packets to a block meet their fate: for one
// that goes into the tunnel also the guard.
func addRoutes(routes map[RouteKey]Route, k RouteKey, fate RouteType, link int) {
	add := func(t RouteType, metric uint32, link int) {
		k.Metric = metric
		routes[k] = Route{RouteKey: k, Type: t, Link: link}
	}
	switch fate {
	case Throw:
		add(Throw, Metric, 0)
	case Unicast:
		add(Unicast, Metric, link)
		add(Unreachable, GuardMetric, 0)
	case Unreachable:
		add(Unreachable, GuardMetric, 0)
	}
}

func (c Config) link(f Facts) LinkState {
	l := LinkState{Index: c.Link.Index, MTU: c.MTU, Up: true, Alias: Alias, AddrGen: AddrGenNone}
	if !f.IPv6 || c.MTU < IPv6MinMTU {
		l.AddrGen = AddrGenNoIPv6
	}
	return l
}

// addresses are those of c that the link can have.
func (c Config) addresses(f Facts) []Address {
	var list []Address
	for _, p := range c.Addresses {
		a := Address{Link: c.Link.Index, Addr: p.Addr()}
		switch {
		case !p.Addr().Is4():
			if !f.LinkIPv6 {
				continue
			}
		case c.Broadcast.IsValid() && !hasIPv4(list):
			a.Broadcast = c.Broadcast
		default:
			a.Broadcast = lastOf(p)
		}
		if !slices.ContainsFunc(list, a.same) {
			list = append(list, a)
		}
	}
	return list
}

func hasIPv4(list []Address) bool {
	return slices.ContainsFunc(list, func(a Address) bool { return a.Addr.Is4() })
}

// lastOf is the broadcast address of an IPv4 network; one of fewer than four
// addresses has none.
func lastOf(p netip.Prefix) netip.Addr {
	if p.Bits() > 30 {
		return netip.Addr{}
	}
	a := p.Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(a)
}

// lists are what goes into the tunnel and what stays out, masked. No block is
// in both.
type lists struct {
	include []netip.Prefix
	exclude map[netip.Prefix]bool
}

// lists reads those of c. The default route of IPv4 as the only exclusion means
// that nothing is excluded, as clients write it that cannot pass an empty list.
func (c Config) lists() lists {
	l := lists{exclude: make(map[netip.Prefix]bool, len(c.Exclude))}
	for _, p := range c.Exclude {
		l.exclude[p.Masked()] = true
	}
	if all := netip.PrefixFrom(netip.IPv4Unspecified(), 0); len(l.exclude) == 1 && l.exclude[all] {
		clear(l.exclude)
	}
	for _, p := range c.Include {
		if p = p.Masked(); !l.exclude[p] {
			l.include = append(l.include, p)
		}
	}
	return l
}

// families says of both what the tunnel does with them.
func (c Config) families(l lists, addresses []Address) (v4, v6 family) {
	v4 = family{all: netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
	v6 = family{all: netip.PrefixFrom(netip.IPv6Unspecified(), 0), v6: true}
	v4.full, v6.full = coversAll(l.include, v4.all), coversAll(l.include, v6.all)
	v4.addressed = hasIPv4(addresses)
	v6.addressed = slices.ContainsFunc(addresses, func(a Address) bool { return !a.Addr.Is4() })
	v4.blocked = !v4.addressed && v6.full && !c.AllowIPv4
	v6.blocked = !v6.addressed && v4.full && !c.AllowIPv6
	return v4, v6
}

// blocks are those of one family, before they are merged.
func (c Config) blocks(l lists, fam family, subnets []Subnet) blocks {
	b := make(blocks, len(l.include)+len(l.exclude)+len(subnets))
	into := Unicast
	if !fam.addressed {
		// A packet would leave with the address of another interface, and the
		// tunnel would drop it: the application learns it at once instead.
		into = Unreachable
	}
	if fam.blocked {
		b[fam.all] = Unreachable
	}
	for _, p := range l.include {
		if p.Addr().Is4() != fam.v6 {
			b[p] = into
		}
	}
	for p := range l.exclude {
		if p.Addr().Is4() != fam.v6 {
			b[p] = Throw
		}
	}
	for _, p := range c.spared(fam, subnets) {
		b[p] = Throw
	}
	return b
}

// spared are the subnets of a family that stay out of a tunnel which takes the
// whole family.
func (c Config) spared(fam family, subnets []Subnet) []netip.Prefix {
	if !fam.full && !fam.blocked {
		return nil
	}
	var list []netip.Prefix
	for _, s := range subnets {
		if s.Prefix.Addr().Is4() != fam.v6 && (s.Virtual || c.AllowLAN && private(s.Prefix)) {
			list = append(list, s.Prefix)
		}
	}
	return list
}

// private says whether all of p is of RFC 1918 or RFC 4193. A LAN of other
// addresses is not spared: a hostile one could claim any.
func private(p netip.Prefix) bool {
	for _, s := range []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"} {
		if wide := netip.MustParsePrefix(s); wide.Bits() <= p.Bits() && wide.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// check refuses what no plan can carry out.
func (c Config) check() error {
	if c.Link.Slot < 0 || c.Link.Slot >= MaxSlots {
		return fmt.Errorf("slot %d is not in 0..%d", c.Link.Slot, MaxSlots-1)
	}
	for _, list := range [][]netip.Prefix{c.Addresses, c.Include, c.Exclude} {
		for _, p := range list {
			if !p.IsValid() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
				return fmt.Errorf("%s is not a block", p)
			}
		}
	}
	if c.MTU < minMTU || c.MTU > maxMTU {
		return fmt.Errorf("mtu %d is not in %d..%d", c.MTU, minMTU, maxMTU)
	}
	if c.MTU < IPv6MinMTU && slices.ContainsFunc(c.Addresses, func(p netip.Prefix) bool { return !p.Addr().Is4() }) {
		return fmt.Errorf("mtu %d is below %d, which IPv6 needs", c.MTU, IPv6MinMTU)
	}
	return nil
}
