package rtnl

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
	"github.com/vpnprovider/vpnproviderd/routing/resolvconf"
)

// expect says for each destination where its packets must go.
func (n *net2) expect(clear *counter, want map[string]string) {
	n.t.Helper()
	for dst, way := range want {
		if got := n.way(clear, dst); got != way {
			n.t.Errorf("%s: %s, want %s", dst, got, way)
		}
	}
}

const (
	noRouteTo   = "no route to host"
	unreachable = "network is unreachable"
)

func TestWaysOfAFullTunnel(t *testing.T) {
	n := enter(t)
	n.openTUN("vpn0")
	clear := n.sniff("r0")
	network := n.network()
	n.expect(clear, map[string]string{"198.51.100.1": "clear", "2001:db8:9::1": "clear"})

	c := n.config("0.0.0.0/1", "128.0.0.0/1", "::/0", "198.51.100.128/25")
	c.Exclude = prefixes("198.51.100.0/24", "2001:db8:9::/48")
	n.must(network.Apply(t.Context(), c))
	n.expect(clear, map[string]string{
		"203.0.113.1": "tunnel", "198.51.100.1": "clear", "198.51.100.129": "tunnel",
		"192.0.2.77":    "tunnel", // the LAN is public: TunnelCrack LocalNet
		"2001:db8:8::1": "tunnel", "2001:db8:9::1": "clear",
	})

	// A route that a DHCP server pushed (option 121, TunnelVision) diverts
	// nothing.
	for _, pushed := range []string{"203.0.113.0/24", "128.0.0.0/2", "203.0.113.1/32"} {
		dst, err := netlink.ParseIPNet(pushed)
		n.must(err)
		n.must(netlink.RouteAdd(&netlink.Route{LinkIndex: n.link("up0").Attrs().Index, Dst: dst, Gw: net.IPv4(192, 0, 2, 1)}))
	}
	n.expect(clear, map[string]string{"203.0.113.1": "tunnel", "203.0.113.9": "tunnel"})

	// The end of the TUN leaves the guard.
	n.tun.kill()
	n.expect(clear, map[string]string{
		"203.0.113.1": noRouteTo, "198.51.100.129": noRouteTo, "198.51.100.1": "clear",
		"2001:db8:8::1": noRouteTo, "2001:db8:9::1": "clear",
	})
	next := routing.New(n.kernel, noFirewall(), resolvconf.None{}, discard())
	n.must(next.Sweep(t.Context(), false))
	n.expect(clear, map[string]string{"203.0.113.1": "clear", "198.51.100.129": "clear", "2001:db8:8::1": "clear"})
	s, err := n.kernel.List(t.Context())
	if n.must(err); !s.Empty() {
		t.Errorf("left: %v", sortedState(s))
	}
}

// A family in which the tunnel has no address is refused at once, unless it is
// allowed.
func TestFamilyWithoutAddress(t *testing.T) {
	n := enter(t)
	n.openTUN("vpn0")
	clear := n.sniff("r0")
	network := n.network()
	c := n.config("0.0.0.0/0")
	c.Addresses = prefixes("10.8.0.2/24")
	n.must(network.Apply(t.Context(), c))
	n.expect(clear, map[string]string{"203.0.113.1": "tunnel", "2001:db8:8::1": noRouteTo})
	// Neighbours are found as before.
	index := n.link("up0").Attrs().Index
	n.must(unix.Sendto(n.socket(true), []byte("x"), 0, &unix.SockaddrInet6{
		Port: 9, Addr: netip.MustParseAddr("fe80::1").As16(), ZoneId: uint32(index),
	}))
	c.AllowIPv6 = true
	n.must(network.Apply(t.Context(), c))
	n.expect(clear, map[string]string{"203.0.113.1": "tunnel", "2001:db8:8::1": "clear"})
}

// What is excluded follows the uplink by itself.
func TestExclusionFollowsUplink(t *testing.T) {
	n := enter(t)
	n.openTUN("vpn0")
	first := n.sniff("r0")
	n.must(netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "up1"}, PeerName: "r1", PeerNamespace: netlink.NsFd(n.router),
	}))
	n.uplink("up1", "192.168.7.2/24", "2001:db8:7::2/64")
	n.in(n.router, func() { n.uplink("r1", "192.168.7.1/24", "2001:db8:7::1/64") })
	second := n.sniff("r1")
	network := n.network()
	c := n.config("0.0.0.0/0", "::/0")
	c.Exclude = prefixes("198.51.100.0/24", "2001:db8:9::/48")
	n.must(network.Apply(t.Context(), c))
	n.expect(first, map[string]string{"198.51.100.1": "clear", "2001:db8:9::1": "clear", "203.0.113.1": "tunnel"})
	n.must(netlink.LinkSetDown(n.link("up0")))
	n.expect(first, map[string]string{"198.51.100.1": unreachable, "203.0.113.1": "tunnel"})
	n.defaultRoutes("up1", "192.168.7.1", "2001:db8:7::1")
	n.expect(second, map[string]string{"198.51.100.1": "clear", "2001:db8:9::1": "clear", "203.0.113.1": "tunnel"})
}

// Local networks: those of containers always, private LANs when allowed.
func TestLocalNetworks(t *testing.T) {
	n := enter(t)
	n.openTUN("vpn0")
	n.must(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}))
	n.must(netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "c0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(n.router),
	}))
	n.must(netlink.LinkSetMaster(n.link("c0"), n.link("docker0")))
	n.linkUp("c0")
	n.linkUp("docker0")
	n.in(n.router, func() { n.linkUp("eth0"); n.addr("eth0", "172.17.0.2/16") })
	containers := n.sniff("eth0")
	clear := n.sniff("r0")
	n.addr("up0", "192.168.1.2/24")
	n.in(n.router, func() { n.addr("r0", "192.168.1.1/24") })

	network := n.network()
	c := n.config("0.0.0.0/0")
	n.must(network.Apply(t.Context(), c))
	n.expect(clear, map[string]string{"192.168.1.1": "tunnel", "172.17.0.2": "tunnel"})
	n.addr("docker0", "172.17.0.1/16") // the first container starts
	n.must(network.Refresh(t.Context()))
	n.expect(containers, map[string]string{"172.17.0.2": "clear"})
	n.expect(clear, map[string]string{"192.168.1.1": "tunnel"})

	c.AllowLAN = true
	n.must(network.Apply(t.Context(), c))
	n.expect(clear, map[string]string{"192.168.1.1": "clear", "192.0.2.9": "tunnel", "203.0.113.1": "tunnel"})
	n.expect(containers, map[string]string{"172.17.0.2": "clear"})

	// Without its default route the uplink, a veth here, stays an uplink.
	c.AllowLAN = false
	n.must(network.Apply(t.Context(), c))
	for _, r := range must(netlink.RouteList(n.link("up0"), netlink.FAMILY_ALL))(t) {
		if r.Gw != nil {
			n.must(netlink.RouteDel(&r))
		}
	}
	n.must(network.Refresh(t.Context()))
	n.expect(clear, map[string]string{"192.168.1.1": "tunnel"})
	n.must(netlink.LinkDel(n.link("docker0")))
	n.must(network.Refresh(t.Context()))
	n.expect(containers, map[string]string{"172.17.0.2": "tunnel"})
}

// A protected socket goes around the tunnel, with the uplink's address.
func TestProtect(t *testing.T) {
	n := enter(t)
	n.openTUN("vpn0")
	clear := n.sniff("r0")
	n.must(n.network().Apply(t.Context(), n.config("0.0.0.0/0", "::/0")))
	tunnel := []netip.Addr{netip.MustParseAddr("10.8.0.2"), netip.MustParseAddr("fd00::2")}
	for _, dst := range []string{"203.0.113.1", "2001:db8:8::1"} {
		a := netip.MustParseAddr(dst)
		fd := n.socket(a.Is6())
		n.must(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0x11223344))
		f := file(t, fd)
		n.must(Protect(f, tunnel))
		if mark := must(unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_MARK))(t); mark != 0x56223344 {
			t.Errorf("mark %#x", mark)
		}
		before := clear.count(dst)
		n.must(send(fd, a))
		n.eventually(func() bool { return clear.count(dst) > before })
		if n.tun.seen.count(dst) != 0 {
			t.Errorf("%s: in the tunnel too", dst)
		}
	}
	n.expect(clear, map[string]string{"203.0.113.1": "tunnel"})

	// One that has the tunnel's address is refused, and not left marked.
	fd := n.socket(false)
	n.must(unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{203, 0, 113, 1}}))
	err := Protect(file(t, fd), tunnel)
	if !errors.Is(err, ErrBoundToTunnel) {
		t.Errorf("error %v, want %v", err, ErrBoundToTunnel)
	}
	if mark := must(unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK))(t); mark != 0 {
		t.Errorf("left with mark %#x", mark)
	}
	fd6 := n.socket(true) // the same behind a mapped address
	n.must(unix.Bind(fd6, &unix.SockaddrInet6{Addr: netip.MustParseAddr("::ffff:10.8.0.2").As16()}))
	if err := Protect(file(t, fd6), tunnel); !errors.Is(err, ErrBoundToTunnel) {
		t.Errorf("mapped: error %v, want %v", err, ErrBoundToTunnel)
	}
}

func TestProtectRefusesOthers(t *testing.T) {
	pair := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0))(t)
	files := map[string]*os.File{"unix": file(t, pair[0])}
	_ = unix.Close(pair[0])
	_ = unix.Close(pair[1])
	netlinkFD := must(unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE))(t)
	files["netlink"] = file(t, netlinkFD)
	_ = unix.Close(netlinkFD)
	if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP); err == nil {
		files["raw"] = file(t, fd)
		_ = unix.Close(fd)
	}
	files["no socket"] = must(os.Open("/dev/null"))(t)
	for name, f := range files {
		if err := Protect(f, nil); !errors.Is(err, ErrNotProtectable) {
			t.Errorf("%s: error %v, want %v", name, err, ErrNotProtectable)
		}
	}
	closed := must(os.Open("/dev/null"))(t)
	_ = closed.Close()
	if err := Protect(closed, nil); err == nil {
		t.Error("a closed file: no error")
	}
}

// A sender of a packet a millisecond, through many updates of every kind: no
// packet of what stays in the tunnel goes out in the clear, none is refused.
func TestUpdatesLeakAndLoseNothing(t *testing.T) {
	n := enter(t)
	n.openTUN("vpn0")
	clear := n.sniff("r0")
	network := n.network()
	base := n.config("0.0.0.0/0", "::/0")
	other := n.config("0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1")
	other.Exclude = prefixes("198.51.100.0/24", "2001:db8:9::/48")
	other.MTU = 1280
	nested := n.config("0.0.0.0/0", "::/0", "203.0.113.0/24", "2001:db8:8::/64")
	nested.Exclude = prefixes("203.0.0.0/16", "2001:db8::/32")
	part := n.config("203.0.113.0/24", "2001:db8:8::/48")
	moved := n.config("0.0.0.0/0", "::/0")
	moved.Addresses = prefixes("10.8.0.3/24", "fd00::3/64")
	both := n.config("0.0.0.0/0", "::/0")
	both.Addresses = prefixes("10.8.0.3/24", "10.8.0.2/16", "fd00::3/64", "fd00::2/64")
	small := n.config("203.0.113.0/25", "203.0.113.128/25", "2001:db8:8::/49", "2001:db8:8:8000::/49")
	configs := []routing.Config{base, other, nested, part, moved, both, small}
	n.must(network.Apply(t.Context(), base))
	n.settle()
	s, stop := n.stream("203.0.113.1", "203.0.113.200", "2001:db8:8::1")
	for i := range 200 {
		n.must(network.Apply(t.Context(), configs[i*5%len(configs)]))
		time.Sleep(time.Millisecond) // so that packets meet each state
	}
	n.eventually(func() bool { return s.sent.Load() >= 300 })
	stop()
	sent, refused := int(s.sent.Load()), int(s.refused.Load())
	n.eventually(func() bool {
		seen := n.tun.seen.count("203.0.113.1") + n.tun.seen.count("203.0.113.200") + n.tun.seen.count("2001:db8:8::1")
		return seen >= sent-refused
	})
	leaked := clear.count("203.0.113.1") + clear.count("203.0.113.200") + clear.count("2001:db8:8::1")
	t.Logf("%d packets, %d refused, %d in the clear", sent, refused, leaked)
	if refused != 0 || leaked != 0 {
		t.Errorf("%d packets, %d refused, %d in the clear", sent, refused, leaked)
	}
}

// Killed while it sends: nothing goes out in the clear until it is swept.
func TestKillLeaksNothing(t *testing.T) {
	n := enter(t)
	n.openTUN("vpn0")
	clear := n.sniff("r0")
	c := n.config("0.0.0.0/0", "::/0", "203.0.113.0/24")
	c.Exclude = prefixes("203.0.0.0/16")
	n.must(n.network().Apply(t.Context(), c))
	n.settle()
	s, stop := n.stream("203.0.113.1", "198.51.100.1", "2001:db8:8::1")
	n.eventually(func() bool { return n.tun.seen.count("198.51.100.1") > 20 })
	n.tun.kill()
	time.Sleep(300 * time.Millisecond) // the time that a restart may take
	n.eventually(func() bool { return s.refused.Load() >= 300 })
	stop()
	sent, refused := s.sent.Load(), s.refused.Load()
	leaked := clear.count("203.0.113.1") + clear.count("198.51.100.1") + clear.count("2001:db8:8::1")
	t.Logf("%d packets, %d refused, %d in the clear", sent, refused, leaked)
	if leaked != 0 {
		t.Errorf("%d packets, %d refused, %d in the clear", sent, refused, leaked)
	}
}

// A persistent TUN with our mark, as a crash may leave one, is removed; one
// without is not.
func TestSweepLinks(t *testing.T) {
	n := enter(t)
	for _, name := range []string{"vpn0", "vpn1"} {
		tt := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TUN, Flags: netlink.TUNTAP_NO_PI}
		n.must(netlink.LinkAdd(tt))
	}
	n.must(netlink.LinkSetAlias(n.link("vpn1"), routing.Alias))
	n.must(n.network().Sweep(t.Context(), false))
	if _, err := netlink.LinkByName("vpn1"); err == nil {
		t.Error("vpn1 is left")
	}
	if _, err := netlink.LinkByName("vpn0"); err != nil {
		t.Errorf("vpn0: %v", err)
	}
}

// Where the kernel keeps IPv6 off the link, the tunnel serves IPv4, and IPv6 is
// not left open.
func TestIPv6DisabledOnLink(t *testing.T) {
	n := enter(t)
	n.openTUN("vpn0")
	clear := n.sniff("r0")
	n.sysctl("ipv6/conf/vpn0/disable_ipv6", "1")
	before := n.dumpAll()
	network := n.network()
	n.must(network.Apply(t.Context(), n.config("0.0.0.0/0", "::/0")))
	n.expect(clear, map[string]string{"203.0.113.1": "tunnel", "2001:db8:8::1": noRouteTo})
	n.must(network.Apply(t.Context(), routing.Config{}))
	if diff := cmp.Diff(before, n.dumpAll()); diff != "" {
		t.Error(diff)
	}
}

func TestHost(t *testing.T) {
	n := enter(t)
	n.openTUN("vpn0")
	n.must(n.network().Apply(t.Context(), n.config("0.0.0.0/0", "::/0")))
	h := must(n.kernel.Host(t.Context(), n.tun.index))(t)
	up := n.link("up0").Attrs().Index
	want := Uplink{Interface: "up0", Index: up, Gateway: netip.MustParseAddr("192.0.2.1")}
	if h.Uplink != want {
		t.Errorf("uplink %+v, want %+v", h.Uplink, want)
	}
	contains := func(list []netip.Addr, s string) bool {
		for _, a := range list {
			if a == netip.MustParseAddr(s) {
				return true
			}
		}
		return false
	}
	for _, s := range []string{"192.0.2.2", "2001:db8::2", "127.0.0.1", "::1"} {
		if !contains(h.Addresses, s) {
			t.Errorf("%s is not among the addresses %v", s, h.Addresses)
		}
	}
	if contains(h.Addresses, "10.8.0.2") || contains(h.Addresses, "fd00::2") {
		t.Errorf("the tunnel's addresses are among %v", h.Addresses)
	}
	if !contains(h.Gateways, "192.0.2.1") || !contains(h.Gateways, "2001:db8::1") || len(h.Gateways) != 2 {
		t.Errorf("gateways %v", h.Gateways)
	}
	// A better one by its metric, then IPv6 alone, then none.
	n.must(netlink.RouteDel(&netlink.Route{LinkIndex: up, Gw: net.IPv4(192, 0, 2, 1)}))
	for metric, gw := range map[int]net.IP{100: net.IPv4(192, 0, 2, 7), 50: net.IPv4(192, 0, 2, 8)} {
		n.must(netlink.RouteAdd(&netlink.Route{LinkIndex: up, Gw: gw, Priority: metric}))
	}
	if h = must(n.kernel.Host(t.Context(), 0))(t); h.Uplink.Gateway != netip.MustParseAddr("192.0.2.8") {
		t.Errorf("uplink %+v", h.Uplink)
	}
	n.must(netlink.RouteDel(&netlink.Route{LinkIndex: up, Gw: net.IPv4(192, 0, 2, 7), Priority: 100}))
	n.must(netlink.RouteDel(&netlink.Route{LinkIndex: up, Gw: net.IPv4(192, 0, 2, 8), Priority: 50}))
	h = must(n.kernel.Host(t.Context(), 0))(t)
	if want = (Uplink{Interface: "up0", Index: up, Gateway: netip.MustParseAddr("2001:db8::1"), IPv6: true}); h.Uplink != want {
		t.Errorf("uplink %+v, want %+v", h.Uplink, want)
	}
	n.must(netlink.LinkSetDown(n.link("up0")))
	if h = must(n.kernel.Host(t.Context(), 0))(t); h.Uplink != (Uplink{}) {
		t.Errorf("uplink %+v, want none", h.Uplink)
	}
}

func (n *net2) eventually(f func() bool) {
	n.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if f() {
			return
		}
	}
	n.t.Fatal("did not happen")
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// file is another descriptor of the same socket.
func file(t testing.TB, fd int) *os.File {
	t.Helper()
	f := os.NewFile(uintptr(must(unix.Dup(fd))(t)), "socket")
	t.Cleanup(func() { _ = f.Close() })
	return f
}
