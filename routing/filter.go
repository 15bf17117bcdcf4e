package routing

import (
	"net/netip"
	"slices"
)

// Filter is what the host's packet filter does for us. It is a value: the
// slices of one that was handed over are not changed any more.
type Filter struct {
	// Tunnels, by link. What comes by another link for one of their addresses
	// is dropped, and what comes out of them for this host is checked. There
	// are two while one takes the place of the other.
	Tunnels []TunnelEnd

	// Lockdown: nothing leaves this host, and nothing is forwarded, but into
	// a tunnel, from a protected socket, to the links in Local, and what an
	// uplink needs to stay one (DHCP, neighbour discovery).
	Lockdown bool

	// Names: all names are the tunnel's to resolve. Nothing of multicast DNS and
	// LLMNR, and no question of the user Asker (0 is nobody), leaves but into a
	// tunnel, from a protected socket, and to the links in Local.
	Names bool
	Asker uint32

	// Local are the links that lead to containers and virtual machines of this
	// host, in ascending order. Empty without Lockdown and Names.
	Local []int

	// Marked are the links of State.Marked. The filter outlives the process: it
	// is where the next one finds what it has to undo.
	Marked []int

	// Unsure is set of a filter that was found in the kernel and may differ
	// from what is said here: it is none that is wanted.
	Unsure bool
}

// TunnelEnd is the host's end of a tunnel.
type TunnelEnd struct {
	Link      int
	Addresses []netip.Addr

	// Spared are the local networks that stay out of the tunnel, sorted. What
	// comes out of it in the name of one is dropped, unless packets to that
	// address go into the tunnel: a longer block may have been included.
	Spared []netip.Prefix
}

func (t TunnelEnd) equal(o TunnelEnd) bool {
	return t.Link == o.Link && slices.Equal(t.Addresses, o.Addresses) && slices.Equal(t.Spared, o.Spared)
}

// equal says whether both do the same, as far as is known.
func (f *Filter) equal(o *Filter) bool {
	if f == nil || o == nil {
		return f == o
	}
	return !f.Unsure && !o.Unsure && f.Lockdown == o.Lockdown && slices.Equal(f.Local, o.Local) &&
		f.Names == o.Names && f.Asker == o.Asker &&
		slices.Equal(f.Marked, o.Marked) && slices.EqualFunc(f.Tunnels, o.Tunnels, TunnelEnd.equal)
}

// Passes says whether an unmarked packet of this host may leave by the link.
func (f *Filter) Passes(link int) bool {
	const loopback = 1 // in every network namespace
	return f == nil || !f.Lockdown || link == loopback || slices.Contains(f.Local, link) ||
		slices.ContainsFunc(f.Tunnels, func(t TunnelEnd) bool { return t.Link == link })
}

// both is a filter under which everything is dropped that either drops because
// of its tunnels, its lockdown or its names: it stands while the way from f to o
// is gone. It is nil when both are.
func both(f, o *Filter) *Filter {
	if f == nil && o == nil {
		return nil
	}
	var union Filter
	for _, part := range []*Filter{f, o} {
		if part == nil {
			continue
		}
		for _, t := range part.Tunnels {
			union.addTunnel(t)
		}
		union.Lockdown = union.Lockdown || part.Lockdown
		union.Names = union.Names || part.Names
		if part.Asker != 0 {
			union.Asker = part.Asker
		}
		union.Local = sortedUnion(union.Local, part.Local)
		union.Marked = sortedUnion(union.Marked, part.Marked)
	}
	return &union
}

func (f *Filter) addTunnel(t TunnelEnd) {
	i, found := slices.BinarySearchFunc(f.Tunnels, t.Link, func(t TunnelEnd, link int) int { return t.Link - link })
	if !found {
		f.Tunnels = slices.Insert(f.Tunnels, i, TunnelEnd{Link: t.Link})
	}
	addresses := slices.Clone(f.Tunnels[i].Addresses)
	for _, a := range t.Addresses {
		if !slices.Contains(addresses, a) {
			addresses = append(addresses, a)
		}
	}
	f.Tunnels[i].Addresses = addresses
	f.Tunnels[i].Spared = sortedPrefixes(slices.Concat(f.Tunnels[i].Spared, t.Spared))
}

// sortedPrefixes has each once. It takes the list over.
func sortedPrefixes(list []netip.Prefix) []netip.Prefix {
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list)
}

func sortedUnion(a, b []int) []int {
	union := slices.Concat(a, b)
	slices.Sort(union)
	return slices.Compact(union)
}

// filter is what carries out c, if it is active, with these addresses and
// marked links.
func (c Config) filter(lockdown bool, f Facts, s State) *Filter {
	filter := &Filter{Lockdown: lockdown}
	if c.Active() {
		end := TunnelEnd{Link: c.Link.Index}
		for _, a := range s.Addresses {
			end.Addresses = append(end.Addresses, a.Addr)
		}
		filter.Tunnels = []TunnelEnd{end}
		// Who wants some names, or the LAN, resolved by others needs its DNS.
		filter.Names = s.DNS != nil && s.DNS.Full && len(c.DNS.Match) == 0 && !c.AllowLAN
	}
	if filter.Names {
		filter.Asker = f.Asker
	}
	if lockdown || filter.Names {
		for _, n := range f.Subnets {
			if n.Virtual {
				filter.Local = sortedUnion(filter.Local, []int{n.Link})
			}
		}
	}
	for _, m := range s.Marked {
		filter.Marked = sortedUnion(filter.Marked, []int{m.Link})
	}
	return filter
}
