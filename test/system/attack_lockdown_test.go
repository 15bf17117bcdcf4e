package system

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// escape is a way by which a packet leaves a host.
type escape struct {
	name string
	try  func(port uint16) error
}

// escapes are those that are open to every program.
func (v *vpn) escapes() []escape {
	send := func(to, device string) func(uint16) error {
		return func(port uint16) error { return v.send(v.t, to, port, device) }
	}
	return []escape{
		{"IPv4", send(includedIPv4, "")},
		{"IPv6", send(includedIPv6, "")},
		{"to the server", send(harness.ServerIPv4, "")},
		{"to a name server on the LAN", func(uint16) error { return v.send(v.t, harness.RouterIPv4, 53, "") }},
		{"to the LAN over IPv6", send(harness.RouterIPv6, "")},
		{"bound to the device", send(includedIPv4, "h0")},
		{"bound to the device, over IPv6", send(includedIPv6, "h0")},
		{"multicast, bound to the device", send("224.0.0.251", "h0")},
		{"broadcast, bound to the device", func(port uint16) error {
			fd, err := v.udpSocket(0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return errors.Join(
				unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1), unix.BindToDevice(fd, "h0"),
				unix.Sendto(fd, []byte("secret"), 0, sockaddr(netip.AddrPortFrom(addr("255.255.255.255"), port))),
			)
		}},
		{"from the host's own address", func(port uint16) error {
			fd, err := v.udpSocket(0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return errors.Join(
				unix.Bind(fd, sockaddr(netip.AddrPortFrom(addr(harness.HostIPv4), 0))),
				unix.Sendto(fd, []byte("secret"), 0, sockaddr(netip.AddrPortFrom(addr(includedIPv4), port))),
			)
		}},
		{"by an unprivileged program, bound to the device", func(port uint16) error {
			script := fmt.Sprintf(`import socket as s
x = s.socket(s.AF_INET, s.SOCK_DGRAM)
x.setsockopt(s.SOL_SOCKET, s.SO_BINDTODEVICE, b"h0")
x.sendto(b"secret", (%q, %d))`, includedIPv4, port)
			_, err := v.Host.Output(v.t, harness.Command{Argv: []string{"/usr/bin/python3", "-c", script}, UID: harness.Alice})
			return err
		}},
	}
}

// leaves says which packets of an escape the router sees.
func leaves(port uint16) func(harness.Packet) bool {
	return func(p harness.Packet) bool {
		return !p.Sent && p.Protocol == unix.IPPROTO_UDP && (p.DstPort == port || p.DstPort == 53)
	}
}

// In a lockdown nothing leaves the host but through the tunnel: not while there
// is none, not past it, whoever sends.
func TestAttackLockdown(t *testing.T) {
	t.Parallel()
	harness.Require(t, "/usr/bin/python3")
	v := newVPN(t)
	clear := v.Clear(t)
	port := uint16(4400)
	for _, e := range v.escapes() {
		port++
		before := clear.Count(t, leaves(port)) // the questions to name servers
		if err := e.try(port); err != nil {
			t.Errorf("control: %s: %v", e.name, err)
		}
		awaitCount(t, "control: "+e.name, clear, before+1, leaves(port))
	}
	// Routes alone, those of a full tunnel, do not hold what is bound to the
	// device.
	v.open(v.connect())
	v.configure(godbus.ObjectPath(wire.SessionRoot+"/1"), fullTunnel())
	if err := v.send(t, includedIPv6, 4396, "h0"); err != nil {
		t.Errorf("control: bound to the device, past a full tunnel: %v", err)
	}
	awaitCount(t, "control: bound to the device, past a full tunnel", clear, 1, toPort(4396))
	v.disconnect()

	all := func(when string) {
		t.Helper()
		for _, e := range v.escapes() {
			port++
			dns := clear.Count(t, toPort(53))
			err := e.try(port)
			time.Sleep(10 * time.Millisecond)
			n := clear.Count(t, leaves(port)) - dns
			if n != 0 {
				t.Errorf("%s: %s: %d packets in clear (%v)", when, e.name, n, err)
			}
		}
	}
	v.lockdown(true)
	all("no session")
	if err := v.send(t, includedIPv4, 4399, ""); !errors.Is(err, unix.EPERM) {
		t.Errorf("a program is told %v", err)
	}
	v.Host.Run(t, "ping", "-c1", "-W20", "127.0.0.1")
	v.Host.Run(t, "ping", "-c1", "-W20", harness.HostIPv6) // of its own

	session := v.connect()
	v.open(session)
	all("connecting")
	v.configure(session, fullTunnel())
	all("configured")
	v.ping(t, "1", includedIPv4)
	v.ping(t, "1", includedIPv6)

	// What the client needs: its own protected sockets, with their answers.
	harness.StartWeb(t, v.Server, 80)
	for domain, to := range map[int]string{unix.AF_INET: includedIPv4, unix.AF_INET6: includedIPv6} {
		fd := v.socket(domain, unix.SOCK_STREAM, 0)
		v.provider.must(v.protect(session, fd))
		get(t, fd, to)
	}
	v.disconnect()
	all("disconnected")

	// The uplink stays one: neighbours are found, a lease is renewed.
	v.Router.Run(t, "ip", "neigh", "flush", "dev", "r0")
	icmp6 := func(p harness.Packet) bool { return !p.Sent && p.Protocol == unix.IPPROTO_ICMPV6 }
	before := clear.Count(t, icmp6)
	_, _ = v.Router.Output(t, harness.Command{Argv: []string{"ping", "-c1", "-W1", harness.HostIPv6}})
	awaitCount(t, "a neighbour is answered", clear, before+1, icmp6)
	fd := v.socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err := errors.Join(
		unix.Bind(fd, sockaddr(netip.AddrPortFrom(netip.IPv4Unspecified(), 68))),
		unix.Sendto(fd, []byte("renew"), 0, sockaddr(netip.AddrPortFrom(addr(harness.RouterIPv4), 67))),
	); err != nil {
		t.Errorf("DHCP: %v", err)
	}
	awaitCount(t, "DHCP", clear, 1, toPort(67))

	v.lockdown(false)
	v.requireOpen(clear)
}

// requireOpen says that there is no lockdown.
func (v *vpn) requireOpen(clear *harness.Sniffer) {
	v.t.Helper()
	before := clear.Count(v.t, toPort(4398))
	if err := v.send(v.t, includedIPv4, 4398, ""); err != nil {
		v.t.Errorf("without a lockdown: %v", err)
	}
	awaitCount(v.t, "packets leave again", clear, before+1, toPort(4398))
}

// requireLocked says that there is a lockdown.
func (v *vpn) requireLocked(when string, clear *harness.Sniffer) {
	v.t.Helper()
	before := clear.Count(v.t, toPort(4397))
	for _, device := range []string{"", "h0"} {
		if err := v.send(v.t, includedIPv4, 4397, device); err == nil {
			v.t.Errorf("%s: a packet is sent", when)
		}
	}
	if err := v.send(v.t, includedIPv6, 4397, "h0"); !errors.Is(err, unix.EPERM) {
		v.t.Errorf("%s: IPv6: %v", when, err)
	}
	time.Sleep(20 * time.Millisecond)
	if n := clear.Count(v.t, toPort(4397)) - before; n != 0 {
		v.t.Errorf("%s: %d packets in clear", when, n)
	}
}

// A container of this host, whose traffic the host forwards.
func TestAttackLockdownForwarded(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	clear := v.Clear(t)
	container := harness.NewNamespace(t, "container")
	harness.Veth(t, v.Host, "c0", container, "eth0")
	v.Host.IP(t, "link add docker0 type bridge", "addr add 172.17.0.1/16 dev docker0", "addr add fd17::1/64 dev docker0 nodad", "link set docker0 up", "link set c0 master docker0")
	container.IP(t, "addr add 172.17.0.2/16 dev eth0", "addr add fd17::2/64 dev eth0 nodad", "route add default via 172.17.0.1", "route add default via fd17::1")
	v.Host.Sysctl(t, "net.ipv4.ip_forward", "1")
	v.Host.Sysctl(t, "net.ipv6.conf.all.forwarding", "1")
	v.Host.Run(t, "nft", "add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; }; add rule ip nat post ip saddr 172.17.0.0/16 oifname != docker0 masquerade")
	container.AwaitAnswer(t, "172.17.0.1")
	container.AwaitAnswer(t, "fd17::1")
	reach := func(to string) error {
		_, err := container.Output(t, harness.Command{Argv: []string{"ping", "-n", "-c2", "-i0.05", "-W1", to}})
		return err
	}
	icmp := func(p harness.Packet) bool {
		return !p.Sent && (p.Dst == addr(includedIPv4) || p.Dst == addr(includedIPv6))
	}
	if err := reach(includedIPv4); err != nil {
		t.Errorf("control: the container does not reach the Internet: %v", err)
	}
	_ = reach(includedIPv6) // nobody knows the way back
	awaitCount(t, "control: what is forwarded is in clear", clear, 4, icmp)

	v.lockdown(true)
	before := clear.Count(t, icmp)
	locked := func(when string) {
		t.Helper()
		for _, to := range []string{includedIPv4, includedIPv6} {
			if err := reach(to); err == nil {
				t.Errorf("%s: the container reaches %s", when, to)
			}
		}
		// This host and its containers are no way out.
		v.Host.Run(t, "ping", "-c1", "-W20", "172.17.0.2")
		if err := errors.Join(reach("172.17.0.1"), reach("fd17::1")); err != nil {
			t.Errorf("%s: the container does not reach its host: %v", when, err)
		}
		if n := clear.Count(t, icmp) - before; n != 0 {
			t.Errorf("%s: %d forwarded packets in clear", when, n)
		}
	}
	locked("no session")
	session := v.connect()
	v.open(session)
	v.configure(session, everything())
	// The tunnel is the container's, too.
	harness.Eventually(t, harness.Timeout, "the container is in the tunnel", func() error { return reach(includedIPv4) })
	if n := clear.Count(t, icmp) - before; n != 0 {
		t.Errorf("with a session: %d forwarded packets in clear", n)
	}
	v.disconnect()
	locked("after the session")
	v.lockdown(false)
	v.Host.IP(t, "link del docker0", "link del c0")
	v.Host.Run(t, "nft", "delete table ip nat")
	v.Host.Sysctl(t, "net.ipv4.ip_forward", "0")
	v.Host.Sysctl(t, "net.ipv6.conf.all.forwarding", "0")
}

// A lockdown outlives whatever happens to the daemon and to what it keeps, with
// not one packet in clear; unlocking ends it in any case.
func TestLockdownOutlives(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	clear := v.Clear(t)
	v.lockdown(true)
	s := v.startSender(t)
	s.awaitMore(t, 100)
	began := s.inClear(t)
	state := filepath.Join(v.daemon.StateDir, "configs")
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"killed", func() { v.daemon.Kill9() }},
		{"started again", func() { v.startAgain(t) }},
		{"stopped, started", func() { v.daemon.Stop(t); v.startAgain(t) }},
		{"killed in a session", func() {
			v.register(dict{})
			v.establish()
			s.awaitMore(t, 50)
			v.daemon.Kill9()
		}},
		{"cleaned up", func() { v.daemon.Cleanup(t) }},
		{"the firewall is gone, and the daemon starts", func() {
			v.Host.Run(t, "nft", "flush", "ruleset")
			v.startAgain(t)
		}},
		{"the daemon is stopped, and its state is lost", func() {
			v.daemon.Stop(t)
			if err := os.RemoveAll(state); err != nil {
				t.Fatal(err)
			}
			v.startAgain(t)
		}},
	} {
		before := s.inClear(t)
		step.do()
		s.awaitMore(t, 50)
		// A flush while no daemon runs leaves nothing that could hold.
		if n := s.inClear(t) - before; n != 0 && !strings.HasPrefix(step.what, "the firewall") {
			t.Errorf("%s: %d packets in clear", step.what, n)
		}
		v.requireLocked(step.what, clear)
	}
	t.Logf("%d packets were sent, %d in clear", s.total(), s.inClear(t)-began)

	// It is nobody's now, and says so.
	v.ui = v.dial(t, harness.Alice)
	health := v.ui.property(wire.RootPath, "Health")
	if text := fmt.Sprint(health); !contains(text, "lockdown", "warning", "config is gone") {
		t.Errorf("Health is %v", health)
	}
	v.ui.must(v.ui.manager("Unlock", dict{}))
	v.requireOpen(clear)
	v.daemon.Stop(t)
	v.startAgain(t)
	v.requireOpen(clear)

	// Without a daemon that could be asked.
	v.provider, v.ui = v.dial(t, harness.Alice), v.dial(t, harness.Alice)
	v.register(dict{})
	v.lockdown(true)
	v.daemon.Stop(t)
	v.requireLocked("the daemon is removed", clear)
	v.Host.Run(t, v.daemon.Command("--cleanup", "--unlock")...)
	v.requireOpen(clear)
}

// While a lockdown is in force, connecting, updating and ending sessions leaves
// no gap.
func TestLockdownTransitions(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.lockdown(true)
	s := v.startSender(t)
	s.awaitMore(t, 100)
	before := s.inClear(t)
	const rounds = 25
	sets := parameterSets()
	for i := range rounds {
		session := v.connect()
		v.open(session)
		for j := range 3 {
			v.configure(session, sets[(i+j)%len(sets)].parameters)
		}
		s.awaitMore(t, 10)
		v.disconnect()
		s.awaitMore(t, 10)
	}
	if n := s.inClear(t) - before; n != 0 {
		t.Errorf("%d packets in clear", n)
	}
	t.Logf("%d sessions with 3 updates each, %d packets, 0 in clear", rounds, s.total())
	v.lockdown(false)
	s.requireSeen(t)
}
