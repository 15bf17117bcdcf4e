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

// flows are what a sender sends: datagrams over IPv4 and over IPv6, and
// questions to a name server.
const (
	flowIPv4 = iota
	flowIPv6
	flowDNS
	flows
)

// sender is a program on the host that sends to the included addresses, at a
// steady rate whatever becomes of it, and a sniffer on the router that counts
// what left the host in clear.
type sender struct {
	clear     *harness.Sniffer
	tunnelled *atomic.Int64 // packets that clients got, of all senders of the machine
	begun     time.Time

	sent    [flows]atomic.Int64 // packets that were tried to be sent
	refused [flows]atomic.Int64 // of those, that the host had no route for
	failed  atomic.Pointer[error]
	stop    func()
	require sync.Once
}

// startSender sends until the test ends. Then most of what was planned must
// have been sent.
func (m *machine) startSender(t testing.TB) *sender {
	t.Helper()
	s := &sender{clear: m.Clear(t), tunnelled: &m.tunnelled, begun: time.Now()}
	quit := make(chan struct{})
	var running sync.WaitGroup
	question := append([]byte{0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, "\x06secret\x04corp\x07example\x00\x00\x01\x00\x01"...)
	for flow, to := range [flows]string{
		fmt.Sprintf("%s:%d", includedIPv4, senderPort), fmt.Sprintf("[%s]:%d", includedIPv6, senderPort), includedIPv4 + ":53",
	} {
		fd, err := m.udpSocket(flow % 2)
		if err != nil {
			t.Fatal(err)
		}
		payload := []byte("secret")
		if flow == flowDNS {
			payload = question
		}
		running.Go(func() {
			defer unix.Close(fd)
			s.run(flow, fd, sockaddr(netip.MustParseAddrPort(to)), payload, quit)
		})
	}
	s.stop = sync.OnceFunc(func() {
		close(quit)
		running.Wait()
	})
	t.Cleanup(func() {
		s.stop()
		if !t.Failed() {
			s.requireRate(t)
		}
	})
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
func (s *sender) run(flow, fd int, to unix.Sockaddr, payload []byte, quit <-chan struct{}) {
	tick := time.NewTicker(time.Second / senderRate)
	defer tick.Stop()
	for {
		select {
		case <-quit:
			return
		case <-tick.C:
		}
		for due := int64(time.Since(s.begun).Seconds() * senderRate); s.sent[flow].Load() < due; s.sent[flow].Add(1) {
			switch err := unix.Sendto(fd, payload, 0, to); err {
			case nil, unix.EAGAIN, unix.ENOBUFS:
			case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EADDRNOTAVAIL, unix.EACCES, unix.EPERM: // by the routes, or a lockdown
				s.refused[flow].Add(1)
			default:
				s.failed.Store(&err)
			}
		}
	}
}

// of says whether a packet on the router is one of the flow, and of the host.
func (s *sender) of(p harness.Packet, flow int) bool {
	if p.Sent {
		return false
	}
	if flow == flowDNS {
		return p.DstPort == 53 && p.Dst.String() == includedIPv4
	}
	return p.DstPort == senderPort && p.Dst.Is4() == (flow == flowIPv4)
}

// inClear counts the packets that left the host outside the tunnel, up to now.
func (s *sender) inClear(t testing.TB) (n int) {
	t.Helper()
	return s.clear.Count(t, func(p harness.Packet) bool { return s.of(p, flowIPv4) || s.of(p, flowIPv6) || s.of(p, flowDNS) })
}

// clearOf counts those of one flow.
func (s *sender) clearOf(t testing.TB, flow int) int {
	t.Helper()
	return s.clear.Count(t, func(p harness.Packet) bool { return s.of(p, flow) })
}

// total is how many packets were tried to be sent, unreachable how many of them
// had no route.
func (s *sender) total() int64       { return sum(&s.sent) }
func (s *sender) unreachable() int64 { return sum(&s.refused) }

func sum(counts *[flows]atomic.Int64) (n int64) {
	for i := range counts {
		n += counts[i].Load()
	}
	return n
}

// awaitMore waits until so many more packets of each flow were sent.
func (s *sender) awaitMore(t testing.TB, n int64) {
	t.Helper()
	var before [flows]int64
	for i := range before {
		before[i] = s.sent[i].Load()
	}
	harness.Eventually(t, harness.Timeout, "packets are sent", func() error {
		for i := range before {
			if got := s.sent[i].Load() - before[i]; got < n {
				return fmt.Errorf("%d packets of flow %d were sent, want %d", got, i, n)
			}
		}
		return nil
	})
}

// requireSeen is the positive control: what the sender sends now is seen in
// clear, every flow.
func (s *sender) requireSeen(t testing.TB) {
	t.Helper()
	var before [flows]int
	for flow := range before {
		before[flow] = s.clearOf(t, flow)
	}
	harness.Eventually(t, harness.Timeout, "packets are seen in clear", func() error {
		for flow := range before {
			if n := s.clearOf(t, flow) - before[flow]; n < 20 {
				return fmt.Errorf("%d packets of flow %d", n, flow)
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
// sent: without packets there is nothing that could be in clear. A sender that did
// not get the processor for a while makes up for it.
func (s *sender) requireRate(t testing.TB) {
	t.Helper()
	s.require.Do(func() {
		planned := int64(time.Since(s.begun).Seconds() * senderRate * flows)
		for end := time.Now().Add(harness.Timeout); s.total()*100 < planned*80 && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond)
		}
		sent := s.total()
		s.stop()
		if err := s.failed.Load(); err != nil {
			t.Errorf("the sender failed: %v", *err)
		}
		t.Logf("%d packets planned, %d sent: %d tunnelled, %d refused, %d in clear (with the times when they may be), the others dropped",
			planned, sent, s.tunnelled.Load(), s.unreachable(), s.inClear(t))
		if sent*100 < planned*80 {
			t.Errorf("only %d of %d packets were sent", sent, planned)
		}
	})
}
