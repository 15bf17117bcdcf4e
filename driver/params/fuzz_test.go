package params

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// FuzzParse holds three promises for whatever a client sends: no panic, an
// error that may be sent and logged as it is, and no accepted value that the
// safety rules forbid. What is accepted survives Dict.
func FuzzParse(f *testing.F) {
	f.Add("10.8.0.2/24", "fd00::2/64", "10.8.0.255", "1400", "10.0.0.0/8 ::/0", "0.0.0.0/0", "corp.example", "1.1.1.1 ::1", "true", "x")
	f.Add("10.8.0.2/24", "", "", "", "0.0.0.0/0 0.0.0.0/0", "0.0.0.0/0 10.0.0.0/8 10.1.1.1/8", "a. A", "", "", "mtu")
	f.Add("::1/128", "fe80::1%eth0/64 \xff", "::ffff:1.2.3.4", "99999999999", "127.0.0.1 \x00", "::ffff:0:0/96", "~. a..b", "0.0.0.0", "1", "")
	f.Fuzz(func(t *testing.T, address, addresses, broadcast, mtu, inclusion, exclusion, domains, servers, reconnect, key string) {
		dict := map[string]any{keyAddress: address}
		putText := func(key, s string) {
			if s != "" {
				dict[key] = s
			}
		}
		putText(key, "surprise")
		putText(keyBroadcast, broadcast)
		putText(keyMTU, mtu)
		putText(keyReconnect, reconnect)
		for key, s := range map[string]string{
			keyAddresses: addresses, keyInclusion: inclusion, keyExclusion: exclusion, keyDomainSearch: domains, keyMatchDomains: domains, keyDNSServers: servers,
		} {
			if s != "" {
				dict[key] = strings.Split(s, " ")
			}
		}
		p, warnings, err := Parse(dict)
		for _, w := range warnings {
			checkText(t, w)
		}
		if err != nil {
			var problems Problems
			if !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("the error holds no problems: %v", err)
			}
			checkText(t, err.Error())
			return
		}
		checkSafe(t, p)
		again, warnings, err := Parse(p.Dict())
		if err != nil || len(warnings) > 0 || !reflect.DeepEqual(again, p) {
			t.Fatalf("round trip: %v %q\nfrom %+v\nto   %+v", err, warnings, p, again)
		}
	})
}

func checkText(t *testing.T, s string) {
	t.Helper()
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		t.Fatalf("unfit to be shown: %q", s)
	}
}

func checkSafe(t *testing.T, p Parameters) {
	t.Helper()
	if len(p.Addresses) == 0 {
		t.Fatal("no address")
	}
	for _, prefix := range p.Addresses {
		a := prefix.Addr()
		if !a.IsGlobalUnicast() || a.Is4In6() || a.Zone() != "" {
			t.Fatalf("address %v", prefix)
		}
		if a.Is6() && p.MTU < MinMTUIPv6 {
			t.Fatalf("mtu %d with %v", p.MTU, prefix)
		}
	}
	seen := map[netip.Prefix]bool{}
	for _, block := range append(append([]netip.Prefix{}, p.Inclusion...), p.Exclusion...) {
		if seen[block] || block != block.Masked() {
			t.Fatalf("block %v is twice there or not masked", block)
		}
		seen[block] = true
	}
	for _, text := range []string{"0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "::1/128", "fe80::/10", "ff00::/8", "::ffff:0:0/96"} {
		banned := netip.MustParsePrefix(text)
		for _, block := range p.Inclusion {
			if block.Bits() >= banned.Bits() && banned.Overlaps(block) {
				t.Fatalf("included %v", block)
			}
		}
	}
	if b := p.Broadcast; b.IsValid() && !b.Is4() {
		t.Fatalf("broadcast %v", b)
	}
}
