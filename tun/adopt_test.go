package tun_test

import (
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun"
	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// kept is the copy of a descriptor that outlives the process.
func kept(tb testing.TB, f syscall.Conn) *os.File {
	tb.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	var fd int
	raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		tb.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "kept")
	tb.Cleanup(func() { file.Close() })
	return file
}

// TestAdopt: a device goes on with its addresses and routes, and what was sent
// while nobody served it arrives.
func TestAdopt(t *testing.T) {
	namespace(t)
	d := open(t, "adopt0")
	up(t, "adopt0")
	copied := kept(t, d)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	socket, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: peer4.AsSlice(), Port: 9})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if _, err := socket.Write([]byte("meanwhile")); err != nil {
		t.Fatal(err)
	}

	again, err := tun.Adopt(copied)
	if err != nil {
		t.Fatal(err)
	}
	if again.Name() != d.Name() || again.Index() != d.Index() || again.Offload() != d.Offload() || again.Offload() != vnet.OffloadAll {
		t.Errorf("%s %d %d, was %s %d %d", again.Name(), again.Index(), again.Offload(), d.Name(), d.Index(), d.Offload())
	}
	b := overDevice(t, again)
	client := b.connect(t)
	for {
		if packet := get(t, client); strings.HasSuffix(string(packet), "meanwhile") {
			break
		} else if packet[0]>>4 == 4 {
			t.Errorf("got %x", packet)
		}
	}
	put(t, client, tuntest.Echo(peer4, own4, 5, 1, []byte("ping")))
	if reply := get(t, client); !strings.HasSuffix(string(reply), "ping") {
		t.Errorf("the reply is %x", reply)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, err := netlink.LinkByName("adopt0"); err == nil {
		t.Error("it is still there")
	}
}

func TestAdoptRefuses(t *testing.T) {
	namespace(t)
	d := open(t, "adopt0")
	copied := kept(t, d)
	if err := netlink.LinkDel(link(t, "adopt0")); err != nil {
		t.Fatal(err)
	}
	if _, err := tun.Adopt(copied); err == nil {
		t.Error("a device that was deleted")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := tun.Adopt(r); err == nil {
		t.Error("a pipe")
	}
	if _, err := r.Stat(); err == nil {
		t.Error("a file that was refused is open")
	}
	tap, err := os.OpenFile("/dev/net/tun", os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	request, err := unix.NewIfreq("adopt1")
	if err != nil {
		t.Fatal(err)
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(int(tap.Fd()), unix.TUNSETIFF, request); err != nil {
		t.Fatal(err)
	}
	if _, err := tun.Adopt(tap); err == nil {
		t.Error("a TAP")
	}
}

// TestCloseEndsKeptChannel: the client sees the end though a copy of our end
// is open.
func TestCloseEndsKeptChannel(t *testing.T) {
	b := newBench(t).configure(t)
	attach := func() (*os.File, *os.File) {
		ours, theirs, err := tun.NewChannel(tun.FormatPacket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { theirs.Close() })
		copied := kept(t, ours)
		if err := b.Attach(ours, tun.FormatPacket); err != nil {
			t.Fatal(err)
		}
		return copied, theirs
	}
	if b.Attached() {
		t.Error("attached from the start")
	}
	_, first := attach()
	copied, second := attach()
	closed(t, first)
	if !b.Attached() {
		t.Error("not attached")
	}
	// The same socket once more is not closed.
	if err := b.Attach(kept(t, copied), tun.FormatPacket); err != nil {
		t.Fatal(err)
	}
	put(t, second, tuntest.Echo(peer4, own4, 1, 1, nil))
	b.counts(t, "rxPackets", 1)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	closed(t, second)
}
