package routing

import (
	"maps"
	"slices"
)

// step is a set of operations whose order among themselves does not matter for
// safety: whichever of them fail, no packet goes where neither the old nor the
// new state sends it.
type step struct {
	ops []Op

	// resolve: instead, the DNS is made what is wanted.
	resolve bool

	// filters: instead, the firewall is made filter.
	filters bool
	filter  *Filter
}

// steps is the way from have to want. What is added comes before what is
// removed, a table's routes before the rule that asks it, and the rule goes
// before the routes: the end is one instant for all traffic. early makes the
// DNS before a link goes up.
//
// The firewall is the first and the last step: in between it drops what the old
// one or the new one drops, so that an address is protected before it is there
// and until it is gone, and a lockdown has no gap.
//
// An MTU grows first and shrinks last: below 1280 the kernel takes all IPv6
// off the link, so nothing of IPv6 may still be wanted there then.
func steps(have, want State, early bool) []step {
	var list []step
	add := func(groups ...[]Op) {
		for _, ops := range groups {
			list = append(list, step{ops: ops})
		}
	}
	dns := !have.DNS.equal(want.DNS)
	resolve := func(now bool) {
		if dns && now {
			list, dns = append(list, step{resolve: true}), false
		}
	}

	between := both(have.Firewall, want.Firewall)
	if !between.equal(have.Firewall) {
		list = append(list, step{filters: true, filter: between})
	}
	add(objectOps(Put, want.Marked, have.Marked)...)
	add(prepareLinks(have, want)...)
	add(newAddresses(have, want)...)
	up := raiseLinks(have, want)
	resolve(early && len(up) > 0)
	add(up...)
	add(newRoutes(have, want)...)
	add(objectOps(Put, want.Rules, have.Rules)...)
	resolve(true)
	add(objectOps(Delete, have.Rules, want.Rules)...)
	add(oldRoutes(have, want)...)
	add(oldAddresses(have, want)...)
	add(settleLinks(have, want)...)
	add(objectOps(Delete, have.Marked, want.Marked)...)
	if !want.Firewall.equal(between) {
		list = append(list, step{filters: true, filter: want.Firewall})
	}
	return list
}

// unshrunk is want with an MTU that is not below the present one.
func unshrunk(now, want LinkState) LinkState {
	if now.MTU > want.MTU {
		want.MTU = now.MTU
		if now.AddrGen != AddrGenNoIPv6 {
			want.AddrGen = AddrGenNone
		}
	}
	return want
}

// prepareLinks makes the links that we configure ready for addresses and
// routes.
func prepareLinks(have, want State) [][]Op {
	var groups [][]Op
	for _, index := range slices.Sorted(maps.Keys(want.Links)) {
		now := have.Links[index]
		l := unshrunk(now, want.Links[index])
		l.Up = now.Up
		if l.Alias == Alias && l != now {
			groups = append(groups, []Op{{Put, l}})
		}
	}
	return groups
}

func raiseLinks(have, want State) [][]Op {
	var groups [][]Op
	for _, index := range slices.Sorted(maps.Keys(want.Links)) {
		now, l := have.Links[index], want.Links[index]
		if l.Up && !now.Up {
			groups = append(groups, []Op{{Put, unshrunk(now, l)}})
		}
	}
	return groups
}

// settleLinks brings the links to their last state, after everything else. The
// ones that nobody wants are leftovers.
func settleLinks(have, want State) [][]Op {
	var groups [][]Op
	for _, index := range slices.Sorted(maps.Keys(have.Links)) {
		now := have.Links[index]
		l, wanted := want.Links[index]
		switch {
		case !wanted:
			groups = append(groups, []Op{{Delete, now}})
		case l.Alias != Alias && l != now:
			groups = append(groups, []Op{{Restore, l}})
		case l.MTU < now.MTU:
			groups = append(groups, []Op{{Put, l}})
		}
	}
	return groups
}

// newAddresses adds what is missing, in the order that is wanted: of IPv4 the
// kernel prefers the earlier ones as source, and appends. So one that is there, but
// wanted behind a new one or with another broadcast address, is added again. The
// only one of its family never is: it would take all routes along.
func newAddresses(have, want State) [][]Op {
	var groups [][]Op
	for _, bits := range []int{32, 128} {
		other := func(a Address) bool { return a.Addr.BitLen() != bits }
		there := slices.DeleteFunc(slices.Clone(have.Addresses), other)
		wanted := slices.DeleteFunc(slices.Clone(want.Addresses), other)
		for _, a := range there {
			if len(wanted) > 0 && (wanted[0] == a || len(there) == 1 && wanted[0].same(a)) {
				wanted = wanted[1:]
			}
		}
		for _, a := range wanted {
			ops := []Op{{Put, a}}
			if slices.ContainsFunc(there, a.same) {
				ops = []Op{{Delete, a}, {Put, a}}
			}
			groups = append(groups, ops)
		}
	}
	return groups
}

// inOrderOf sorts addresses that were found as those that are wanted, and what is
// not wanted last. Kernels list IPv6 in different orders, by scope first and then
// from the last to the first or the other way round: who goes by that may find the
// same fault for ever.
func inOrderOf(wanted, found []Address) []Address {
	place := func(a Address) int {
		if i := slices.IndexFunc(wanted, a.same); i >= 0 {
			return i
		}
		return len(wanted)
	}
	sorted := slices.Clone(found)
	slices.SortStableFunc(sorted, func(a, b Address) int { return place(a) - place(b) })
	return sorted
}

// oldAddresses go in the reverse order of their coming, so that those that are
// left after a failure need not be added again.
func oldAddresses(have, want State) [][]Op {
	var groups [][]Op
	for _, a := range slices.Backward(have.Addresses) {
		if !slices.ContainsFunc(want.Addresses, a.same) {
			groups = append(groups, []Op{{Delete, a}})
		}
	}
	return groups
}

// objectOps does verb to the objects that are in one list and not in the other.
func objectOps[T interface {
	comparable
	Object
}](verb Verb, in, notIn []T) [][]Op {
	var groups [][]Op
	for _, o := range in {
		if !slices.Contains(notIn, o) {
			groups = append(groups, []Op{{verb, o}})
		}
	}
	return groups
}

// newRoutes puts the longest prefixes first: a wider one must not decide where
// a longer one is still to come.
//
// The guard comes before its block. Only where the block's destinations lead
// into the tunnel already, by a wider block and under the wider one's guard,
// it comes after: it would refuse their packets until the block is there.
func newRoutes(have, want State) [][]Op {
	before := NewLookup(have)
	groups := routeOps(Put, want.Routes, func(r Route) bool {
		return have.Routes[r.RouteKey] != r
	}, func(r Route) bool {
		return !before.tunnelled(r.Table, r.Dst)
	})
	slices.Reverse(groups)
	return groups
}

// oldRoutes deletes the shortest prefixes first: when a longer one goes, no
// wider one of the old ones is left to decide. The guard goes after its block,
// or before it where that would refuse packets that still lead into the tunnel.
func oldRoutes(have, want State) [][]Op {
	after := NewLookup(want)
	return routeOps(Delete, have.Routes, func(r Route) bool {
		_, stays := want.Routes[r.RouteKey]
		return !stays
	}, func(r Route) bool {
		return after.tunnelled(r.Table, r.Dst)
	})
}

// routeOps does verb to the routes that differ, one group a prefix length, the
// shortest first. A block's guard comes directly before it where guardFirst
// says so, else directly after it.
func routeOps(verb Verb, routes map[RouteKey]Route, differs, guardFirst func(Route) bool) [][]Op {
	var byLength [129][]Op
	add := func(r Route) {
		if differs(r) {
			byLength[r.Dst.Bits()] = append(byLength[r.Dst.Bits()], Op{verb, r})
		}
	}
	for k, r := range routes {
		block := routes[RouteKey{Table: k.Table, Dst: k.Dst, Metric: Metric}]
		twin := routes[RouteKey{Table: k.Table, Dst: k.Dst, Metric: GuardMetric}]
		switch {
		case r != block && r != twin || block == Route{} || twin == Route{}:
			add(r)
		case r == twin: // comes with its block
		case guardFirst(r):
			add(twin)
			add(r)
		default:
			add(r)
			add(twin)
		}
	}
	return slices.DeleteFunc(byLength[:], func(ops []Op) bool { return len(ops) == 0 })
}
