package harness

import (
	"fmt"
	"testing"
)

// The addresses of a Topology. Everything in the Internet and Private blocks is
// an address of the server namespace, so whatever is sent there is answered:
// in clear as well as through a tunnel. What was in clear shows at the router
// and by the source address.
const (
	HostIPv4   = "10.77.0.2"
	HostIPv6   = "fd77::2"
	RouterIPv4 = "10.77.0.1"
	RouterIPv6 = "fd77::1"

	// SecondIPv4 and SecondIPv6 are the host's on the uplink that SecondUplink
	// adds, with the router as .1.
	SecondIPv4       = "10.78.0.2"
	SecondIPv6       = "fd78::2"
	SecondRouterIPv4 = "10.78.0.1"
	SecondRouterIPv6 = "fd78::1"

	ServerIPv4 = "198.51.100.2"
	ServerIPv6 = "2001:db8:100::2"

	InternetIPv4 = "203.0.113.0/24"
	InternetIPv6 = "2001:db8:113::/48"
	PrivateIPv4  = "10.98.0.0/16"
	PrivateIPv6  = "fd98::/48"

	// InternetDNS is where the host's resolv.conf points at first.
	InternetDNS = "203.0.113.53"
	// PrivateDNS is a good place for a VPN's own name server.
	PrivateDNS = "10.98.0.53"
)

// Topology is a host, the router that is its default gateway, and a server that
// is the rest of the internet.
//
//	Host h0 ──── r0 Router s0 ──── s0 Server
type Topology struct {
	Host, Router, Server *Namespace
}

// NewTopology makes the three namespaces, with IPv4 and IPv6.
func NewTopology(t testing.TB) *Topology {
	t.Helper()
	top := &Topology{
		Host:   NewHost(t, "host"),
		Router: NewNamespace(t, "router"),
		Server: NewNamespace(t, "server"),
	}
	Veth(t, top.Host, "h0", top.Router, "r0")
	Veth(t, top.Server, "s0", top.Router, "r1")
	top.Router.Sysctl(t, "net.ipv4.ip_forward", "1")
	top.Router.Sysctl(t, "net.ipv6.conf.all.forwarding", "1")
	top.Router.IP(
		t,
		"addr add "+RouterIPv4+"/24 dev r0",
		"addr add "+RouterIPv6+"/64 dev r0 nodad",
		"addr add 198.51.100.1/24 dev r1",
		"addr add 2001:db8:100::1/64 dev r1 nodad",
		"route add default via "+ServerIPv4,
		"route add default via "+ServerIPv6,
	)
	top.Server.IP(
		t,
		"addr add "+ServerIPv4+"/24 dev s0",
		"addr add "+ServerIPv6+"/64 dev s0 nodad",
		"route add default via 198.51.100.1",
		"route add default via 2001:db8:100::1",
		"route add local "+InternetIPv4+" dev lo",
		"route add local "+InternetIPv6+" dev lo",
		"route add local "+PrivateIPv4+" dev lo",
		"route add local "+PrivateIPv6+" dev lo",
	)
	top.Host.IP(
		t,
		"addr add "+HostIPv4+"/24 dev h0",
		"addr add "+HostIPv6+"/64 dev h0 nodad",
		"route add default via "+RouterIPv4,
		"route add default via "+RouterIPv6,
	)
	top.Host.AwaitAnswer(t, ServerIPv4)
	top.Host.AwaitAnswer(t, ServerIPv6)
	return top
}

// AwaitAnswer pings an address until it answers. New links and addresses are
// not ready at once: the kernel activates them in the background.
func (n *Namespace) AwaitAnswer(t testing.TB, address string) {
	t.Helper()
	Eventually(t, Timeout, address+" answers", func() error {
		out, err := n.Output(t, Command{Argv: []string{"ping", "-n", "-c1", "-W1", address}})
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
}

// SecondUplink gives the host another interface, h1, to the router's r2. The
// default routes stay as they are; replace them to change the uplink:
// "route replace default via " + SecondRouterIPv4 + " dev h1". (Without dev, and with
// a full tunnel, the kernel would look for the gateway in the tunnel.)
func (top *Topology) SecondUplink(t testing.TB) {
	t.Helper()
	Veth(t, top.Host, "h1", top.Router, "r2")
	top.Router.IP(t, "addr add "+SecondRouterIPv4+"/24 dev r2", "addr add "+SecondRouterIPv6+"/64 dev r2 nodad")
	top.Host.IP(t, "addr add "+SecondIPv4+"/24 dev h1", "addr add "+SecondIPv6+"/64 dev h1 nodad")
	top.Host.AwaitAnswer(t, SecondRouterIPv4)
	top.Host.AwaitAnswer(t, SecondRouterIPv6)
}

// Clear counts what the host sends and gets in clear, seen at the router.
func (top *Topology) Clear(t testing.TB) *Sniffer {
	t.Helper()
	return top.Router.Sniff(t, "r0")
}
