package rtnl

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// Overrides tells, a sentence each, the routing rules of others that are asked
// before ours and can divert traffic that the tunnel should have: programs that
// add a rule without a priority get one in front of all others. They are not
// fought. While there is no rule of ours there are none.
func (k *Kernel) Overrides(ctx context.Context) ([]string, error) {
	var list []string
	for _, v6 := range []bool{false, true} {
		rules, err := look(ctx, func() ([]netlink.Rule, error) { return k.handle.RuleList(familyOf(v6)) })
		if v6 && errors.Is(err, unix.EAFNOSUPPORT) {
			continue // a host without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("cannot list rules: %w", err)
		}
		list = append(list, overriding(rules, v6)...)
	}
	return list, nil
}

// overriding looks at the rules of one family, which are in the order in which
// they are asked.
func overriding(rules []netlink.Rule, v6 bool) []string {
	var list []string
	for _, r := range rules {
		if r.Protocol == routing.Protocol && r.Priority == routing.RulePriority {
			return list
		}
		if !diverts(r) {
			continue
		}
		name := "IPv4"
		if v6 {
			name = "IPv6"
		}
		list = append(list, fmt.Sprintf("%s rule %d of another program (table %d) is asked before the tunnel's",
			name, r.Priority, r.Table))
	}
	return nil // none of it is ours
}

// diverts says whether a rule can send unmarked traffic of this host elsewhere.
func diverts(r netlink.Rule) bool {
	if r.Goto < 0 && (r.Table == unix.RT_TABLE_LOCAL || r.Table == unix.RT_TABLE_UNSPEC) {
		return false // refuses at most, or is about VRFs alone
	}
	if r.IifName != "" && r.IifName != "lo" {
		return false // forwarded traffic
	}
	marked := r.Mark != 0
	if r.Mask != nil {
		marked = r.Mark&*r.Mask != 0
	}
	return !marked || r.Invert
}
