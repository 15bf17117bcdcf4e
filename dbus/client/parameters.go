package client

import (
	"fmt"
	"net/netip"
)

// Parameters of a tunnel, as SetParameters takes them. The zero value of every
// field but Addresses means the daemon's default. The JSON form has the keys
// of the D-Bus contract.
type Parameters struct {
	// Addresses are the tunnel's own, with their prefix lengths; IPv4, IPv6
	// or both. At least one.
	Addresses []netip.Prefix `json:"addresses"`

	// Broadcast is derived from the first IPv4 address by default.
	Broadcast netip.Addr `json:"broadcastAddress,omitzero"`

	// MTU in bytes, 1500 by default.
	MTU uint32 `json:"mtu,omitempty"`

	// InclusionList is what goes through the tunnel, by default nothing;
	// 0.0.0.0/0 and ::/0 are all. ExclusionList stays outside. The longest
	// prefix wins over both.
	InclusionList []netip.Prefix `json:"inclusionList,omitempty"`
	ExclusionList []netip.Prefix `json:"exclusionList,omitempty"`

	// DNSServers serve all names, or with MatchDomains only these domains.
	// None: the physical network's DNS stays.
	DNSServers   []netip.Addr `json:"dnsServers,omitempty"`
	DomainSearch []string     `json:"domainSearch,omitempty"`
	MatchDomains []string     `json:"matchDomains,omitempty"`

	// Reconnect keeps the session when the physical network changes or the
	// machine sleeps; the provider gets linkDown, linkUp, linkChanged,
	// suspend and resume, reconnects, and calls SetParameters again. Without
	// it the session ends.
	Reconnect bool `json:"reconnect,omitempty"`

	// AllowLAN keeps the directly connected private subnets reachable in a
	// full tunnel.
	AllowLAN bool `json:"allowLan,omitempty"`

	// AllowFamilies ("ipv4", "ipv6") are left alone in a full tunnel that has
	// no address of that family; else they are blocked.
	AllowFamilies []string `json:"allowFamilies,omitempty"`
}

// dict is the parameters as a{sv}. Validation is the daemon's alone; only what
// cannot be written down is refused here.
func (p Parameters) dict() (dict, error) {
	d := dict{}
	for _, a := range p.Addresses {
		if !a.IsValid() {
			return nil, fmt.Errorf("invalid address in %v", p.Addresses)
		}
	}
	if len(p.Addresses) > 0 {
		d.set("address", p.Addresses[0].String())
		if len(p.Addresses) > 1 {
			d.set("addresses", texts(p.Addresses[1:]))
		}
	}
	if p.Broadcast.IsValid() {
		d.set("broadcastAddress", p.Broadcast.String())
	}
	if p.MTU != 0 {
		d.set("mtu", p.MTU)
	}
	for key, list := range map[string][]string{
		"inclusionList": texts(p.InclusionList),
		"exclusionList": texts(p.ExclusionList),
		"dnsServers":    texts(p.DNSServers),
		"domainSearch":  p.DomainSearch,
		"matchDomains":  p.MatchDomains,
		"allowFamilies": p.AllowFamilies,
	} {
		if len(list) > 0 {
			d.set(key, list)
		}
	}
	if p.Reconnect {
		d.set("reconnect", true)
	}
	if p.AllowLAN {
		d.set("allowLan", true)
	}
	return d, nil
}
