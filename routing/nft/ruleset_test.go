package nft

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
)

// chains are those that the kernel calls, with when it does.
func (h *host) chains() []string {
	h.t.Helper()
	all, err := h.Firewall.nft.ListChains()
	h.must(err)
	var list []string
	for _, c := range all {
		if c.Hooknum == nil {
			continue
		}
		if *c.Policy != nftables.ChainPolicyAccept {
			h.t.Errorf("chain %s has the policy %d", c.Name, *c.Policy)
		}
		list = append(list, fmt.Sprintf("%s: %s, hook %d, priority %d, table %s of family %d",
			c.Name, c.Type, *c.Hooknum, *c.Priority, c.Table.Name, c.Table.Family))
	}
	slices.Sort(list)
	return list
}

// What is there, and what an administrator sees of it. (What the rules do is for
// the tests with packets; how nft shows them is not the same in each version.)
func TestRuleset(t *testing.T) {
	h := enter(t)
	h.must(h.Set(t.Context(), h.filters()["everything"]))
	open := []string{
		"input: filter, hook 0, priority 0, table vpnprovider of family 3",
		"mark-in: filter, hook 0, priority -150, table vpnprovider of family 1",
		"mark-out: route, hook 3, priority -150, table vpnprovider of family 1",
		"raw: filter, hook 0, priority -300, table vpnprovider of family 1",
	}
	locked := append([]string{
		"lockdown-forward: filter, hook 2, priority 0, table vpnprovider of family 1",
		"lockdown-output: filter, hook 3, priority 0, table vpnprovider of family 1",
	}, open...)
	slices.Sort(locked)
	if diff := cmp.Diff(locked, h.chains()); diff != "" {
		t.Error(diff)
	}
	text := h.nft("list", "ruleset")
	for _, line := range []string{
		`elements = { "up0", "docker0" }`, fmt.Sprintf(`iif "vpn0" goto tunnel-%d`, h.vpn), "ip daddr 10.8.0.2 drop", "ip6 daddr fd00::2 drop",
		"icmpv6 type 133-137 drop", "fib saddr type local drop", "ip6 saddr fe80::/10 drop", `oif "vpn0" accept`,
		`ip saddr 172.17.0.0/16 fib saddr oif != "vpn0" drop`, `ip6 saddr fd17::/64 fib saddr oif != "vpn0" drop`, "arp daddr ip 10.8.0.2 drop",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
	if inet, _, _ := strings.Cut(text, "table arp"); strings.Contains(inet, "0x57") {
		t.Errorf("answers are marked in a lockdown:\n%s", text)
	}
	h.must(h.Set(t.Context(), h.filters()["a tunnel"]))
	if diff := cmp.Diff(open, h.chains()); diff != "" {
		t.Error(diff)
	}
	if text = h.nft("list", "ruleset"); strings.Count(text, "0x57000000") < 5 || strings.Contains(text, "lockdown") || strings.Contains(text, "src-valid-mark") {
		t.Errorf("of a tunnel alone:\n%s", text)
	}
}
