package system

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// CVE-2019-14899: a neighbour finds out the tunnel's address, and the
// connections in the tunnel, by what the host answers to packets that it sends
// there: to the neighbour, or into the tunnel, where it can be seen by its size.
func TestAttackProbe(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.Host.Listen(t, "tcp", "[::]:8080")
	v.Router.IP(t, "route add "+tunnelIPv4+"/32 via "+harness.HostIPv4, "route add "+tunnelIPv6+"/128 via "+harness.HostIPv6)
	clear := v.Clear(t)
	// Each time from another port: an answer that nobody gets is sent again later.
	from := uint16(1000)
	probe := func() (probes [][]byte, answer func(harness.Packet) bool) {
		from++
		for _, stranger := range []string{harness.RouterIPv4, "203.0.113.9", harness.RouterIPv6, "2001:db8:113::9"} {
			to := tunnelAddresses[0]
			if strings.Contains(stranger, ":") {
				to = tunnelAddresses[1]
			}
			for _, port := range []uint16{8080, 8081} { // somebody listens, nobody does
				for _, flags := range []byte{0x02, 0x12, 0x10} { // SYN, SYN and ACK, ACK
					probes = append(probes, segment(netip.AddrPortFrom(netip.MustParseAddr(stranger), from), netip.AddrPortFrom(to, port), flags))
				}
			}
		}
		port := from
		return probes, func(p harness.Packet) bool {
			return p.Protocol == unix.IPPROTO_TCP && p.DstPort == port && (p.Src == tunnelAddresses[0] || p.Src == tunnelAddresses[1])
		}
	}
	for _, filter := range []string{"0", "1", "2"} {
		v.Host.Sysctl(t, "net.ipv4.conf.all.rp_filter", filter)
		v.Host.Sysctl(t, "net.ipv4.conf.h0.rp_filter", filter)
		probes, answer := probe()
		v.bareTunnel(t, func(link string) {
			inside := v.Host.Sniff(t, link)
			inject(t, v.Router, probes...)
			harness.Eventually(t, harness.Timeout, "control: the host answers", func() error {
				lan, tunnel := clear.Count(t, answer), inside.Count(t, answer)
				if lan+tunnel < 4 {
					return fmt.Errorf("%d answers to the LAN, %d into the tunnel", lan, tunnel)
				}
				t.Logf("rp_filter %s, routes alone: %d answers to the LAN, %d into the tunnel, of %d probes", filter, lan, tunnel, len(probes))
				return nil
			})
		})
		session := v.connect()
		v.open(session)
		v.configure(session, everything())
		inside := v.Host.Sniff(t, v.link(session))
		probes, answer = probe()
		for range 10 {
			inject(t, v.Router, probes...)
		}
		requireNone(t, "rp_filter "+filter+", into the tunnel", inside, answer)
		if n := clear.Count(t, answer); n != 0 {
			t.Errorf("rp_filter %s: %d answers to the LAN", filter, n)
		}
		v.ping(t, "1", includedIPv4) // that the tunnel itself is heard
		v.ping(t, "1", includedIPv6)
		v.disconnect()
		v.requireClean(t)
	}
	v.Host.Sysctl(t, "net.ipv4.conf.all.rp_filter", "0")
	v.Host.Sysctl(t, "net.ipv4.conf.h0.rp_filter", "0")
}

// A neighbour asks by ARP who has the tunnel's address.
func TestAttackARP(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.Router.IP(t, "route add "+tunnelIPv4+"/32 dev r0")
	known := func() bool {
		t.Helper()
		v.Router.Run(t, "ip", "neigh", "flush", "dev", "r0")
		// Whether it answers is not asked: the ARP cache is.
		_, _ = v.Router.Output(t, harness.Command{Argv: []string{"ping", "-c1", "-W1", tunnelIPv4}})
		return strings.Contains(v.Router.Run(t, "ip", "neigh", "show", tunnelIPv4, "dev", "r0"), "lladdr")
	}
	v.bareTunnel(t, func(string) {
		if !known() {
			t.Error("control: no answer")
		}
	})
	session := v.connect()
	v.open(session)
	v.configure(session, everything())
	if known() {
		t.Error("the host answers for the tunnel's address")
	}
	v.Router.Run(t, "ping", "-c1", "-W20", harness.HostIPv4) // the host's own is answered
}
