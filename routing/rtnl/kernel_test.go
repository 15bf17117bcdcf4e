package rtnl

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
	"github.com/vpnprovider/vpnproviderd/routing/routingtest"
)

// ip is what iproute2 sees, one line an object.
func (n *net2) ip(args ...string) []string {
	n.t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	var lines []string
	for line := range strings.Lines(string(out)) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	slices.Sort(lines)
	return lines
}

// What an administrator sees while a tunnel is up.
func TestApplyAsSeenByIP(t *testing.T) {
	n := enter(t)
	n.openTUN("vpn0")
	before := n.dumpAll()
	network := n.network()
	c := n.config("0.0.0.0/0", "198.51.100.0/24", "2001:db8:5::/48")
	c.Exclude = prefixes("198.51.0.0/16")
	c.MTU = 1400
	n.must(network.Apply(t.Context(), c))
	for _, want := range []struct {
		args  []string
		lines []string
	}{
		{[]string{"-4", "rule", "list", "pref", "4650"}, []string{
			"4650: not from all fwmark 0x56000000/0xfe000000 lookup 1448083456 proto 86",
		}},
		{[]string{"-6", "rule", "list", "pref", "4650"}, []string{
			"4650: not from all fwmark 0x56000000/0xfe000000 lookup 1448083456 proto 86",
		}},
		{[]string{"-4", "route", "list", "table", "1448083456"}, []string{
			"198.51.100.0/24 dev vpn0 proto 86 scope link metric 1024",
			"default dev vpn0 proto 86 scope link metric 1024",
			"throw 198.51.0.0/16 proto 86 metric 1024",
			"unreachable 198.51.100.0/24 proto 86 metric 4294967294",
			"unreachable default proto 86 metric 4294967294",
		}},
		{[]string{"-6", "route", "list", "table", "1448083456"}, []string{
			"2001:db8:5::/48 dev vpn0 proto 86 metric 1024 pref medium",
			"throw fe80::/10 dev lo proto 86 metric 1024 pref medium",
			"unreachable 2001:db8:5::/48 dev lo proto 86 metric 4294967294 pref medium",
		}},
		{[]string{"-o", "address", "list", "dev", "vpn0"}, []string{
			fmt.Sprintf(`%d: vpn0 inet 10.8.0.2/32 brd 10.8.0.255 scope global noprefixroute vpn0\ valid_lft forever preferred_lft forever`, c.Link.Index),
			fmt.Sprintf(`%d: vpn0 inet6 fd00::2/128 scope global nodad noprefixroute \ valid_lft forever preferred_lft forever`, c.Link.Index),
		}},
	} {
		if diff := cmp.Diff(want.lines, n.ip(want.args...)); diff != "" {
			t.Errorf("ip %s (-want +got)\n%s", strings.Join(want.args, " "), diff)
		}
	}
	if l := n.link("vpn0").Attrs(); l.MTU != 1400 || l.Alias != "vpnproviderd" || l.RawFlags&unix.IFF_UP == 0 {
		t.Errorf("link %+v", l)
	}
	listed, err := n.kernel.List(t.Context())
	n.must(err)
	if diff := cmp.Diff(sortedState(network.State()), sortedState(listed)); diff != "" {
		t.Errorf("what is listed is not what was put (-put +listed)\n%s", diff)
	}
	n.must(network.Apply(t.Context(), routing.Config{}))
	if diff := cmp.Diff(before, n.dumpAll()); diff != "" {
		t.Errorf("the end leaves something (-before +after)\n%s", diff)
	}
}

// faulty is a Kernel of which some operations fail. What follows one in the
// same call is done, as the contract says.
type faulty struct {
	*Kernel
	routingtest.Failures
}

func (f *faulty) Execute(ctx context.Context, ops []routing.Op) []error {
	errs := make([]error, len(ops))
	failed := false
	var run []routing.Op // between two failures
	var at []int
	flush := func() {
		for i, err := range f.Kernel.Execute(ctx, run) {
			errs[at[i]] = err
			failed = failed || err != nil
		}
		run, at = nil, nil
	}
	for i, op := range ops {
		if err := f.Next(); err != nil {
			flush()
			errs[i], failed = err, true
			continue
		}
		run, at = append(run, op), append(at, i)
	}
	flush()
	if !failed {
		return nil
	}
	return errs
}

// Whatever fails in whatever update, the whole network is as it was before; an end
// is made up for by the next.
func TestApplyFailsBackOnLinux(t *testing.T) {
	n := enter(t)
	n.openTUN("vpn1")
	second := n.tun
	n.openTUN("vpn0")
	n.sysctl("ipv4/conf/up0/rp_filter", "1")
	r := rand.New(rand.NewPCG(4, 2))
	kernel := &faulty{Kernel: n.kernel}
	network := routing.New(kernel, noFirewall(), routingtest.NewResolver(&routingtest.Failures{}), discard())
	clean := n.dumpAll()
	faults, updates := 0, 0
	for range 200 {
		c := n.random(r, second)
		before := n.dumpAll()
		for _, at := range []int{r.IntN(6), r.IntN(20), r.IntN(60)} {
			kernel.At(at)
			err := network.Apply(t.Context(), c)
			if err == nil {
				break
			}
			faults++
			if !errors.Is(err, routingtest.ErrInjected) {
				t.Fatalf("an error that was not injected: %v\n%+v", err, c)
			}
			if !c.Active() {
				break // an end goes on
			}
			if diff := cmp.Diff(before, n.dumpAll()); diff != "" {
				t.Fatalf("after a failure at operation %d (-before +after)\n%s\nto %+v", at, diff, c)
			}
		}
		if r.IntN(4) == 0 { // the way back fails as well
			at := r.IntN(10)
			kernel.At(at, at+1, at+1+r.IntN(5), at+6, at+7)
			_ = network.Apply(t.Context(), c)
		}
		kernel.At()
		if err := network.Apply(t.Context(), c); err != nil {
			t.Fatalf("cannot apply %+v: %v", c, err)
		}
		updates++
		listed, err := n.kernel.List(t.Context())
		n.must(err)
		state := network.State()
		state.DNS = nil
		if diff := cmp.Diff(sortedState(state), sortedState(listed)); diff != "" {
			t.Fatalf("the kernel has something else (-have +listed)\n%s", diff)
		}
	}
	kernel.At()
	n.must(network.Apply(t.Context(), routing.Config{}))
	if diff := cmp.Diff(clean, n.dumpAll()); diff != "" {
		t.Errorf("the end leaves something (-before +after)\n%s", diff)
	}
	t.Logf("%d updates, %d failures", updates, faults)
	if faults < 200 {
		t.Errorf("only %d failures were injected", faults)
	}
}

// An end that failed anywhere is finished by Refresh, or by a change of the lockdown,
// when its link is gone.
func TestEndGoesOnWithoutLink(t *testing.T) {
	n := enter(t)
	n.sysctl("ipv4/conf/up0/rp_filter", "1")
	kernel := &faulty{Kernel: n.kernel}
	network := routing.New(kernel, noFirewall(), noDNS(), discard())
	clean := n.dumpAll()
	at := 0
	for ; ; at++ {
		n.openTUN("vpn0")
		kernel.At()
		n.must(network.Apply(t.Context(), n.config("0.0.0.0/0", "198.51.100.0/24")))
		kernel.At(at)
		err := network.Apply(t.Context(), routing.Config{})
		if err != nil && !errors.Is(err, routingtest.ErrInjected) {
			t.Fatal(err)
		}
		n.tun.kill()
		if at%2 == 0 {
			n.must(network.Lock(t.Context(), true))
			n.must(network.Lock(t.Context(), false))
		} else {
			n.must(network.Refresh(t.Context()))
		}
		if diff := cmp.Diff(clean, n.dumpAll()); diff != "" {
			t.Fatalf("after a failure at operation %d (-before +after)\n%s", at, diff)
		}
		if s := network.State(); !s.Empty() {
			t.Fatalf("after a failure at operation %d: %+v", at, s)
		}
		if err == nil {
			break // there are no more operations
		}
	}
	if at < 5 {
		t.Errorf("only %d failures were injected", at)
	}
}

// The kernel lists IPv6 addresses by their scope: those that are all there are left
// alone, in whatever order they are wanted.
func TestRefreshWithScopes(t *testing.T) {
	for _, list := range []string{
		"fd00::2/64 fec0::2/64", "fec0::2/64 fd00::2/64", "fd00::2/64 fec0::2/64 fd00::3/64 10.8.0.2/24 10.9.0.2/24",
	} {
		n := enter(t)
		n.openTUN("vpn0")
		kernel := &faulty{Kernel: n.kernel}
		network := routing.New(kernel, noFirewall(), noDNS(), discard())
		c := n.config("0.0.0.0/0", "::/0")
		c.Addresses = prefixes(strings.Fields(list)...)
		n.must(network.Apply(t.Context(), c))
		before := n.dumpAll()
		refresh := func() {
			t.Helper()
			kernel.At()
			n.must(network.Refresh(t.Context()))
			if n := kernel.Done(); n != 0 {
				t.Errorf("%s: %d operations where nothing was to be done", list, n)
			}
		}
		refresh()
		if diff := cmp.Diff(before, n.dumpAll()); diff != "" {
			t.Errorf("%s: %s", list, diff)
		}
		for _, p := range c.Addresses {
			n.must(n.kernel.address(routing.Delete, routing.Address{Link: c.Link.Index, Addr: p.Addr()}))
			n.must(network.Refresh(t.Context()))
			refresh()
		}
		listed, err := n.kernel.List(t.Context())
		n.must(err)
		if diff := cmp.Diff(sortedState(network.State()), sortedState(listed)); diff != "" {
			t.Errorf("%s: the kernel has something else (-have +listed)\n%s", list, diff)
		}
	}
}

// sortedState is comparable text: the order of addresses over families is not
// the kernel's.
func sortedState(s routing.State) []string {
	var lines []string
	for _, l := range s.Links {
		lines = append(lines, fmt.Sprintf("%+v", l))
	}
	for _, a := range s.Addresses {
		lines = append(lines, fmt.Sprintf("%d %s", a.Link, a.Addr))
	}
	for _, r := range s.Routes {
		lines = append(lines, fmt.Sprintf("%+v", r))
	}
	for _, r := range s.Rules {
		lines = append(lines, fmt.Sprintf("%+v", r))
	}
	slices.Sort(lines)
	return lines
}

// random is a config on one of the two TUNs, or none.
func (n *net2) random(r *rand.Rand, second *tun) routing.Config {
	if r.IntN(8) == 0 {
		return routing.Config{}
	}
	link := n.tun
	slot := 0
	if r.IntN(4) == 0 {
		link, slot = second, 1
	}
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	blocks := func() []netip.Prefix {
		var list []netip.Prefix
		for range r.IntN(6) {
			list = append(list, netip.MustParsePrefix(pick("0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "10.0.0.0/8",
				"10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "10.1.2.0/24", "192.0.2.0/24", "198.51.100.7/32",
				"::/0", "2001:db8::/32", "2001:db8:1::/48", "2001:db8::/33", "fd00::/8", "2001:db8::9/128")))
		}
		return list
	}
	c := routing.Config{
		Link: routing.Link{Name: link.name, Index: link.index, Slot: slot}, MTU: []uint32{1500, 1400, 1280}[r.IntN(3)],
		Addresses: prefixes(pick("10.8.0.2/24", "10.8.0.3/24", "10.9.0.2/30")), Include: blocks(), Exclude: blocks(),
		AllowLAN: r.IntN(2) == 0, AllowIPv6: r.IntN(3) == 0,
	}
	switch r.IntN(5) {
	case 0:
		c.MTU = 1000
	case 1:
		c.Addresses = prefixes("fd00::2/64", "fd00::3/64")
	case 2:
		c.Addresses = append(c.Addresses, prefixes("10.7.0.1/24", "fd00::2/64")...)
	case 3:
		c.Addresses = prefixes("10.7.0.1/24", "10.8.0.2/24", "10.8.0.3/16", "fd00::5/64", "fd00::2/64")
	}
	return c
}

// The kernel's word on each of many operations comes back to it.
func TestExecuteTellsEachResult(t *testing.T) {
	n := enter(t)
	n.openTUN("vpn0")
	n.must(netlink.LinkSetUp(n.link("vpn0")))
	var ops []routing.Op
	bad := func(i int) bool { return i%7 == 3 }
	for i := range 1000 {
		r := route(i)
		r.Link = n.tun.index
		if bad(i) {
			r.Link = 9999
		}
		ops = append(ops, routing.Op{Verb: routing.Put, Object: r})
	}
	errs := n.kernel.Execute(t.Context(), ops)
	if errs == nil {
		t.Fatal("no errors")
	}
	for i, err := range errs {
		if bad(i) != errors.Is(err, unix.ENODEV) || !bad(i) && err != nil {
			t.Fatalf("operation %d: %v", i, err)
		}
	}
	s, err := n.kernel.List(t.Context())
	n.must(err)
	if len(s.Routes) != 1000-143 {
		t.Errorf("%d routes", len(s.Routes))
	}
	for i := range ops {
		ops[i].Verb = routing.Delete
	}
	if errs := n.kernel.Execute(t.Context(), ops); errs != nil {
		t.Errorf("deleting what is there, and what is not: %v", errors.Join(errs...))
	}
	if s, err = n.kernel.List(t.Context()); err != nil || len(s.Routes) != 0 {
		t.Errorf("%d routes left, %v", len(s.Routes), err)
	}
}

// Even where no answer can be kept, each is known.
func TestExecuteWithASmallBuffer(t *testing.T) {
	n := enter(t)
	n.must(n.kernel.conn.handle.Socket.SetReceiveBufferSize(1, false))
	var ops []routing.Op
	for i := range 600 {
		r := route(i)
		r.Type, r.Link = routing.Unicast, 9999
		if i == 300 {
			r.Type = routing.Throw
		}
		ops = append(ops, routing.Op{Verb: routing.Put, Object: r})
	}
	for i, err := range n.kernel.Execute(t.Context(), ops) {
		if (i == 300) != (err == nil) {
			t.Fatalf("operation %d: %v", i, err)
		}
	}
}

func TestExecuteCancelled(t *testing.T) {
	n := enter(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	errs := n.kernel.Execute(ctx, []routing.Op{{Verb: routing.Put, Object: routing.Rule{Priority: 4650, Table: 5}}})
	if len(errs) != 1 || !errors.Is(errs[0], context.Canceled) {
		t.Errorf("errors %v", errs)
	}
}

func route(i int) routing.Route {
	dst := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 0}), 24)
	return routing.Route{
		RouteKey: routing.RouteKey{Table: routing.TableBase, Dst: dst, Metric: routing.Metric}, Type: routing.Unicast,
	}
}

func TestDumpRetries(t *testing.T) {
	tries := 0
	got, err := dump(t.Context(), func() ([]int, error) {
		if tries++; tries < 3 {
			return []int{1}, netlink.ErrDumpInterrupted
		}
		return []int{1, 2}, nil
	})
	if err != nil || len(got) != 2 {
		t.Errorf("%v, %v", got, err)
	}
}

// What is ours is never taken from a listing that may lack something; what the
// host has is taken as it is, in the end.
func TestDumpNeverQuiet(t *testing.T) {
	interrupted := func() ([]int, error) { return []int{1}, netlink.ErrDumpInterrupted }
	if got, err := dump(t.Context(), interrupted); !errors.Is(err, netlink.ErrDumpInterrupted) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := look(t.Context(), interrupted); err != nil || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
}

// 10,000 routes, together and one at a time.
func BenchmarkRoutesTogether(b *testing.B) {
	benchmarkRoutes(b, func(n *net2, ops []routing.Op) {
		if errs := n.kernel.Execute(b.Context(), ops); errs != nil {
			b.Fatal(errors.Join(errs...))
		}
	})
}

func BenchmarkRoutesByHandle(b *testing.B) {
	benchmarkRoutes(b, func(n *net2, ops []routing.Op) {
		for _, op := range ops {
			r, _ := op.Object.(routing.Route)
			dst := &net.IPNet{IP: r.Dst.Addr().AsSlice(), Mask: net.CIDRMask(24, 32)}
			n.must(n.kernel.handle.RouteAdd(&netlink.Route{LinkIndex: r.Link, Dst: dst, Table: int(r.Table)}))
		}
	})
}

func benchmarkRoutes(b *testing.B, put func(*net2, []routing.Op)) {
	b.Helper()
	const count = 10000
	n := enter(b)
	n.openTUN("vpn0")
	n.must(netlink.LinkSetUp(n.link("vpn0")))
	ops := make([]routing.Op, count)
	for i := range ops {
		r := route(i)
		r.Link = n.tun.index
		ops[i] = routing.Op{Verb: routing.Put, Object: r}
	}
	for b.Loop() {
		put(n, ops)
		b.StopTimer()
		n.must(netlink.LinkSetDown(n.link("vpn0")))
		n.must(netlink.LinkSetUp(n.link("vpn0")))
		b.StartTimer()
	}
}

// From nothing to a tunnel with ten exclusions, and back.
func BenchmarkApplyAndEnd(b *testing.B) {
	n := enter(b)
	n.openTUN("vpn0")
	network := n.network()
	c := n.config("0.0.0.0/0", "::/0")
	for i := range 10 {
		c.Exclude = append(c.Exclude, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(5 * i)}), 32))
	}
	for b.Loop() {
		n.must(network.Apply(b.Context(), c))
		n.must(network.Apply(b.Context(), routing.Config{}))
	}
}

// An update of 10,000 exclusions that cannot be merged.
func BenchmarkApplyMany(b *testing.B) {
	n := enter(b)
	n.openTUN("vpn0")
	network := n.network()
	few := n.config("0.0.0.0/0", "::/0")
	many := few
	for i := range 10000 {
		many.Exclude = append(many.Exclude, netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(i >> 7), byte(i << 1), 0}), 24))
	}
	for b.Loop() {
		n.must(network.Apply(b.Context(), many))
		b.StopTimer()
		n.must(network.Apply(b.Context(), few))
		b.StartTimer()
	}
}
