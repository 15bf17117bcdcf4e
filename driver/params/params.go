package params

import "net/netip"

// Parameters is one valid set of SetParameters, in typed form.
type Parameters struct {
	// Addresses are the tunnel's own addresses with their prefix lengths, the
	// `address` first.
	Addresses []netip.Prefix

	// Broadcast is not valid where the client gave none.
	Broadcast netip.Addr

	MTU uint32 // bytes

	// Inclusion and Exclusion are masked and hold no block twice, also not
	// across both.
	Inclusion, Exclusion []netip.Prefix

	DomainSearch, MatchDomains []string
	DNSServers                 []netip.Addr

	Reconnect            bool
	AllowLAN             bool
	AllowIPv4, AllowIPv6 bool
}

// Host is what the parameters must not collide with on this host.
type Host struct {
	Addresses   []netip.Addr // of every interface but the tunnel
	Gateways    []netip.Addr // of the default routes
	Nameservers []netip.Addr // of the physical network
}
