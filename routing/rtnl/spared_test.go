package rtnl

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
	"github.com/vpnprovider/vpnproviderd/routing/nft"
)

// Out of the tunnel nobody speaks for a local network that stays out of it; what was
// included for itself is the tunnel's.
func TestTunnelSpeaksForNoLocalNetwork(t *testing.T) {
	n := enter(t)
	n.openTUN("vpn0")
	for _, link := range []string{"all", "vpn0"} {
		n.sysctl("ipv4/conf/"+link+"/rp_filter", "0") // that it is not this that drops
	}
	n.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}, PeerName: "c0"}))
	n.linkUp("c0")
	n.uplink("docker0", "172.17.0.1/16", "fd17::1/64")
	n.addr("up0", "192.168.1.2/24")
	firewall, err := nft.New()
	n.must(err)
	t.Cleanup(func() { _ = firewall.Close() })
	network := routing.New(n.kernel, firewall, noDNS(), discard())
	c := n.config("0.0.0.0/0", "::/0", "172.17.128.0/17", "192.168.1.64/26", "fd17::8:0/112")
	c.AllowLAN = true
	n.must(network.Apply(t.Context(), c))
	n.settle()
	server, err := net.ListenUDP("udp", &net.UDPAddr{Port: 9})
	n.must(err)
	t.Cleanup(func() { _ = server.Close() })

	local := []string{"172.17.0.5", "172.17.127.9", "192.168.1.1", "192.168.1.200", "fd17::5"}
	included := []string{"172.17.200.1", "192.168.1.65", "fd17::8:5"}
	others := []string{"172.18.0.5", "192.168.2.1", "203.0.113.1", "fd18::5", "2001:db8:9::1"}
	n.hears(server, slices.Concat(local, included, others), slices.Concat(included, others))

	// A network that is gone is nobody's here, and one that is not spared is the
	// tunnel's.
	n.must(netlink.LinkDel(n.link("docker0")))
	n.must(network.Refresh(t.Context()))
	n.hears(server, local, []string{"172.17.0.5", "172.17.127.9", "fd17::5"})
	c.AllowLAN = false
	n.must(network.Apply(t.Context(), c))
	n.hears(server, local, local)
	n.must(network.Apply(t.Context(), routing.Config{}))
}

// hears has packets from sources come out of the tunnel, and requires those that
// reach this host.
func (n *net2) hears(server *net.UDPConn, sources, want []string) {
	n.t.Helper()
	const last = "198.51.100.1"
	for _, source := range append(slices.Clone(sources), last) {
		src, dst := netip.MustParseAddr(source), netip.MustParseAddr("10.8.0.2")
		if !src.Is4() {
			dst = netip.MustParseAddr("fd00::2")
		}
		_, err := n.tun.file.Write(datagram(src, dst, 9))
		n.must(err)
	}
	n.must(server.SetReadDeadline(time.Now().Add(patience)))
	var got []string
	for {
		_, from, err := server.ReadFromUDPAddrPort(make([]byte, 100))
		n.must(err)
		source := from.Addr().Unmap().String()
		if source == last {
			break
		}
		got = append(got, source)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		n.t.Errorf("heard (-want +got)\n%s", diff)
	}
}

// datagram is a UDP packet without data.
func datagram(src, dst netip.Addr, port uint16) []byte {
	udp := binary.BigEndian.AppendUint16(nil, 40000)
	udp = binary.BigEndian.AppendUint16(udp, port)
	udp = append(udp, 0, 8, 0, 0)
	addresses := slices.Concat(src.AsSlice(), dst.AsSlice())
	pseudo := append(slices.Clone(addresses), 0, unix.IPPROTO_UDP, 0, 8)
	binary.BigEndian.PutUint16(udp[6:], internetSum(append(pseudo, udp...)))
	if !src.Is4() {
		return slices.Concat([]byte{0x60, 0, 0, 0, 0, 8, unix.IPPROTO_UDP, 64}, addresses, udp)
	}
	ip := slices.Concat([]byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}, addresses)
	binary.BigEndian.PutUint16(ip[10:], internetSum(ip))
	return append(ip, udp...)
}

func internetSum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
