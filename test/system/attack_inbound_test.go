package system

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const (
	strangerIPv4 = "203.0.113.9" // somebody in the Internet, at the server
	strangerIPv6 = "2001:db8:113::9"
)

// echoServer answers on the host, on all addresses, until the test ends.
func (m *machine) echoServer(t testing.TB, port string) {
	t.Helper()
	l := m.Host.Listen(t, "tcp", "[::]:"+port)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// says says whether an echo server answers, and how it does not.
func says(c net.Conn, err error) error {
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(harness.Timeout))
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	answer := make([]byte, 5)
	if _, err := io.ReadFull(c, answer); err != nil || string(answer) != "hello" {
		return fmt.Errorf("it says %q: %w", answer, err)
	}
	return nil
}

// inbound are the connections that others begin, and give up after the time.
func (m *machine) inbound(patience time.Duration) map[string]func() error {
	dial := func(from, to string) func() error {
		return func() error { return says(dialFrom(m.Server, from, net.JoinHostPort(to, "2222"), patience)) }
	}
	return map[string]func() error{
		"from the Internet":            dial(strangerIPv4, harness.HostIPv4),
		"from the Internet, over IPv6": dial(strangerIPv6, harness.HostIPv6),
		"from the LAN": func() error {
			return says(m.Router.Dial("tcp", harness.HostIPv4+":2222", patience))
		},
	}
}

// Somebody works on this host over ssh, from anywhere, while it has a full
// tunnel.
func TestInboundConnections(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.echoServer(t, "2222")
	v.Server.IP(t, "addr add "+strangerIPv6+"/128 dev lo nodad") // to be bound to
	clear := v.Clear(t)
	v.bareTunnel(t, func(string) {
		for _, name := range []string{"from the Internet", "from the Internet, over IPv6"} {
			if err := v.inbound(2 * time.Second)[name](); err == nil {
				t.Errorf("control: %s: it works with routes alone", name)
			}
		}
	})
	for _, filter := range []string{"0", "1", "2"} {
		v.Host.Sysctl(t, "net.ipv4.conf.h0.rp_filter", filter)
		before := v.Host.Snapshot(t, resolvConf)
		long, err := dialFrom(v.Server, strangerIPv4, harness.HostIPv4+":2222", harness.Timeout) // before the tunnel
		if err != nil {
			t.Fatal(err)
		}
		session := v.connect()
		v.open(session)
		v.configure(session, everything())
		for name, say := range v.inbound(harness.Timeout) {
			// The router has forgotten where the host is, and asks.
			v.Router.Run(t, "ip", "neigh", "flush", "dev", "r0")
			if err := say(); err != nil {
				t.Errorf("rp_filter %s: %s: %v", filter, name, err)
			}
		}
		v.Server.Run(t, "ping", "-c1", "-W20", "-I", strangerIPv4, harness.HostIPv4)
		v.Server.Run(t, "ping", "-c1", "-W20", "-I", strangerIPv6, harness.HostIPv6)

		// Also the connections of the host itself are as they should be.
		v.ping(t, "1", includedIPv4)
		v.ping(t, "1", includedIPv6)
		v.disconnect()
		// One from before has its answers again with the tunnel's end at the
		// latest.
		if err := says(long, nil); err != nil {
			t.Errorf("rp_filter %s: a connection from before the tunnel: %v", filter, err)
		}
		v.Host.RequireSnapshot(t, before, resolvConf)
	}
	v.Host.Sysctl(t, "net.ipv4.conf.h0.rp_filter", "0")
	if n := clear.Count(t, func(p harness.Packet) bool { return p.Src == addr(tunnelIPv4) }); n != 0 {
		t.Errorf("%d packets show the tunnel's address", n)
	}
}

// A neighbour cannot pull what the tunnel is for out of it: neither with UDP,
// nor by being the end of a connection that the host began.
func TestInboundPullsNothingOut(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	// A program that answers datagrams, and one with an old connection.
	program := v.Host.ListenPacket(t, "udp", "[::]:5353")
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := program.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = program.WriteTo(buf[:n], from)
		}
	}()
	accepted := make(chan net.Conn, 1)
	l := v.Server.Listen(t, "tcp", "[::]:443")
	go func() {
		if c, err := l.Accept(); err == nil {
			accepted <- c
		}
	}()
	old, err := v.Host.Dial("tcp", strangerIPv4+":443", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	peer := <-accepted
	defer peer.Close()
	clear := v.Clear(t)
	answers := func(p harness.Packet) bool { return !p.Sent && p.SrcPort == 5353 && p.Dst == addr(strangerIPv4) }
	oldConn := func(p harness.Packet) bool { return !p.Sent && p.DstPort == 443 && p.Dst == addr(strangerIPv4) }
	ask := func() {
		t.Helper()
		inject(t, v.Server, udpPacket(netip.AddrPortFrom(addr(strangerIPv4), 9), netip.AddrPortFrom(addr(harness.HostIPv4), 5353)))
	}
	ask()
	awaitCount(t, "control: a datagram is answered in clear", clear, 1, answers)
	_, _ = old.Write([]byte("x"))
	awaitCount(t, "control: the connection is in clear", clear, 1, oldConn)

	session := v.connect()
	v.open(session)
	v.configure(session, everything())
	inside := v.Host.Sniff(t, v.link(session))
	udp, tcp := clear.Count(t, answers), clear.Count(t, oldConn)
	for range 10 {
		ask()
		// The peer's segments are the first that are seen of the connection
		// since connections are tracked.
		_, _ = peer.Write([]byte("y"))
		_, _ = old.Write([]byte("x"))
	}
	awaitCount(t, "the answers go into the tunnel", inside, 10, func(p harness.Packet) bool { return p.SrcPort == 5353 })
	harness.Eventually(t, harness.Timeout, "the connection goes into the tunnel", func() error {
		if inside.Count(t, func(p harness.Packet) bool { return p.Dst == addr(strangerIPv4) && p.DstPort == 443 }) == 0 {
			return errors.New("nothing so far")
		}
		return nil
	})
	if n := clear.Count(t, answers) - udp; n != 0 {
		t.Errorf("%d answers to datagrams in clear", n)
	}
	if n := clear.Count(t, oldConn) - tcp; n != 0 {
		t.Errorf("%d segments of an old connection in clear", n)
	}
}

func udpPacket(src, dst netip.AddrPort) []byte {
	datagram := []byte{byte(src.Port() >> 8), byte(src.Port()), byte(dst.Port() >> 8), byte(dst.Port()), 0, 12, 0, 0, 'p', 'i', 'n', 'g'}
	return ipPacket(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, datagram, 6)
}

// A strict reverse path filter lets the answers to protected sockets in.
func TestProtectedWithStrictFilter(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	harness.StartWeb(t, v.Server, 80)
	v.Host.Sysctl(t, "net.ipv4.conf.all.rp_filter", "1")
	before := v.Host.Snapshot(t, resolvConf)
	session := v.connect()
	v.open(session)
	p := everything()
	p["reconnect"] = godbus.MakeVariant(true)
	v.configure(session, p)
	protected := func() int {
		fd := v.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		v.provider.must(v.protect(session, fd))
		return fd
	}
	if got := get(t, protected(), includedIPv4); got != harness.HostIPv4 {
		t.Errorf("the server saw %s", got)
	}

	// A new uplink is treated the same.
	v.SecondUplink(t)
	v.Host.IP(t, "route replace default via "+harness.SecondRouterIPv4+" dev h1")
	harness.Eventually(t, harness.Timeout, "the new uplink is marked", func() error {
		if got := v.Host.ReadFile(t, "/proc/sys/net/ipv4/conf/h1/src_valid_mark"); got != "1\n" {
			return fmt.Errorf("src_valid_mark is %q", got)
		}
		return nil
	})
	if got := get(t, protected(), includedIPv4); got != harness.SecondIPv4 {
		t.Errorf("over the second uplink the server saw %s", got)
	}

	// Control: without the mark there is no answer.
	v.Host.Sysctl(t, "net.ipv4.conf.h1.src_valid_mark", "0")
	fd := protected()
	limit := unix.NsecToTimeval(int64(time.Second))
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)
	if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(addr(includedIPv4), 80))); err == nil {
		t.Error("control: there is an answer without src_valid_mark")
	}

	v.disconnect()
	v.Host.IP(t, "route replace default via "+harness.RouterIPv4+" dev h0", "link del h1")
	v.Host.RequireSnapshot(t, before, resolvConf)

	// A daemon that is killed leaves the setting, and the next one takes it
	// back.
	session = v.connect()
	v.open(session)
	v.configure(session, p)
	v.daemon.Kill9()
	if got := v.Host.ReadFile(t, "/proc/sys/net/ipv4/conf/h0/src_valid_mark"); got != "1\n" {
		t.Errorf("src_valid_mark is %q after the kill", got)
	}
	v.startAgain(t)
	v.Host.RequireSnapshot(t, before, resolvConf)
	v.Host.Sysctl(t, "net.ipv4.conf.all.rp_filter", "0")
}
