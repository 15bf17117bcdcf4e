package params

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const addr4, addr6 = "10.8.0.2/24", "fd00::2/64"

// with is a valid dictionary with the given keys and values over it.
func with(pairs ...any) map[string]any {
	dict := map[string]any{keyAddress: addr4}
	for i := 0; i < len(pairs); i += 2 {
		dict[pairs[i].(string)] = pairs[i+1]
	}
	return dict
}

func mustParse(t *testing.T, dict map[string]any) (Parameters, []string) {
	t.Helper()
	p, warnings, err := Parse(dict)
	if err != nil {
		t.Fatalf("Parse(%v): %v", dict, err)
	}
	return p, warnings
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestParseAll(t *testing.T) {
	got, warnings := mustParse(t, map[string]any{
		"address":          addr4,
		"addresses":        []string{addr6, "10.9.0.1/32"},
		"broadcastAddress": "10.8.0.255",
		"mtu":              "1400",
		"exclusionList":    []string{"192.0.2.7/24", "2001:db8::1"},
		"inclusionList":    []string{"0.0.0.0/0", "::/0"},
		"domainSearch":     []string{"corp.example.", "_tcp.x"},
		"matchDomains":     []string{"Corp.Example"},
		"dnsServers":       []string{"10.8.0.1", "fd00::1", "127.0.0.1"},
		"reconnect":        "true",
		"allowLan":         true,
		"allowFamilies":    []string{"ipv6"},
	})
	want := Parameters{
		Addresses:    prefixes(addr4, addr6, "10.9.0.1/32"),
		Broadcast:    netip.MustParseAddr("10.8.0.255"),
		MTU:          1400,
		Exclusion:    prefixes("192.0.2.0/24", "2001:db8::1/128"),
		Inclusion:    prefixes("0.0.0.0/0", "::/0"),
		DomainSearch: []string{"corp.example", "_tcp.x"},
		MatchDomains: []string{"Corp.Example"},
		DNSServers: []netip.Addr{
			netip.MustParseAddr("10.8.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("127.0.0.1"),
		},
		Reconnect: true, AllowLAN: true, AllowIPv6: true,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if len(warnings) > 0 {
		t.Errorf("warnings of a faultless dictionary: %q", warnings)
	}
}

func TestParseDefaults(t *testing.T) {
	for _, dict := range []map[string]any{
		{"address": addr4},
		{"addresses": []string{addr4}},
		with("exclusionList", []string{}, "inclusionList", []string{}, "dnsServers", []string{}, "domainSearch", []string{}),
	} {
		got, _ := mustParse(t, dict)
		if want := (Parameters{Addresses: prefixes(addr4), MTU: 1500}); !reflect.DeepEqual(got, want) {
			t.Errorf("Parse(%v) = %+v, want %+v", dict, got, want)
		}
	}
}

func TestParseAccepts(t *testing.T) {
	for _, dict := range []map[string]any{
		with("mtu", "576"), with("mtu", uint32(65535)), with("mtu", uint32(1280), "addresses", []string{addr6}),
		with("reconnect", true), with("reconnect", "false"),
		with("inclusionList", []string{"0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1", "224.0.0.0/3", "fe00::/8", "::/95"}),
		with("inclusionList", []string{"169.254.169.254", "100.64.0.0/10", "192.168.0.0/16"}),
		with("exclusionList", []string{"127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "::1", "fe80::/10", "ff00::/8", "0.0.0.0/8"}),
		with("broadcastAddress", "255.255.255.255"),
		with("domainSearch", []string{"a", "x-y.z_1", strings.Repeat("a", 63) + ".b", "xn--bcher-kva.example"}),
		with("dnsServers", []string{"127.0.0.1", "::1", "169.254.169.253"}),
		{"address": "10.8.0.1/31"},
		{"address": "10.8.0.255/32"},
		{"address": "10.8.0.0/24"},
		{"address": "fd00::ffff/112"},
	} {
		if _, warnings := mustParse(t, dict); len(warnings) > 0 {
			t.Errorf("Parse(%v) warns %q", dict, warnings)
		}
	}
}

// TestParseRefuses demands that the one problem names the key and the entry.
func TestParseRefuses(t *testing.T) {
	long := strings.Repeat("a", 256)
	label := strings.Repeat("a", 64)
	type entry struct {
		key     string
		entries []string
	}
	for _, c := range []entry{
		{"inclusionList", []string{
			"0.0.0.0/8", "0.1.2.3", "127.0.0.0/8", "127.0.0.1", "224.0.0.0/4", "239.1.1.1/32", "240.0.0.0/4", "255.255.255.255",
			"::1", "::1/128", "fe80::/10", "fe80::1", "ff00::/8", "ff02::1/128", "::ffff:0:0/96", "::ffff:10.0.0.0/104", "::ffff:1.2.3.4",
		}},
		{"exclusionList", []string{
			"", "x", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/08", "10.0.0/8", "010.0.0.1", " 10.0.0.1",
			"10.0.0.0/8/8", "10.0.0.0/255.0.0.0", "fe80::1%eth0", "fe80::%1/64", "::/129", "::ffff:1.2.3.4/128", "10.0.0.1\n", "10.0.0.1\x00", "\xff", long,
		}},
		{"addresses", []string{
			"127.0.0.1/8", "::1/128", "0.0.0.0/0", "0.1.2.3/8", "::/64", "224.0.0.1/4", "ff02::1/64", "255.255.255.255/32", "10.9.0.255/24",
			"169.254.1.1/16", "fe80::1/64", "fe80::1%lo/64", "::ffff:10.9.0.1/128", "10.9.0.1", "10.9.0.1/33", "10.8.0.2/16", "",
		}},
		{"dnsServers", []string{"0.0.0.0", "::", "224.0.0.251", "ff02::fb", "255.255.255.255", "1.1.1.1/32", "1.1.1.1:53", "dns.example", "fe80::1%2", "::ffff:1.1.1.1"}},
		{"domainSearch", []string{"", ".", "a..b", ".a", "-a.b", "a-.b", "~corp", "a b", "a/b", "bücher.example", label, label + ".com", strings.Repeat("a.", 126) + "ab", long, "a\x1b[0m", "a\u0085"}},
		{"matchDomains", []string{"~.", "*.example"}},
		{"allowFamilies", []string{"ipv5", "IPv4", ""}},
	} {
		for _, s := range c.entries {
			_, _, err := Parse(with(c.key, []string{s}))
			checkOne(t, err, c.key, s)
		}
	}
	for _, c := range []entry{
		{"address", []string{"", "10.0.0.1", "vpn", "127.0.0.1/8"}},
		{"broadcastAddress", []string{"", "x", "fd00::1", "10.8.0.2", "10.9.0.255", "127.0.0.1", "224.0.0.1", "0.0.0.0", "::ffff:10.8.0.255"}},
		{"mtu", []string{"", "575", "65536", "-1", "+1500", "1e3", "0x5dc", " 1500", "99999999999999999999"}},
		{"reconnect", []string{"", "True", "1", "yes", "true\n"}},
	} {
		for _, s := range c.entries {
			_, _, err := Parse(with(c.key, s))
			if c.key != keyAddress {
				checkOne(t, err, c.key, s)
			} else if err == nil || !strings.Contains(err.Error(), "address "+quote(s)) {
				t.Errorf("address %q: got error %v", s, err)
			}
		}
	}
	for _, n := range []uint32{0, 575, 65536, math.MaxUint32} {
		_, _, err := Parse(with("mtu", n))
		checkOne(t, err, "mtu", fmt.Sprint(n))
	}
	_, _, err := Parse(with("addresses", []string{addr6}, "mtu", uint32(1279)))
	checkOne(t, err, "mtu", "1279")
	_, _, err = Parse(map[string]any{"address": addr6, "broadcastAddress": "10.8.0.255"})
	checkOne(t, err, "broadcastAddress", "10.8.0.255")
}

func checkOne(t *testing.T, err error, key, value string) {
	t.Helper()
	var problems Problems
	if !errors.As(err, &problems) || len(problems) != 1 {
		t.Errorf("%s %q: got error %v, want one problem", key, value, err)
		return
	}
	if problems[0].Key != key || problems[0].Value != quote(value) {
		t.Errorf("%s %q: the problem names %s %s", key, value, problems[0].Key, problems[0].Value)
	}
	if msg := err.Error(); !strings.Contains(msg, key+" "+quote(value)) {
		t.Errorf("%s %q: not named in %q", key, value, msg)
	}
}

func TestParseMissingAddress(t *testing.T) {
	for _, dict := range []map[string]any{nil, {}, {"addresses": []string{}}, {"mtu": uint32(1400)}} {
		_, _, err := Parse(dict)
		if err == nil || err.Error() != "invalid parameters: address is missing, and so is addresses" {
			t.Errorf("Parse(%v): %v", dict, err)
		}
	}
}

type ObjectPath string // as the bus library names it

func TestParseWrongTypes(t *testing.T) {
	for _, c := range []struct {
		key   string
		value any
		want  string
	}{
		{"address", uint32(1), "u"},
		{"address", ObjectPath("/"), "o"},
		{"broadcastAddress", []byte{1}, "ay"},
		{"inclusionList", "10.0.0.0/8", "s"},
		{"exclusionList", []any{"x", int32(1)}, "(si)"},
		{"dnsServers", [][]string{}, "aas"},
		{"domainSearch", map[string]any{}, "a{sv}"},
		{"mtu", int32(1500), "i"},
		{"mtu", uint64(1500), "t"},
		{"mtu", 1500.0, "d"},
		{"mtu", nil, "nothing"},
		{"allowLan", "true", "s"},
		{"reconnect", byte(1), "y"},
		{"reconnect", int16(1), "n"},
		{"reconnect", nil, "nothing"},
		{"matchDomains", uint16(1), "q"},
		{"allowFamilies", int64(1), "x"},
		{"addresses", []bool{}, "ab"},
	} {
		_, _, err := Parse(with(c.key, c.value))
		want := fmt.Sprintf("invalid parameters: %s has the type %s, it must be ", c.key, c.want)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s…", err, want)
		}
	}
}

func TestParseAllProblemsAtOnce(t *testing.T) {
	p, _, err := Parse(map[string]any{
		"address":       "127.0.0.1/8",
		"addresses":     []string{"10.8.0.2/24", "nonsense"},
		"mtu":           "big",
		"inclusionList": []string{"10.0.0.0/8", "127.0.0.0/8", "::1"},
		"Zeta":          true,
		"alpha\n":       true,
	})
	const want = `invalid parameters: address "127.0.0.1/8" is loopback; addresses "nonsense" is not a CIDR block; ` +
		`mtu "big" is not a number from 576 to 65535; ` +
		`inclusionList "127.0.0.0/8" lies inside 127.0.0.0/8, which cannot go into a tunnel; ` +
		`inclusionList "::1" lies inside ::1/128, which cannot go into a tunnel; ` +
		`"Zeta" is not a parameter; "alpha\n" is not a parameter`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if !slices.Equal(p.Addresses, prefixes("10.8.0.2/24")) || !slices.Equal(p.Inclusion, prefixes("10.0.0.0/8")) {
		t.Errorf("the valid rest is %+v", p)
	}
}

func TestErrorIsBounded(t *testing.T) {
	bad := make([]string, MaxBlocks)
	for i := range bad {
		bad[i] = strings.Repeat("\x01", 255)
	}
	dict := map[string]any{"inclusionList": bad, "exclusionList": bad, "mtu": "x"}
	for i := range 5000 {
		dict[fmt.Sprintf("unknown%d", i)] = true
	}
	_, _, err := Parse(dict)
	msg := err.Error()
	if len(msg) > 64<<10 {
		t.Errorf("the message has %d bytes", len(msg))
	}
	for _, want := range []string{"address is missing", "inclusionList", "exclusionList", "mtu", `"unknown0"`, fmt.Sprintf("… and %d more", 2*(MaxBlocks-20)+5000-20)} {
		if !strings.Contains(msg, want) {
			t.Errorf("the message does not say %q", want)
		}
	}
}

func TestLimits(t *testing.T) {
	for _, c := range []struct {
		key   string
		limit int
		entry func(int) string
	}{
		{"inclusionList", MaxBlocks, func(i int) string { return fmt.Sprintf("10.%d.%d.0/24", i>>8&0xff, i&0xff) }},
		{"exclusionList", MaxBlocks, func(i int) string { return fmt.Sprintf("fd00::%x", i) }},
		{"dnsServers", MaxDNSServers, func(i int) string { return fmt.Sprintf("10.0.0.%d", i) }},
		{"domainSearch", MaxDomains, func(i int) string { return fmt.Sprintf("d%d.example", i) }},
		{"matchDomains", MaxDomains, func(i int) string { return fmt.Sprintf("d%d.example", i) }},
		{"addresses", MaxAddresses - 1, func(i int) string { return fmt.Sprintf("10.0.0.%d/32", i+1) }},
	} {
		var list []string
		for i := range c.limit {
			list = append(list, c.entry(i))
		}
		if _, _, err := Parse(with(c.key, list)); err != nil {
			t.Errorf("%s with %d entries: %v", c.key, c.limit, err)
		}
		_, _, err := Parse(with(c.key, append(list, c.entry(c.limit))))
		if err == nil || !strings.Contains(err.Error(), c.key) {
			t.Errorf("%s with %d entries: %v", c.key, c.limit+1, err)
		}
	}
}

func TestDuplicates(t *testing.T) {
	p, warnings := mustParse(t, with(
		"addresses", []string{addr4},
		"exclusionList", []string{"192.0.2.0/24", "192.0.2.9/24", "198.51.100.1"},
		"inclusionList", []string{"192.0.2.0/24", "10.0.0.0/8", "10.1.0.0/8", "198.51.100.1/32", "192.0.2.0/25"},
		"dnsServers", []string{"10.8.0.1", "10.8.0.1"},
		"domainSearch", []string{"a.b", "A.B."},
	))
	if !slices.Equal(p.Exclusion, prefixes("192.0.2.0/24", "198.51.100.1/32")) ||
		!slices.Equal(p.Inclusion, prefixes("10.0.0.0/8", "192.0.2.0/25")) ||
		len(p.Addresses) != 1 || len(p.DNSServers) != 1 || len(p.DomainSearch) != 1 {
		t.Errorf("got %+v", p)
	}
	want := []string{
		`addresses "10.8.0.2/24" is given twice`,
		`exclusionList "192.0.2.9/24" is dropped: 192.0.2.0/24 is in the list already`,
		`inclusionList "192.0.2.0/24" is dropped: 192.0.2.0/24 is in exclusionList, which wins`,
		`inclusionList "10.1.0.0/8" is dropped: 10.0.0.0/8 is in the list already`,
		`inclusionList "198.51.100.1/32" is dropped: 198.51.100.1/32 is in exclusionList, which wins`,
		`domainSearch "A.B." is given twice`,
		`dnsServers "10.8.0.1" is given twice`,
	}
	if !slices.Equal(warnings, want) {
		t.Errorf("got  %q\nwant %q", warnings, want)
	}
}

func TestExclusionOfAll(t *testing.T) {
	for _, c := range []struct{ exclusion, want []string }{
		{[]string{"0.0.0.0/0"}, nil},
		{[]string{"1.2.3.4/0", "fd00::/8"}, []string{"fd00::/8"}},
		{[]string{"0.0.0.0/0", "10.0.0.0/8"}, []string{"0.0.0.0/0", "10.0.0.0/8"}},
		{[]string{"10.0.0.0/8", "0.0.0.0/0"}, []string{"10.0.0.0/8", "0.0.0.0/0"}},
		{[]string{"::/0"}, []string{"::/0"}},
	} {
		p, warnings := mustParse(t, with("exclusionList", c.exclusion, "inclusionList", []string{"0.0.0.0/0"}))
		if !slices.Equal(p.Exclusion, prefixes(c.want...)) {
			t.Errorf("%q: excluded %v, want %v", c.exclusion, p.Exclusion, c.want)
		}
		dropped := len(c.want) < len(c.exclusion)
		if said := slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, "nothing is excluded") }); said != dropped {
			t.Errorf("%q: warnings %q", c.exclusion, warnings)
		}
		if whole := len(p.Inclusion) == 1; whole != !slices.Contains(p.Exclusion, netip.MustParsePrefix("0.0.0.0/0")) {
			t.Errorf("%q: included %v, excluded %v", c.exclusion, p.Inclusion, p.Exclusion)
		}
	}
}

func TestConflicts(t *testing.T) {
	host := Host{
		Addresses:   []netip.Addr{netip.MustParseAddr("192.168.1.7"), netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("fd00::9")},
		Gateways:    []netip.Addr{netip.MustParseAddr("192.168.1.1")},
		Nameservers: []netip.Addr{netip.MustParseAddr("::ffff:192.168.1.2"), netip.MustParseAddr("192.168.1.3")},
	}
	for _, c := range []struct {
		dict map[string]any
		want []string
	}{
		{with("addresses", []string{addr6, "192.168.1.9/24"}), nil},
		{with("address", "192.168.1.7/32"), []string{`address "192.168.1.7/32" is assigned to another interface of this host`}},
		{with("address", "192.168.1.1/24", "addresses", []string{"fd00::9/64", "192.168.1.2/24"}), []string{
			`address "192.168.1.1/24" is the gateway of the physical network`,
			`addresses "fd00::9/64" is assigned to another interface of this host`,
			`addresses "192.168.1.2/24" is a name server of the physical network`,
		}},
		{with("address", "192.168.1.9/24", "broadcastAddress", "192.168.1.1"), []string{`broadcastAddress "192.168.1.1" is the gateway of the physical network`}},
		{with("address", "192.168.1.0/30"), []string{`address "192.168.1.0/30" has the broadcast address 192.168.1.3, which is a name server of the physical network`}},
	} {
		p, _ := mustParse(t, c.dict)
		var got []string
		for _, problem := range p.Conflicts(host) {
			got = append(got, problem.String())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v: got %q, want %q", c.dict, got, c.want)
		}
	}
}

func TestJoin(t *testing.T) {
	if err := Join(nil, Problems(nil)); err != nil {
		t.Errorf("Join of nothing is %v", err)
	}
	a, b := Problems{{Key: "mtu", Text: "a"}}, Problems{{Key: "address", Text: "b"}}
	var all Problems
	if err := Join(a, nil, b); !errors.As(err, &all) || len(all) != 2 {
		t.Errorf("got %v", err)
	}
	other := errors.New("other")
	if err := Join(a, other); !errors.Is(err, other) || !errors.As(err, &all) {
		t.Errorf("got %v", err)
	}
}

func BenchmarkParse(b *testing.B) {
	blocks := make([]string, MaxBlocks)
	for i := range blocks {
		blocks[i] = fmt.Sprintf("10.%d.%d.0/24", i>>8, i&0xff)
	}
	dict := with("inclusionList", blocks)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Parse(dict); err != nil {
			b.Fatal(err)
		}
	}
}

func TestOmitted(t *testing.T) {
	p := Parameters{Addresses: []netip.Prefix{netip.MustParsePrefix("10.8.0.2/24"), netip.MustParsePrefix("fd08::2/64")}}
	if got := p.Omitted(Host{}); got != nil {
		t.Errorf("%q", got)
	}
	if got := p.Omitted(Host{NoIPv6: true}); len(got) != 1 || !strings.Contains(got[0], "fd08::2/64") {
		t.Errorf("%q", got)
	}
}
