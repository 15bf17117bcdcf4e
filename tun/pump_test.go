package tun_test

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"testing"

	"github.com/vpnprovider/vpnproviderd/tun"
	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// TestPumpAllocatesNothing counts what all goroutines allocate while packets
// go through, also refused ones.
func TestPumpAllocatesNothing(t *testing.T) {
	b := newBench(t).configure(t)
	client := b.connect(t)
	in, out := echo(peer4, own4, 1), echo(own4, peer4, 1)
	badIn, badOut := echo(peer4, peer4, 1), echo(peer4, peer4, 1)
	deadline(t, client)
	deadline(t, b.host)
	buffer := make([]byte, 2000)
	through := func(from, to *os.File, bad, good []byte) {
		for range 100 {
			from.Write(bad)
			from.Write(good)
			if _, err := to.Read(buffer); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := testing.AllocsPerRun(20, func() { through(client, b.host, badIn, in) }); n != 0 {
		t.Errorf("client → host: %v allocations in 200 packets", n)
	}
	if n := testing.AllocsPerRun(20, func() { through(b.host, client, badOut, out) }); n != 0 {
		t.Errorf("host → client: %v allocations in 200 packets", n)
	}
	b.SetSink(func([]byte) error { return nil })
	client.Close()
	wait(t, b.ended)
	if n := testing.AllocsPerRun(20, func() {
		for range 100 {
			b.host.Write(out)
		}
	}); n != 0 {
		t.Errorf("host → sink: %v allocations in 100 packets", n)
	}
}

// TestOffloadPumpAllocatesNothing is the same with super-packets, which are
// split or passed on, merged, and taken apart for a TUN that has none.
func TestOffloadPumpAllocatesNothing(t *testing.T) {
	for _, offload := range []vnet.Offload{vnet.NoOffload, vnet.OffloadAll} {
		for _, format := range []tun.Format{tun.FormatPacket, tun.FormatOffload} {
			b := newOffloadBench(t, offload).configure(t)
			client := b.connectBy(t, format)
			deadline(t, client)
			deadline(t, b.host)
			buffer := make([]byte, vnet.MaxMessage)
			through := func(what string, from, to *os.File, header bool, p pair, mark []byte) {
				sent := append(p.packets(20), mark)
				if header {
					sent = append(messages(sent[:20]), p.super(20, 1000), partialOf(p, []byte("partial")), message(vnet.Header{}, mark))
				}
				if n := testing.AllocsPerRun(20, func() {
					for _, m := range sent {
						from.Write(m)
					}
					for {
						n, err := to.Read(buffer)
						if err != nil {
							t.Fatal(err)
						}
						if bytes.HasSuffix(buffer[:n], mark) {
							return
						}
					}
				}); n != 0 {
					t.Errorf("%s, format %d, TUN %d: %v allocations", what, format, offload, n)
				}
			}
			for i := range 4 {
				through("client → host", client, b.host, format == tun.FormatOffload, pairs(false)[i], echo(peer4, own4, 1))
				through("host → client", b.host, client, offload != vnet.NoOffload, pairs(true)[i], echo(own4, peer4, 1))
			}
			b.Close()
		}
	}
}

// BenchmarkPump moves full packets through a tunnel in memory, where the
// stand-in for the TUN costs a socket's message where a TUN would cost less.
func BenchmarkPump(b *testing.B) {
	run := func(b *testing.B, from, to *os.File, packet []byte) {
		b.Helper()
		b.SetBytes(int64(len(packet)))
		b.ReportAllocs()
		b.ResetTimer()
		go func() {
			for range b.N {
				if _, err := from.Write(packet); err != nil {
					return
				}
			}
		}()
		buffer := make([]byte, 2000)
		for range b.N {
			if _, err := to.Read(buffer); err != nil {
				b.Fatal(err)
			}
		}
	}
	tunnel := func(b *testing.B) (*bench, *os.File) {
		b.Helper()
		x := newBench(b).configure(b)
		return x, x.connect(b)
	}
	payload := make([]byte, 1400)
	b.Run("client→host", func(b *testing.B) {
		x, client := tunnel(b)
		run(b, client, x.host, tuntest.Echo(peer4, own4, 1, 1, payload))
	})
	b.Run("host→client", func(b *testing.B) {
		x, client := tunnel(b)
		run(b, x.host, client, tuntest.Echo(own4, peer4, 1, 1, payload))
	})
	b.Run("socketpair", func(b *testing.B) { // without a tunnel
		one, other, err := tun.NewChannel(tun.FormatPacket)
		if err != nil {
			b.Fatal(err)
		}
		defer one.Close()
		defer other.Close()
		run(b, one, other, tuntest.Echo(own4, peer4, 1, 1, payload))
	})
}

// openFiles counts the descriptors of this process.
func openFiles(tb testing.TB) int {
	tb.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(list)
}

// A thousand tunnels that begin and end, in use, with a capture and in the
// middle of a channel's change, leave no descriptor and no goroutine.
func TestManyTunnelsLeakNothing(t *testing.T) {
	use := func(t *testing.T) {
		t.Helper()
		b := newOffloadBench(t, vnet.OffloadAll).configure(t)
		stream, err := b.Capture("vpn0")
		if err != nil {
			t.Fatal(err)
		}
		for _, format := range formats() {
			client := b.connectBy(t, format)
			put(t, b.host, pairs(true)[0].super(20, 1000))
			get(t, client)
		}
		if err := errors.Join(b.Close(), b.host.Close(), stream.Close()); err != nil {
			t.Error(err)
		}
	}
	t.Run("before", use) // what the runtime opens once
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	for range 10 {
		t.Run("", func(t *testing.T) { // its channels' ends close with it
			for range 100 {
				use(t)
			}
		})
	}
	eventually(t, "all descriptors and goroutines are gone", func() bool {
		return openFiles(t) <= files && runtime.NumGoroutine() <= goroutines
	})
}
