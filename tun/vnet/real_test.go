package vnet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
)

// network is one of its own with a TUN that has super-packets. What do is
// given runs in it.
type network struct {
	tun   *os.File
	calls chan func()
}

// patience is how long a test waits for what must happen.
const patience = 2 * time.Minute

func newNetwork(t *testing.T, addresses ...netip.Addr) *network {
	t.Helper()
	n := &network{calls: make(chan func())}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // for ever: the thread is in a network of its own
		for f := range n.calls {
			f()
		}
	}()
	t.Cleanup(func() {
		close(n.calls)
		<-ended
	})
	n.do(t, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		for name, value := range map[string]string{"tcp_ecn": "1", "ping_group_range": "0 0", "tcp_no_metrics_save": "1"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return n.open(addresses)
	})
	t.Cleanup(func() { n.tun.Close() })
	return n
}

func (n *network) do(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	n.calls <- func() { done <- f() }
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// open makes the TUN with its addresses, each of which is the other network's
// but for the last bit.
func (n *network) open(addresses []netip.Addr) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	request, err := unix.NewIfreq("real0")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return err
	}
	const all = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_USO4 | unix.TUN_F_USO6
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, all); err != nil {
		return err
	}
	n.tun = os.NewFile(uintptr(fd), "tun") // before, it could not be polled
	link, err := netlink.LinkByName("real0")
	if err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	err = errors.Join(netlink.LinkSetUp(lo), netlink.LinkSetMTU(link, 1420))
	for _, a := range addresses {
		block := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen()-2, a.BitLen())}
		err = errors.Join(err, netlink.AddrAdd(link, &netlink.Addr{IPNet: block, Flags: unix.IFA_F_NODAD}))
	}
	return errors.Join(err, netlink.LinkSetUp(link))
}

// wire moves frames from one network to the other, and keeps what it moves.
// Some it loses, some overtake others, and some it marks as congested.
type wire struct {
	random *rand.Rand
	frames [][]byte
}

func (w *wire) run(from, to *os.File) {
	var held []byte
	for buffer := make([]byte, MaxMessage+1); ; {
		size, err := from.Read(buffer)
		if err != nil {
			return
		}
		frame := bytes.Clone(buffer[:size])
		w.frames = append(w.frames, bytes.Clone(frame))
		switch chance := w.random.IntN(100); {
		case chance == 0:
			continue
		case chance == 1 && held == nil:
			held = frame
			continue
		case chance == 2:
			mark(frame[HeaderLen:])
		}
		_, _ = to.Write(frame) // what the kernel refuses is lost
		if held != nil && w.random.IntN(3) == 0 {
			_, _ = to.Write(held)
			held = nil
		}
	}
}

// mark says that there was congestion, where the sender understands it.
func mark(packet []byte) {
	switch {
	case packet[0]>>4 == 4 && packet[1]&3 != 0:
		packet[1] |= 3
		tuntest.FixHeader(packet)
	case packet[0]>>4 == 6 && packet[1]&0x30 != 0:
		packet[1] |= 0x30
	}
}

// recordTraffic has two kernels talk to each other in all ways that there are, and
// returns the frames that they sent.
func recordTraffic(t *testing.T, size int) (frames [][]byte) {
	t.Helper()
	near := newNetwork(t, netip.MustParseAddr("10.7.0.1"), netip.MustParseAddr("fd07::1"))
	far := newNetwork(t, netip.MustParseAddr("10.7.0.2"), netip.MustParseAddr("fd07::2"))
	wires := [2]*wire{{random: rand.New(rand.NewPCG(21, 22))}, {random: rand.New(rand.NewPCG(23, 24))}}
	var moving sync.WaitGroup
	moving.Go(func() { wires[0].run(near.tun, far.tun) })
	moving.Go(func() { wires[1].run(far.tun, near.tun) })
	for _, to := range []string{"10.7.0.2", "fd07::2"} {
		talk := conversation{near: near, far: far, to: netip.MustParseAddr(to)}
		talk.stream(t, size, nil)
		talk.stream(t, size/16, talk.options(unix.IPPROTO_TCP))
		talk.datagrams(t, nil)
		talk.datagrams(t, talk.options(unix.IPPROTO_UDP))
		talk.echoes(t)
	}
	near.tun.Close()
	far.tun.Close()
	moving.Wait()
	return append(wires[0].frames, wires[1].frames...)
}

// conversation is between the two networks, begun by the near one.
type conversation struct {
	near, far *network
	to        netip.Addr
}

// control prepares a socket.
type control func(network, address string, c syscall.RawConn) error

// options have packets of the socket carry options of IPv4, or extension
// headers.
func (c conversation) options(protocol int) control {
	return func(_, _ string, raw syscall.RawConn) (err error) {
		ctlErr := raw.Control(func(fd uintptr) {
			if c.to.Is4() {
				timestamp := []byte{68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0}
				err = unix.SetsockoptString(int(fd), unix.IPPROTO_IP, unix.IP_OPTIONS, string(timestamp))
				if protocol == unix.IPPROTO_UDP { // and no checksum
					err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1))
				}
				return
			}
			pad := []byte{0, 0, 1, 4, 0, 0, 0, 0}
			err = errors.Join(
				unix.SetsockoptString(int(fd), unix.IPPROTO_IPV6, unix.IPV6_HOPOPTS, string(pad)),
				unix.SetsockoptString(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, string(pad)),
			)
		})
		return errors.Join(err, ctlErr)
	}
}

// stream sends size bytes both ways at once, some of them urgent.
func (c conversation) stream(t *testing.T, size int, prepare control) {
	t.Helper()
	var listener net.Listener
	c.far.do(t, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(c.to, 0).String())
		return err
	})
	defer listener.Close()
	var conn net.Conn
	c.near.do(t, func() (err error) {
		conn, err = (&net.Dialer{Control: prepare, Timeout: patience}).Dial("tcp", listener.Addr().String())
		return err
	})
	defer conn.Close()
	other, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	data := noise(rand.New(rand.NewPCG(25, 26)), size)
	half := func(from, to net.Conn) error {
		end := time.Now().Add(patience)
		if err := errors.Join(from.SetWriteDeadline(end), to.SetReadDeadline(end)); err != nil {
			return err
		}
		sent := make(chan error, 1)
		go func() {
			_, err := from.Write(data)
			sent <- errors.Join(err, urge(from), from.(*net.TCPConn).CloseWrite())
		}()
		got, err := io.ReadAll(to)
		if err = errors.Join(err, <-sent); err == nil && !bytes.Equal(got, data) {
			err = fmt.Errorf("%d bytes came, others than the %d that were sent", len(got), len(data))
		}
		return err
	}
	up := make(chan error, 1)
	go func() { up <- half(conn, other) }()
	if err := errors.Join(half(other, conn), <-up); err != nil {
		t.Errorf("TCP with %v: %v", c.to, err)
	}
}

// urge sends an urgent byte, which is not part of what is read.
func urge(conn net.Conn) error {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		sendErr = unix.Send(int(fd), []byte{'!'}, unix.MSG_OOB)
		return sendErr != unix.EAGAIN
	})
	return errors.Join(err, sendErr)
}

// datagrams sends some of all sizes, fragmented ones among them, and many at
// once. They may be lost.
func (c conversation) datagrams(t *testing.T, prepare control) {
	t.Helper()
	random := rand.New(rand.NewPCG(27, 28))
	c.near.do(t, func() error {
		conn, err := (&net.Dialer{Control: prepare}).Dial("udp", netip.AddrPortFrom(c.to, 9).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		for i := range 300 {
			_, _ = conn.Write(noise(random, i*5)) // refused, once the other side has said that nobody listens
		}
		for i := range 10 {
			_, _ = conn.Write(noise(random, 2000+i*1000))
		}
		raw, err := conn.(*net.UDPConn).SyscallConn()
		if err != nil || prepare != nil { // extension headers do not go with it
			return err
		}
		ctlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 700) })
		for i := range 20 {
			_, _ = conn.Write(noise(random, 1000+i*1000))
		}
		return errors.Join(err, ctlErr)
	})
}

// echoes asks for echoes, small ones and fragmented ones, until each has come.
func (c conversation) echoes(t *testing.T) {
	t.Helper()
	family, protocol, kind := unix.AF_INET6, unix.IPPROTO_ICMPV6, byte(128)
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: c.to.As16()}
	if c.to.Is4() {
		family, protocol, kind = unix.AF_INET, unix.IPPROTO_ICMP, 8
		to = &unix.SockaddrInet4{Addr: c.to.As4()}
	}
	c.near.do(t, func() error {
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		wait := unix.Timeval{Usec: 200_000}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
			return err
		}
		answer := make([]byte, 1<<16)
		for i := range 20 {
			request := noise(rand.New(rand.NewPCG(29, uint64(i))), 8+i*300)
			copy(request, []byte{kind, 0, 0, 0, 0, 0, 0, byte(i)})
			for end := time.Now().Add(patience); ; {
				if err := unix.Sendto(fd, request, 0, to); err != nil {
					return err
				}
				n, _, err := unix.Recvfrom(fd, answer, 0)
				if err == nil && bytes.Equal(answer[6:n], request[6:]) {
					break
				}
				if time.Now().After(end) {
					return fmt.Errorf("no echo of %d bytes from %v", len(request), c.to)
				}
			}
		}
		return nil
	})
}

// kinds tells what there is among packets.
func kinds(seen map[string]int, packet []byte) {
	family := "IPv6 "
	t, whole := findTransport(packet)
	if packet[0]>>4 == 4 {
		family = "IPv4 "
		if packet[0] != 0x45 {
			seen["IPv4 options"]++
		}
		if binary.BigEndian.Uint16(packet[6:])&0x3fff != 0 {
			seen["IPv4 fragments"]++
		}
		if packet[1]&3 != 0 {
			seen["IPv4 congestion"]++
		}
		if packet[9] == tuntest.ICMP {
			seen["ICMP"]++
		}
	} else {
		switch packet[6] {
		case 0:
			seen["IPv6 extensions"]++
		case 44:
			seen["IPv6 fragments"]++
		case tuntest.ICMPv6:
			seen["ICMPv6"]++
		}
		if packet[1]&0x30 != 0 {
			seen["IPv6 congestion"]++
		}
	}
	if !whole {
		return
	}
	if t.protocol == udp {
		seen[family+"UDP"]++
		if packet[t.start+6] == 0 && packet[t.start+7] == 0 {
			seen["no checksum"]++
		}
		return
	}
	seen[family+"TCP"]++
	flags := packet[t.start+13]
	for name, bit := range map[string]byte{"SYN": syn, "FIN": fin, "PSH": psh, "URG": urg, "ECE": tuntest.ECE, "CWR": cwr} {
		if flags&bit != 0 {
			seen[family+name]++
		}
	}
	if t.end(packet) > t.start+32 && flags&syn == 0 {
		seen[family+"selective acknowledgement"]++
	}
}

// What kernels really send, with losses, reordering and congestion, is taken
// apart as wireguard-go does it, and comes out of both as it was when it has
// been put together by either.
func TestTrafficAsWireguard(t *testing.T) {
	w := newWireguard(t)
	frames := recordTraffic(t, 8<<20)
	seen := map[string]int{}
	var packets [][]byte
	for i, frame := range frames {
		theirs := w.split(frame)
		var p Packet
		if err := p.Parse(frame); err != nil {
			t.Fatalf("frame %d: %v: %x", i, err, frame[:min(len(frame), 100)])
		}
		if p.Super() {
			seen[fmt.Sprint("super-packets of kind ", p.header.GSOType)]++
		}
		ours := split(&p)
		equal(t, fmt.Sprint("frame ", i), ours, theirs)
		for _, packet := range ours {
			kinds(seen, packet)
			packets = append(packets, bytes.Clone(packet))
		}
	}
	for _, want := range []string{
		"IPv4 TCP", "IPv4 UDP", "IPv4 SYN", "IPv4 FIN", "IPv4 PSH", "IPv4 URG", "IPv4 ECE", "IPv4 CWR", "IPv4 selective acknowledgement",
		"IPv4 options", "IPv4 fragments", "IPv4 congestion", "ICMP", "no checksum",
		"IPv6 TCP", "IPv6 UDP", "IPv6 SYN", "IPv6 FIN", "IPv6 PSH", "IPv6 URG", "IPv6 ECE", "IPv6 CWR", "IPv6 selective acknowledgement",
		"IPv6 extensions", "IPv6 fragments", "IPv6 congestion", "ICMPv6",
		"super-packets of kind 1", "super-packets of kind 4", "super-packets of kind 5",
	} {
		if seen[want] == 0 {
			t.Errorf("there was no %s", want)
		}
	}
	messages := 0
	c := NewCoalescer(128, OffloadAll)
	for some := range slices.Chunk(packets, 128) {
		all := coalesced(c, some...)
		messages += len(all)
		var got [][]byte
		for _, m := range all {
			for _, p := range w.split(m) {
				got = append(got, bytes.Clone(p))
			}
		}
		// wireguard-go is not asked to put these together: what was lost, sent
		// again or overtaken, it merges in ways of its own.
		same(t, got, some)
	}
	t.Logf("%d frames, %d packets, %d messages of them: %v", len(frames), len(packets), messages, seen)
}
