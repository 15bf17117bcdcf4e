package system

import (
	"errors"
	"net/netip"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// everything is a full tunnel without any exclusion.
func everything() dict {
	p := fullTunnel()
	delete(p, "exclusionList")
	return p
}

// TunnelVision (CVE-2024-3661): a DHCP server pushes routes by option 121, or a
// router does by its advertisements.
func TestAttackTunnelVision(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	clear := v.Clear(t)
	push := func() {
		for _, block := range []string{"203.0.113.0/24", "203.0.113.7/32"} {
			v.Host.IP(t, "route replace "+block+" via "+harness.RouterIPv4+" dev h0")
		}
		for _, block := range []string{"2001:db8:113::/48", "2001:db8:113::7/128"} {
			v.Host.IP(t, "route replace "+block+" via "+harness.RouterIPv6+" dev h0")
		}
	}
	withdraw := func() {
		v.Host.IP(t, "route del 203.0.113.0/24", "route del 203.0.113.7/32", "route del 2001:db8:113::/48", "route del 2001:db8:113::7/128")
	}
	v.bareTunnel(t, func(string) {
		push()
		for i, to := range []string{includedIPv4, includedIPv6} {
			v.sendSome(t, 10, to, uint16(4300+i))
			awaitCount(t, "control: packets in clear to "+to, clear, 10, toPort(uint16(4300+i)))
		}
		withdraw()
	})
	session := v.connect()
	end := v.open(session)
	push() // before and during the session
	v.configure(session, everything())
	push()
	for i, to := range []string{includedIPv4, includedIPv6} {
		before := end.sent[i].Load()
		if refused, err := v.sendSome(t, 100, to, senderPort); refused != 0 {
			t.Errorf("%s: %d refused: %v", to, refused, err)
		}
		harness.Eventually(t, harness.Timeout, "the packets come out of the tunnel", func() error {
			if n := end.sent[i].Load() - before; n != 100 {
				return errors.New("not all so far")
			}
			return nil
		})
	}
	requireNone(t, "option 121", clear, toSender)
	v.disconnect()
	withdraw()
}

// TunnelCrack, LocalNet: the LAN claims that addresses of the Internet are its
// own.
func TestAttackLocalNet(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	clear := v.Clear(t)
	v.Router.IP(t, "addr add 203.0.113.7/24 dev r0", "addr add 2001:db8:113::7/48 dev r0 nodad")
	claim := func() {
		v.Host.IP(t, "addr add 203.0.113.200/24 dev h0", "addr add 2001:db8:113::200/48 dev h0 nodad")
	}
	unclaim := func() {
		v.Host.IP(t, "addr del 203.0.113.200/24 dev h0", "addr del 2001:db8:113::200/48 dev h0")
	}
	v.bareTunnel(t, func(string) {
		claim()
		for i, to := range []string{includedIPv4, includedIPv6} {
			v.sendSome(t, 3, to, uint16(4310+i))
			awaitCount(t, "control: packets in clear to "+to, clear, 1, toPort(uint16(4310+i)))
		}
		unclaim()
	})
	claim()
	session := v.connect()
	end := v.open(session)
	p := everything()
	p["allowLan"] = godbus.MakeVariant(true)
	v.configure(session, p)
	for i, to := range []string{includedIPv4, includedIPv6} {
		v.sendSome(t, 20, to, senderPort)
		harness.Eventually(t, harness.Timeout, "the packets come out of the tunnel", func() error {
			if end.sent[i].Load() != 20 {
				return errors.New("not all so far")
			}
			return nil
		})
	}
	requireNone(t, "a public LAN", clear, toSender)
	// What is private is spared, as the parameters say.
	v.sendSome(t, 3, harness.RouterIPv4, 4312)
	awaitCount(t, "packets to the LAN", clear, 3, toPort(4312))
	v.disconnect()
	unclaim()
}

// TunnelCrack, ServerIP: where the server's address is exempted, every program
// reaches it in clear. A protected socket does, and no other.
func TestAttackServerIP(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	clear := v.Clear(t)
	toServer := func(port uint16) func(harness.Packet) bool {
		return func(p harness.Packet) bool { return toPort(port)(p) && p.Dst == addr(harness.ServerIPv4) }
	}
	v.bareTunnel(t, func(string) {
		v.sendSome(t, 5, harness.ServerIPv4, 4320)
		awaitCount(t, "control: anybody's packets to the server in clear", clear, 5, toServer(4320))
	})
	session := v.connect()
	end := v.open(session)
	v.configure(session, everything())
	v.sendSome(t, 20, harness.ServerIPv4, senderPort)
	harness.Eventually(t, harness.Timeout, "the packets come out of the tunnel", func() error {
		if end.sent[0].Load() != 20 {
			return errors.New("not all so far")
		}
		return nil
	})
	requireNone(t, "a socket that is not protected", clear, toServer(senderPort))
	fd := v.socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	v.provider.must(v.protect(session, fd))
	if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(netip.AddrPortFrom(addr(harness.ServerIPv4), 4321))); err != nil {
		t.Fatal(err)
	}
	awaitCount(t, "a protected socket's packet", clear, 1, toServer(4321))
}

// A tunnel of IPv4 alone on a host that has IPv6.
func TestAttackIPv6(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	clear := v.Clear(t)
	v.bareTunnel(t, func(link string) {
		v.Host.IP(t, "route del ::/1 dev "+link, "route del 8000::/1 dev "+link)
		v.sendSome(t, 5, includedIPv6, 4330)
		awaitCount(t, "control: IPv6 in clear", clear, 5, toPort(4330))
	})
	session := v.connect()
	v.open(session)
	p := everything()
	delete(p, "addresses")
	p["inclusionList"] = godbus.MakeVariant([]string{"0.0.0.0/0"})
	v.configure(session, p)
	refused, err := v.sendSome(t, 50, includedIPv6, senderPort)
	if refused != 50 || !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("%d refused, %v", refused, err)
	}
	requireNone(t, "IPv6", clear, toSender)
}
