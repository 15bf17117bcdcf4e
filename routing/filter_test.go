package routing_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vpnprovider/vpnproviderd/routing"
	"github.com/vpnprovider/vpnproviderd/routing/routingtest"
)

func addrs(list ...string) []netip.Addr {
	var as []netip.Addr
	for _, s := range list {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

func TestPlanFilter(t *testing.T) {
	facts := routing.Facts{
		IPv6: true, LinkIPv6: true,
		Subnets: []routing.Subnet{
			{Prefix: netip.MustParsePrefix("172.18.0.0/16"), Link: 9, Virtual: true},
			{Prefix: netip.MustParsePrefix("192.168.1.0/24"), Link: 2},
			{Prefix: netip.MustParsePrefix("172.17.0.0/16"), Link: 5, Virtual: true},
			{Prefix: netip.MustParsePrefix("fd17::/64"), Link: 5, Virtual: true},
		},
		Strict: []routing.StrictLink{{Link: 3}, {Link: 4, Marked: true}, {Link: 2}},
		Asker:  101,
	}
	c := routing.Config{Link: routing.Link{Name: "vpn0", Index: 7}, MTU: 1500, Addresses: prefixes("10.8.0.2/24", "fd00::2/64")}
	end := []routing.TunnelEnd{{Link: 7, Addresses: addrs("10.8.0.2", "fd00::2")}}
	full := c
	full.Include = prefixes("0.0.0.0/0")
	full.DNS.Servers = addrs("10.8.0.1")
	split, lan, some := full, full, full
	split.Include = prefixes("10.0.0.0/8")
	lan.AllowLAN = true
	some.DNS.Match = []string{"corp.example"}
	theirs := &routing.Filter{Tunnels: end, Marked: []int{2, 3}}
	for name, want := range map[string]struct {
		config   routing.Config
		lockdown bool
		filter   *routing.Filter
		marked   []routing.MarkedLink
	}{
		"nothing":           {},
		"a tunnel":          {config: c, filter: theirs, marked: []routing.MarkedLink{{3}, {2}}},
		"all names":         {config: full, filter: &routing.Filter{Tunnels: end, Names: true, Asker: 101, Local: []int{5, 9}, Marked: []int{2, 3}}, marked: []routing.MarkedLink{{3}, {2}}},
		"names, split":      {config: split, filter: theirs, marked: []routing.MarkedLink{{3}, {2}}},
		"names, and a LAN":  {config: lan, filter: theirs, marked: []routing.MarkedLink{{3}, {2}}},
		"some names":        {config: some, filter: theirs, marked: []routing.MarkedLink{{3}, {2}}},
		"a lockdown":        {lockdown: true, filter: &routing.Filter{Lockdown: true, Local: []int{5, 9}}},
		"a lockdown, in it": {config: c, lockdown: true, filter: &routing.Filter{Tunnels: end, Lockdown: true, Local: []int{5, 9}, Marked: []int{2, 3}}, marked: []routing.MarkedLink{{3}, {2}}},
	} {
		s := routing.Plan(want.config, want.lockdown, facts)
		same := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
		if diff := cmp.Diff(want.filter, s.Firewall, same); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if diff := cmp.Diff(want.marked, s.Marked); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// At every instant of an update the firewall protects each address that a link
// has, remembers each link that is marked, and keeps a lockdown that is neither
// begun nor ended by it.
func TestUpdateStaysFiltered(t *testing.T) {
	for seed := range uint64(1500) {
		r := rand.New(rand.NewPCG(seed, 4))
		h := newHost(false)
		h.kernel.SetFacts(randomFacts(r))
		locked := r.IntN(2) == 0
		h.lock(t, locked)
		h.apply(t, randomConfig(r))
		h.kernel.SetFacts(randomFacts(r))
		after := randomConfig(r)
		look := func() {
			s, f := h.kernel.State(), h.firewall.Current()
			if f == nil {
				f = &routing.Filter{}
			}
			for _, a := range s.Addresses {
				if !slices.ContainsFunc(f.Tunnels, func(e routing.TunnelEnd) bool {
					return e.Link == a.Link && slices.Contains(e.Addresses, a.Addr)
				}) {
					t.Fatalf("seed %d: address %s is not in %+v", seed, a.Addr, f)
				}
			}
			for _, m := range s.Marked {
				if !slices.Contains(f.Marked, m.Link) {
					t.Fatalf("seed %d: link %d is marked, but not in %+v", seed, m.Link, f)
				}
			}
			if f.Lockdown != locked {
				t.Fatalf("seed %d: lockdown %v, want %v", seed, f.Lockdown, locked)
			}
		}
		h.kernel.Trace, h.firewall.Trace = func(routing.Op) { look() }, look
		if r.IntN(4) == 0 {
			h.failures.At(r.IntN(12))
		}
		if err := h.Apply(t.Context(), after); err != nil && !errors.Is(err, routingtest.ErrInjected) {
			t.Fatal(err)
		}
		h.failures.At()
		h.apply(t, routing.Config{})
		if f := h.firewall.Current(); (f != nil) != locked {
			t.Fatalf("seed %d: left: %+v", seed, f)
		}
	}
}

// A lockdown outlives the process that began it, whatever it had to leave
// behind, and the marks of links do not.
func TestSweepKeepsLockdown(t *testing.T) {
	strict := routing.Facts{IPv6: true, LinkIPv6: true, Strict: []routing.StrictLink{{Link: 2}, {Link: 3, Marked: true}}}
	c := routing.Config{Link: routing.Link{Name: "vpn0", Index: 7}, MTU: 1500, Addresses: prefixes("10.8.0.2/24"), Include: prefixes("0.0.0.0/0")}
	for name, lockdown := range map[string]struct{ before, wanted, after bool }{
		"none":                   {},
		"found":                  {before: true, after: true},
		"wanted, but not there":  {wanted: true, after: true},
		"wanted, and also found": {before: true, wanted: true, after: true},
	} {
		h := newHost(false)
		h.kernel.SetFacts(strict)
		h.lock(t, lockdown.before)
		h.apply(t, c)
		if got := h.kernel.State().Marked; !slices.Equal(got, []routing.MarkedLink{{Link: 2}}) {
			t.Errorf("%s: marked %v", name, got)
		}
		h.kernel.RemoveLink(7)
		h.restart()
		clear := func(context.Context) bool { return h.firewall.Current() == nil || !h.firewall.Current().Lockdown }
		first := true
		h.firewall.Trace = func() {
			if first && clear(t.Context()) == lockdown.after {
				t.Errorf("%s: the first step leaves %+v", name, h.firewall.Current())
			}
			first = false
		}
		if err := h.Sweep(t.Context(), lockdown.wanted); err != nil {
			t.Fatal(err)
		}
		if got := h.kernel.State().Marked; len(got) != 0 {
			t.Errorf("%s: marked %v are left", name, got)
		}
		var want *routing.Filter
		if lockdown.after {
			want = &routing.Filter{Lockdown: true}
		}
		if diff := cmp.Diff(want, h.firewall.Current()); diff != "" || h.Locked() != lockdown.after {
			t.Errorf("%s: locked %v\n%s", name, h.Locked(), diff)
		}
		h.lock(t, false)
		if h.firewall.Current() != nil || h.Locked() {
			t.Errorf("%s: not unlocked", name)
		}
	}
}

// A tunnel that was taken over with its lockdown: a failure that follows keeps
// that.
func TestAdoptKeepsLockdown(t *testing.T) {
	c := routing.Config{Link: routing.Link{Name: "vpn0", Index: 7}, MTU: 1500, Addresses: prefixes("10.8.0.2/24"), Include: prefixes("0.0.0.0/0")}
	h := newHost(false)
	h.lock(t, true)
	h.apply(t, c)
	h.restart()
	if err := h.Adopt(t.Context(), false); err != nil || !h.Locked() {
		t.Fatalf("%v, locked %v", err, h.Locked())
	}
	h.failures.At(1)
	c.MTU = 1400
	if err := h.Apply(t.Context(), c); !errors.Is(err, routingtest.ErrInjected) {
		t.Fatal(err)
	}
	if f := h.firewall.Current(); f == nil || !f.Lockdown {
		t.Errorf("the firewall is %+v", f)
	}
}

// What another program removed comes back, also while nothing but a lockdown is
// there; and a link that another program unmarked.
func TestRefreshFilter(t *testing.T) {
	h := newHost(false)
	h.lock(t, true)
	refresh := func() {
		t.Helper()
		if err := h.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	h.firewall.Flush()
	refresh()
	if f := h.firewall.Current(); f == nil || !f.Lockdown {
		t.Fatalf("the firewall is %+v", f)
	}
	h.failures.At()
	refresh()
	if n := h.failures.Done(); n != 0 {
		t.Errorf("%d operations where nothing was to be done", n)
	}
	h.kernel.SetFacts(routing.Facts{IPv6: true, LinkIPv6: true, Strict: []routing.StrictLink{{Link: 2}}})
	h.apply(t, routing.Config{Link: routing.Link{Name: "vpn0", Index: 7}, MTU: 1500, Addresses: prefixes("10.8.0.2/24")})
	whole := h.String()
	h.firewall.Flush()
	h.kernel.Remove(routing.MarkedLink{Link: 2})
	refresh()
	h.firewall.Flush()
	refresh()
	h.firewall.Touch()
	refresh()
	if diff := cmp.Diff(whole, h.String()); diff != "" {
		t.Error(diff)
	}
	h.apply(t, routing.Config{})
	h.lock(t, false)
	if diff := cmp.Diff(newHost(false).String(), h.String()); diff != "" {
		t.Error(diff)
	}
}
