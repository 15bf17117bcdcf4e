package routing

import (
	"maps"
	"net/netip"
	"slices"
)

// State is what of the network is ours, or shall be.
type State struct {
	// Links by index.
	Links map[int]LinkState

	// Addresses in the order in which they were or are to be added: of IPv4 the
	// kernel prefers the earlier ones as source.
	Addresses []Address

	Routes map[RouteKey]Route

	// Rules in the order in which they were or are to be added.
	Rules []Rule

	Marked []MarkedLink

	// Firewall is nil where nothing of the host's packet filter is ours.
	Firewall *Filter

	// DNS is nil where the host's DNS is left alone.
	DNS *Resolution
}

// Object is a part of the state that the kernel keeps: a LinkState, Address,
// Route, Rule or MarkedLink.
type Object interface{ object() }

// LinkState is what we set of a link.
type LinkState struct {
	Index int
	MTU   uint32 // bytes
	Up    bool

	// Alias is Alias while the link is configured by us.
	Alias string

	AddrGen AddrGen
}

// AddrGen is how the kernel makes the link-local IPv6 address of a link.
type AddrGen uint8

// The modes, with the kernel's numbers.
const (
	AddrGenEUI64  AddrGen = 0
	AddrGenNone   AddrGen = 1
	AddrGenSecret AddrGen = 2
	AddrGenRandom AddrGen = 3

	// AddrGenNoIPv6 is said of a link on which the kernel has no IPv6: its MTU
	// is below IPv6MinMTU, or there is no IPv6 on this host. It is never set.
	AddrGenNoIPv6 AddrGen = 255
)

// IPv6MinMTU is the MTU below which the kernel takes IPv6 off a link.
const IPv6MinMTU = 1280

// Address is one address of a link, always a host's alone (/32, /128) and
// without a route of its own.
type Address struct {
	Link      int
	Addr      netip.Addr
	Broadcast netip.Addr // not valid: none
}

// same says whether they are one to the kernel, which does not change the
// broadcast address of an address that is there.
func (a Address) same(b Address) bool { return a.Link == b.Link && a.Addr == b.Addr }

// RouteKey is what makes two routes the same: a put replaces the route with
// the same key.
type RouteKey struct {
	Table  uint32
	Dst    netip.Prefix // masked
	Metric uint32
}

// Route is one route in a table of ours.
type Route struct {
	RouteKey
	Type RouteType
	Link int // of a unicast route
}

// RouteType is what happens to the packets of a route.
type RouteType uint8

// The types.
const (
	Unicast     RouteType = iota + 1 // into the tunnel
	Throw                            // the lookup goes on behind our rule
	Unreachable                      // refused at once
)

// Rule sends lookups to a table. The destination, the source and everything
// else are any.
type Rule struct {
	IPv6       bool
	Priority   uint32
	Table      uint32
	Mark, Mask uint32
	Invert     bool // matches what has not the mark
}

// MarkedLink is one that leads off this host and on which the kernel shall look at the mark of an IPv4
// packet when it asks whether an answer would leave by the same link
// (src_valid_mark), and did not by itself. Without it a strict rp_filter drops
// what comes in for protected sockets and inbound connections.
type MarkedLink struct{ Link int }

// Resolution is what the host's DNS shall be.
type Resolution struct {
	Link Link
	DNS  DNS

	// Full: all names shall be resolved by these servers, as the tunnel takes
	// all traffic of a family.
	Full bool
}

func (LinkState) object()  {}
func (Address) object()    {}
func (Route) object()      {}
func (Rule) object()       {}
func (MarkedLink) object() {}

// Empty says whether nothing of ours is left.
func (s State) Empty() bool {
	return len(s.Links) == 0 && len(s.Addresses) == 0 && len(s.Routes) == 0 && len(s.Rules) == 0 &&
		len(s.Marked) == 0 && s.Firewall == nil && s.DNS == nil
}

// Clone shares nothing with s that is ever written to.
func (s State) Clone() State {
	return State{
		Links:     maps.Clone(s.Links),
		Addresses: slices.Clone(s.Addresses),
		Routes:    maps.Clone(s.Routes),
		Rules:     slices.Clone(s.Rules),
		Marked:    slices.Clone(s.Marked),
		Firewall:  s.Firewall,
		DNS:       s.DNS,
	}
}

// put and remove keep s what the kernel has.
func (s *State) put(o Object) {
	switch o := o.(type) {
	case LinkState:
		if s.Links == nil {
			s.Links = map[int]LinkState{}
		}
		s.Links[o.Index] = o
	case Address:
		if !slices.ContainsFunc(s.Addresses, o.same) {
			s.Addresses = append(s.Addresses, o)
		}
	case Route:
		if s.Routes == nil {
			s.Routes = map[RouteKey]Route{}
		}
		s.Routes[o.RouteKey] = o
	case Rule:
		if !slices.Contains(s.Rules, o) {
			s.Rules = append(s.Rules, o)
		}
	case MarkedLink:
		if !slices.Contains(s.Marked, o) {
			s.Marked = append(s.Marked, o)
		}
	}
}

func (s *State) remove(o Object) {
	switch o := o.(type) {
	case LinkState:
		delete(s.Links, o.Index)
	case Address:
		s.Addresses = slices.DeleteFunc(s.Addresses, o.same)
	case Route:
		delete(s.Routes, o.RouteKey)
	case Rule:
		s.Rules = slices.DeleteFunc(s.Rules, func(r Rule) bool { return r == o })
	case MarkedLink:
		s.Marked = slices.DeleteFunc(s.Marked, func(m MarkedLink) bool { return m == o })
	}
}

func (r *Resolution) equal(o *Resolution) bool {
	if r == nil || o == nil {
		return r == o
	}
	return r.Link == o.Link && r.Full == o.Full && slices.Equal(r.DNS.Servers, o.DNS.Servers) &&
		slices.Equal(r.DNS.Search, o.DNS.Search) && slices.Equal(r.DNS.Match, o.DNS.Match)
}
