package nft

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// host is a network namespace of its own: up0, whose other end nobody has, leads
// to everywhere; vpn0 is a TUN, docker0 a bridge.
type host struct {
	*Firewall
	t               testing.TB
	self            netns.NsHandle
	up, vpn, docker int
}

// enter puts the test into a new network namespace. The test's thread is never
// used again.
func enter(t testing.TB) *host {
	t.Helper()
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("needs the right to make network namespaces: %v", err)
		}
		t.Skipf("needs the right to make network namespaces: %v", err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	h := &host{t: t, self: ns}
	h.up = h.link(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "r0"})
	h.vpn = h.link(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "vpn0"}, Mode: netlink.TUNTAP_MODE_TUN})
	h.docker = h.link(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}})
	h.must(netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "r0"}}))
	address, err := netlink.ParseAddr("192.0.2.2/24")
	h.must(err)
	h.must(netlink.AddrAdd(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: h.up}}, address))
	// Nobody has to be asked who the router is.
	h.must(netlink.NeighAdd(&netlink.Neigh{
		LinkIndex: h.up, IP: net.IPv4(192, 0, 2, 1), State: netlink.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
	}))
	h.must(netlink.RouteAdd(&netlink.Route{LinkIndex: h.up, Gw: net.IPv4(192, 0, 2, 1)}))
	h.Firewall = h.open()
	return h
}

// open is the firewall of another process.
func (h *host) open() *Firewall {
	h.t.Helper()
	f, err := New()
	h.must(err)
	h.t.Cleanup(func() { _ = f.Close() })
	return f
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// link adds one and says its index.
func (h *host) link(l netlink.Link) int {
	h.t.Helper()
	h.must(netlink.LinkAdd(l))
	h.must(netlink.LinkSetUp(l))
	added, err := netlink.LinkByName(l.Attrs().Name)
	h.must(err)
	return added.Attrs().Index
}

func (h *host) nft(args ...string) string {
	h.t.Helper()
	out, err := exec.Command("nft", args...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("nft %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func addrs(list ...string) []netip.Addr {
	var as []netip.Addr
	for _, s := range list {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

// filters are all kinds that there are.
func (h *host) filters() map[string]*routing.Filter {
	spared := []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16"), netip.MustParsePrefix("fd17::/64")}
	ends := []routing.TunnelEnd{{Link: h.vpn, Addresses: addrs("10.8.0.2", "fd00::2"), Spared: spared}}
	two := append([]routing.TunnelEnd{{Link: h.docker, Addresses: addrs("10.9.0.2")}}, ends...)
	return map[string]*routing.Filter{
		"a tunnel":               {Tunnels: ends},
		"two tunnels":            {Tunnels: two, Marked: []int{h.up}},
		"a tunnel of one family": {Tunnels: []routing.TunnelEnd{{Link: h.vpn, Addresses: addrs("fd00::2")}}},
		"names":                  {Tunnels: ends, Names: true, Local: []int{h.docker}},
		"names, and who asks":    {Tunnels: ends, Names: true, Asker: 101},
		"a lockdown":             {Lockdown: true, Local: []int{h.docker}},
		"everything":             {Tunnels: ends, Lockdown: true, Local: []int{h.up, h.docker}, Marked: []int{h.up, h.docker}},
		"nothing but the tables": {},
	}
}
