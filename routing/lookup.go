package routing

import "net/netip"

// Lookup finds the routes of a State by the longest prefix. It is a snapshot
// of the lengths in use: a State that gained routes needs a new one.
type Lookup struct {
	routes  map[RouteKey]Route
	lengths map[uint32]*lengths // by table
}

// lengths are the prefix lengths that occur, so that a search tries few.
type lengths struct{ v4, v6 [129]bool }

func (l *lengths) of(a netip.Addr) *[129]bool {
	if a.Is4() {
		return &l.v4
	}
	return &l.v6
}

// NewLookup prepares the routes of s, in time linear in their number. It keeps
// s.Routes.
func NewLookup(s State) Lookup {
	l := Lookup{routes: s.Routes, lengths: map[uint32]*lengths{}}
	for k := range s.Routes {
		in := l.lengths[k.Table]
		if in == nil {
			in = &lengths{}
			l.lengths[k.Table] = in
		}
		in.of(k.Dst.Addr())[k.Dst.Bits()] = true
	}
	return l
}

// Route that the table gives for all of dst, as far as no longer prefix says
// otherwise; none: false.
func (l Lookup) Route(table uint32, dst netip.Prefix) (Route, bool) {
	in := l.lengths[table]
	if in == nil {
		return Route{}, false
	}
	occurs := in.of(dst.Addr())
	for bits := dst.Bits(); bits >= 0; bits-- {
		if !occurs[bits] {
			continue
		}
		cover, _ := dst.Addr().Prefix(bits) // bits is in range
		for _, metric := range []uint32{Metric, GuardMetric} {
			if r, ok := l.routes[RouteKey{Table: table, Dst: cover, Metric: metric}]; ok {
				return r, true
			}
		}
	}
	return Route{}, false
}

// tunnelled says whether dst, as far as no longer prefix says otherwise, leads
// into a tunnel.
func (l Lookup) tunnelled(table uint32, dst netip.Prefix) bool {
	r, ok := l.Route(table, dst)
	return ok && r.Type == Unicast
}
