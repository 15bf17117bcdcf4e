package system

import (
	"fmt"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// parameterSet is one of those that cover the sender's packets: they go into
// the tunnel, or nowhere.
type parameterSet struct {
	name       string
	parameters dict
	tunnelled  []int // the families that go into the tunnel
}

func parameterSets() []parameterSet {
	list := func(blocks ...string) godbus.Variant { return godbus.MakeVariant(blocks) }
	many := []string{harness.InternetIPv4, harness.InternetIPv6}
	for i := range 1000 {
		many = append(many, fmt.Sprintf("172.16.%d.%d/32", i>>7, i<<1&255), fmt.Sprintf("fd55:%x::/48", i<<1|1))
	}
	both := []int{0, 1}
	return []parameterSet{
		{"full", fullTunnel(), both},
		{"IPv4 only, small MTU", dict{
			"address": godbus.MakeVariant("10.8.0.3/24"), "inclusionList": list("0.0.0.0/1", "128.0.0.0/1"),
			"mtu": godbus.MakeVariant(uint32(1000)),
		}, []int{0}},
		{"split", dict{
			"address": godbus.MakeVariant("10.8.0.2/32"), "addresses": list("fd08::2/128", "10.9.0.9/16"),
			"inclusionList": list(harness.InternetIPv4, harness.InternetIPv6),
			"dnsServers":    list(harness.PrivateDNS), "mtu": godbus.MakeVariant(uint32(1280)),
		}, both},
		{"IPv6 only", dict{
			"addresses": list("fd08::3/64"), "inclusionList": list("::/1", "8000::/1"), "mtu": godbus.MakeVariant("1400"),
		}, []int{1}},
		{"inside an exclusion", dict{
			"address": godbus.MakeVariant("10.8.0.2/24"), "addresses": list("fd08::2/64"),
			"inclusionList": list(harness.InternetIPv4, harness.InternetIPv6, "0.0.0.0/0", "::/0"),
			"exclusionList": list("203.0.0.0/8", "2001:db8::/32", harness.ServerIPv4), "mtu": godbus.MakeVariant("65535"),
		}, both},
		{"IPv4 only, other blocks", dict{
			"address": godbus.MakeVariant("10.7.0.1/30"), "inclusionList": list("0.0.0.0/0", harness.InternetIPv4),
			"exclusionList": list(harness.ServerIPv4), "mtu": godbus.MakeVariant("576"),
		}, []int{0}},
		{"many blocks", dict{
			"address": godbus.MakeVariant("10.8.0.2/24"), "addresses": list("fd08::2/64"), "inclusionList": list(many...),
			"allowLan": godbus.MakeVariant(true), "domainSearch": list("a.example"), "dnsServers": list("fd98::53", harness.PrivateDNS),
		}, both},
	}
}

// Updates in place, from every set of parameters to another, under
// traffic: none of it in clear at any moment.
func TestUpdates(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	s := v.startSender(t)
	s.requireSeen(t)
	session, channel := v.establish()
	link := v.link(session)
	sets := parameterSets()
	clear, tunnelled := s.inClear(t), int64(0)
	at := 0
	n := times(100, 1000)
	for i := range n {
		at = (at + 1 + i/len(sets)%(len(sets)-1)) % len(sets) // each to each other
		set := sets[at]
		v.configure(session, set.parameters)
		v.requireParameters(session, set.parameters)
		s.requireTunnelled(t, channel, set.tunnelled...)
		if leaked := s.inClear(t) - clear; leaked != 0 {
			t.Fatalf("update %d, %s: %d packets in clear:\n%v", i, set.name, leaked, v.look(t).text)
		}
		progress(t, i+1, n)
	}
	v.requireState(wire.StateConnected)
	if now := v.link(session); now != link {
		t.Errorf("the interface was %s, is %s", link, now)
	}
	tunnelled = sum(&channel.sent)
	figure(t, "updates", "%d: %d packets through the tunnel, %d without a route, %d in clear", n, tunnelled, s.unreachable(), s.inClear(t)-clear)
	v.disconnect()
	s.requireSeen(t)
	s.requireRate(t)
}

// requireParameters compares the session's properties with what was set.
func (v *vpn) requireParameters(session godbus.ObjectPath, set dict) {
	v.t.Helper()
	got := v.ui.properties(session)
	addresses, _ := set["addresses"].Value().([]string)
	if first, ok := set["address"].Value().(string); ok {
		addresses = append([]string{first}, addresses...)
	}
	for name, want := range map[string]any{
		"Addresses":     addresses,
		"InclusionList": set["inclusionList"].Value(),
		"DNSServers":    set["dnsServers"].Value(),
		"DomainSearch":  set["domainSearch"].Value(),
		"MTU":           set["mtu"].Value(),
	} {
		if want == nil {
			want = map[string]any{"MTU": "1500"}[name]
		}
		g, w := fmt.Sprint(got[name].Value()), fmt.Sprint(want)
		if want == nil {
			w = "[]"
		}
		if g != w {
			v.t.Errorf("%s is %.200s, want %.200s", name, g, w)
		}
	}
}

// badUpdate is a refused set of parameters: fullTunnel with one key changed.
type badUpdate struct {
	key   string
	value any
	named string // what the error names, besides the key
}

func badUpdates() []badUpdate {
	list := func(entries ...string) []string { return entries }
	long := strings.Repeat("x", 256)
	return []badUpdate{
		{"inclusionList", list("0.1.0.0/16"), "0.1.0.0/16"},
		{"inclusionList", list("0.0.0.0/8"), "0.0.0.0/8"},
		{"inclusionList", list("127.0.0.0/8"), "127.0.0.0/8"},
		{"inclusionList", list("127.0.0.53"), "127.0.0.53"},
		{"inclusionList", list("224.0.0.0/4"), "224.0.0.0/4"},
		{"inclusionList", list("239.255.255.250"), "239.255.255.250"},
		{"inclusionList", list("240.0.0.0/4"), "240.0.0.0/4"},
		{"inclusionList", list("255.255.255.255"), "255.255.255.255"},
		{"inclusionList", list("::1"), "::1"},
		{"inclusionList", list("fe80::/10"), "fe80::/10"},
		{"inclusionList", list("fe80::1/128"), "fe80::1/128"},
		{"inclusionList", list("ff00::/8"), "ff00::/8"},
		{"inclusionList", list("ff02::fb"), "ff02::fb"},
		{"inclusionList", list("::ffff:0:0/96"), "::ffff:0"},
		{"inclusionList", list("::ffff:10.0.0.1"), "::ffff:10.0.0.1"},
		{"inclusionList", list("0.0.0.0/0", "10.0.0.0/33"), "10.0.0.0/33"},
		{"inclusionList", list("10.0.0.0/8\n"), `10.0.0.0/8\n`},
		{"inclusionList", "0.0.0.0/0", "type"},
		{"exclusionList", list("example.com"), "example.com"},
		{"exclusionList", list("fe80::1%h0"), "fe80::1%h0"},
		{"exclusionList", list(""), `""`},
		{"exclusionList", list(long), "255"},
		{"exclusionList", make([]string, 16385), "16384"},
		{"address", "127.0.0.2/8", "127.0.0.2/8"},
		{"address", "0.0.0.0/24", "0.0.0.0/24"},
		{"address", "224.0.0.1/24", "224.0.0.1/24"},
		{"address", "255.255.255.255/32", "255.255.255.255/32"},
		{"address", "169.254.7.7/16", "169.254.7.7/16"},
		{"address", "10.8.0.2", "10.8.0.2"},
		{"address", "10.8.0.255/24", "10.8.0.255/24"},
		{"address", harness.HostIPv4 + "/32", "interface"},
		{"address", harness.RouterIPv4 + "/32", "gateway"},
		{"address", harness.InternetDNS + "/32", "name server"},
		{"address", uint32(7), "type"},
		{"addresses", list("::1/128"), "::1/128"},
		{"addresses", list("::/64"), "::/64"},
		{"addresses", list("ff02::1/64"), "ff02::1/64"},
		{"addresses", list("fe80::7/64"), "fe80::7/64"},
		{"addresses", list(harness.HostIPv6 + "/128"), "interface"},
		{"addresses", list(harness.RouterIPv6 + "/128"), "gateway"},
		{"addresses", list("10.8.1.1/24", "10.8.1.2/24", "10.8.1.3/24", "10.8.1.4/24", "10.8.1.5/24", "10.8.1.6/24", "10.8.1.7/24", "10.8.1.8/24"), "8"},
		{"broadcastAddress", "10.9.9.255", "10.9.9.255"},
		{"broadcastAddress", "fd08::ff", "fd08::ff"},
		{"mtu", "575", "575"},
		{"mtu", "65536", "65536"},
		{"mtu", uint32(1279), "1279"},
		{"mtu", "1400 ", "1400 "},
		{"mtu", int32(1400), "type"},
		{"dnsServers", list("0.0.0.0"), "0.0.0.0"},
		{"dnsServers", list("224.0.0.251"), "224.0.0.251"},
		{"dnsServers", list("dns.example"), "dns.example"},
		{"dnsServers", list("10.98.0.53\nsearch evil.example"), "evil.example"},
		{"dnsServers", list("10.98.0.1", "10.98.0.2", "10.98.0.3", "10.98.0.4", "10.98.0.5", "10.98.0.6", "10.98.0.7", "10.98.0.8", "10.98.0.9"), "8"},
		{"domainSearch", list("corp.example\x7f"), "corp.example"},
		{"domainSearch", list("corp..example"), "corp..example"},
		{"domainSearch", list(strings.Repeat("a.", 130) + "example"), "255"},
		{"matchDomains", list("~."), "~."},
		{"matchDomains", list("-x.example"), "-x.example"},
		{"reconnect", "yes", "yes"},
		{"allowLan", "true", "type"},
		{"allowFamilies", list("ipx"), "ipx"},
		{"exclusionlist", list(), "exclusionlist"},
		{"", true, `""`},
	}
}

// Refused parameters are named, and nothing at all changes.
func TestBadUpdates(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session, _ := v.establish()
	before, properties := v.look(t).text, v.ui.properties(session)
	whole := v.Host.Snapshot(t, resolvConf)
	v.provider.trace()
	bad := badUpdates()
	for _, b := range bad {
		set := fullTunnel()
		set["reconnect"] = godbus.MakeVariant(true) // would change, too
		set["mtu"] = godbus.MakeVariant("1300")
		set[b.key] = godbus.MakeVariant(b.value)
		v.provider.refused(v.provider.on(session, "SetParameters", set), wire.ErrInvalidParameter, b.key, b.named)
		if now := v.look(t).text; now != before {
			t.Errorf("%s %.100v changed the network\n%s\nit was\n%s", b.key, b.value, now, before)
		}
	}
	now := v.ui.properties(session)
	delete(now, "Statistics")
	for name, value := range now {
		if value.String() != properties[name].String() {
			t.Errorf("%s is %v, was %v", name, value, properties[name])
		}
	}
	if diff := whole.Diff(v.Host.Snapshot(t, resolvConf)); diff != "" {
		t.Error(diff)
	}
	requireTrace(t, "the provider", v.provider.trace(v.config, session))
	v.ping(t, "2", includedIPv4)
	v.ping(t, "2", includedIPv6)

	// All that is wrong with one set is named at once.
	all := dict{}
	names := []string{}
	for _, b := range bad {
		if _, twice := all[b.key]; !twice {
			all[b.key] = godbus.MakeVariant(b.value)
			names = append(names, b.key, b.named)
		}
	}
	v.provider.refused(v.provider.on(session, "SetParameters", all), wire.ErrInvalidParameter, names...)
	t.Logf("%d sets were refused", len(bad)+1)
}
