package rtnl

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vpnprovider/vpnproviderd/routing"
)

func TestOverrides(t *testing.T) {
	n := enter(t)
	n.openTUN("vpn0")
	network := n.network()
	check := func(want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, must(n.kernel.Overrides(t.Context()))(t)); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	n.ip("rule", "add", "pref", "100", "lookup", "main", "suppress_prefixlength", "0")
	check()
	n.must(network.Apply(t.Context(), n.config("0.0.0.0/0")))
	for _, harmless := range [][]string{
		{"pref", "200", "fwmark", "0x80000/0xff0000", "lookup", "main"},
		{"pref", "201", "iif", "up0", "lookup", "52"},
		{"pref", "202", "blackhole"},
		{"pref", "5210", "lookup", "52"},
	} {
		n.ip(append([]string{"rule", "add"}, harmless...)...)
	}
	n.ip("-6", "rule", "add", "not", "fwmark", "51820", "table", "51820") // as wg-quick does
	check("IPv4 rule 100 of another program (table 254) is asked before the tunnel's",
		"IPv6 rule 4649 of another program (table 51820) is asked before the tunnel's")
	n.must(network.Apply(t.Context(), routing.Config{}))
	check()
}
