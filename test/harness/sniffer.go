package harness

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Packet is what a Sniffer tells of an IP packet. Ports are 0 where the
// protocol has none, and for fragments after the first.
type Packet struct {
	Src, Dst         netip.Addr
	Protocol         uint8 // of IPv6, the first header that is no extension
	SrcPort, DstPort uint16
	Sent             bool // by the namespace that listens, not received by it
}

// Sniffer counts the IP packets on one interface from its creation to the end
// of the test. Its methods may be called from several goroutines.
type Sniffer struct {
	name string
	file *os.File

	mu      sync.Mutex
	count   map[Packet]int
	dropped uint32
	err     error
}

// Sniff starts to count on an interface of the namespace.
func (n *Namespace) Sniff(t testing.TB, iface string) *Sniffer {
	t.Helper()
	s := &Sniffer{name: n.name + " " + iface, count: map[Packet]int{}}
	err := n.Do(func() error {
		fd, err := openPacketSocket(iface)
		if err != nil {
			return err
		}
		s.file = os.NewFile(uintptr(fd), "packet socket")
		return nil
	})
	if err != nil {
		t.Fatalf("%s: cannot listen on %s: %v", n.name, iface, err)
	}
	raw, err := s.file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Returns when the file is closed.
		_ = raw.Read(func(fd uintptr) bool {
			s.drain(int(fd))
			return false
		})
	}()
	t.Cleanup(func() {
		_ = s.file.Close()
		<-done
	})
	return s
}

func openPacketSocket(iface string) (int, error) {
	link, err := net.InterfaceByName(iface)
	if err != nil {
		return -1, err
	}
	all := int(binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff}))
	// Protocol 0 until it is bound, so that nothing of another interface comes.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: link.Index}),
	)
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// drain reads all that waits on the socket.
func (s *Sniffer) drain(fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var buf [128]byte // the headers; the rest is cut off
	for {
		n, from, err := unix.Recvfrom(fd, buf[:], 0)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			// Nothing more, or the interface went down, which is no end.
			if !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.ENETDOWN) {
				s.err = err
			}
			return
		}
		p, ok := parse(buf[:n])
		if !ok {
			continue
		}
		if link, ok := from.(*unix.SockaddrLinklayer); ok {
			p.Sent = link.Pkttype == unix.PACKET_OUTGOING
		}
		s.count[p]++
	}
}

// parse reads the headers of an IP packet that may be cut off.
func parse(b []byte) (p Packet, ok bool) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		p.Src, _ = netip.AddrFromSlice(b[12:16])
		p.Dst, _ = netip.AddrFromSlice(b[16:20])
		p.Protocol = b[9]
		if first := binary.BigEndian.Uint16(b[6:8])&0x1fff == 0; first {
			p.readPorts(b[min(int(b[0]&15)*4, len(b)):])
		}
	case len(b) >= 40 && b[0]>>4 == 6:
		p.Src, _ = netip.AddrFromSlice(b[8:24])
		p.Dst, _ = netip.AddrFromSlice(b[24:40])
		next, rest := b[6], b[40:]
		for (next == unix.IPPROTO_HOPOPTS || next == unix.IPPROTO_ROUTING || next == unix.IPPROTO_DSTOPTS) && len(rest) >= 8 {
			next, rest = rest[0], rest[min(8+8*int(rest[1]), len(rest)):]
		}
		p.Protocol = next
		p.readPorts(rest)
	default:
		return p, false
	}
	return p, true
}

func (p *Packet) readPorts(transport []byte) {
	if (p.Protocol == unix.IPPROTO_TCP || p.Protocol == unix.IPPROTO_UDP) && len(transport) >= 4 {
		p.SrcPort = binary.BigEndian.Uint16(transport)
		p.DstPort = binary.BigEndian.Uint16(transport[2:])
	}
}

// Count returns how many of the packets match, up to now: what the interface
// had seen when Count was called is counted. It ends the test when the kernel
// dropped packets that the sniffer did not see, as 0 would then mean nothing.
func (s *Sniffer) Count(t testing.TB, match func(Packet) bool) int {
	t.Helper()
	total := 0
	for p, n := range s.packets(t) {
		if match(p) {
			total += n
		}
	}
	return total
}

// To matches packets to an address within the prefix, received by the
// namespace that listens.
func To(prefix string) func(Packet) bool {
	block := netip.MustParsePrefix(prefix)
	return func(p Packet) bool { return !p.Sent && block.Contains(p.Dst) }
}

// String lists the packets and their numbers, for messages.
func (s *Sniffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines []string
	for p, n := range s.count {
		lines = append(lines, fmt.Sprintf("%6d  protocol %d  %v:%d > %v:%d", n, p.Protocol, p.Src, p.SrcPort, p.Dst, p.DstPort))
	}
	slices.Sort(lines)
	return s.name + ":\n" + strings.Join(lines, "\n")
}

func (s *Sniffer) packets(t testing.TB) map[Packet]int {
	t.Helper()
	raw, err := s.file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var statsErr error
	err = raw.Control(func(fd uintptr) {
		s.drain(int(fd))
		var stats *unix.TpacketStats
		stats, statsErr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if statsErr == nil {
			s.mu.Lock()
			s.dropped += stats.Drops
			s.mu.Unlock()
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := errors.Join(err, statsErr, s.err); err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	if s.dropped > 0 {
		t.Fatalf("%s: %d packets were not seen", s.name, s.dropped)
	}
	return maps.Clone(s.count)
}
