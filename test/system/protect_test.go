package system

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// socket makes a blocking one on the host, with limits on waiting.
func (v *vpn) socket(domain, kind, protocol int) int {
	v.t.Helper()
	fd := -1
	err := v.Host.Do(func() (err error) {
		fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
		return err
	})
	if err != nil {
		v.t.Fatal(err)
	}
	limit := unix.NsecToTimeval(int64(harness.Timeout))
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)
	v.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func (v *vpn) protect(session godbus.ObjectPath, fd int) *godbus.Call {
	return v.provider.on(session, "ProtectSocket", godbus.UnixFD(fd), dict{})
}

func mark(t testing.TB, fd int) int {
	t.Helper()
	m, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// A protected socket goes around the tunnel, to an address that is included; a
// socket that is not protected does not.
func TestProtectSocket(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	harness.StartWeb(t, v.Server, 80)
	session := v.connect()
	domains := []int{unix.AF_INET, unix.AF_INET6}
	sources := []string{harness.HostIPv4, harness.HostIPv6}
	var early [2]int // protected before the parameters
	for i, domain := range domains {
		early[i] = v.socket(domain, unix.SOCK_STREAM, 0)
		v.provider.must(v.protect(session, early[i]))
	}
	channel := v.open(session)
	v.configure(session, fullTunnel())
	clear := v.Clear(t)
	for i, to := range []string{includedIPv4, includedIPv6} {
		late := v.socket(domains[i], unix.SOCK_STREAM, 0)
		v.provider.must(v.protect(session, late))
		for name, fd := range map[string]int{"early": early[i], "late": late} {
			if got := get(t, fd, to); got != sources[i] {
				t.Errorf("%s, %s: the server saw %q, want %s", to, name, got, sources[i])
			}
		}

		plain, protected := v.socket(domains[i], unix.SOCK_DGRAM, 0), v.socket(domains[i], unix.SOCK_DGRAM, 0)
		v.provider.must(v.protect(session, protected))
		for fd, inClear := range map[int]int{plain: 0, protected: 1} {
			before, tunnelled := clear.Count(t, toSender), channel.sent[i].Load()
			if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(netip.AddrPortFrom(addr(to), senderPort))); err != nil {
				t.Fatal(err)
			}
			harness.Eventually(t, harness.Timeout, "the packet goes its way", func() error {
				c, n := clear.Count(t, toSender)-before, channel.sent[i].Load()-tunnelled
				if c != inClear || int(n) != 1-inClear {
					return fmt.Errorf("%s: %d packets in clear, %d through the tunnel", to, c, n)
				}
				return nil
			})
		}
	}
}

func toSender(p harness.Packet) bool { return !p.Sent && p.DstPort == senderPort }

// get asks the web server who is there.
func get(t testing.TB, fd int, to string) string {
	t.Helper()
	if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(addr(to), 80))); err != nil {
		t.Fatalf("cannot connect to %s: %v", to, err)
	}
	if _, err := unix.Write(fd, []byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	var page strings.Builder
	for buf := make([]byte, 4096); ; {
		n, err := unix.Read(fd, buf)
		if err != nil {
			t.Fatalf("no page from %s: %v", to, err)
		}
		if n == 0 {
			break
		}
		page.Write(buf[:n])
	}
	_, body, _ := strings.Cut(page.String(), "\r\n\r\n")
	return strings.TrimSpace(body)
}

// Only IP sockets are protected, and those not that show the tunnel's address.
// The mark of others stays as it is, and so do the bytes that are not ours.
func TestUnprotectable(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session, _ := v.establish()
	fds := v.descriptors(t)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	for name, fd := range map[string]int{
		"AF_UNIX":    v.socket(unix.AF_UNIX, unix.SOCK_STREAM, 0),
		"raw":        v.socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP),
		"raw IPv6":   v.socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6),
		"AF_PACKET":  v.socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0),
		"AF_NETLINK": v.socket(unix.AF_NETLINK, unix.SOCK_RAW, 0),
		"a pipe":     pipe[0],
	} {
		if call := v.protect(session, fd); errorName(call.Err) != wire.ErrInvalidParameter {
			t.Errorf("%s: %v", name, call.Err)
		}
	}

	bound := v.socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err := unix.Bind(bound, sockaddr(netip.AddrPortFrom(addr(tunnelIPv4), 0))); err != nil {
		t.Fatal(err)
	}
	connected := v.socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	if err := unix.Connect(connected, sockaddr(netip.AddrPortFrom(addr(includedIPv6), 9))); err != nil {
		t.Fatal(err)
	}
	for _, fd := range []int{bound, connected} {
		v.provider.refused(v.protect(session, fd), wire.ErrWrongState, "protect before connect")
		if m := mark(t, fd); m != 0 {
			t.Errorf("a refused socket has the mark %#x", m)
		}
	}

	good := v.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err := unix.SetsockoptInt(good, unix.SOL_SOCKET, unix.SO_MARK, 0x12345678); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]*godbus.Call{
		wire.ErrNotOwner: v.ui.on(session, "ProtectSocket", godbus.UnixFD(good), dict{}),
		wire.ErrNotFound: v.dial(t, harness.Bob).on(session, "ProtectSocket", godbus.UnixFD(good), dict{}),
	} {
		if errorName(call.Err) != name {
			t.Errorf("%v, want %s", call.Err, name)
		}
	}
	v.provider.must(v.protect(session, good))
	if m := mark(t, good); m != 0x56345678 {
		t.Errorf("the mark is %#x", m)
	}
	v.requireDescriptors(t, fds)
}
