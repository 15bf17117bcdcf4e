package routing_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vpnprovider/vpnproviderd/routing"
	"github.com/vpnprovider/vpnproviderd/routing/routingtest"
)

// host is a fake one with two TUNs.
type host struct {
	*routing.Network
	kernel   *routingtest.Kernel
	firewall *routingtest.Firewall
	resolver *routingtest.Resolver
	failures *routingtest.Failures
}

func newHost(perLink bool) *host {
	f := &routingtest.Failures{}
	h := &host{
		kernel: routingtest.NewKernel(f), firewall: routingtest.NewFirewall(f),
		resolver: routingtest.NewResolver(f), failures: f,
	}
	h.resolver.Link = perLink
	h.kernel.AddLink(7)
	h.kernel.AddLink(8)
	h.restart()
	return h
}

// restart is a new process on the same host.
func (h *host) restart() {
	h.firewall.Touch()
	h.Network = routing.New(h.kernel, h.firewall, h.resolver, slog.New(slog.DiscardHandler))
}

func (h *host) String() string {
	return fmt.Sprintf("%s\nfirewall %+v\ndns %+v", h.kernel, h.firewall.Current(), h.resolver.Current())
}

func (h *host) apply(t *testing.T, c routing.Config) {
	t.Helper()
	if err := h.Apply(t.Context(), c); err != nil {
		t.Fatalf("cannot apply %+v: %v", c, err)
	}
}

func (h *host) lock(t *testing.T, on bool) {
	t.Helper()
	if err := h.Lock(t.Context(), on); err != nil {
		t.Fatalf("cannot lock: %v", err)
	}
}

// The changes that can fail.
func (h *host) applies(ctx context.Context, c routing.Config) error { return h.Apply(ctx, c) }

func (h *host) turns(ctx context.Context, _ routing.Config) error {
	if err := h.Lock(ctx, !h.Locked()); err != nil {
		return errors.Join(err, errTurn)
	}
	return nil
}

var errTurn = errors.New("the lockdown did not turn")

// A failure at any operation of any update leaves exactly what was before. An end
// goes on, from wherever it failed.
func TestApplyFailsBack(t *testing.T) {
	cases := 0
	for seed := uint64(0); cases < 5000; seed++ {
		r := rand.New(rand.NewPCG(seed, 1))
		perLink := r.IntN(2) == 0
		facts := randomFacts(r)
		before, after := randomConfig(r), randomConfig(r)
		locked, change := r.IntN(3) == 0, (*host).applies
		if r.IntN(4) == 0 {
			change = (*host).turns
		}
		for at := 0; ; at++ {
			h := newHost(perLink)
			h.kernel.SetFacts(facts)
			h.lock(t, locked)
			h.apply(t, before)
			want := h.String()
			h.failures.At(at)
			err := change(h, t.Context(), after)
			if h.failures.Done() <= at {
				if err != nil {
					t.Fatal(err)
				}
				break // there are no more operations
			}
			cases++
			if !errors.Is(err, routingtest.ErrInjected) {
				t.Fatalf("seed %d, operation %d: error %v, want the injected one", seed, at, err)
			}
			if !after.Active() && before.Active() && !errors.Is(err, errTurn) {
				h.goesOn(t, r, perLink, facts, locked)
				continue
			}
			if diff := cmp.Diff(want, h.String()); diff != "" {
				t.Fatalf("seed %d, operation %d: not the previous state (-want +got)\n%s\nfrom %+v\nto %+v",
					seed, at, diff, before, after)
			}
			if h.Locked() != locked {
				t.Fatalf("seed %d, operation %d: locked: %v", seed, at, h.Locked())
			}
			// Nothing is left of the failure: the same update works now, and
			// the end leaves nothing.
			h.failures.At()
			if err := change(h, t.Context(), after); err != nil {
				t.Fatal(err)
			}
			h.apply(t, routing.Config{})
			h.lock(t, false)
			if diff := cmp.Diff(newHost(perLink).String(), h.String()); diff != "" {
				t.Fatalf("seed %d, operation %d: left at the end\n%s", seed, at, diff)
			}
		}
	}
	t.Logf("%d cases", cases)
}

// goesOn requires that an end which failed is finished by the next change or
// Refresh, also without the link, which goes away next, and that a lockdown can be
// begun and ended meanwhile.
func (h *host) goesOn(t *testing.T, r *rand.Rand, perLink bool, facts routing.Facts, locked bool) {
	t.Helper()
	none := newHost(perLink)
	none.kernel.SetFacts(facts)
	none.lock(t, locked)
	if r.IntN(4) > 0 {
		for _, o := range []*host{h, none} {
			o.kernel.RemoveLink(7)
			o.kernel.RemoveLink(8)
		}
	}
	h.failures.At()
	if r.IntN(2) == 0 {
		h.lock(t, !locked)
		h.lock(t, locked)
	}
	for range 2 {
		if err := h.Refresh(t.Context()); err != nil {
			t.Fatalf("the end does not go on: %v", err)
		}
		if diff := cmp.Diff(none.String(), h.String()); diff != "" {
			t.Fatalf("left after the end (-want +got)\n%s", diff)
		}
	}
	if h.Locked() != locked {
		t.Fatalf("locked: %v", h.Locked())
	}
}

// A link that was up before it became ours and is gone is not to be raised again.
func TestEndOfLinkThatWasUp(t *testing.T) {
	h := newHost(false)
	up := routing.LinkState{Index: 7, MTU: 1500, Up: true}
	h.kernel.Execute(t.Context(), []routing.Op{{Verb: routing.Put, Object: up}})
	h.apply(t, fullTunnel())
	h.failures.At(1)
	if err := h.Apply(t.Context(), routing.Config{}); !errors.Is(err, routingtest.ErrInjected) {
		t.Fatalf("error %v", err)
	}
	h.kernel.RemoveLink(7)
	for range 2 {
		if err := h.Refresh(t.Context()); err != nil {
			t.Error(err)
		}
	}
	h.lock(t, true)
	h.lock(t, false)
	if s := h.State(); !s.Empty() {
		t.Errorf("left: %+v", s)
	}
}

// Before an end that was not planned is repeated, the lockdown can be changed, and
// it is made up for by what comes next.
func TestEndUnplanned(t *testing.T) {
	h := newHost(false)
	h.lock(t, true)
	none := newHost(false)
	none.kernel.RemoveLink(7)
	none.lock(t, true)
	h.apply(t, fullTunnel())
	h.kernel.Blind = true
	if err := h.Apply(t.Context(), routing.Config{}); !errors.Is(err, routingtest.ErrInjected) {
		t.Fatalf("error %v", err)
	}
	h.kernel.RemoveLink(7)
	if err := h.Refresh(t.Context()); !errors.Is(err, routingtest.ErrInjected) {
		t.Fatalf("error %v", err)
	}
	h.kernel.Blind = false
	h.failures.At(1) // the way back is made of what is wanted now
	if err := h.Lock(t.Context(), false); !errors.Is(err, routingtest.ErrInjected) {
		t.Fatalf("error %v", err)
	}
	if diff := cmp.Diff(none.String(), h.String()); diff != "" {
		t.Error(diff)
	}
	if err := h.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(none.String(), h.String()); diff != "" {
		t.Error(diff)
	}
}

// An end is carried out also where its caller has no time left, after the wait for
// its turn, and where a resolver that hangs takes all that there is.
func TestEndHasItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(false)
		none := h.String()
		h.apply(t, fullTunnel())
		h.resolver.Stuck = true
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := h.Apply(ctx, routing.Config{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		text, _, _ := strings.Cut(h.String(), "dns ")
		if want, _, _ := strings.Cut(none, "dns "); text != want {
			t.Errorf("the rest is not undone:\n%s", h)
		}
		h.resolver.Stuck = false
		if err := h.Refresh(t.Context()); err != nil || h.String() != none {
			t.Errorf("%v\n%s", err, h)
		}
	})
}

// A Refresh, too, goes on after a resolver that hangs.
func TestRefreshEndsWithStuckDNS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(false)
		h.apply(t, fullTunnel())
		h.failures.At(1)
		h.resolver.Stuck = true
		if err := h.Apply(t.Context(), routing.Config{}); err == nil {
			t.Error("no error")
		}
		h.kernel.RemoveLink(7)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := h.Refresh(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if s := h.kernel.State(); len(s.Rules) != 0 || len(s.Routes) != 0 {
			t.Errorf("left: %s", h)
		}
	})
}

func fullTunnel() routing.Config {
	return routing.Config{
		Link: routing.Link{Name: "vpn0", Index: 7}, MTU: 1400, Addresses: prefixes("10.8.0.2/24"), Include: prefixes("0.0.0.0/0"),
		DNS: routing.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.8.0.1")}},
	}
}

// A session that goes on in another process, and was not reached in full there: a
// change that fails afterwards, of the parameters or the lockdown, leads nothing out
// of the tunnel.
func TestResumeFailsBack(t *testing.T) {
	changed := fullTunnel()
	changed.MTU, changed.Addresses = 1300, prefixes("10.8.0.3/24")
	for name, change := range map[string]func(h *host) error{
		"parameters":   func(h *host) error { return h.Apply(t.Context(), changed) },
		"the lockdown": func(h *host) error { return h.Lock(t.Context(), true) },
	} {
		for _, blind := range []bool{false, true} {
			for at := range 12 {
				h := newHost(false)
				h.apply(t, fullTunnel())
				whole := h.String()
				h.restart()
				h.kernel.Blind = blind
				h.failures.At(0)
				if err := h.Resume(t.Context(), fullTunnel(), false); !errors.Is(err, routingtest.ErrInjected) {
					t.Fatalf("%s: error %v", name, err)
				}
				h.kernel.Blind = false
				covered := func() {
					if got := h.kernel.Fate(netip.MustParseAddr("198.51.100.1")); got != routingtest.Tunnel {
						t.Errorf("%s, failure at %d, blind %v: %s", name, at, blind, got)
					}
				}
				h.kernel.Trace = func(routing.Op) { covered() }
				h.failures.At(at)
				if err := change(h); err == nil {
					break // there are no more operations
				}
				covered()
				h.failures.At()
				if err := h.Refresh(t.Context()); err != nil || h.String() != whole || h.Locked() {
					t.Errorf("%s, failure at %d: %v\n%s", name, at, err, cmp.Diff(whole, h.String()))
				}
			}
		}
	}
}

// Addresses that are all there are left alone, in whatever order the kernel lists
// them, and one that is missing comes back.
func TestRefreshIgnoresOrder(t *testing.T) {
	c := fullTunnel()
	c.Addresses, c.DNS = prefixes("10.8.0.2/24", "10.9.0.2/24", "fd00::3/64", "fec0::2/64", "fd00::2/64"), routing.DNS{}
	h := newHost(false)
	h.kernel.Jumbled = true
	h.apply(t, c)
	refresh := func(want int) {
		t.Helper()
		before := h.String()
		h.failures.At()
		if err := h.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := h.failures.Done(); n != want || want == 0 && h.String() != before {
			t.Errorf("%d operations, want %d:\n%s", n, want, cmp.Diff(before, h.String()))
		}
	}
	refresh(0)
	for _, a := range h.kernel.State().Addresses {
		h.kernel.Remove(a)
		if err := h.Refresh(t.Context()); err != nil || len(h.kernel.State().Addresses) != len(c.Addresses) {
			t.Errorf("without %s: %v\n%s", a.Addr, err, h)
		}
		refresh(0)
	}
	h.restart()
	h.failures.At()
	if err := h.Resume(t.Context(), c, false); err != nil || h.failures.Done() != 1 { // the firewall
		t.Errorf("%v, %d operations", err, h.failures.Done())
	}
	refresh(0)
}

// The end goes on where the DNS cannot be restored, says so, and the next
// Refresh makes up for it. A lockdown does not fail for that.
func TestEndWithoutDNS(t *testing.T) {
	for _, perLink := range []bool{false, true} {
		h := newHost(perLink)
		none := h.String()
		c := routing.Config{
			Link: routing.Link{Name: "vpn1", Index: 7, Slot: 1}, MTU: 1400, Addresses: []netip.Prefix{netip.MustParsePrefix("10.8.0.2/24")},
			Include: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}, DNS: routing.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.0.0.2")}},
		}
		h.apply(t, c)
		h.resolver.Broken = true
		if err := h.Apply(t.Context(), routing.Config{}); !errors.Is(err, routingtest.ErrInjected) {
			t.Errorf("error %v", err)
		}
		if s := h.State(); len(s.Rules) != 0 || len(s.Routes) != 0 || len(s.Addresses) != 0 {
			t.Errorf("left: %+v", s)
		}
		h.lock(t, true)
		h.lock(t, false)
		if err := h.Refresh(t.Context()); !errors.Is(err, routingtest.ErrInjected) {
			t.Errorf("error %v", err)
		}
		h.resolver.Broken = false
		if err := h.Refresh(t.Context()); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(none, h.String()); diff != "" {
			t.Errorf("left at the end\n%s", diff)
		}
	}
}

// When the way back fails too, the next Apply repairs.
func TestApplyRepairs(t *testing.T) {
	for seed := range uint64(1500) {
		r := rand.New(rand.NewPCG(seed, 2))
		facts := randomFacts(r)
		before, after, last := randomConfig(r), randomConfig(r), randomConfig(r)
		h := newHost(r.IntN(2) == 0)
		h.kernel.SetFacts(facts)
		h.lock(t, r.IntN(3) == 0)
		h.apply(t, before)
		h.failures.At(r.IntN(8), r.IntN(16), 3, 7, 8, 9)
		_ = h.Apply(t.Context(), after)
		if r.IntN(3) == 0 {
			h.failures.At(0, 1, 2)
			_ = h.turns(t.Context(), after)
		}
		h.failures.At()
		h.apply(t, last)

		fresh := newHost(h.resolver.Link)
		fresh.kernel.SetFacts(facts)
		fresh.lock(t, h.Locked())
		fresh.apply(t, last)
		if diff := cmp.Diff(sorted(fresh.String()), sorted(h.String())); diff != "" {
			t.Fatalf("seed %d: (-want +got)\n%s\nfrom %+v\nto %+v\nthen %+v", seed, diff, before, after, last)
		}
	}
}

// sorted forgets in which order addresses came, and that the broadcast address
// of an only address stays.
func sorted(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i], _, _ = strings.Cut(lines[i], " Broadcast:")
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// At every instant of an update each packet meets its old or its new fate. One
// that enters or leaves the tunnel by the update may be refused for a moment;
// one that stays in is not. Were the daemon killed at that instant, nothing
// that was to stay in the tunnel would go out in the clear.
func TestUpdateHasNoThirdFate(t *testing.T) {
	for seed := range uint64(1500) {
		r := rand.New(rand.NewPCG(seed, 3))
		facts := randomFacts(r)
		before, after := randomConfig(r), randomConfig(r)
		h := newHost(false)
		h.kernel.SetFacts(facts)
		h.apply(t, before)
		old := h.kernel.State()
		future := newHost(false)
		future.kernel.SetFacts(facts)
		future.apply(t, after)
		next := future.kernel.State()

		addrs := make([]netip.Addr, 60)
		for i := range addrs {
			addrs[i] = randomAddr(r, i%3 == 0)
		}
		if before.Active() && after.Active() && before.Link != after.Link {
			continue // two tables: TestUpdateToAnotherLink
		}
		h.kernel.Trace = func(op routing.Op) {
			now := h.kernel.State()
			for _, a := range addrs {
				was, is, will := routingtest.FateIn(old, a), routingtest.FateIn(now, a), routingtest.FateIn(next, a)
				if is != was && is != will && (is != routingtest.Refused || was == will) {
					t.Fatalf("seed %d: %s was %s, will be %s, is %s after %+v\nfrom %+v\nto %+v", seed, a, was, will, is, op, before, after)
				}
				killed := routingtest.FateIn(withoutTunnels(now), a)
				if was != routingtest.Clear && will != routingtest.Clear && killed == routingtest.Clear {
					t.Fatalf("seed %d: %s goes out in the clear when killed after %+v\nfrom %+v\nto %+v", seed, a, op, before, after)
				}
			}
		}
		h.apply(t, after)
	}
}

func withoutTunnels(s routing.State) routing.State {
	s = s.Clone()
	for k, r := range s.Routes {
		if r.Type == routing.Unicast {
			delete(s.Routes, k)
		}
	}
	return s
}

// From one link to another without an end in between, what both carry never
// goes out in the clear.
func TestUpdateToAnotherLink(t *testing.T) {
	full := routing.Config{
		Link: routing.Link{Name: "vpn0", Index: 7}, MTU: 1500, Addresses: prefixes("10.8.0.2/24"), Include: prefixes("0.0.0.0/0"),
	}
	h := newHost(false)
	h.apply(t, full)
	before := h.kernel.State().Links[8]
	h.kernel.Trace = func(op routing.Op) {
		if got := h.kernel.Fate(netip.MustParseAddr("198.51.100.1")); got != routingtest.Tunnel {
			t.Errorf("%s after %+v", got, op)
		}
	}
	full.Link = routing.Link{Name: "vpn1", Index: 8, Slot: 1}
	h.apply(t, full)
	if got := h.kernel.State().Links[7]; got != (routing.LinkState{Index: 7, MTU: 1500}) {
		t.Errorf("the first link is left as %+v, want %+v", got, before)
	}
}

// A daemon that is killed leaves the guard, and the next one nothing.
func TestSweepAfterKill(t *testing.T) {
	h := newHost(false)
	empty := newHost(false)
	c := routing.Config{
		Link: routing.Link{Name: "vpn0", Index: 7}, MTU: 1500, Addresses: prefixes("10.8.0.2/24"),
		Include: prefixes("0.0.0.0/0", "198.51.100.0/24"), Exclude: prefixes("198.51.0.0/16"),
		DNS: routing.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.8.0.1")}},
	}
	h.apply(t, c)
	h.kernel.RemoveLink(7)
	empty.kernel.RemoveLink(7)
	for addr, want := range map[string]routingtest.Fate{
		"192.0.2.1": routingtest.Refused, "198.51.100.1": routingtest.Refused,
		"198.51.1.1": routingtest.Clear, "2001:db8::1": routingtest.Refused,
	} {
		if got := h.kernel.Fate(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s is %s after the kill, want %s", addr, got, want)
		}
	}
	h.restart()
	if err := h.Sweep(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(empty.String(), h.String()); diff != "" {
		t.Error(diff)
	}
	if err := h.Sweep(t.Context(), false); err != nil {
		t.Errorf("nothing to sweep: %v", err)
	}
}

// A link with our mark that nobody has any more is removed by a sweep.
func TestSweepRemovesOurLinks(t *testing.T) {
	h := newHost(false)
	h.apply(t, routing.Config{Link: routing.Link{Name: "vpn0", Index: 7}, MTU: 1500, Addresses: prefixes("10.8.0.2/24")})
	h.restart()
	if err := h.Sweep(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	links := h.kernel.State().Links
	if _, ok := links[7]; ok || len(links) != 1 {
		t.Errorf("links %v", links)
	}
}

// A process that takes over a tunnel changes nothing by it, and can end it.
func TestResume(t *testing.T) {
	c := routing.Config{
		Link: routing.Link{Name: "vpn0", Index: 7}, MTU: 1400, Addresses: prefixes("10.8.0.2/24", "fd00::2/64"),
		Include: prefixes("0.0.0.0/0"), Exclude: prefixes("10.0.0.0/8"),
		DNS: routing.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.8.0.1")}},
	}
	h := newHost(false)
	h.apply(t, c)
	h.restart()
	before := h.String()
	h.failures.At()
	if err := h.Resume(t.Context(), c, false); err != nil {
		t.Fatal(err)
	}
	if before != h.String() || h.failures.Done() != 2 {
		t.Errorf("taking over needed %d operations, want the firewall and the DNS alone", h.failures.Done())
	}
	h.apply(t, routing.Config{})
	s := h.kernel.State()
	if !(routing.State{Addresses: s.Addresses, Routes: s.Routes, Rules: s.Rules, DNS: h.resolver.Current()}).Empty() {
		t.Errorf("left: %s", h)
	}
	if l := s.Links[7]; l.Up || l.Alias != "" {
		t.Errorf("the link is left as %+v", l)
	}
}

func TestRefresh(t *testing.T) {
	h := newHost(false)
	if err := h.Refresh(t.Context()); err != nil {
		t.Fatalf("with nothing applied: %v", err)
	}
	c := routing.Config{
		Link: routing.Link{Name: "vpn0", Index: 7}, MTU: 1500, Addresses: prefixes("10.8.0.2/24"), Include: prefixes("0.0.0.0/0"),
		DNS: routing.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.8.0.1")}},
	}
	h.apply(t, c)
	refresh := func(facts routing.Facts) {
		t.Helper()
		facts.IPv6, facts.LinkIPv6 = true, true
		h.kernel.SetFacts(facts)
		if err := h.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	fate := func(addr string, want routingtest.Fate) {
		t.Helper()
		if got := h.kernel.Fate(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s is %s, want %s", addr, got, want)
		}
	}
	refresh(routing.Facts{Subnets: []routing.Subnet{{Prefix: netip.MustParsePrefix("172.17.0.0/16"), Link: 3, Virtual: true}}})
	fate("172.17.0.2", routingtest.Clear)
	refresh(routing.Facts{})
	fate("172.17.0.2", routingtest.Tunnel)

	// The link of a default route does not become a local network when the
	// route is gone for a while.
	lan := routing.Subnet{Prefix: netip.MustParsePrefix("192.168.1.0/24"), Link: 2}
	refresh(routing.Facts{Subnets: []routing.Subnet{lan}})
	lan.Virtual = true
	refresh(routing.Facts{Subnets: []routing.Subnet{lan}})
	fate("192.168.1.1", routingtest.Tunnel)

	// What another program took away comes back.
	whole := h.String()
	for _, o := range []routing.Object{
		h.kernel.State().Rules[0],
		routing.Route{RouteKey: routing.RouteKey{Table: routing.TableBase, Dst: netip.MustParsePrefix("0.0.0.0/0"), Metric: routing.Metric}},
		h.kernel.State().Addresses[0],
	} {
		h.kernel.Remove(o)
		sets := h.resolver.Sets()
		if err := h.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(sorted(whole), sorted(h.String())); diff != "" {
			t.Errorf("without %+v:\n%s", o, diff)
		}
		if h.resolver.Sets() != sets+1 {
			t.Error("the DNS was not sent again")
		}
	}

	// One that fails is made up for by the next.
	h.kernel.Remove(h.kernel.State().Rules[0])
	h.failures.At(0)
	if err := h.Refresh(t.Context()); !errors.Is(err, routingtest.ErrInjected) {
		t.Errorf("error %v, want the injected one", err)
	}
	if err := h.Refresh(t.Context()); err != nil || sorted(h.String()) != sorted(whole) {
		t.Errorf("not made up for: %v\n%s", err, h)
	}
	h.apply(t, routing.Config{})
	if diff := cmp.Diff(newHost(false).String(), h.String()); diff != "" {
		t.Error(diff)
	}
}

func TestDecide(t *testing.T) {
	h := newHost(false)
	if got := h.Decide(netip.MustParseAddr("10.1.2.3")); got != (routing.Decision{}) {
		t.Errorf("with no tunnel: %+v", got)
	}
	c := routing.Config{
		Link: routing.Link{Name: "vpn0", Index: 7, Slot: 3}, MTU: 1500, Addresses: prefixes("10.8.0.2/24"),
		Include: prefixes("0.0.0.0/0"), Exclude: prefixes("10.0.0.0/8"),
	}
	h.apply(t, c)
	for addr, want := range map[string]routing.RouteType{
		"192.0.2.1": routing.Unicast, "10.1.2.3": routing.Throw, "::ffff:10.1.2.3": routing.Throw,
		"2001:db8::1": routing.Unreachable, "fe80::1%eth0": routing.Throw,
	} {
		got := h.Decide(netip.MustParseAddr(addr))
		if got.Link != c.Link || got.Route.Type != want || got.Route.Table != 0x56500003 {
			t.Errorf("%s: %+v, want %v", addr, got, want)
		}
	}
}

func TestApplyTheSameDoesNothing(t *testing.T) {
	h := newHost(false)
	c := routing.Config{
		Link: routing.Link{Name: "vpn0", Index: 7}, MTU: 1000, Addresses: prefixes("10.8.0.2/24"), Include: prefixes("0.0.0.0/0"),
		DNS: routing.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.8.0.1")}},
	}
	h.apply(t, c)
	h.failures.At()
	h.apply(t, c)
	if n := h.failures.Done(); n != 0 {
		t.Errorf("%d operations", n)
	}
}

// Apply keeps its own copy.
func TestApplyKeepsACopy(t *testing.T) {
	h := newHost(false)
	c := routing.Config{
		Link: routing.Link{Name: "vpn0", Index: 7}, MTU: 1500, Addresses: prefixes("10.8.0.2/24"), Include: prefixes("0.0.0.0/0"),
		DNS: routing.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.8.0.1")}},
	}
	h.apply(t, c)
	before := h.String()
	c.Include[0], c.Addresses[0], c.DNS.Servers[0] = prefixes("10.0.0.0/8")[0], prefixes("10.9.0.2/24")[0], netip.IPv4Unspecified()
	if err := h.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, h.String()); diff != "" {
		t.Error(diff)
	}
}

// The DNS of a link is made before the link is up, that of the whole host when
// the tunnel takes the questions.
func TestWhenDNSIsSet(t *testing.T) {
	for _, perLink := range []bool{true, false} {
		h := newHost(perLink)
		var upAt, ruleAt, setAt, n int
		h.kernel.Trace = func(op routing.Op) {
			n++
			if setAt == 0 && h.resolver.Current() != nil {
				setAt = n
			}
			switch o := op.Object.(type) {
			case routing.LinkState:
				if o.Up && upAt == 0 {
					upAt = n
				}
			case routing.Rule:
				ruleAt = n
			}
		}
		h.apply(t, routing.Config{
			Link: routing.Link{Name: "vpn0", Index: 7}, MTU: 1500, Addresses: prefixes("10.8.0.2/24"),
			DNS: routing.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.8.0.1")}},
		})
		if perLink && setAt != upAt || !perLink && setAt != 0 || h.resolver.Sets() != 1 {
			t.Errorf("per link %v: link up at %d, rules until %d, DNS seen at %d", perLink, upAt, ruleAt, setAt)
		}
	}
}

// What cannot be carried out is refused before anything is touched.
func TestApplyRefuses(t *testing.T) {
	good := routing.Config{Link: routing.Link{Name: "vpn0", Index: 7}, MTU: 1500, Addresses: prefixes("10.8.0.2/24")}
	for name, change := range map[string]func(*routing.Config){
		"slot":      func(c *routing.Config) { c.Link.Slot = 64 },
		"no mtu":    func(c *routing.Config) { c.MTU = 0 },
		"mtu":       func(c *routing.Config) { c.MTU, c.Addresses = 1279, prefixes("fd00::2/64") },
		"no block":  func(c *routing.Config) { c.Include = []netip.Prefix{{}} },
		"mapped":    func(c *routing.Config) { c.Exclude = prefixes("::ffff:10.0.0.0/104") },
		"link gone": func(c *routing.Config) { c.Link.Index = 99 },
	} {
		h := newHost(false)
		h.apply(t, good)
		before := h.String()
		bad := good
		change(&bad)
		if err := h.Apply(t.Context(), bad); err == nil {
			t.Errorf("%s: no error", name)
		}
		if h.String() != before || h.failures.Done() == 0 {
			t.Errorf("%s: something changed", name)
		}
	}
}

// A caller that gives up in the middle gets the previous state.
func TestApplyCancelled(t *testing.T) {
	h := newHost(false)
	before := h.String()
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	h.kernel.Trace = func(routing.Op) {
		if n++; n == 4 {
			cancel()
		}
	}
	err := h.Apply(ctx, routing.Config{
		Link: routing.Link{Name: "vpn0", Index: 7}, MTU: 1500, Addresses: prefixes("10.8.0.2/24"), Include: prefixes("10.0.0.0/8"),
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff(before, h.String()); diff != "" {
		t.Error(diff)
	}
}
