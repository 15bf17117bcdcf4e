package params

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Parse reads a whole dictionary. Its values are those that a D-Bus variant
// holds, as Go values: string, []string, bool, uint32; any other type is a
// Problem, nothing panics.
//
// The warnings name what was dropped or has no effect; what was given is in
// force all the same. The error is nil or a Problems with everything that is
// wrong. Even then the Parameters hold all that was valid, for Conflicts alone
// to add what it finds: they must not be applied.
func Parse(dict map[string]any) (Parameters, []string, error) {
	p := parser{dict: dict}
	p.addresses()
	p.broadcast()
	p.mtu()
	p.blocks()
	p.out.DomainSearch = p.domains(keyDomainSearch)
	p.out.MatchDomains = p.domains(keyMatchDomains)
	p.dnsServers()
	p.reconnect()
	p.out.AllowLAN, _ = value[bool](&p, keyAllowLAN, "b")
	p.families()
	p.unknownKeys()
	return p.out, p.warnings, Join(p.problems)
}

// parser collects what one dictionary says.
type parser struct {
	dict     map[string]any
	out      Parameters
	warnings []string
	problems Problems
}

// refuseKey is for a key as a whole, refuse for one value or entry of it.
func (p *parser) refuseKey(key, format string, args ...any) {
	p.problems = append(p.problems, Problem{Key: key, Text: fmt.Sprintf(format, args...)})
}

func (p *parser) refuse(key, value, text string) {
	p.problems = append(p.problems, Problem{key, quote(value), text})
}

// warn says what became of a list's entry.
func (p *parser) warn(key, entry, text string) {
	p.warnings = append(p.warnings, Problem{key, quote(entry), text}.String())
}

// value is what the dictionary has under key; false: nothing, or nothing of
// that type.
func value[T any](p *parser, key, signature string) (T, bool) {
	var zero T
	v, ok := p.dict[key]
	if !ok {
		return zero, false
	}
	t, ok := v.(T)
	if !ok {
		p.refuseKey(key, "has the type %s, it must be %s", signatureOf(v), signature)
	}
	return t, ok
}

// text is a string value that is fit to be looked at.
func (p *parser) text(key string) (string, bool) {
	s, ok := value[string](p, key, "s")
	return s, ok && p.clean(key, s)
}

// clean refuses what could forge a line in a log or a file, and what is too
// long to be any parameter.
func (p *parser) clean(key, s string) bool {
	fault := textFault(s)
	if fault != "" {
		p.refuse(key, s, fault)
	}
	return fault == ""
}

// list is a list value with the entries that are fit to be looked at.
func (p *parser) list(key string, limit int) []string {
	list, _ := value[[]string](p, key, "as")
	if len(list) > limit {
		p.refuseKey(key, "has %d entries, at most %d are allowed", len(list), limit)
		list = list[:limit]
	}
	fit := make([]string, 0, len(list))
	for _, s := range list {
		if p.clean(key, s) {
			fit = append(fit, s)
		}
	}
	return fit
}

func (p *parser) addresses() {
	if first, ok := p.text(keyAddress); ok {
		p.address(keyAddress, first)
	}
	for _, s := range p.list(keyAddresses, MaxAddresses) {
		p.address(keyAddresses, s)
	}
	if n := len(p.out.Addresses); n > MaxAddresses {
		p.refuseKey(keyAddresses, "and address make %d addresses, at most %d are allowed", n, MaxAddresses)
	}
	if len(p.out.Addresses) == 0 && len(p.problems) == 0 { // nothing given, or an empty list
		p.refuseKey(keyAddress, "is missing, and so is addresses")
	}
}

// address adds one address. The same again is dropped; the same IP with
// another prefix length is refused, as either could be meant.
func (p *parser) address(key, s string) {
	prefix, fault := parsePrefix(s)
	if fault == "" && !strings.Contains(s, "/") {
		fault = "has no prefix length, write " + prefix.String()
	}
	if fault == "" {
		fault = addressFault(prefix)
	}
	if fault != "" {
		p.refuse(key, s, fault)
		return
	}
	for _, have := range p.out.Addresses {
		switch {
		case have == prefix:
			p.warn(key, s, "is given twice")
			return
		case have.Addr() == prefix.Addr():
			p.refuse(key, s, fmt.Sprintf("is the same address as %v with another prefix length", have))
			return
		}
	}
	p.out.Addresses = append(p.out.Addresses, prefix)
}

func (p *parser) broadcast() {
	s, ok := p.text(keyBroadcast)
	if !ok {
		return
	}
	addr, fault := parseAddr(s)
	switch {
	case fault != "":
	case !addr.Is4():
		fault = "is not an IPv4 address"
	default:
		fault = p.broadcastFault(addr)
	}
	if fault != "" {
		p.refuse(keyBroadcast, s, fault)
		return
	}
	p.out.Broadcast = addr
}

// broadcastFault holds the broadcast address inside the tunnel's own subnets:
// the kernel puts it into its local table, before all others, so any other
// would cut the host off from whoever has it.
func (p *parser) broadcastFault(addr netip.Addr) string {
	if fault := unusable(addr); fault != "" && !isBroadcast(addr) {
		return fault
	}
	inside, any4 := isBroadcast(addr), false
	for _, prefix := range p.out.Addresses {
		if !prefix.Addr().Is4() {
			continue
		}
		if prefix.Addr() == addr {
			return "is the tunnel's own address"
		}
		any4 = true
		inside = inside || prefix.Contains(addr)
	}
	switch {
	case !any4:
		return "needs a valid IPv4 address of the tunnel"
	case !inside:
		return "lies outside the subnets of the tunnel's addresses"
	}
	return ""
}

func (p *parser) mtu() {
	p.out.MTU = DefaultMTU
	given, ok := p.dict[keyMTU]
	if !ok {
		return
	}
	var n uint64
	var err error
	var s string
	switch v := given.(type) {
	case uint32:
		n, s = uint64(v), strconv.FormatUint(uint64(v), 10)
	case string:
		if s = v; !p.clean(keyMTU, s) {
			return
		}
		n, err = strconv.ParseUint(s, 10, 32)
	default:
		p.refuseKey(keyMTU, "has the type %s, it must be s or u", signatureOf(given))
		return
	}
	if err != nil || n < MinMTU || n > MaxMTU {
		p.refuse(keyMTU, s, fmt.Sprintf("is not a number from %d to %d", MinMTU, MaxMTU))
		return
	}
	ipv6 := func(a netip.Prefix) bool { return a.Addr().Is6() }
	if n < MinMTUIPv6 && slices.ContainsFunc(p.out.Addresses, ipv6) {
		p.refuse(keyMTU, s, fmt.Sprintf("is below %d, which IPv6 addresses need", MinMTUIPv6))
		return
	}
	p.out.MTU = uint32(n)
}

func (p *parser) dnsServers() {
	for _, s := range p.list(keyDNSServers, MaxDNSServers) {
		addr, fault := parseAddr(s)
		if fault == "" { // loopback may be: a resolver that the client runs
			fault = unusable(addr)
		}
		switch {
		case fault != "":
			p.refuse(keyDNSServers, s, fault)
		case slices.Contains(p.out.DNSServers, addr):
			p.warn(keyDNSServers, s, "is given twice")
		default:
			p.out.DNSServers = append(p.out.DNSServers, addr)
		}
	}
}

func (p *parser) domains(key string) []string {
	var out []string
	for _, s := range p.list(key, MaxDomains) {
		name := strings.TrimSuffix(s, ".")
		same := func(have string) bool { return strings.EqualFold(have, name) }
		if fault := domainFault(name); fault != "" {
			p.refuse(key, s, fault)
		} else if slices.ContainsFunc(out, same) {
			p.warn(key, s, "is given twice")
		} else {
			out = append(out, name)
		}
	}
	return out
}

func (p *parser) reconnect() {
	switch v := p.dict[keyReconnect].(type) {
	case bool:
		p.out.Reconnect = v
	case string:
		if p.clean(keyReconnect, v) && v != "true" && v != "false" {
			p.refuse(keyReconnect, v, `is neither "true" nor "false"`)
		}
		p.out.Reconnect = v == "true"
	default:
		if _, given := p.dict[keyReconnect]; given {
			p.refuseKey(keyReconnect, "has the type %s, it must be b or s", signatureOf(v))
		}
	}
}

func (p *parser) families() {
	for _, s := range p.list(keyFamilies, 2) {
		switch s {
		case familyIPv4:
			p.out.AllowIPv4 = true
		case familyIPv6:
			p.out.AllowIPv6 = true
		default:
			p.refuse(keyFamilies, s, fmt.Sprintf("is neither %q nor %q", familyIPv4, familyIPv6))
		}
	}
}

func (p *parser) unknownKeys() {
	var unknown []string
	for key := range p.dict {
		if !known(key) {
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	for _, key := range unknown {
		p.refuseKey(key, "is not a parameter")
	}
}
