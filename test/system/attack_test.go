package system

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// The tests in the files attack_*_test.go attack a tunnel. Each shows first that
// the attack succeeds where a tunnel is made of routes alone, on this very host:
// else that it fails against us would say nothing.

// The tunnel's own addresses in these tests.
var tunnelAddresses = []netip.Addr{netip.MustParseAddr(tunnelIPv4), netip.MustParseAddr(tunnelIPv6)}

// bareTunnel makes a TUN with our addresses and routes as OpenVPN's def1 makes
// them, runs f, and removes it.
func (m *machine) bareTunnel(t testing.TB, f func(link string)) {
	t.Helper()
	m.Host.IP(
		t,
		"tuntap add tun9 mode tun",
		"addr add "+tunnelIPv4+"/32 dev tun9",
		"addr add "+tunnelIPv6+"/128 dev tun9 nodad",
		"link set tun9 up",
		"route add 0.0.0.0/1 dev tun9", "route add 128.0.0.0/1 dev tun9",
		"route add ::/1 dev tun9", "route add 8000::/1 dev tun9",
		"route add "+harness.ServerIPv4+"/32 via "+harness.RouterIPv4, // as every client does
	)
	f("tun9")
	m.Host.IP(t, "link del tun9", "route del "+harness.ServerIPv4+"/32")
}

// send sends a datagram from a new socket of the host that is not protected;
// device binds it.
func (m *machine) send(t testing.TB, to string, port uint16, device string) error {
	t.Helper()
	a := netip.MustParseAddr(to)
	family := 0
	if a.Is6() {
		family = 1
	}
	fd, err := m.udpSocket(family)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if device != "" {
		if err := unix.BindToDevice(fd, device); err != nil {
			t.Fatal(err)
		}
	}
	return unix.Sendto(fd, []byte("secret"), 0, sockaddr(netip.AddrPortFrom(a, port)))
}

// sendSome sends until n packets were accepted, or refused, and returns how many
// were refused with which error.
func (m *machine) sendSome(t testing.TB, n int, to string, port uint16) (refused int, last error) {
	t.Helper()
	for range n {
		if err := m.send(t, to, port, ""); err != nil {
			refused, last = refused+1, err
		}
	}
	return refused, last
}

// awaitCount waits until the sniffer has seen that many.
func awaitCount(t testing.TB, what string, s *harness.Sniffer, atLeast int, match func(harness.Packet) bool) {
	t.Helper()
	harness.Eventually(t, harness.Timeout, what, func() error {
		if n := s.Count(t, match); n < atLeast {
			return fmt.Errorf("%d packets, want %d:\n%v", n, atLeast, s)
		}
		return nil
	})
}

// requireNone waits a moment, as what shall not come cannot be waited for, and
// requires that the sniffer has seen nothing of it.
func requireNone(t testing.TB, what string, s *harness.Sniffer, match func(harness.Packet) bool) {
	t.Helper()
	time.Sleep(50 * time.Millisecond)
	if n := s.Count(t, match); n != 0 {
		t.Errorf("%s: %d packets:\n%v", what, n, s)
	}
}

func toPort(port uint16) func(harness.Packet) bool {
	return func(p harness.Packet) bool { return !p.Sent && p.DstPort == port }
}

// segment is a TCP segment without data, in an IP packet of its own.
func segment(src, dst netip.AddrPort, flags byte) []byte {
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp, src.Port())
	binary.BigEndian.PutUint16(tcp[2:], dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], 0x12345678)
	tcp[12], tcp[13] = 5<<4, flags
	binary.BigEndian.PutUint16(tcp[14:], 1024)
	return ipPacket(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, tcp, 16)
}

// ipPacket puts a header before the payload and the checksum into it.
func ipPacket(src, dst netip.Addr, protocol byte, payload []byte, sumAt int) []byte {
	pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, 0, byte(len(payload)>>8), byte(len(payload)), 0, 0, 0, protocol)
	if protocol == unix.IPPROTO_ICMP {
		pseudo = nil
	}
	binary.BigEndian.PutUint16(payload[sumAt:], checksum(append(pseudo, payload...)))
	if src.Is6() {
		head := make([]byte, 8, 40+len(payload))
		head[0], head[6], head[7] = 0x60, protocol, 255
		binary.BigEndian.PutUint16(head[4:], uint16(len(payload)))
		return append(append(append(head, src.AsSlice()...), dst.AsSlice()...), payload...)
	}
	head := make([]byte, 12, 20+len(payload))
	head[0], head[8], head[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(head[2:], uint16(20+len(payload)))
	head = append(append(head, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(head[10:], checksum(head))
	return append(head, payload...)
}

func checksum(b []byte) uint16 {
	var s uint32
	for i, c := range b {
		if i%2 == 0 {
			s += uint32(c) << 8
		} else {
			s += uint32(c)
		}
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

// inject sends whole packets from a namespace, whatever their source is.
func inject(t testing.TB, ns *harness.Namespace, packets ...[]byte) {
	t.Helper()
	err := ns.Do(func() error {
		for _, p := range packets {
			domain := unix.AF_INET
			var to unix.Sockaddr
			if p[0]>>4 == 6 {
				domain = unix.AF_INET6
				to = &unix.SockaddrInet6{Addr: [16]byte(p[24:40])}
			} else {
				to = &unix.SockaddrInet4{Addr: [4]byte(p[16:20])}
			}
			fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
			if err != nil {
				return err
			}
			err = unix.Sendto(fd, p, 0, to)
			if err = errors.Join(err, unix.Close(fd)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// lockdown begins or ends the lockdown of the config.
func (v *vpn) lockdown(on bool) {
	v.t.Helper()
	v.ui.must(v.ui.on(v.config, "Update", dict{"lockdown": godbus.MakeVariant(on)}))
}

// dialFrom connects from an address of a namespace to another.
func dialFrom(ns *harness.Namespace, from, to string, timeout time.Duration) (net.Conn, error) {
	var c net.Conn
	err := ns.Do(func() (err error) {
		d := net.Dialer{Timeout: timeout, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))}
		c, err = d.Dial("tcp", to)
		return err
	})
	return c, err
}
