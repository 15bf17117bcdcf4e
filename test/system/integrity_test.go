package system

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// trouble is what becomes of one in a hundred messages on their way.
type trouble int32

const (
	clean trouble = iota
	lossy
	reordering
)

func (x trouble) String() string { return [...]string{"clean", "loss", "reordering"}[x] }

// line is an app that moves messages between its channel and a TUN in another
// namespace, where what the tunnel includes is.
//
//	Host programs ── vpn0 ── daemon ══ channel ══ app ── far0 ── far programs
type line struct {
	*vpn
	session godbus.ObjectPath
	channel *os.File
	info    dict
	far     *harness.Namespace
	trouble atomic.Int32
}

func newLine(t testing.TB, format string) *line {
	t.Helper()
	l := &line{vpn: newVPN(t), far: harness.NewNamespace(t, "far")}
	l.session = l.connect()
	l.channel, l.info = l.openFormat(l.session, format)
	device := l.farTUN(format == wire.FormatOffload)
	var moving sync.WaitGroup
	moving.Go(func() { l.move(l.channel, device) })
	moving.Go(func() { l.move(device, l.channel) })
	t.Cleanup(func() {
		l.channel.Close()
		device.Close()
		moving.Wait()
	})
	l.resize(1400)
	l.notify(l.session, wire.NotifyConnected)
	return l
}

// openFormat opens a channel whose messages have the format.
func (v *vpn) openFormat(session godbus.ObjectPath, format string) (channel *os.File, info dict) {
	v.t.Helper()
	var fd godbus.UnixFD
	v.provider.must(v.provider.on(session, "OpenPacketChannel", dict{"format": godbus.MakeVariant(format)}), &fd, &info)
	channel = os.NewFile(uintptr(fd), "channel")
	v.t.Cleanup(func() { channel.Close() })
	return channel, info
}

// farTUN makes a TUN, the frames of which are messages of the channel.
func (l *line) farTUN(super bool) (device *os.File) {
	l.t.Helper()
	err := l.far.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq("far0")
		if err != nil {
			return err
		}
		flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if super {
			flags |= unix.IFF_VNET_HDR
		}
		request.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		if err == nil && super {
			const all = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_USO4 | unix.TUN_F_USO6
			err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, all)
		}
		device = os.NewFile(uintptr(fd), "far0")
		return err
	})
	if err != nil {
		l.t.Fatalf("cannot make a TUN: %v", err)
	}
	l.far.IP(
		l.t,
		"link set far0 up",
		"addr add "+includedIPv4+"/32 dev far0", "addr add "+includedIPv6+"/128 dev far0 nodad",
		"route add "+tunnelIPv4+"/32 dev far0", "route add "+tunnelIPv6+"/128 dev far0",
	)
	return device
}

// resize changes the MTU, on both sides.
func (l *line) resize(mtu int) {
	l.t.Helper()
	set := fullTunnel()
	set["mtu"] = godbus.MakeVariant(strconv.Itoa(mtu))
	l.configure(l.session, set)
	l.far.IP(l.t, fmt.Sprintf("link set far0 mtu %d", mtu))
	l.far.AwaitAnswer(l.t, tunnelIPv6) // addresses of IPv6 take their time
}

// move moves messages until there are no more.
func (l *line) move(from, to *os.File) {
	random := rand.New(rand.NewPCG(1, 2))
	var held []byte
	for buffer := make([]byte, 1<<16+10); ; {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		if now := trouble(l.trouble.Load()); now != clean && held == nil && random.IntN(100) == 0 {
			if now == reordering {
				held = bytes.Clone(buffer[:n])
			}
			continue
		}
		_, _ = to.Write(buffer[:n]) // what is refused is lost, as on every link
		if held != nil {
			_, _ = to.Write(held)
			held = nil
		}
	}
}

// content is what is sent: a block, again and again.
type content struct {
	block []byte
	times int
	sum   [sha256.Size]byte
}

func newContent(size, times int) *content {
	c := &content{block: make([]byte, size), times: times}
	rand.NewChaCha8([32]byte{'c'}).Read(c.block)
	h := sha256.New()
	for range times {
		h.Write(c.block)
	}
	h.Sum(c.sum[:0])
	return c
}

// send sends it and ends the stream.
func (c *content) send(to net.Conn) error {
	for range c.times {
		if _, err := to.Write(c.block); err != nil {
			return err
		}
	}
	return to.(*net.TCPConn).CloseWrite()
}

// check reads the stream to its end.
func (c *content) check(from net.Conn) error {
	h := sha256.New()
	n, err := io.Copy(h, from)
	if err == nil && [sha256.Size]byte(h.Sum(nil)) != c.sum {
		err = fmt.Errorf("what came, %d bytes of %d, has another SHA-256 than what was sent", n, c.times*len(c.block))
	}
	return err
}

// stream sends the content both ways at once.
func (l *line) stream(t testing.TB, to string, c *content) {
	t.Helper()
	listener := l.far.Listen(t, "tcp", net.JoinHostPort(to, "0"))
	near, err := l.Host.Dial("tcp", listener.Addr().String(), harness.Timeout)
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	end := time.Now().Add(time.Duration(c.times) * 5 * time.Minute)
	if err := errors.Join(near.SetDeadline(end), far.SetDeadline(end)); err != nil {
		t.Fatal(err)
	}
	results := make(chan error, 4)
	for _, conn := range []net.Conn{near, far} {
		go func() { results <- c.send(conn) }()
		go func() { results <- c.check(conn) }()
	}
	for range 4 {
		if err := <-results; err != nil {
			t.Errorf("TCP: %v", err)
		}
	}
}

// echo answers every datagram with itself, in the far namespace.
func (l *line) echo(t testing.TB, address string) {
	t.Helper()
	conn := l.far.ListenPacket(t, "udp", net.JoinHostPort(address, strconv.Itoa(echoPort)))
	go func() {
		for buffer := make([]byte, 1<<16); ; {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(buffer[:n], from)
		}
	}()
}

// numbered is a datagram that tells which one it is, and so what it has to be.
func numbered(n uint32, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte(binary.BigEndian.AppendUint32(make([]byte, 28), n))).Read(b)
	binary.BigEndian.PutUint32(b, n)
	return b
}

// datagrams has some of all sizes come back, whole and fragmented, and many
// that leave the program as one. Where there is trouble they may have to be
// sent again.
func (l *line) datagrams(t testing.TB, to string, mtu int) {
	t.Helper()
	conn, err := l.Host.Dial("udp", net.JoinHostPort(to, strconv.Itoa(echoPort)), harness.Timeout)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buffer, next := make([]byte, 1<<16), uint32(0)
	// receive tells whether the datagram came back; an earlier one may, too.
	receive := func(n uint32, sizes map[uint32]int, patience time.Duration) bool {
		conn.SetReadDeadline(time.Now().Add(patience))
		for {
			size, err := conn.Read(buffer)
			if err != nil {
				return false
			}
			if size < 4 {
				t.Fatalf("UDP: %d bytes came", size)
			}
			got := binary.BigEndian.Uint32(buffer)
			if want := sizes[got]; want != size || !bytes.Equal(buffer[:size], numbered(got, want)) {
				t.Fatalf("UDP: a datagram of %d bytes is not one that was sent", size)
			}
			if got == n {
				return true
			}
		}
	}
	sizes := map[uint32]int{}
	for _, size := range []int{4, 5, 100, mtu - 49, mtu - 48, mtu - 47, mtu - 28, mtu - 27, 2 * mtu, 9000, 20_001, 65_000} {
		for try := 0; ; try++ {
			next++
			sizes[next] = size
			if _, err := conn.Write(numbered(next, size)); err != nil {
				t.Fatal(err)
			}
			patience := harness.Timeout
			if trouble(l.trouble.Load()) != clean {
				patience = 200 * time.Millisecond
			}
			if receive(next, sizes, patience) {
				break
			}
			if trouble(l.trouble.Load()) == clean || try == 100 {
				t.Fatalf("UDP: a datagram of %d bytes does not come back", size)
			}
		}
	}
	l.manyAtOnce(t, conn, &next, sizes, receive)
}

// manyAtOnce has the kernel cut datagrams out of what is written in one go.
func (l *line) manyAtOnce(t testing.TB, conn net.Conn, next *uint32, sizes map[uint32]int, receive func(uint32, map[uint32]int, time.Duration) bool) {
	t.Helper()
	const size, count = 1000, 40
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var optionErr error
	err = raw.Control(func(fd uintptr) { optionErr = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) })
	if err = errors.Join(err, optionErr); err != nil {
		t.Fatal(err)
	}
	var all []byte
	for range count {
		*next++
		sizes[*next] = size
		all = append(all, numbered(*next, size)...)
	}
	for try := 0; ; try++ {
		if _, err := conn.Write(all); err != nil {
			t.Fatal(err)
		}
		if receive(*next, sizes, time.Second) {
			return
		}
		if try == 20 {
			t.Fatal("UDP: of many at once the last does not come back")
		}
	}
}

// requireFaultless says that neither kernel has found a wrong checksum or
// header, and that the filter has refused nothing but what the far one says by
// itself, as about routers and groups.
func (l *line) requireFaultless(t testing.TB) {
	t.Helper()
	for side, ns := range map[string]*harness.Namespace{"host": l.Host, "far": l.far} {
		for name, n := range kernelCounters(ns.ReadFile(t, "/proc/thread-self/net/snmp"), ns.ReadFile(t, "/proc/thread-self/net/netstat"), ns.ReadFile(t, "/proc/thread-self/net/snmp6")) {
			if (strings.Contains(name, "Csum") || strings.Contains(name, "HdrErrors")) && n != "0" {
				t.Errorf("%s: %s is %s", side, name, n)
			}
		}
	}
	for reason, n := range l.dropped(l.session) {
		switch reason {
		case "notConfigured", "source", "destination", "outSource", "outDestination":
		default:
			t.Errorf("%d packets were dropped: %s", n, reason)
		}
	}
}

// kernelCounters reads what the kernel counts of its protocols.
func kernelCounters(files ...string) map[string]string {
	all := map[string]string{}
	for _, text := range files {
		lines := strings.Split(strings.TrimSpace(text), "\n")
		for i, line := range lines {
			fields := strings.Fields(line)
			switch {
			case len(fields) == 2 && !strings.HasSuffix(fields[0], ":"):
				all[fields[0]] = fields[1]
			case i%2 == 1 && len(strings.Fields(lines[i-1])) == len(fields):
				for j, name := range strings.Fields(lines[i-1])[1:] {
					all[fields[0]+name] = fields[j+1]
				}
			}
		}
	}
	return all
}

// Whatever the app makes of them, packets arrive as they were sent, or not at
// all: streams and datagrams both ways, of both families, in both formats and
// in sizes from the least to the large.
func TestIntegrity(t *testing.T) {
	t.Parallel()
	size, times := 64<<20, 1
	if os.Getenv("SOAK") != "" {
		times = 16
	}
	c := newContent(size, times)
	for _, format := range []string{wire.FormatPacket, wire.FormatOffload} {
		t.Run(format, func(t *testing.T) {
			l := newLine(t, format)
			for _, to := range []string{includedIPv4, includedIPv6} {
				l.echo(t, to)
			}
			for _, mtu := range []int{1280, 1420, 9000} {
				l.resize(mtu)
				for _, what := range []trouble{clean, lossy, reordering} {
					l.trouble.Store(int32(what))
					for family, to := range map[string]string{"IPv4": includedIPv4, "IPv6": includedIPv6} {
						t.Run(fmt.Sprintf("%d/%v/%s", mtu, what, family), func(t *testing.T) {
							l.stream(t, to, c)
							l.datagrams(t, to, mtu)
						})
					}
				}
				l.trouble.Store(int32(clean))
			}
			l.requireFaultless(t)
		})
	}
}
