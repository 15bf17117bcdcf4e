package tun_test

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun"
	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
)

// descriptors counts what this process has open of the TUN driver.
func descriptors(tb testing.TB) (n int) {
	tb.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		tb.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "/dev/net/tun") {
			n++
		}
	}
	return n
}

// awaitNoDescriptors waits until those of the tests before are closed: a file
// is when nobody uses it any more.
func awaitNoDescriptors(tb testing.TB) {
	tb.Helper()
	eventually(tb, "no TUN is open", func() bool { return descriptors(tb) == 0 })
}

func TestOpen(t *testing.T) {
	namespace(t)
	const name = "tun-15-bytes-00"
	awaitNoDescriptors(t)
	d := open(t, name)
	l := link(t, name)
	if d.Name() != name || d.Index() != l.Attrs().Index {
		t.Errorf("%s %d, want %s %d", d.Name(), d.Index(), name, l.Attrs().Index)
	}
	if got := l.Attrs().TxQLen; got != tun.TxQueueLen {
		t.Errorf("txqueuelen %d, want %d", got, tun.TxQueueLen)
	}
	if l.Attrs().Flags&net.FlagUp != 0 {
		t.Error("it is up")
	}
	device, ok := l.(*netlink.Tuntap)
	if !ok {
		t.Fatalf("it is a %s", l.Type())
	}
	if device.Mode != netlink.TUNTAP_MODE_TUN || device.Owner != 0 || device.Group != 0 || device.NonPersist == false {
		t.Errorf("mode %d, owner %d, group %d, persistent %v", device.Mode, device.Owner, device.Group, !device.NonPersist)
	}
	raw, err := d.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("flags %#x, %v: not nonblocking", flags, err)
		}
	})
	if _, err := tun.Open(name); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("opened twice: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := netlink.LinkByName(name); err == nil {
		t.Error("it is still there after Close")
	}
	if err := d.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed again: %v", err)
	}
	if n := descriptors(t); n > 0 {
		t.Errorf("%d descriptors", n)
	}
}

func TestOpenRefusesNames(t *testing.T) {
	namespace(t)
	for _, name := range []string{"", ".", "..", "a/b", "a b", "a:b", "tun%d", "a\tb", "a\nb", "a\x00b", "sixteen-bytes-00", strings.Repeat("x", 300), "lo"} {
		if d, err := tun.Open(name); err == nil {
			t.Errorf("%q was accepted as %q", name, d.Name())
			d.Close()
		}
	}
	links, err := netlink.LinkList()
	if err != nil || len(links) != 1 {
		t.Errorf("%d interfaces, %v; want lo alone", len(links), err)
	}
}

// An attached device must not lose its descriptor when another open fails.
func TestFailingOpensLeakNothing(t *testing.T) {
	namespace(t)
	awaitNoDescriptors(t)
	d := open(t, "good0")
	defer d.Close()
	// Somebody else's descriptor of the driver, as inherited ones are.
	foreign, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(foreign)
	// Somebody else's device, not closed on exec.
	inherited, err := unix.Open("/dev/net/tun", unix.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inherited)
	request, err := unix.NewIfreq("inherited0")
	if err != nil {
		t.Fatal(err)
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(inherited, unix.TUNSETIFF, request); err != nil {
		t.Fatal(err)
	}
	before := descriptors(t)
	for range 200 {
		// A name that only the kernel refuses, after water has opened the driver.
		if bad, err := tun.Open("all"); err == nil {
			bad.Close()
			t.Fatal("the kernel took a reserved name")
		} else if strings.Contains(err.Error(), "invalid interface name") {
			t.Fatal("refused too early to test anything:", err)
		}
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
	for _, name := range []string{"good0", "inherited0"} {
		if _, err := netlink.LinkByName(name); err != nil {
			t.Errorf("another device is gone: %s: %v", name, err)
		}
	}
}

func TestProgramsDoNotInheritTheDevice(t *testing.T) {
	namespace(t)
	var busy sync.WaitGroup
	stop := make(chan struct{})
	for range 2 { // start programs all the time
		busy.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				out, err := exec.Command("ls", "-l", "/proc/self/fd").CombinedOutput()
				if err != nil {
					t.Errorf("%v: %s", err, out)
				}
				if bytes.Contains(out, []byte("/net/tun")) {
					t.Errorf("inherited:\n%s", out)
				}
			}
		})
	}
	for range 30 {
		// A program that is just being started keeps the former device for
		// a moment, until it is executed.
		var d *tun.Device
		eventually(t, "the device opens", func() (ok bool) {
			var err error
			d, err = tun.Open("exec0")
			return err == nil
		})
		if bad, err := tun.Open("all"); err == nil {
			bad.Close()
		}
		d.Close()
	}
	close(stop)
	busy.Wait()
}

// overTUN is a tunnel over a real TUN, which the caller's namespace must be for.
func overTUN(t *testing.T, name string) *bench {
	t.Helper()
	return overDevice(t, open(t, name))
}

func overDevice(t *testing.T, d *tun.Device) *bench {
	t.Helper()
	b := &bench{ended: make(chan error, 64), failed: make(chan error, 64)}
	var err error
	b.Tunnel, err = tun.New(d, tun.Events{
		ChannelClosed: func(err error) { b.ended <- err },
		Failed:        func(err error) { b.failed <- err },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b.configure(t)
}

func TestKernelAnswersPings(t *testing.T) {
	namespace(t)
	b := overTUN(t, "ping0")
	client := b.connect(t)
	up(t, "ping0")
	for i, c := range []struct{ own, peer netip.Addr }{{own4, peer4}, {own6, peer6}} {
		ping := tuntest.Echo(c.peer, c.own, 5, uint16(i), bytes.Repeat([]byte("ping"), 300))
		put(t, client, ping)
		reply := get(t, client)
		want := tuntest.Echo(c.own, c.peer, 5, uint16(i), bytes.Repeat([]byte("ping"), 300))
		// The kernel's reply differs from its request in the type, in the
		// sums, and in what a host may choose.
		if len(reply) != len(want) || !bytes.HasSuffix(reply, want[len(want)-1204:]) {
			t.Errorf("%v answered %x", c.own, reply)
		}
		if reply[0]>>4 == 4 { // the kernel's header, summed up by us
			again := bytes.Clone(reply)
			if tuntest.FixHeader(again); !bytes.Equal(again, reply) {
				t.Errorf("the kernel's header is %x, ours %x", reply[:20], again[:20])
			}
		}
	}
	b.counts(t, "rxPackets", 2)
	b.counts(t, "txPackets", 2)

	// What the interface says by itself, as router solicitations, is not for
	// the client, and a spoofed source is not for the kernel.
	put(t, client, tuntest.Echo(own4, own4, 5, 9, nil))
	b.counts(t, "dropped.source", 1)
	nothing(t, client)
}

func TestKernelSocketsTalkThroughTheTunnel(t *testing.T) {
	namespace(t)
	b := overTUN(t, "udp0")
	client := b.connect(t)
	up(t, "udp0")
	for _, c := range []struct{ own, peer netip.Addr }{{own4, peer4}, {own6, peer6}} {
		// In the test's goroutine: its thread decides the namespace.
		socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.own, 4000)))
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		peer := netip.AddrPortFrom(c.peer, 5000)
		put(t, client, tuntest.Datagram(peer, netip.AddrPortFrom(c.own, 4000), []byte("from the client")))
		buffer := make([]byte, 100)
		socket.SetDeadline(time.Now().Add(patience))
		n, from, err := socket.ReadFromUDPAddrPort(buffer)
		if err != nil || string(buffer[:n]) != "from the client" || from != peer {
			t.Fatalf("%q from %v, %v", buffer[:n], from, err)
		}
		if _, err := socket.WriteToUDPAddrPort([]byte("from the host"), from); err != nil {
			t.Fatal(err)
		}
		if got := get(t, client); !bytes.HasSuffix(got, []byte("from the host")) {
			t.Errorf("client got %x", got)
		}
	}
}

func TestInterfaceDown(t *testing.T) {
	namespace(t)
	b := overTUN(t, "down0")
	client := b.connect(t)
	put(t, client, tuntest.Echo(peer4, own4, 1, 1, nil)) // not up yet
	b.counts(t, "dropped.write", 1)
	var refused *tun.DropError
	if err := b.Send(tuntest.Echo(peer4, own4, 1, 2, nil)); !errors.As(err, &refused) || refused.Reason != "write" || !errors.Is(err, unix.EIO) {
		t.Errorf("Send: %v", err)
	}
	up(t, "down0")
	put(t, client, tuntest.Echo(peer4, own4, 1, 3, nil))
	get(t, client)
	if len(b.failed)+len(b.ended) > 0 {
		t.Error("a downed interface is no failure")
	}
}

func TestInterfaceDeleted(t *testing.T) {
	for name, prepare := range map[string]func(*bench){
		"idle":    func(*bench) {},
		"channel": func(b *bench) { b.connect(t) },
		"sink":    func(b *bench) { b.SetSink(func([]byte) error { return nil }) },
	} {
		t.Run(name, func(t *testing.T) {
			namespace(t)
			for range 20 {
				b := overTUN(t, "gone0")
				up(t, "gone0")
				prepare(b)
				if err := netlink.LinkDel(link(t, "gone0")); err != nil {
					t.Fatal(err)
				}
				if err := wait(t, b.failed); err == nil {
					t.Error("no error")
				}
				if err := b.Send(echo(peer4, own4, 1)); err == nil {
					t.Error("sent into nothing")
				}
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// While nobody wants packets they stay in the device's queue, and no more
// than fit there.
func TestUnreadTUNKeepsItsQueue(t *testing.T) {
	namespace(t)
	b := overTUN(t, "keep0")
	up(t, "keep0")
	socket, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(peer4, 9)))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	for i := range 3 * tun.TxQueueLen {
		if _, err := socket.Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	client := b.connect(t)
	eventually(t, "the queue is read", func() bool {
		s := b.Statistics()
		// The interface's own router solicitations take some of the room.
		return s["txPackets"]+s["dropped.outSource"]+s["dropped.outDestination"] >= tun.TxQueueLen
	})
	if got := b.Statistics()["txPackets"]; got > tun.TxQueueLen || got < tun.TxQueueLen-20 {
		t.Errorf("%d packets were kept, want about %d", got, tun.TxQueueLen)
	}
	if got := get(t, client); got[len(got)-1] != 0 {
		t.Errorf("the first is %x", got)
	}
}

func TestCloseRemovesTheInterface(t *testing.T) {
	namespace(t)
	for range 5 {
		b := overTUN(t, "close0")
		up(t, "close0")
		client := b.connect(t)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := netlink.LinkByName("close0"); err == nil {
			t.Error("it is still there")
		}
		closed(t, client)
	}
}
