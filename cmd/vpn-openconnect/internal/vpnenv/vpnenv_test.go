package vpnenv

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// base is a real environment's, from ocserv 1.1.6 with openconnect 9.01.
func base() map[string]string {
	return map[string]string{
		"VPNGATEWAY":                "192.0.2.1",
		"INTERNAL_IP4_ADDRESS":      "10.99.0.190",
		"INTERNAL_IP4_NETADDR":      "10.99.0.0",
		"INTERNAL_IP4_NETMASK":      "255.255.255.0",
		"INTERNAL_IP4_NETMASKLEN":   "24",
		"INTERNAL_IP4_MTU":          "1434",
		"INTERNAL_IP4_DNS":          "10.99.0.1",
		"CISCO_DEF_DOMAIN":          "corp.example",
		"CISCO_SPLIT_DNS":           "int.example,corp.example",
		"CISCO_BANNER":              "hello from ocserv",
		"CISCO_SPLIT_INC":           "2",
		"CISCO_SPLIT_INC_0_ADDR":    "198.51.100.0",
		"CISCO_SPLIT_INC_0_MASK":    "255.255.255.0",
		"CISCO_SPLIT_INC_0_MASKLEN": "24",
		"CISCO_SPLIT_INC_1_ADDR":    "10.99.0.0",
		"CISCO_SPLIT_INC_1_MASKLEN": "24",
		"CISCO_SPLIT_EXC":           "1",
		"CISCO_SPLIT_EXC_0_ADDR":    "198.51.100.7",
		"CISCO_SPLIT_EXC_0_MASKLEN": "32",
		"CISCO_CSTP_OPTIONS":        "X-CSTP-MTU=1434\n",
	}
}

// with is base with changes; "" removes.
func with(changes map[string]string) map[string]string {
	env := base()
	maps.Copy(env, changes)
	maps.DeleteFunc(env, func(_, v string) bool { return v == "" })
	return env
}

// full is a full tunnel.
func full(changes map[string]string) map[string]string {
	env := with(map[string]string{"CISCO_SPLIT_INC": "", "CISCO_SPLIT_EXC": ""})
	maps.Copy(env, changes)
	maps.DeleteFunc(env, func(_, v string) bool { return v == "" })
	return env
}

func show[T fmt.Stringer](list []T) string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return strings.Join(out, " ")
}

func TestParse(t *testing.T) {
	type want struct {
		Addresses, Include, Exclude, DNS, Search, Match string
		MTU                                             int
		LAN                                             bool
		Notices                                         int
	}
	for _, tt := range []struct {
		name string
		env  map[string]string
		want want
	}{
		{"split", base(), want{
			Addresses: "10.99.0.190/32", MTU: 1434,
			Include: "10.99.0.0/24 198.51.100.0/24 10.99.0.1/32",
			Exclude: "192.0.2.1/32 198.51.100.7/32",
			DNS:     "10.99.0.1", Search: "corp.example", Match: "int.example corp.example",
		}},
		{"full", full(nil), want{
			Addresses: "10.99.0.190/32", MTU: 1434, Include: "0.0.0.0/0", Exclude: "192.0.2.1/32",
			DNS: "10.99.0.1", Search: "corp.example", Match: "int.example corp.example",
		}},
		{"full of both", full(map[string]string{
			"INTERNAL_IP6_ADDRESS": "fd99::5", "INTERNAL_IP6_NETMASK": "fd99::5/64",
			"INTERNAL_IP4_DNS": "10.99.0.1 fd99::1", "CISCO_SPLIT_DNS": "", "VPNGATEWAY": "2001:db8::1",
		}), want{
			Addresses: "10.99.0.190/32 fd99::5/128", MTU: 1434, Include: "0.0.0.0/0 ::/0",
			Exclude: "2001:db8::1/128", DNS: "10.99.0.1 fd99::1", Search: "corp.example",
		}},
		{"IPv4 split, IPv6 by its own list", with(map[string]string{
			"INTERNAL_IP6_ADDRESS": "fd99::5", "INTERNAL_IP6_NETMASK": "fd99::5/64",
			"CISCO_IPV6_SPLIT_INC": "1", "CISCO_IPV6_SPLIT_INC_0_ADDR": "fd00:1::9", "CISCO_IPV6_SPLIT_INC_0_MASKLEN": "32",
			"CISCO_IPV6_SPLIT_EXC": "1", "CISCO_IPV6_SPLIT_EXC_0_ADDR": "fd00:1:2::", "CISCO_IPV6_SPLIT_EXC_0_MASKLEN": "48",
			"INTERNAL_IP4_DNS": "", "CISCO_DEF_DOMAIN": "", "CISCO_SPLIT_DNS": "",
		}), want{
			Addresses: "10.99.0.190/32 fd99::5/128", MTU: 1434,
			Include: "10.99.0.0/24 198.51.100.0/24 fd99::/64 fd00:1::/32",
			Exclude: "192.0.2.1/32 198.51.100.7/32 fd00:1:2::/48",
		}},
		{"IPv4 split, IPv6 all", with(map[string]string{
			"INTERNAL_IP6_ADDRESS": "fd99::5", "INTERNAL_IP4_DNS": "", "CISCO_DEF_DOMAIN": "", "CISCO_SPLIT_DNS": "",
		}), want{
			Addresses: "10.99.0.190/32 fd99::5/128", MTU: 1434,
			Include: "10.99.0.0/24 198.51.100.0/24 ::/0", Exclude: "192.0.2.1/32 198.51.100.7/32",
		}},
		{"IPv6 alone", map[string]string{"INTERNAL_IP6_ADDRESS": "fd99::5", "INTERNAL_IP4_MTU": "1300"}, want{
			Addresses: "fd99::5/128", MTU: 1300, Include: "::/0",
		}},
		{"MTU below IPv6", full(map[string]string{
			"INTERNAL_IP6_ADDRESS": "fd99::5", "INTERNAL_IP4_MTU": "1200", "INTERNAL_IP4_DNS": "10.99.0.1 fd99::1",
			"CISCO_DEF_DOMAIN": "", "CISCO_SPLIT_DNS": "",
		}), want{
			Addresses: "10.99.0.190/32", MTU: 1200, Include: "0.0.0.0/0", Exclude: "192.0.2.1/32", DNS: "10.99.0.1", Notices: 2,
		}},
		{"no MTU", full(map[string]string{"INTERNAL_IP4_MTU": "", "INTERNAL_IP4_DNS": "", "CISCO_DEF_DOMAIN": "", "CISCO_SPLIT_DNS": ""}), want{
			Addresses: "10.99.0.190/32", MTU: 1412, Include: "0.0.0.0/0", Exclude: "192.0.2.1/32",
		}},
		{"blocks of a family without address", map[string]string{
			"INTERNAL_IP4_ADDRESS": "10.0.0.2",
			"CISCO_IPV6_SPLIT_INC": "1", "CISCO_IPV6_SPLIT_INC_0_ADDR": "fd00::", "CISCO_IPV6_SPLIT_INC_0_MASKLEN": "8",
		}, want{Addresses: "10.0.0.2/32", MTU: 1412, Include: "0.0.0.0/0", Notices: 1}},
		{"local network, never routed exclusions, localhost proxy", full(map[string]string{
			"VPNGATEWAY":      "127.0.0.1",
			"CISCO_SPLIT_EXC": "3", "CISCO_SPLIT_EXC_0_ADDR": "0.0.0.0", "CISCO_SPLIT_EXC_0_MASKLEN": "32",
			"CISCO_SPLIT_EXC_1_ADDR": "127.0.0.0", "CISCO_SPLIT_EXC_1_MASKLEN": "8",
			"CISCO_SPLIT_EXC_2_ADDR": "203.0.113.0", "CISCO_SPLIT_EXC_2_MASKLEN": "24",
			"INTERNAL_IP4_DNS": "", "CISCO_DEF_DOMAIN": "", "CISCO_SPLIT_DNS": "",
		}), want{
			Addresses: "10.99.0.190/32", MTU: 1434, Include: "0.0.0.0/0", Exclude: "203.0.113.0/24", LAN: true, Notices: 2,
		}},
		{"the same block in both lists", with(map[string]string{
			"CISCO_SPLIT_INC_0_ADDR": "198.51.100.7", "CISCO_SPLIT_INC_0_MASKLEN": "32",
			"INTERNAL_IP4_DNS": "198.51.100.7", "CISCO_DEF_DOMAIN": "", "CISCO_SPLIT_DNS": "",
		}), want{
			Addresses: "10.99.0.190/32", MTU: 1434, Include: "10.99.0.0/24", Exclude: "192.0.2.1/32 198.51.100.7/32", DNS: "198.51.100.7",
		}},
		{"groups, links and other hosts' own", with(map[string]string{
			"CISCO_SPLIT_INC": "4", "CISCO_SPLIT_INC_2_ADDR": "224.0.0.0", "CISCO_SPLIT_INC_2_MASKLEN": "4",
			"CISCO_SPLIT_INC_3_ADDR": "127.0.0.1", "CISCO_SPLIT_INC_3_MASKLEN": "32",
			"CISCO_DEF_DOMAIN": "", "CISCO_SPLIT_DNS": "", "INTERNAL_IP4_DNS": "",
		}), want{
			Addresses: "10.99.0.190/32", MTU: 1434,
			Include: "10.99.0.0/24 198.51.100.0/24", Exclude: "192.0.2.1/32 198.51.100.7/32", Notices: 2,
		}},
		{"domains as servers write them", full(map[string]string{
			"CISCO_DEF_DOMAIN": "Corp.Example;lab.example.", "CISCO_SPLIT_DNS": "*.a.example,.b.example,a.example", "INTERNAL_IP4_DNS": "",
		}), want{
			Addresses: "10.99.0.190/32", MTU: 1434, Include: "0.0.0.0/0", Exclude: "192.0.2.1/32",
			Search: "corp.example lab.example", Match: "a.example b.example",
		}},
		{"too many domains", full(map[string]string{
			"CISCO_DEF_DOMAIN": "", "CISCO_SPLIT_DNS": domains(33), "INTERNAL_IP4_DNS": "",
		}), want{
			Addresses: "10.99.0.190/32", MTU: 1434, Include: "0.0.0.0/0", Exclude: "192.0.2.1/32", Notices: 1,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(tt.env)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, want{
				show(got.Addresses), show(got.Include), show(got.Exclude), show(got.DNS),
				strings.Join(got.Search, " "), strings.Join(got.Match, " "),
				got.MTU, got.AllowLAN, len(got.Notices),
			}); diff != "" {
				t.Errorf("settings (-want +got):\n%s\nnotices: %q", diff, got.Notices)
			}
		})
	}
}

func domains(n int) string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("d%d.example", i))
	}
	return strings.Join(out, ",")
}

// TestRefused: what a server must not be able to get in, and that the message
// tells which variable it was.
func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		name, value, says string
	}{
		{"INTERNAL_IP4_ADDRESS", "10.0.0", "is not an IP address"},
		{"INTERNAL_IP4_ADDRESS", "fd00::1", "other IP version"},
		{"INTERNAL_IP4_ADDRESS", "127.0.0.1", "no usable address"},
		{"INTERNAL_IP4_ADDRESS", "10.0.0.1\n", "control characters"},
		{"INTERNAL_IP6_ADDRESS", "fe80::1%eth0", "zone"},
		{"INTERNAL_IP6_ADDRESS", "::ffff:10.0.0.1", "IPv4 address in IPv6"},
		{"INTERNAL_IP4_NETMASKLEN", "33", "no prefix length"},
		{"INTERNAL_IP4_MTU", "100", "from 576"},
		{"INTERNAL_IP4_MTU", "-1", "from 576"},
		{"INTERNAL_IP4_MTU", "99999999999999999999", "from 576"},
		{"INTERNAL_IP4_DNS", "10.0.0.1 evil", "not an IP address"},
		{"INTERNAL_IP4_DNS", "127.0.0.53", "no usable address"},
		{"INTERNAL_IP4_DNS", "10.1.0.1 10.1.0.2 10.1.0.3 10.1.0.4 10.1.0.5 10.1.0.6 10.1.0.7 10.1.0.8 10.1.0.9", "9 servers"},
		{"VPNGATEWAY", "vpn.example", "not an IP address"},
		{"CISCO_SPLIT_INC", "x", "is not a number"},
		{"CISCO_SPLIT_INC", "-1", "is not a number"},
		{"CISCO_SPLIT_INC", "16385", "up to 16384"},
		{"CISCO_SPLIT_INC", "3", `is no address of a block: ""`}, // the third is missing
		{"CISCO_SPLIT_INC_0_ADDR", "fd00::", "no address of a block"},
		{"CISCO_SPLIT_INC_0_MASKLEN", "", "no prefix length"},
		{"CISCO_SPLIT_EXC_0_ADDR", "1.2.3.4.5", "no address of a block"},
		{"CISCO_DEF_DOMAIN", "corp.example\nnameserver 6.6.6.6", "control characters"},
		{"CISCO_DEF_DOMAIN", "corp.example$rm", "no domain"},
		{"CISCO_SPLIT_DNS", "~.", "no domain"},
		{"CISCO_SPLIT_DNS", strings.Repeat("a", 64) + ".example", "no domain"},
		{"CISCO_SPLIT_DNS", "\xff.example", "not UTF-8"},
		{"CISCO_SPLIT_DNS", strings.Repeat("a,", 40000), "bytes"},
	} {
		t.Run(tt.name+" "+shorten(tt.value), func(t *testing.T) {
			env := base()
			env[tt.name] = tt.value
			got, err := Parse(env)
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("error %v, want one with %q", err, tt.says)
			}
			if !strings.Contains(err.Error(), tt.name[:len("CISCO")]) {
				t.Errorf("the error does not name the variable: %v", err)
			}
			if !reflect.DeepEqual(got, Settings{}) {
				t.Errorf("settings in spite of the error: %+v", got)
			}
			if strings.ContainsFunc(strings.ReplaceAll(err.Error(), "\n", ""), func(c rune) bool { return c < ' ' }) {
				t.Errorf("the error carries control characters: %q", err)
			}
		})
	}
	if _, err := Parse(nil); err == nil || !strings.Contains(err.Error(), "no address") {
		t.Errorf("empty environment: %v", err)
	}
	if _, err := Parse(map[string]string{"INTERNAL_IP6_ADDRESS": "fd99::5", "INTERNAL_IP4_MTU": "1279"}); err == nil {
		t.Error("an MTU of 1279 for IPv6 alone was accepted")
	}
}

// TestAllFaultsAtOnce: nobody should have to try again for each.
func TestAllFaultsAtOnce(t *testing.T) {
	env := base()
	env["INTERNAL_IP4_MTU"], env["CISCO_SPLIT_DNS"], env["CISCO_SPLIT_EXC_0_ADDR"] = "x", "%", "y"
	_, err := Parse(env)
	for _, name := range []string{"INTERNAL_IP4_MTU", "CISCO_SPLIT_DNS", "CISCO_SPLIT_EXC_0_ADDR"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("the error does not name %s: %v", name, err)
		}
	}
}

func TestManyBlocks(t *testing.T) {
	env := base()
	env["CISCO_SPLIT_INC"] = "16380"
	for i := range 16380 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0})
		env[fmt.Sprintf("CISCO_SPLIT_INC_%d_ADDR", i)] = a.String()
		env[fmt.Sprintf("CISCO_SPLIT_INC_%d_MASKLEN", i)] = "24"
	}
	if _, err := Parse(env); err != nil {
		t.Fatal(err)
	}
	env["INTERNAL_IP4_DNS"] = "10.200.0.1 10.200.0.2 10.200.0.3 10.200.0.4 10.200.0.5"
	if _, err := Parse(env); err == nil || !strings.Contains(err.Error(), "blocks") {
		t.Errorf("DNS servers made the inclusions too many: %v", err)
	}
}

func TestBannerCannotSteerTheTerminal(t *testing.T) {
	env := base()
	env["CISCO_BANNER"] = "wel\x1b]0;evil\x07come\x1b[2J\r\nto \u202ecorp\xff" + strings.Repeat("!", 10000)
	got, err := Parse(env)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range got.Banner {
		if c < ' ' && c != '\n' || c == 0x7f || c == '\u202e' {
			t.Fatalf("banner has %q: %q", c, got.Banner)
		}
	}
	if !strings.HasPrefix(got.Banner, "wel]0;evilcome[2J\nto corp") || len(got.Banner) > 4200 {
		t.Errorf("banner %q", got.Banner)
	}
}

func TestWanted(t *testing.T) {
	for name := range base() {
		if want := name != "CISCO_CSTP_OPTIONS" && !strings.HasSuffix(name, "_NETMASK"); Wanted(name) != want {
			t.Errorf("Wanted(%q) = %v", name, !want)
		}
		if !Owned(name) {
			t.Errorf("Owned(%q) = false", name)
		}
	}
	for _, name := range []string{"PATH", "CISCO_SPLIT_INCLUDE", "SSH_AUTH_SOCK", "LANG"} {
		if Wanted(name) {
			t.Errorf("Wanted(%q) = true", name)
		}
	}
}

// FuzzParse feeds KEY=VALUE lines over a good environment. Whatever comes out
// without an error must be within the limits and free of control characters.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"INTERNAL_IP4_ADDRESS=1.2.3.4\x00INTERNAL_IP6_NETMASK=fd00::1/64",
		"CISCO_SPLIT_INC=1\x00CISCO_SPLIT_INC_0_ADDR=0.0.0.0\x00CISCO_SPLIT_INC_0_MASKLEN=0",
		"CISCO_SPLIT_EXC=2\x00CISCO_SPLIT_EXC_1_ADDR=::\x00CISCO_SPLIT_EXC_1_MASKLEN=128",
		"CISCO_DEF_DOMAIN=a b,c\x00CISCO_SPLIT_DNS=*.x\x00CISCO_BANNER=\x1b[31m",
		"INTERNAL_IP4_DNS=fd00::1 10.0.0.1\x00INTERNAL_IP4_MTU=1279\x00INTERNAL_IP6_ADDRESS=fd00::2",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		env := base()
		for line := range strings.SplitSeq(text, "\x00") {
			name, value, _ := strings.Cut(line, "=")
			env[name] = value
		}
		s, err := Parse(env)
		if err != nil {
			if !reflect.DeepEqual(s, Settings{}) {
				t.Fatal("settings in spite of an error")
			}
			return
		}
		check(t, s)
	})
}

func check(t *testing.T, s Settings) {
	t.Helper()
	if len(s.Addresses) == 0 || len(s.Addresses) > 2 || s.MTU < minMTU || s.MTU > maxMTU {
		t.Fatalf("addresses %v, MTU %d", s.Addresses, s.MTU)
	}
	seen := map[netip.Prefix]bool{}
	for _, b := range append(s.Include, s.Exclude...) {
		if !b.IsValid() || b != b.Masked() || seen[b] {
			t.Fatalf("block %v", b)
		}
		seen[b] = true
	}
	if len(s.Include) == 0 || len(s.Include) > maxBlocks || len(s.Exclude) > maxBlocks ||
		len(s.DNS) > maxServers || len(s.Search) > maxDomains || len(s.Match) > maxDomains {
		t.Fatalf("limits: %+v", s)
	}
	for _, d := range append(s.Search, s.Match...) {
		if !isDomain(d) {
			t.Fatalf("domain %q", d)
		}
	}
	for _, text := range append(s.Notices, strings.ReplaceAll(s.Banner, "\n", " ")) {
		if !printable(text) {
			t.Fatalf("not printable: %q", text)
		}
	}
}
