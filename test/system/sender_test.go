package system

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const (
	senderPort = 4242
	senderRate = 1000 // packets a second, of each family
)

// sender is a program on the host that sends UDP packets to the included
// addresses, at a steady rate whatever becomes of them, and a sniffer on the
// router that counts those that left the host in clear.
type sender struct {
	clear *harness.Sniffer
	begun time.Time

	sent    [2]atomic.Int64 // packets that were tried to be sent, IPv4 and IPv6
	refused [2]atomic.Int64 // of those, that the host had no route for
	failed  atomic.Pointer[error]
	stop    func()
}

// startSender sends until the test ends, or stop is called.
func (m *machine) startSender(t testing.TB) *sender {
	t.Helper()
	s := &sender{clear: m.Clear(t), begun: time.Now()}
	quit := make(chan struct{})
	var running sync.WaitGroup
	for i, to := range []string{includedIPv4, includedIPv6} {
		fd, err := m.udpSocket(i)
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() {
			defer unix.Close(fd)
			s.run(i, fd, sockaddr(netip.AddrPortFrom(netip.MustParseAddr(to), senderPort)), quit)
		})
	}
	s.stop = sync.OnceFunc(func() {
		close(quit)
		running.Wait()
	})
	t.Cleanup(s.stop)
	return s
}

func (m *machine) udpSocket(family int) (fd int, err error) {
	err = m.Host.Do(func() (err error) {
		fd, err = unix.Socket([]int{unix.AF_INET, unix.AF_INET6}[family], unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	return fd, err
}

func sockaddr(to netip.AddrPort) unix.Sockaddr {
	if to.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
}

// run sends what is due, then waits for more to be. The socket is bound to
// nothing, so each packet takes the way, and the source address, of its moment.
func (s *sender) run(family, fd int, to unix.Sockaddr, quit <-chan struct{}) {
	tick := time.NewTicker(time.Second / senderRate)
	defer tick.Stop()
	for {
		select {
		case <-quit:
			return
		case <-tick.C:
		}
		for due := int64(time.Since(s.begun).Seconds() * senderRate); s.sent[family].Load() < due; s.sent[family].Add(1) {
			switch err := unix.Sendto(fd, []byte("secret"), 0, to); err {
			case nil, unix.EAGAIN, unix.ENOBUFS:
			case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EADDRNOTAVAIL, unix.EACCES:
				s.refused[family].Add(1)
			default:
				s.failed.Store(&err)
			}
		}
	}
}

// inClear counts the packets that left the host outside the tunnel, up to now.
func (s *sender) inClear(t testing.TB) int {
	t.Helper()
	return s.clear.Count(t, func(p harness.Packet) bool { return !p.Sent && p.DstPort == senderPort })
}

// clearOf counts those of one family.
func (s *sender) clearOf(t testing.TB, family int) int {
	t.Helper()
	return s.clear.Count(t, func(p harness.Packet) bool { return !p.Sent && p.DstPort == senderPort && p.Dst.Is4() == (family == 0) })
}

// total is how many packets were tried to be sent, unreachable how many of them
// had no route.
func (s *sender) total() int64       { return s.sent[0].Load() + s.sent[1].Load() }
func (s *sender) unreachable() int64 { return s.refused[0].Load() + s.refused[1].Load() }

// awaitMore waits until so many more packets of each family were sent.
func (s *sender) awaitMore(t testing.TB, n int64) {
	t.Helper()
	want := [2]int64{s.sent[0].Load() + n, s.sent[1].Load() + n}
	harness.Eventually(t, harness.Timeout, "packets are sent", func() error {
		if s.sent[0].Load() < want[0] || s.sent[1].Load() < want[1] {
			return fmt.Errorf("%d IPv4 and %d IPv6 packets were sent, want %v", s.sent[0].Load(), s.sent[1].Load(), want)
		}
		return nil
	})
}

// requireSeen is the positive control: what the sender sends now is seen in
// clear, both families.
func (s *sender) requireSeen(t testing.TB) {
	t.Helper()
	before := [2]int{s.clearOf(t, 0), s.clearOf(t, 1)}
	harness.Eventually(t, harness.Timeout, "packets are seen in clear", func() error {
		for family := range before {
			if n := s.clearOf(t, family) - before[family]; n < 20 {
				return fmt.Errorf("%d packets of family %d", n, family)
			}
		}
		return nil
	})
}

// requireTunnelled waits until packets of the families come out of the tunnel.
func (s *sender) requireTunnelled(t testing.TB, e *endpoint, families ...int) {
	t.Helper()
	before := [2]int64{e.sent[0].Load(), e.sent[1].Load()}
	harness.Eventually(t, harness.Timeout, "packets come through the tunnel", func() error {
		for _, family := range families {
			if e.sent[family].Load() < before[family]+5 {
				return errors.New("too few so far")
			}
		}
		return nil
	})
}

// requireRate ends the sending, and requires that most of what was planned was
// sent: without packets there is nothing that could be in clear.
func (s *sender) requireRate(t testing.TB) {
	t.Helper()
	planned := int64(time.Since(s.begun).Seconds() * senderRate * 2)
	sent := s.total()
	s.stop()
	if err := s.failed.Load(); err != nil {
		t.Errorf("the sender failed: %v", *err)
	}
	t.Logf("%d packets planned, %d sent, of which %d found no route", planned, sent, s.unreachable())
	if sent*100 < planned*80 {
		t.Errorf("only %d of %d packets were sent", sent, planned)
	}
}
