package tun_test

import (
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun"
	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
)

// BenchmarkTUN moves small packets between the kernel and a client over a
// real TUN, through a Tunnel and, for comparison, through two goroutines that
// read one packet of a plain TUN and write it. Packets that the kernel drops because the
// device's queue is full count for nothing.
func BenchmarkTUN(b *testing.B) {
	for name, start := range map[string]func(testing.TB, string) (*os.File, func() uint64){
		"tunnel": startTunnel,
		"copy":   startCopy,
	} {
		b.Run("client→host/"+name, func(b *testing.B) {
			namespace(b)
			client, passed := start(b, "bench0")
			up(b, "bench0")
			packet := tuntest.Datagram(netip.AddrPortFrom(peer4, 9), netip.AddrPortFrom(own4, 9), make([]byte, 64))
			// Somebody who wants them, or the kernel would answer each.
			socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(own4, 9)))
			if err != nil {
				b.Fatal(err)
			}
			defer socket.Close()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.Write(packet); err != nil {
					b.Fatal(err)
				}
			}
			eventually(b, "all have passed", func() bool { return passed() >= uint64(b.N) })
		})
		b.Run("host→client/"+name, func(b *testing.B) {
			namespace(b)
			client, _ := start(b, "bench0")
			up(b, "bench0")
			socket, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(peer4, 9)))
			if err != nil {
				b.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				for payload := make([]byte, 64); ; {
					if _, err := socket.Write(payload); err != nil {
						return
					}
				}
			}()
			b.ReportAllocs()
			buffer := make([]byte, 2000)
			for b.Loop() {
				if _, err := client.Read(buffer); err != nil {
					b.Fatal(err)
				}
			}
			socket.Close()
			<-done
		})
	}
}

func startTunnel(tb testing.TB, name string) (client *os.File, passed func() uint64) {
	tb.Helper()
	x := &bench{}
	var err error
	if x.Tunnel, err = tun.New(open(tb, name), tun.Events{}); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { x.Close() })
	client = x.configure(tb).connect(tb)
	return client, func() uint64 {
		s := x.Statistics()
		return s["rxPackets"] + s["dropped.write"]
	}
}

func startCopy(tb testing.TB, name string) (client *os.File, passed func() uint64) {
	tb.Helper()
	ours, theirs, err := tun.NewChannel(tun.FormatPacket)
	if err != nil {
		tb.Fatal(err)
	}
	d, err := tun.OpenBy(name, failing("reopen"))
	if err != nil {
		tb.Fatal(err)
	}
	raw, err := d.SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	var device *os.File
	raw.Control(func(fd uintptr) {
		own, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			tb.Fatal(err)
		}
		device = os.NewFile(uintptr(own), "tun")
	})
	d.Close()
	var in, out atomic.Uint64
	move := func(from, to *os.File, n *atomic.Uint64) {
		for buffer := make([]byte, 2000); ; n.Add(1) {
			size, err := from.Read(buffer)
			if err != nil {
				return
			}
			_, _ = to.Write(buffer[:size])
		}
	}
	go move(ours, device, &in)
	go move(device, ours, &out)
	tb.Cleanup(func() { theirs.Close(); ours.Close(); device.Close() })
	return theirs, in.Load
}
