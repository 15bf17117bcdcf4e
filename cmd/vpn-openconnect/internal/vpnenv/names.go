package vpnenv

import (
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// names are the DNS servers and the domains.
func (r *reader) names() {
	r.servers()
	r.out.Search = r.domains("CISCO_DEF_DOMAIN")
	if len(r.out.Search) > maxDomains {
		r.notice("the server's %d search domains are ignored: at most %d are possible", len(r.out.Search), maxDomains)
		r.out.Search = nil
	}
	r.out.Match = r.domains("CISCO_SPLIT_DNS")
	// Leaving some out would ask other servers for the names in them. Asking
	// the VPN's for all names keeps the inner ones inside.
	if len(r.out.Match) > maxDomains {
		r.notice("all names go to the VPN's DNS servers: it lists %d domains of its own, at most %d are possible", len(r.out.Match), maxDomains)
		r.out.Match = nil
	}
}

// servers must be reachable through the tunnel: vpnc-script routes each there
// too. openconnect puts the IPv6 ones into the variable of IPv4 as well.
func (r *reader) servers() {
	for _, name := range [...]string{"INTERNAL_IP4_DNS", "INTERNAL_IP6_DNS"} {
		for text := range strings.FieldsSeq(r.value(name)) {
			addr, fault := parseAddr(text)
			switch {
			case fault != "":
				r.fault(name, "%s: %q", fault, shorten(text))
			case !r.has(addr.Is4()):
				r.notice("the DNS server %v is ignored: the server assigned no address to reach it from", addr)
			case !slices.Contains(r.out.DNS, addr):
				r.out.DNS = append(r.out.DNS, addr)
				r.reach(addr)
			}
		}
	}
	if len(r.out.DNS) > maxServers {
		r.fault("INTERNAL_IP4_DNS", "has %d servers, at most %d are allowed", len(r.out.DNS), maxServers)
	}
}

// reach includes addr unless the whole family is: one route the less.
func (r *reader) reach(addr netip.Addr) {
	if all := netip.PrefixFrom(addr, 0).Masked(); !slices.Contains(r.out.Include, all) {
		r.add(&r.out.Include, host(addr))
	}
}

// domains are separated by commas or blanks, or semicolons, as FortiGates do.
// Some servers write a wildcard or a dot in front, which says what every domain
// means anyway.
func (r *reader) domains(name string) []string {
	var out []string
	for _, text := range strings.FieldsFunc(r.value(name), isSeparator) {
		domain := strings.ToLower(strings.Trim(strings.TrimPrefix(text, "*."), "."))
		if !isDomain(domain) {
			r.fault(name, "has something that is no domain: %q", shorten(text))
			continue
		}
		if !slices.Contains(out, domain) {
			out = append(out, domain)
		}
	}
	return out
}

func isSeparator(c rune) bool { return c == ',' || c == ';' || c == ' ' }

// isDomain allows what DNS names are made of, so that a domain can never be
// anything else in the file or call where it ends up.
func isDomain(s string) bool {
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return false
		}
		if strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

// banner is text for people, so it is cleaned instead of refused: what could
// steer a terminal is dropped.
func (r *reader) banner() {
	text := strings.ToValidUTF8(shortenTo(r.env["CISCO_BANNER"], 4096), "?")
	text = strings.Map(func(c rune) rune {
		if c != '\n' && !unicode.IsPrint(c) {
			return -1
		}
		return c
	}, text)
	r.out.Banner = strings.TrimSpace(text)
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}
