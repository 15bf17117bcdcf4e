package routing

import (
	"context"
	"net/netip"
)

// Kernel is the part of the operating system that keeps links, addresses,
// routes and rules. Methods may be called concurrently.
type Kernel interface {
	// Execute carries out the operations in their order. One that fails does
	// not keep the later ones from being done, so operations whose order
	// matters for safety go in separate calls. It returns nil when all are in
	// effect, else one error for each operation, nil for those in effect. An
	// operation that fails leaves its object as it was, except a link, whose
	// settings are then not known.
	Execute(ctx context.Context, ops []Op) []error

	// List returns what of this host carries our marks, by whomever it was
	// put there: links by their alias, with all their addresses, and routes
	// and rules by Protocol within our tables and priorities. Marked links
	// carry no mark, and firewall and DNS are others' to look at.
	List(ctx context.Context) (State, error)

	// Facts tells what a plan for the link with that index depends on; for 0,
	// what one without a link does.
	Facts(ctx context.Context, link int) (Facts, error)
}

// Op is one operation on one object.
type Op struct {
	Verb   Verb
	Object Object
}

// Verb is what an operation does. All are idempotent.
type Verb uint8

// The verbs.
const (
	// Put adds the object or replaces what has its place: at no instant is
	// neither the old nor the new one in effect.
	Put Verb = iota + 1

	// Delete removes it. What is gone already, or whose link is, is a success.
	// (So is Put of a MarkedLink that is gone.)
	Delete

	// Restore is Put of a link's earlier state. A link that is gone is a
	// success.
	Restore
)

// Facts are what a plan depends on beside the Config.
type Facts struct {
	// Link is the present state of the link asked for.
	Link LinkState

	// IPv6 says whether this host has IPv6, LinkIPv6 whether it may be used on
	// the link.
	IPv6, LinkIPv6 bool

	// Subnets that are connected to interfaces other than tunnels.
	Subnets []Subnet

	// Asker is Resolver.Asker.
	Asker uint32

	// Strict are the links that lead off this host, and by which an IPv4
	// packet is let in only if an answer to it would leave there (rp_filter 1).
	Strict []StrictLink
}

// StrictLink is one of them.
type StrictLink struct {
	Link int

	// Marked: the mark of the packet counts for that (src_valid_mark).
	Marked bool
}

// Subnet is one network that is connected to an interface.
type Subnet struct {
	Prefix netip.Prefix // masked
	Link   int

	// Virtual: the interface leads to nothing but this host's containers and
	// virtual machines. It has no physical port, is no tunnel and is not the
	// interface of a default route: that one is an uplink, whatever its kind.
	Virtual bool
}

// Firewall is the host's packet filter as far as it is ours. Methods may be
// called concurrently.
type Firewall interface {
	// Set makes f the filter, in place of the one before, with no instant in
	// which neither holds. nil leaves nothing of ours. With an error either
	// holds.
	Set(ctx context.Context, f *Filter) error

	// Find tells what there is of ours, nil where there is nothing. What
	// another process set, or touched, is Unsure; whether it is a lockdown, and
	// which links are marked, is told in any case.
	Find(ctx context.Context) (*Filter, error)
}

// Resolver is the host's DNS. Methods may be called concurrently.
type Resolver interface {
	// Set makes r the DNS of the host, or sends it again: what others changed
	// since is put right. With an error the state is not known, until the next
	// Set or Revert.
	Set(ctx context.Context, r Resolution) error

	// Revert takes back all that is ours, also what an earlier process set.
	// Nothing to take back is a success.
	Revert(ctx context.Context) error

	// Leftover says whether something of ours is in effect.
	Leftover(ctx context.Context) (bool, error)

	// PerLink says whether settings belong to the link and serve only while it
	// is up, so that they are made before. Others serve the whole host and are
	// made after the routes, so that no question to the tunnel's servers
	// leaves in the clear.
	PerLink() bool

	// Asker is the user whose process asks the servers of all links on behalf of
	// every program of the host, and so beside the routes; 0: there is none. With
	// an error it is not known whether there is one.
	Asker(ctx context.Context) (uint32, error)
}
