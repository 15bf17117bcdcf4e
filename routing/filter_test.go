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
	around := []routing.TunnelEnd{end[0]} // of a full tunnel
	around[0].Spared = prefixes("172.17.0.0/16", "172.18.0.0/16")
	home := []routing.TunnelEnd{end[0]}
	home[0].Spared = prefixes("172.17.0.0/16", "172.18.0.0/16", "192.168.1.0/24")
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
		"all names":         {config: full, filter: &routing.Filter{Tunnels: around, Names: true, Asker: 101, Local: []int{5, 9}, Marked: []int{2, 3}}, marked: []routing.MarkedLink{{3}, {2}}},
		"names, split":      {config: split, filter: theirs, marked: []routing.MarkedLink{{3}, {2}}},
		"names, and a LAN":  {config: lan, filter: &routing.Filter{Tunnels: home, Marked: []int{2, 3}}, marked: []routing.MarkedLink{{3}, {2}}},
		"some names":        {config: some, filter: &routing.Filter{Tunnels: around, Marked: []int{2, 3}}, marked: []routing.MarkedLink{{3}, {2}}},
		"a lockdown":        {lockdown: true, filter: &routing.Filter{Lockdown: true, Local: []int{5, 9}}},
		"a lockdown, in it": {config: c, lockdown: true, filter: &routing.Filter{Tunnels: end, Lockdown: true, Local: []int{5, 9}, Marked: []int{2, 3}}, marked: []routing.MarkedLink{{3}, {2}}},
	} {
		s := routing.Plan(want.config, want.lockdown, facts)
		same := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
		samePrefix := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
		if diff := cmp.Diff(want.filter, s.Firewall, same, samePrefix); diff != "" {
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

// In between, too, nothing comes out of the tunnel in the name of a local network.
func TestUpdateKeepsSpared(t *testing.T) {
	h := newHost(false)
	lan := routing.Subnet{Prefix: netip.MustParsePrefix("172.17.0.0/16"), Link: 3, Virtual: true}
	another := routing.Subnet{Prefix: netip.MustParsePrefix("10.2.0.0/16"), Link: 4, Virtual: true}
	h.kernel.SetFacts(routing.Facts{Subnets: []routing.Subnet{lan}})
	c := fullTunnel()
	c.DNS = routing.DNS{} // with it the filter has the links, too
	h.apply(t, c)
	sets := 0
	h.firewall.Trace = func() {
		sets++
		if f := h.firewall.Current(); !slices.Contains(f.Tunnels[0].Spared, lan.Prefix) {
			t.Errorf("%s is not in %+v", lan.Prefix, f.Tunnels)
		}
	}
	c.Addresses = prefixes("10.8.0.3/24")
	h.apply(t, c)
	for _, list := range [][]routing.Subnet{{lan, another}, {another, lan}, {lan}} {
		before := sets
		h.kernel.SetFacts(routing.Facts{Subnets: list})
		if err := h.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if changed := sets > before; changed != (list[0] == lan) {
			t.Errorf("%v: changed %v", list, changed)
		}
	}
	if diff := cmp.Diff(prefixes("172.17.0.0/16"), h.firewall.Current().Tunnels[0].Spared, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
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
func TestResumeKeepsLockdown(t *testing.T) {
	c := routing.Config{Link: routing.Link{Name: "vpn0", Index: 7}, MTU: 1500, Addresses: prefixes("10.8.0.2/24"), Include: prefixes("0.0.0.0/0")}
	h := newHost(false)
	h.lock(t, true)
	h.apply(t, c)
	h.restart()
	h.failures.At(0)
	if err := h.Resume(t.Context(), c, false); !errors.Is(err, routingtest.ErrInjected) || !h.Locked() {
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
	if got := h.kernel.Fate(netip.MustParseAddr("198.51.100.1")); got != routingtest.Tunnel {
		t.Errorf("what was in the tunnel is %s", got)
	}
}

// A filter that lacks the user of the DNS service is not all that it shall be: the
// user is asked for again, by Apply itself and then by each Refresh.
func TestUnknownAsker(t *testing.T) {
	h := newHost(false)
	h.resolver.User, h.resolver.Shy = 101, 1
	h.apply(t, fullTunnel())
	if f := h.firewall.Current(); !f.Names || f.Asker != 101 {
		t.Errorf("not asked again: %+v", f)
	}
	h.apply(t, routing.Config{})

	h.resolver.Shy = 3
	h.apply(t, fullTunnel())
	if f := h.firewall.Current(); !f.Names || f.Asker != 0 {
		t.Errorf("the firewall is %+v", f)
	}
	if err := h.Refresh(t.Context()); !errors.Is(err, routingtest.ErrInjected) {
		t.Errorf("nothing says that it has to be repeated: %v", err)
	}
	if err := h.Refresh(t.Context()); err != nil || h.firewall.Current().Asker != 101 {
		t.Errorf("%v, %+v", err, h.firewall.Current())
	}

	// Where no names are filtered it does not matter.
	split := fullTunnel()
	split.Include = prefixes("10.0.0.0/8")
	h.apply(t, split)
	h.resolver.Shy = 1
	if err := h.Refresh(t.Context()); err != nil {
		t.Error(err)
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
