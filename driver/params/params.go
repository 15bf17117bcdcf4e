// Package params turns the dictionary of SetParameters into typed, checked
// values. It does no I/O and keeps no state; everything here may be called
// concurrently.
package params

import "net/netip"

// Limits of the lists and texts of one dictionary. They bound what one client
// can make the daemon hold; an entry more is a Problem.
const (
	MaxAddresses  = 8     // address and addresses together
	MaxBlocks     = 16384 // inclusionList and exclusionList, each
	MaxDNSServers = 8
	MaxDomains    = 32  // domainSearch and matchDomains, each
	MaxText       = 255 // bytes of any text
)

// Bounds of the MTU in bytes. RFC 8200 demands MinMTUIPv6 of every link that
// carries IPv6: below it the kernel tears down the interface's IPv6 state.
const (
	MinMTU     = 576
	MinMTUIPv6 = 1280
	MaxMTU     = 65535
	DefaultMTU = 1500
)

// Parameters is one valid set of SetParameters, in typed form. Empty lists
// are nil. It is a value; its slices belong to whoever called Parse.
type Parameters struct {
	// Addresses are the tunnel's own addresses with their prefix lengths, the
	// `address` first. The host bits are kept. No IP is there twice.
	Addresses []netip.Prefix

	// Broadcast is not valid where the client gave none.
	Broadcast netip.Addr

	MTU uint32 // bytes

	// Inclusion and Exclusion are masked and hold no block twice, also not
	// across both. Exclusion is never 0.0.0.0/0 as the only IPv4 block.
	Inclusion, Exclusion []netip.Prefix

	// DomainSearch and MatchDomains have no final dot and keep their case.
	DomainSearch, MatchDomains []string
	DNSServers                 []netip.Addr

	Reconnect            bool
	AllowLAN             bool
	AllowIPv4, AllowIPv6 bool
}

// The keys of the dictionary.
const (
	keyAddress      = "address"
	keyAddresses    = "addresses"
	keyBroadcast    = "broadcastAddress"
	keyMTU          = "mtu"
	keyExclusion    = "exclusionList"
	keyInclusion    = "inclusionList"
	keyDomainSearch = "domainSearch"
	keyMatchDomains = "matchDomains"
	keyDNSServers   = "dnsServers"
	keyReconnect    = "reconnect"
	keyAllowLAN     = "allowLan"
	keyFamilies     = "allowFamilies"
)

// The entries of allowFamilies.
const (
	familyIPv4 = "ipv4"
	familyIPv6 = "ipv6"
)

// known tells whether key is a parameter at all.
func known(key string) bool {
	switch key {
	case keyAddress, keyAddresses, keyBroadcast, keyMTU, keyExclusion, keyInclusion,
		keyDomainSearch, keyMatchDomains, keyDNSServers, keyReconnect, keyAllowLAN, keyFamilies:
		return true
	}
	return false
}

// Dict is the inverse of Parse: Parse(p.Dict()) gives p again, without
// warnings, for every p that Parse returned without an error. The caller owns
// the map.
func (p Parameters) Dict() map[string]any {
	dict := map[string]any{
		keyMTU:       p.MTU,
		keyReconnect: p.Reconnect,
		keyAllowLAN:  p.AllowLAN,
	}
	if len(p.Addresses) > 0 {
		dict[keyAddress] = p.Addresses[0].String()
		putList(dict, keyAddresses, texts(p.Addresses[1:]))
	}
	if p.Broadcast.IsValid() {
		dict[keyBroadcast] = p.Broadcast.String()
	}
	putList(dict, keyExclusion, texts(p.Exclusion))
	putList(dict, keyInclusion, texts(p.Inclusion))
	putList(dict, keyDomainSearch, p.DomainSearch)
	putList(dict, keyMatchDomains, p.MatchDomains)
	putList(dict, keyDNSServers, texts(p.DNSServers))
	var families []string
	if p.AllowIPv4 {
		families = append(families, familyIPv4)
	}
	if p.AllowIPv6 {
		families = append(families, familyIPv6)
	}
	putList(dict, keyFamilies, families)
	return dict
}

func putList(dict map[string]any, key string, list []string) {
	if len(list) > 0 {
		dict[key] = append([]string(nil), list...)
	}
}

func texts[T interface{ String() string }](list []T) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = v.String()
	}
	return out
}
