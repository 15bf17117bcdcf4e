package system

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
)

// Addresses of fullTunnel, and the parties that packets are from and to.
const (
	tunnelIPv4 = "10.8.0.2"
	tunnelIPv6 = "fd08::2"
)

func datagram(from, to string, payload string) []byte {
	return tuntest.Datagram(netip.AddrPortFrom(addr(from), 53), netip.AddrPortFrom(addr(to), programPort), []byte(payload))
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// programPort is where a program on the host listens, on the tunnel's address.
const programPort = 5000

// program listens on the host for datagrams that come through the tunnel.
type program struct {
	t     testing.TB
	conns []net.PacketConn
}

func (v *vpn) program() program {
	v.t.Helper()
	p := program{t: v.t}
	for _, a := range []string{tunnelIPv4, tunnelIPv6} {
		p.conns = append(p.conns, v.Host.ListenPacket(v.t, "udp", netip.AddrPortFrom(addr(a), programPort).String()))
	}
	return p
}

// next is the next payload that came by IPv4, or by IPv6.
func (p program) next(family int) string {
	p.t.Helper()
	buf := make([]byte, 2048)
	p.conns[family].SetReadDeadline(time.Now().Add(harness.Timeout))
	n, _, err := p.conns[family].ReadFrom(buf)
	if err != nil {
		p.t.Fatalf("no datagram came: %v", err)
	}
	return string(buf[:n])
}

// Datagrams of all sizes pass both ways as they are, in both families.
func TestDatagrams(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.establish()
	clear := v.Clear(t)
	for i, to := range []string{includedIPv4, includedIPv6} {
		conn, err := v.Host.Dial("udp", netip.AddrPortFrom(addr(to), echoPort).String(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		largest := []int{1400 - 28, 1400 - 48}[i]
		buf := make([]byte, 2048)
		for n := range 300 {
			sent := make([]byte, 1+n*5%largest)
			if n == 299 {
				sent = make([]byte, largest)
			}
			for j := range sent {
				sent[j] = byte(rand.Uint32())
			}
			if _, err := conn.Write(sent); err != nil {
				t.Fatal(err)
			}
			conn.SetReadDeadline(time.Now().Add(harness.Timeout))
			got, err := conn.Read(buf)
			if err != nil || !bytes.Equal(buf[:got], sent) {
				t.Fatalf("%s: of %d bytes %d came back, %v", to, len(sent), got, err)
			}
		}
	}
	if n := clear.Count(t, func(p harness.Packet) bool { return p.DstPort == echoPort }); n != 0 {
		t.Errorf("%d packets in clear", n)
	}
}

// refusedPacket is one that the client must not bring to the host.
type refusedPacket struct {
	name   string
	packet []byte
	reason string
}

func refusedPackets() []refusedPacket {
	good4, good6 := datagram(includedIPv4, tunnelIPv4, "bad"), datagram(includedIPv6, tunnelIPv6, "bad")
	change := func(p []byte, at int, values ...byte) []byte {
		p = bytes.Clone(p)
		copy(p[at:], values)
		if p[0] == 0x45 && at != 10 {
			tuntest.FixHeader(p)
		}
		return p
	}
	icmp6 := func(kind byte) []byte {
		p := tuntest.Echo(addr(includedIPv6), addr(tunnelIPv6), 1, 1, make([]byte, 16))
		p[40] = kind
		return p
	}
	redirect := tuntest.Echo(addr(includedIPv4), addr(tunnelIPv4), 1, 1, good4)
	redirect[20] = 5
	options := append(append(bytes.Clone(good4[:20]), 131, 7, 4, 8, 8, 8, 8, 0), good4[20:]...)
	options[0], options[3] = 0x47, byte(len(options))
	tuntest.FixHeader(options)
	routed := append(append(bytes.Clone(good6[:40]), 17, 0, 0, 1, 0, 0, 0, 0), good6[40:]...)
	routed[5], routed[6] = byte(len(routed)-40), 43

	list := []refusedPacket{
		{"a fragment of a header", good4[:19], "length"},
		{"shorter than it says", good4[:len(good4)-1], "length"},
		{"longer than it says", append(bytes.Clone(good4), 0), "length"},
		{"IPv6, shorter than it says", good6[:len(good6)-1], "length"},
		{"IPv6, a fragment of a header", good6[:39], "length"},
		{"version 5", change(good4, 0, 0x55), "version"},
		{"version 0", change(good4, 0, 0x05), "version"},
		{"larger than the MTU", tuntest.Datagram(netip.AddrPortFrom(addr(includedIPv4), 53), netip.AddrPortFrom(addr(tunnelIPv4), programPort), make([]byte, 1373)), "tooBig"},
		{"IPv6, larger than the MTU", tuntest.Datagram(netip.AddrPortFrom(addr(includedIPv6), 53), netip.AddrPortFrom(addr(tunnelIPv6), programPort), make([]byte, 1353)), "tooBig"},
		{"too short a header", change(good4, 0, 0x44), "header"},
		{"a source route", options, "header"},
		{"a routing header", routed, "header"},
		{"a wrong checksum", change(good4, 10, 0, 1), "checksum"},
		{"ICMP redirect", redirect, "protocol"},
	}
	for kind := byte(133); kind <= 137; kind++ {
		list = append(list, refusedPacket{fmt.Sprintf("ICMPv6 %d", kind), icmp6(kind), "protocol"})
	}
	for _, from := range []string{
		"127.0.0.1", "0.0.0.0", "0.1.2.3", "224.0.0.1", "255.255.255.255", "169.254.1.1", harness.HostIPv4, tunnelIPv4, harness.ServerIPv4,
	} {
		list = append(list, refusedPacket{"from " + from, datagram(from, tunnelIPv4, "bad"), "source"})
	}
	for _, from := range []string{"::1", "::", "ff02::1", "fe80::1", "::ffff:203.0.113.7", harness.HostIPv6, tunnelIPv6} {
		list = append(list, refusedPacket{"from " + from, change(good6, 8, addr(from).AsSlice()...), "source"})
	}
	for _, to := range []string{harness.HostIPv4, harness.RouterIPv4, "10.8.0.1", "10.8.0.255", "255.255.255.255", "224.0.0.1", "127.0.0.1"} {
		list = append(list, refusedPacket{"to " + to, datagram(includedIPv4, to, "bad"), "destination"})
	}
	for _, to := range []string{harness.HostIPv6, "::1", "ff02::1", "fd08::1"} {
		list = append(list, refusedPacket{"to " + to, datagram(includedIPv6, to, "bad"), "destination"})
	}
	return list
}

// What the client must not bring to the host is dropped and counted by reason
// when it comes through the channel, and refused by SendPacket with the reason;
// a good packet right behind it arrives.
func TestRefusedPackets(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session := v.connect()
	channel := v.openChannel(session)
	write := func(packet []byte) {
		t.Helper()
		if _, err := channel.Write(packet); err != nil {
			t.Fatal(err)
		}
	}
	early := datagram(includedIPv4, tunnelIPv4, "early")
	write(early)
	v.provider.refused(v.provider.on(session, "SendPacket", early), wire.ErrWrongState)
	want := map[string]uint64{"notConfigured": 1}
	v.requireDropped(session, want)

	v.configure(session, fullTunnel())
	program := v.program()
	before := v.look(t).text
	for i, bad := range refusedPackets() {
		write(bad.packet)
		v.provider.refused(v.provider.on(session, "SendPacket", bad.packet), wire.ErrInvalidParameter, bad.reason)
		want[bad.reason] += 2
		good := fmt.Sprint("after ", i)
		write(datagram(includedIPv4, tunnelIPv4, good))
		v.provider.must(v.provider.on(session, "SendPacket", datagram(includedIPv6, tunnelIPv6, good)))
		for family := range 2 {
			if got := program.next(family); got != good {
				t.Fatalf("%s: %q arrived, want %q", bad.name, got, good)
			}
		}
		v.requireDropped(session, want)
	}
	v.provider.refused(v.provider.on(session, "SendPacket", []byte{}), wire.ErrInvalidParameter, "empty")
	if now := v.look(t).text; now != before {
		t.Errorf("the network changed to\n%s\nit was\n%s", now, before)
	}
	t.Logf("%d kinds of packets were refused", len(refusedPackets()))
}

// dropped are the session's counters of dropped packets.
func (v *vpn) dropped(session godbus.ObjectPath) map[string]uint64 {
	v.t.Helper()
	all := v.ui.property(session, "Statistics").(map[string]uint64)
	found := map[string]uint64{}
	for name, n := range all {
		if reason, ok := bytes.CutPrefix([]byte(name), []byte("dropped.")); ok && n != 0 {
			found[string(reason)] = n
		}
	}
	return found
}

// requireDropped waits until the counters are those, what the host itself sends
// into a new tunnel aside.
func (v *vpn) requireDropped(session godbus.ObjectPath, want map[string]uint64) {
	v.t.Helper()
	harness.Eventually(v.t, harness.Timeout, "the counters", func() error {
		got := v.dropped(session)
		delete(got, "outSource")
		delete(got, "outDestination")
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("dropped %v, want %v", got, want)
		}
		return nil
	})
}

// Packets that the host itself must not send to the client: those with the
// address of another interface, and those for its own link. They leave the
// host nowhere else either.
func TestPacketsForNobody(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session, _ := v.establish()
	link := v.link(session)
	clear := v.Clear(t)
	send := func(family int, reason string, to string, prepare func(fd int) error) {
		t.Helper()
		fd, err := v.udpSocket(family)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		before := v.dropped(session)[reason]
		if err := prepare(fd); err != nil {
			t.Fatal(err)
		}
		if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(netip.AddrPortFrom(addr(to), 99))); err != nil {
			t.Fatalf("to %s: %v", to, err)
		}
		harness.Eventually(t, harness.Timeout, reason, func() error {
			if v.dropped(session)[reason] == before {
				return errors.New("not counted")
			}
			return nil
		})
	}
	bound := func(local string) func(int) error {
		return func(fd int) error { return unix.Bind(fd, sockaddr(netip.AddrPortFrom(addr(local), 0))) }
	}
	device := func(fd int) error { return unix.BindToDevice(fd, link) }
	send(0, "outSource", includedIPv4, bound(harness.HostIPv4))
	send(1, "outSource", includedIPv6, bound(harness.HostIPv6))
	send(0, "outDestination", "224.1.2.3", device)
	send(1, "outDestination", "ff0e::1:2", device)
	if n := clear.Count(t, func(p harness.Packet) bool { return p.DstPort == 99 }); n != 0 {
		t.Errorf("%d packets in clear:\n%v", n, clear)
	}
}

// Packets by signal, for clients that have no channel: both ways, more of them
// than may be without an answer, and none any more once there is a channel.
func TestPacketSignals(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.register(dict{"packetSignals": godbus.MakeVariant(true)})
	session := v.connect()
	v.configure(session, fullTunnel())
	v.provider.trace()

	conn, err := v.Host.Dial("udp", netip.AddrPortFrom(addr(includedIPv4), echoPort).String(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const packets = 700
	for i := range packets {
		sent := fmt.Appendf(nil, "packet %d", i)
		if _, err := conn.Write(sent); err != nil {
			t.Fatal(err)
		}
		packet := v.provider.nextPacket(session)
		if !turn(packet) {
			t.Fatalf("got % x", packet)
		}
		v.provider.must(v.provider.on(session, "SendPacket", packet))
		buf := make([]byte, 100)
		conn.SetReadDeadline(time.Now().Add(harness.Timeout))
		if n, err := conn.Read(buf); err != nil || !bytes.Equal(buf[:n], sent) {
			t.Fatalf("%q came back, %v", buf[:n], err)
		}
	}
	if tx, rx := v.awaitCounted(session, "txPackets", packets), v.awaitCounted(session, "rxPackets", packets); tx != packets || rx != packets {
		t.Errorf("%d packets were counted out, and %d in", tx, rx)
	}

	v.open(session)
	v.ping(t, "3", includedIPv4)
	v.provider.call(wire.RootPath, wire.PeerInterface+".Ping")
	for len(v.provider.signals) > 0 {
		if s := <-v.provider.signals; s.Name == wire.SessionInterface+".PacketReceived" {
			t.Error("a packet came by signal while a channel is open")
		}
	}
}

// nextPacket waits for one that comes by signal.
func (c *conn) nextPacket(session godbus.ObjectPath) []byte {
	c.t.Helper()
	late := time.After(harness.Timeout)
	for {
		select {
		case s := <-c.signals:
			if s.Name == wire.SessionInterface+".PacketReceived" && s.Path == session {
				return s.Body[0].([]byte)
			}
		case <-late:
			c.t.Fatal("no packet came by signal")
		}
	}
}

// A channel that the client brings: a connected SEQPACKET socket and nothing
// else. What is refused changes nothing.
func TestAttachedChannel(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session := v.connect()
	pair := func(kind int) [2]int {
		t.Helper()
		fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fds
	}
	attach := func(fd int) *godbus.Call {
		defer unix.Close(fd)
		return v.provider.on(session, "AttachPacketChannel", godbus.UnixFD(fd), dict{})
	}
	own := pair(unix.SOCK_SEQPACKET)
	v.provider.must(attach(own[0]))
	if err := unix.SetNonblock(own[1], true); err != nil {
		t.Fatal(err)
	}
	serve(t, os.NewFile(uintptr(own[1]), "own channel"))
	v.configure(session, fullTunnel())
	v.ping(t, "2", includedIPv4)
	fds := v.descriptors(t)

	socket := func(domain, kind int) int {
		t.Helper()
		fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[1])
	datagrams, stream := pair(unix.SOCK_DGRAM), pair(unix.SOCK_STREAM)
	defer unix.Close(datagrams[1])
	defer unix.Close(stream[1])
	for name, fd := range map[string]int{
		"a pair of datagram sockets": datagrams[0],
		"a pair of stream sockets":   stream[0],
		"a TCP socket":               socket(unix.AF_INET, unix.SOCK_STREAM),
		"a UDP socket":               socket(unix.AF_INET6, unix.SOCK_DGRAM),
		"a pipe":                     pipe[0],
		"not connected":              socket(unix.AF_UNIX, unix.SOCK_SEQPACKET),
	} {
		if call := attach(fd); errorName(call.Err) != wire.ErrInvalidParameter {
			t.Errorf("%s: %v", name, call.Err)
		}
	}
	spare := pair(unix.SOCK_SEQPACKET)
	defer unix.Close(spare[1])
	v.ui.refused(v.ui.on(session, "AttachPacketChannel", godbus.UnixFD(spare[0]), dict{}), wire.ErrNotOwner)
	v.provider.refused(v.provider.on(session, "AttachPacketChannel", godbus.UnixFD(spare[0]), dict{"format": godbus.MakeVariant("zip")}), wire.ErrInvalidParameter, "zip")
	unix.Close(spare[0])
	v.ping(t, "2", includedIPv6)
	v.requireDescriptors(t, fds)
}

// A second channel takes the place of the first, which ends; the session goes
// on.
func TestSecondChannel(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session, channel := v.establish()
	fds := v.descriptors(t)
	for range 20 {
		next := v.open(session)
		channel.awaitEnd(t)
		channel = next
		v.ping(t, "1", includedIPv4)
	}
	v.requireState(wire.StateConnected)
	v.requireDescriptors(t, fds)
}
