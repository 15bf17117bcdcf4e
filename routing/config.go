package routing

import (
	"net/netip"
	"slices"
)

// Config is the whole network state that is wanted for the session that has
// the tunnel. The zero value wants nothing of ours on this host. A Config is
// a value: Apply keeps its own copy, the caller may change its slices
// afterwards.
type Config struct {
	Link Link

	// MTU of the link in bytes, 576..65535; at least 1280 where an address is
	// IPv6.
	MTU uint32

	// Addresses of the link. The host gets the address alone (/32, /128); the
	// prefix length serves for the broadcast address and nothing else.
	Addresses []netip.Prefix

	// Broadcast is the IPv4 broadcast address; when it is not valid it is
	// derived from the first IPv4 prefix. In an update that leaves the link its
	// only IPv4 address it does not change.
	Broadcast netip.Addr

	// Include are the blocks that go into the tunnel, Exclude those that stay
	// out. The longest prefix over both decides; a block in both is excluded.
	// 0.0.0.0/0 as the only exclusion excludes nothing.
	Include, Exclude []netip.Prefix

	// AllowLAN keeps the directly connected private subnets of physical
	// interfaces out of a full tunnel.
	AllowLAN bool

	// AllowIPv4 and AllowIPv6 leave a family alone in which the tunnel has no
	// address, where a full tunnel of the other family would block it.
	AllowIPv4, AllowIPv6 bool

	DNS DNS
}

// Link names the tunnel's interface.
type Link struct {
	Name  string
	Index int // never 0 for a link that exists

	// Slot is the session's slot, 0..63. It decides the routing table.
	Slot int
}

// DNS is what the tunnel's resolver configuration shall be. No servers: the
// host's DNS is left alone.
type DNS struct {
	Servers []netip.Addr
	Search  []string

	// Match limits the servers to these domains (split DNS).
	Match []string
}

// Active says whether c wants anything: it names a link.
func (c Config) Active() bool { return c.Link.Index != 0 }

func (c Config) clone() Config {
	c.Addresses = slices.Clone(c.Addresses)
	c.Include, c.Exclude = slices.Clone(c.Include), slices.Clone(c.Exclude)
	c.DNS = c.DNS.clone()
	return c
}

func (d DNS) clone() DNS {
	return DNS{Servers: slices.Clone(d.Servers), Search: slices.Clone(d.Search), Match: slices.Clone(d.Match)}
}
