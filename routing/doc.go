// Package routing decides what the host's network looks like while a tunnel is
// up, and takes it there and back. It is pure: the kernel and the host's DNS
// are behind the interfaces Kernel and Resolver, which the packages below this
// one implement.
//
// A Config says what is wanted. Plan turns it into a State, a set of rules,
// routes, addresses and links. A Network remembers the State that was really
// reached, and goes from there to the wanted one by the difference of the two.
// The same difference serves for everything: a first configuration, an update
// in place, the way back after a failure, the end, and the removal of what a
// killed daemon left. There is no other undo.
//
// # No moment in the clear
//
// The blocks that go into the tunnel, and those that stay out, are routes in a
// table of our own, which a rule in front of the main table asks first:
// nothing that a DHCP server or a neighbour puts into the main table diverts a
// packet. A block that stays out is a throw route: the lookup goes on in the
// main table, so it follows every change of the uplink by itself.
//
// When a TUN dies with its process, the kernel takes the routes that lead into
// it away at once. Each of them therefore has a twin, an unreachable route of
// the same block with the worst metric, which outlives the daemon: the guard.
//
// An update adds before it removes, the longest prefixes first, and removes
// the shortest first. Hence at every instant each destination has the answer
// that the old state or the new state gives, and no third one.
package routing
