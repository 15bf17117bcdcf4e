package rtnl

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
	"github.com/vpnprovider/vpnproviderd/routing/resolvconf"
	"github.com/vpnprovider/vpnproviderd/routing/routingtest"
)

// The topology of these tests, in namespaces of their own:
//
//	vpn0 (TUN)                        this namespace
//	up0  192.0.2.2/24, 2001:db8::2/64 ── r0 192.0.2.1, 2001:db8::1   router
//	     default via r0
type net2 struct {
	t      testing.TB
	self   netns.NsHandle
	router netns.NsHandle
	kernel *Kernel
	tun    *tun
}

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// missing skips, in CI it fails.
func missing(t testing.TB, what string, err error) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("%s: %v", what, err)
	}
	t.Skipf("%s: %v", what, err)
}

// enter puts the test into a new network namespace, with a router behind up0.
// The test's thread is never used again.
func enter(t testing.TB) *net2 {
	t.Helper()
	runtime.LockOSThread()
	router, err := netns.New()
	if err != nil {
		missing(t, "needs the right to make network namespaces", err)
	}
	self, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	n := &net2{t: t, self: self, router: router}
	t.Cleanup(func() { _, _ = self.Close(), router.Close() })
	n.linkUp("lo")
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "r0", PeerNamespace: netlink.NsFd(router),
	}
	n.must(netlink.LinkAdd(veth))
	n.uplink("up0", "192.0.2.2/24", "2001:db8::2/64", "fe80::2/64")
	n.in(router, func() { n.uplink("r0", "192.0.2.1/24", "2001:db8::1/64", "fe80::1/64") })
	n.defaultRoutes("up0", "192.0.2.1", "2001:db8::1")
	n.kernel, err = NewKernel()
	n.must(err)
	t.Cleanup(n.kernel.Close)
	return n
}

func (n *net2) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// in runs f on this thread in another namespace.
func (n *net2) in(ns netns.NsHandle, f func()) {
	n.t.Helper()
	n.must(netns.Set(ns))
	defer func() { n.must(netns.Set(n.self)) }()
	f()
}

func (n *net2) link(name string) netlink.Link {
	n.t.Helper()
	l, err := netlink.LinkByName(name)
	n.must(err)
	return l
}

func (n *net2) linkUp(name string) {
	n.t.Helper()
	n.must(netlink.LinkSetUp(n.link(name)))
}

// uplink gives a link its addresses at once: those that the kernel would make
// need a second to be sure that they are the only ones.
func (n *net2) uplink(link string, addrs ...string) {
	n.t.Helper()
	n.must(netlink.LinkSetIP6AddrGenMode(n.link(link), int(routing.AddrGenNone)))
	n.linkUp(link)
	n.addr(link, addrs...)
}

func (n *net2) addr(link string, list ...string) {
	n.t.Helper()
	for _, s := range list {
		a, err := netlink.ParseAddr(s)
		n.must(err)
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		n.must(netlink.AddrAdd(n.link(link), a))
	}
}

func (n *net2) defaultRoutes(link string, gateways ...string) {
	n.t.Helper()
	for _, g := range gateways {
		n.must(netlink.RouteReplace(&netlink.Route{LinkIndex: n.link(link).Attrs().Index, Gw: net.ParseIP(g)}))
	}
}

// tun is a TUN device that counts what is sent into it.
type tun struct {
	name  string
	index int
	file  *os.File
	seen  *counter
	end   sync.WaitGroup
}

// openTUN makes it the one that config is for.
func (n *net2) openTUN(name string) {
	n.t.Helper()
	file, err := os.OpenFile("/dev/net/tun", os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		missing(n.t, "needs /dev/net/tun", err)
	}
	req, err := unix.NewIfreq(name)
	n.must(err)
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	raw, err := file.SyscallConn()
	n.must(err)
	n.must(raw.Control(func(fd uintptr) { err = unix.IoctlIfreq(int(fd), unix.TUNSETIFF, req) }))
	n.must(err)
	// As an os.File of a TUN that is not attached yet cannot be polled, the
	// poller gets one that is.
	fd, err := unix.Dup(int(file.Fd()))
	n.must(err)
	n.must(unix.SetNonblock(fd, true))
	_ = file.Close()
	// Room for what comes while this process does not get a processor.
	n.must(netlink.LinkSetTxQLen(n.link(name), 10000))
	d := &tun{name: name, index: n.link(name).Attrs().Index, file: os.NewFile(uintptr(fd), name), seen: newCounter()}
	d.end.Go(func() {
		buf := make([]byte, 65536)
		for {
			m, err := d.file.Read(buf)
			if err != nil {
				return
			}
			d.seen.packet(buf[:m])
		}
	})
	n.t.Cleanup(d.kill)
	n.tun = d
}

// kill is what the end of its process does.
func (d *tun) kill() {
	_ = d.file.Close()
	d.end.Wait()
}

// counter counts packets by destination.
type counter struct {
	mu sync.Mutex
	to map[netip.Addr]int
}

func newCounter() *counter { return &counter{to: map[netip.Addr]int{}} }

func (c *counter) packet(p []byte) {
	var dst netip.Addr
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		dst = netip.AddrFrom4([4]byte(p[16:20]))
	case len(p) >= 40 && p[0]>>4 == 6:
		dst = netip.AddrFrom16([16]byte(p[24:40]))
	default:
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.to[dst]++
}

func (c *counter) count(dst string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.to[netip.MustParseAddr(dst)]
}

// sniff counts what arrives at the router over one of its links.
func (n *net2) sniff(link string) *counter {
	n.t.Helper()
	c := newCounter()
	n.in(n.router, func() {
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all))
		n.must(err)
		n.must(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: n.link(link).Attrs().Index}))
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		file := os.NewFile(uintptr(fd), "sniff")
		var end sync.WaitGroup
		end.Go(func() {
			buf := make([]byte, 65536)
			for {
				m, err := file.Read(buf)
				if err != nil {
					return
				}
				c.packet(buf[:m])
			}
		})
		n.t.Cleanup(func() { _ = file.Close(); end.Wait() })
	})
	return c
}

// socket is an unconnected UDP socket of this namespace.
func (n *net2) socket(v6 bool) int {
	n.t.Helper()
	fd, err := unix.Socket(familyOf(v6), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	n.must(err)
	n.t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func send(fd int, dst netip.Addr) error {
	if dst.Is4() {
		return unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: dst.As4()})
	}
	return unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet6{Port: 9, Addr: dst.As16()})
}

// sendTo sends one packet.
func (n *net2) sendTo(dst string) error {
	n.t.Helper()
	a := netip.MustParseAddr(dst)
	return send(n.socket(a.Is6()), a)
}

// way sends packets until one comes out, and says where; or the error. It waits a
// while for the others, so that the next does not take them for its own.
func (n *net2) way(clear *counter, dst string) string {
	n.t.Helper()
	before, into, sent := clear.count(dst), n.tun.seen.count(dst), 0
	var outside, inside int
	await := func(packets int, patience time.Duration) {
		for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			outside, inside = clear.count(dst)-before, n.tun.seen.count(dst)-into
			if outside+inside >= packets || time.Now().After(end) {
				return
			}
		}
	}
	for end := time.Now().Add(patience); outside+inside == 0 && time.Now().Before(end); {
		if err := n.sendTo(dst); err != nil {
			return err.Error()
		}
		sent++
		await(1, 20*time.Millisecond)
	}
	await(sent, time.Second)
	switch {
	case outside+inside == 0:
		return "nowhere"
	case inside == 0:
		return "clear"
	case outside == 0:
		return "tunnel"
	}
	return "both"
}

// streaming is what has become of the packets of a stream so far.
type streaming struct{ sent, refused atomic.Int64 }

// stream sends to dst about every millisecond until stop is called.
func (n *net2) stream(dst ...string) (s *streaming, stop func()) {
	n.t.Helper()
	type target struct {
		fd   int
		addr netip.Addr
	}
	var targets []target
	for _, d := range dst {
		a := netip.MustParseAddr(d)
		targets = append(targets, target{n.socket(a.Is6()), a})
	}
	s = &streaming{}
	done := make(chan struct{})
	var end sync.WaitGroup
	end.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			for _, t := range targets {
				s.sent.Add(1)
				if send(t.fd, t.addr) != nil {
					s.refused.Add(1)
				}
			}
		}
	})
	return s, func() {
		close(done)
		end.Wait()
	}
}

// sysctl sets one of the namespace: below /proc/sys/net it is the thread's, so
// this refuses any other thread than the test's own.
func (n *net2) sysctl(name, value string) {
	n.t.Helper()
	here := must(netns.Get())(n.t)
	defer here.Close()
	if !here.Equal(n.self) {
		n.t.Fatalf("%s would be set in another namespace", name)
	}
	n.must(os.WriteFile("/proc/sys/net/"+name, []byte(value), 0))
}

// network serves the kernel with no firewall and no DNS.
func (n *net2) network() *routing.Network {
	return routing.New(n.kernel, noFirewall(), resolvconf.None{}, discard())
}

// noFirewall is one in memory: package nft tests the real one.
func noFirewall() routing.Firewall { return routingtest.NewFirewall(&routingtest.Failures{}) }

func noDNS() routing.Resolver { return resolvconf.None{} }

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func prefixes(list ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range list {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// config is a tunnel with both families on the TUN that was opened last.
func (n *net2) config(include ...string) routing.Config {
	return routing.Config{
		Link: routing.Link{Name: n.tun.name, Index: n.tun.index}, MTU: 1500,
		Addresses: prefixes("10.8.0.2/24", "fd00::2/64"), Include: prefixes(include...),
	}
}

// settle waits until the kernel, which does it in the background, has given each
// IPv6 address of a link that is up its route.
func (n *net2) settle() {
	n.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_V6)
		n.must(err)
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
		n.must(err)
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
			l, err := netlink.LinkByIndex(a.LinkIndex)
			return err == nil && l.Attrs().RawFlags&unix.IFF_UP != 0 && !slices.ContainsFunc(routes, func(r netlink.Route) bool {
				return r.Type == unix.RTN_LOCAL && r.Dst.IP.Equal(a.IP)
			})
		}) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	n.t.Fatal("addresses without routes")
}

// dumpAll is all that the kernel tells of links, addresses, routes of all
// tables and rules, in its order, without counters and times.
func (n *net2) dumpAll() string {
	n.t.Helper()
	n.settle()
	var lines []string
	for _, d := range []struct {
		name     string
		kind     int
		families []int
		head     func(family int) nl.NetlinkRequestData
		omit     []uint16
	}{
		{"address", unix.RTM_GETADDR, []int{unix.AF_INET, unix.AF_INET6}, func(f int) nl.NetlinkRequestData { return nl.NewIfAddrmsg(f) }, []uint16{unix.IFA_CACHEINFO}},
		{"route", unix.RTM_GETROUTE, []int{unix.AF_INET, unix.AF_INET6}, func(f int) nl.NetlinkRequestData {
			return &nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(f)}}
		}, []uint16{unix.RTA_CACHEINFO}},
		{"rule", unix.RTM_GETRULE, []int{unix.AF_INET, unix.AF_INET6}, func(f int) nl.NetlinkRequestData {
			return &nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(f)}}
		}, nil},
	} {
		for _, family := range d.families {
			msgs, err := dump(n.t.Context(), func() ([][]byte, error) {
				req := nl.NewNetlinkRequest(d.kind, unix.NLM_F_DUMP)
				req.AddData(d.head(family))
				return req.Execute(unix.NETLINK_ROUTE, 0)
			})
			n.must(err)
			for _, m := range msgs {
				lines = append(lines, d.name+" "+describeMessage(n.t, d.head(family).Len(), m, d.omit))
			}
		}
	}
	links, err := dump(n.t.Context(), netlink.LinkList)
	n.must(err)
	for _, l := range links {
		info, err := n.kernel.conn.link(l.Attrs().Index)
		n.must(err)
		lines = append(lines, fmt.Sprintf("link %s %+v flags %#x txqlen %d", l.Attrs().Name, info, l.Attrs().RawFlags, l.Attrs().TxQLen))
	}
	return strings.Join(lines, "\n")
}

func describeMessage(t testing.TB, head int, m []byte, omit []uint16) string {
	t.Helper()
	attrs, err := nl.ParseRouteAttr(m[head:])
	if err != nil {
		t.Fatal(err)
	}
	text := hex.EncodeToString(m[:head])
	for _, a := range attrs {
		if !slices.Contains(omit, a.Attr.Type) {
			text += fmt.Sprintf(" %d=%x", a.Attr.Type, a.Value)
		}
	}
	return text
}

// enterThread puts the calling goroutine into a namespace, for good.
func enterThread(ns netns.NsHandle) error {
	runtime.LockOSThread()
	return netns.Set(ns)
}
