package tun_test

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun"
)

// namespace gives the test, and what it runs in its own goroutine, a network
// of its own, which ends with the test: its thread is never used again.
func namespace(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		lacking(tb, "root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		lacking(tb, "network namespaces: "+err.Error())
	}
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		lacking(tb, "TUN devices: "+err.Error())
	} else {
		f.Close()
	}
	if err := netlink.LinkSetUp(link(tb, "lo")); err != nil {
		tb.Fatal(err)
	}
}

// otherNamespace is one more network, for the functions that are given to do,
// which must not end the test.
func otherNamespace(tb testing.TB) (do func(func() error)) {
	tb.Helper()
	type work struct {
		f    func() error
		done chan error
	}
	queue := make(chan work)
	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		started <- err
		if err != nil {
			return
		}
		for w := range queue {
			w.done <- w.f()
		}
	}()
	if err := <-started; err != nil {
		lacking(tb, "network namespaces: "+err.Error())
	}
	tb.Cleanup(func() {
		close(queue)
		<-ended
	})
	return func(f func() error) {
		tb.Helper()
		w := work{f, make(chan error)}
		queue <- w
		if err := <-w.done; err != nil {
			tb.Fatal(err)
		}
	}
}

// lacking skips a test where somebody tries things out, and fails it where it
// must be seen.
func lacking(tb testing.TB, what string) {
	tb.Helper()
	if os.Getenv("CI") != "" {
		tb.Fatal("this test needs", what)
	}
	tb.Skip("this test needs", what)
}

func link(tb testing.TB, name string) netlink.Link {
	tb.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

func open(tb testing.TB, name string) *tun.Device {
	tb.Helper()
	d, err := tun.Open(name)
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

// up gives the interface the tunnel's addresses and routes to the peers, and
// waits until the kernel takes packets for the IPv6 address too, which it
// does only after a work queue has run.
func up(tb testing.TB, name string) {
	tb.Helper()
	l := link(tb, name)
	for _, a := range []netip.Addr{own4, own6} {
		address := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen())), Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(l, address); err != nil {
			tb.Fatal(err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		tb.Fatal(err)
	}
	for _, block := range policy().Include {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(block)}); err != nil {
			tb.Fatal(err)
		}
	}
	eventually(tb, "the IPv6 address is local", func() bool {
		routes, err := netlink.RouteGet(own6.AsSlice())
		return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
