package rtnl

import (
	"context"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// monitor runs a Monitor in the test's namespace until stop is called.
func (n *net2) monitor() (calls *atomic.Int32, stop func()) {
	n.t.Helper()
	calls = &atomic.Int32{}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() {
		if err := enterThread(n.self); err != nil {
			ended <- err
			return
		}
		ended <- n.kernel.Monitor(ctx, func() { calls.Add(1) })
	}()
	n.eventually(func() bool { return calls.Load() == 1 }) // the one at the beginning
	return calls, func() {
		n.t.Helper()
		cancel()
		n.must(<-ended)
	}
}

func TestMonitor(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	n := enter(t)
	n.openTUN("vpn0")
	network := n.network()
	n.must(network.Apply(t.Context(), n.config("0.0.0.0/0")))
	n.settle()
	fds := descriptors(t)
	calls, stop := n.monitor()
	up := n.link("up0").Attrs().Index
	dst, _ := netlink.ParseIPNet("203.0.113.0/24")
	// Other routes, and ours when we change them, are no news.
	before := calls.Load()
	n.must(netlink.RouteAdd(&netlink.Route{LinkIndex: up, Dst: dst, Gw: net.IPv4(192, 0, 2, 1)}))
	ops := make([]routing.Op, 2000)
	for i := range ops {
		r := route(i)
		r.Link = n.tun.index
		ops[i] = routing.Op{Verb: routing.Put, Object: r}
	}
	if errs := n.kernel.Execute(t.Context(), ops); errs != nil {
		t.Fatal(errs)
	}
	n.quiet(calls)
	if got := calls.Load(); got != before {
		t.Errorf("%d calls for what is no news", got-before)
	}
	quickest := patience
	for _, change := range []struct {
		name string
		do   func()
	}{
		{"an address", func() { n.addr("up0", "192.168.9.1/24") }},
		{"a default route", func() {
			n.must(netlink.RouteDel(&netlink.Route{LinkIndex: up, Gw: net.IPv4(192, 0, 2, 1)}))
			n.defaultRoutes("up0", "192.0.2.9")
		}},
		{"our rule", func() {
			r := netlink.NewRule()
			r.Family, r.Priority, r.Table = netlink.FAMILY_V4, routing.RulePriority, routing.TableBase
			n.must(netlink.RuleDel(r))
		}},
		{"our route", func() {
			n.must(netlink.RouteDel(&netlink.Route{
				Table: routing.TableBase, Type: unix.RTN_UNREACHABLE, Protocol: routing.Protocol, Priority: routing.GuardMetric,
				Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
			}))
		}},
		{"a link", func() { n.must(netlink.LinkSetDown(n.link("up0"))) }},
	} {
		before := calls.Load()
		start := time.Now()
		change.do()
		n.eventually(func() bool { return calls.Load() > before })
		took := time.Since(start)
		if quickest = min(quickest, took); took < settle {
			t.Errorf("%s: told after %s", change.name, took)
		}
		n.quiet(calls)
	}
	if quickest > time.Second { // each of them, had other tests left the processors alone
		t.Errorf("each change was told after %s or more", quickest)
	}

	stop()
	if now := descriptors(t); now != fds {
		t.Errorf("%d descriptors, before %d", now, fds)
	}
	n.tun.kill()
}

// With a Refresh on each change, what others delete is back within a second, if
// other tests leave the processors alone.
func TestMonitorHeals(t *testing.T) {
	n := enter(t)
	n.openTUN("vpn0")
	clear := n.sniff("r0")
	network := n.network()
	n.must(network.Apply(t.Context(), n.config("0.0.0.0/0", "::/0")))
	whole := n.dumpAll()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		if err := enterThread(n.self); err != nil {
			ended <- err
			return
		}
		ended <- n.kernel.Monitor(ctx, func() { _ = network.Refresh(ctx) })
	}()
	quickest := patience
	for _, args := range [][]string{
		{"-4", "rule", "del", "pref", "4650"},
		{"-6", "rule", "del", "pref", "4650"},
		{"-4", "route", "flush", "table", "1448083456"},
		{"-6", "route", "flush", "table", "1448083456"},
		{"address", "flush", "dev", "vpn0"},
		{"link", "set", "vpn0", "down"},
	} {
		n.ip(args...)
		start := time.Now()
		n.eventuallyEqual(whole, n.dumpAll)
		quickest = min(quickest, time.Since(start))
		n.expect(clear, map[string]string{"203.0.113.1": "tunnel", "2001:db8:8::1": "tunnel"})
	}
	if quickest > time.Second {
		t.Errorf("whole again after %s or more", quickest)
	}
	cancel()
	n.must(<-ended)
}

func (n *net2) eventuallyEqual(want string, got func() string) {
	n.t.Helper()
	for end := time.Now().Add(patience); got() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("did not happen (-want +got)\n%s", cmp.Diff(want, got()))
		}
	}
}

// quiet waits until no call has come for as long as one may take.
func (n *net2) quiet(calls *atomic.Int32) {
	n.t.Helper()
	for {
		before := calls.Load()
		time.Sleep(settle + 500*time.Millisecond)
		if calls.Load() == before {
			return
		}
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	list, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestNewKernelLeaksNothing(t *testing.T) {
	before := descriptors(t)
	for range 20 {
		must(NewKernel())(t).Close()
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
}
