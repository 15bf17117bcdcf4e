// Package vpnenv reads the environment in which openconnect starts its script
// and makes the parameters of a session of it.
//
// The values come from the VPN server, which need not mean well. Nothing is
// guessed: what is malformed is an error that names the variable, and what is
// well-formed but cannot be had is a notice. What follows from the values is
// what vpnc-script, openconnect's own script, does with them. The package does
// no I/O and keeps no state.
package vpnenv

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Limits of what one environment may ask for. They are those of the daemon,
// checked here for a message that names openconnect's variable.
const (
	maxBlocks  = 16384 // of inclusions and of exclusions
	maxServers = 8
	maxDomains = 32
	maxValue   = 1 << 16 // bytes of one value

	minMTU      = 576
	minMTUIPv6  = 1280
	maxMTU      = 65535
	fallbackMTU = 1412 // vpnc-script's, where the server names none
)

// Settings is what a server asked for. Its slices belong to the caller of
// Parse; none holds a value twice.
type Settings struct {
	Addresses []netip.Prefix // host prefixes, IPv4 first
	MTU       int            // bytes

	// Include goes into the tunnel and Exclude stays out of it, by longest
	// prefix. No block is in both. The server itself is in Exclude.
	Include, Exclude []netip.Prefix

	AllowLAN bool // the server leaves the local network alone

	DNS    []netip.Addr
	Search []string // search domains
	Match  []string // the only domains that DNS is for; none: all of them

	Gateway netip.Addr // the server, or the proxy before it; invalid where unknown
	Banner  string     // lines to show to the user, no control characters

	Notices []string // what was left out and why, one sentence each
}

// Wanted tells whether Parse looks at the variable of that name. All others
// can stay where they are; some hold what is nobody else's business.
func Wanted(name string) bool {
	switch name {
	case "VPNGATEWAY", "CISCO_DEF_DOMAIN", "CISCO_SPLIT_DNS", "CISCO_BANNER":
		return true
	case "INTERNAL_IP4_ADDRESS", "INTERNAL_IP4_NETADDR", "INTERNAL_IP4_NETMASKLEN",
		"INTERNAL_IP4_MTU", "INTERNAL_IP4_DNS":
		return true
	case "INTERNAL_IP6_ADDRESS", "INTERNAL_IP6_NETMASK", "INTERNAL_IP6_DNS":
		return true
	}
	for _, list := range [...]string{splitInclude4, splitInclude6, splitExclude4, splitExclude6} {
		if rest, ok := strings.CutPrefix(name, list); ok {
			return rest == "" || strings.HasPrefix(rest, "_")
		}
	}
	return false
}

// Owned tells whether openconnect or its script speaks through the variable
// of that name. openconnect does not clear all of them before it sets some, so
// those of an outer environment would pass for the server's.
func Owned(name string) bool {
	return strings.HasPrefix(name, "CISCO_") || strings.HasPrefix(name, "INTERNAL_IP") ||
		name == "VPNGATEWAY" || name == "VPNFD" || name == "VPNPID"
}

// Parse makes the settings of an environment. The error names every variable
// that is wrong; then there are no settings.
func Parse(env map[string]string) (Settings, error) {
	r := reader{env: env, listed: map[netip.Prefix]bool{}}
	r.addresses()
	r.mtu()
	r.exclusions()
	r.inclusions()
	r.names()
	r.limits()
	r.banner()
	if len(r.faults) > 0 {
		return Settings{}, fmt.Errorf("cannot use what the server sent: %w", errors.Join(r.faults...))
	}
	return r.out, nil
}

// reader collects settings and faults.
type reader struct {
	env    map[string]string
	out    Settings
	listed map[netip.Prefix]bool // in Include or Exclude
	faults []error
}

func (r *reader) fault(name, format string, args ...any) {
	r.faults = append(r.faults, fmt.Errorf("%s %s", name, fmt.Sprintf(format, args...)))
}

func (r *reader) notice(format string, args ...any) {
	r.out.Notices = append(r.out.Notices, fmt.Sprintf(format, args...))
}

// value is a variable that is fit to be parsed and shown; "" where there is
// none. Control characters could forge lines on a terminal or in a file.
func (r *reader) value(name string) string {
	v := r.env[name]
	switch {
	case len(v) > maxValue:
		r.fault(name, "has %d bytes", len(v))
		return ""
	case !printable(v):
		r.fault(name, "has control characters or is not UTF-8: %q", shorten(v))
		return ""
	}
	return v
}

// shorten keeps messages readable.
func shorten(s string) string { return shortenTo(s, 80) }

func shortenTo(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
