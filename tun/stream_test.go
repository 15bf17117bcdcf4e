package tun_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun"
	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// framed are packets as a stream has them.
func framed(packets ...[]byte) (b []byte) {
	for _, p := range packets {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(p))), p...)
	}
	return b
}

// getFramed reads one packet of a stream.
func getFramed(tb testing.TB, f *os.File) []byte {
	tb.Helper()
	deadline(tb, f)
	head := make([]byte, 2)
	_, err := io.ReadFull(f, head)
	packet := make([]byte, binary.BigEndian.Uint16(head))
	if err == nil {
		_, err = io.ReadFull(f, packet)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return packet
}

func expectFramed(tb testing.TB, what string, f *os.File, want [][]byte) {
	tb.Helper()
	for i, w := range want {
		if got := getFramed(tb, f); !bytes.Equal(got, w) {
			tb.Fatalf("%s: %d of %d is %d bytes, want %d:\n%.100x\n%.100x", what, i, len(want), len(got), len(w), got, w)
		}
	}
	nothing(tb, f)
}

// ofSize is a packet of the host's, or for it, with that many bytes in all.
func ofSize(size int, toClient bool) []byte {
	from, to := peer4, own4
	if toClient {
		from, to = own4, peer4
	}
	return tuntest.Echo(from, to, 1, uint16(size), bytes.Repeat([]byte{byte(size)}, size-28))
}

func TestStream(t *testing.T) {
	b := newBench(t).configure(t)
	client := b.connectBy(t, tun.FormatStream)
	var in, out [][]byte
	bytesIn := 0
	for size := 28; size <= 1500; size += 46 {
		in, out = append(in, ofSize(size, false)), append(out, ofSize(size, true))
		bytesIn += size
	}
	put(t, client, framed(in...))
	expect(t, "client → host", b.host, in)
	for _, p := range out {
		put(t, b.host, p)
	}
	expectFramed(t, "host → client", client, out)
	b.counts(t, "rxPackets", uint64(len(in)))
	b.counts(t, "rxBytes", uint64(bytesIn))
	b.counts(t, "txPackets", uint64(len(out)))
	b.counts(t, "txBytes", uint64(bytesIn))
}

// A stream has no bounds: a length and a packet come in any pieces, and many
// packets in one.
func TestStreamInPieces(t *testing.T) {
	b := newBench(t).configure(t)
	client := b.connectBy(t, tun.FormatStream)
	var all [][]byte
	for i := range 300 { // more than go at once
		all = append(all, ofSize(28+i%3, false))
	}
	whole := framed(all...)
	for _, piece := range []int{1, 2, 3, 31, 1000, len(whole)} {
		sent := make(chan error, 1)
		go func() {
			for part := range slices.Chunk(whole, piece) {
				if _, err := client.Write(part); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		deadline(t, client)
		expect(t, "in pieces of "+strconv.Itoa(piece), b.host, all)
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
}

// What the filter refuses costs nothing but itself: what follows is in order.
func TestStreamRefused(t *testing.T) {
	b := newBench(t).configure(t)
	client := b.connectBy(t, tun.FormatStream)
	good := ofSize(100, false)
	long := tuntest.Echo(peer4, own4, 1, 1, make([]byte, 1473))
	longest := bytes.Repeat([]byte{0x45}, 0xffff)
	put(t, client, framed(long, good, []byte{0x45}, good, ofSize(100, true), good))
	expect(t, "good packets", b.host, [][]byte{good, good, good})
	for range 3 { // they do not fit the socket's buffer together
		put(t, client, framed(longest))
	}
	put(t, client, framed(good))
	expect(t, "after the longest", b.host, [][]byte{good})
	b.counts(t, "dropped.tooBig", 4)
	b.counts(t, "dropped.length", 1)
	b.counts(t, "dropped.destination", 1)
	b.counts(t, "rxPackets", 4)
}

func TestStreamEnds(t *testing.T) {
	good := ofSize(100, false)
	for _, tt := range []struct {
		name string
		do   func(client *os.File)
		end  string
	}{
		{"closed", func(client *os.File) { client.Close() }, io.EOF.Error()},
		{"shut down", func(client *os.File) { shutdown(client, unix.SHUT_WR) }, io.EOF.Error()},
		{"closed within a packet", func(client *os.File) {
			client.Write(framed(good)[:50])
			client.Close()
		}, io.ErrUnexpectedEOF.Error()},
		{"closed within a length", func(client *os.File) {
			client.Write([]byte{0})
			client.Close()
		}, io.ErrUnexpectedEOF.Error()},
		{"length 0", func(client *os.File) { client.Write(slices.Concat(framed(good), []byte{0, 0}, framed(good))) }, "without a packet"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t).configure(t)
			client := b.connectBy(t, tun.FormatStream)
			put(t, client, framed(good))
			tt.do(client)
			if err := wait(t, b.ended); !strings.Contains(err.Error(), tt.end) {
				t.Errorf("it ended with %v, want %s", err, tt.end)
			}
			want := [][]byte{good}
			if tt.end == "without a packet" {
				want = append(want, good)
			}
			expect(t, "packets before", b.host, want)
			// And another takes its place.
			client = b.connectBy(t, tun.FormatStream)
			put(t, client, framed(good))
			expect(t, "packets after", b.host, [][]byte{good})
		})
	}
}

func shutdown(f *os.File, how int) {
	raw, err := f.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), how) })
	}
	if err != nil {
		panic(err)
	}
}

// A client that reads little by little gets every packet that the channel took,
// whole and in order; what it does not read waits in the TUN.
func TestStreamSlowReader(t *testing.T) {
	b := newBench(t).configure(t)
	ours, client, err := tun.NewChannel(tun.FormatStream)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	// So small that packets are sent in parts.
	raw, err := ours.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 1) })
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Attach(ours, tun.FormatStream); err != nil {
		t.Fatal(err)
	}
	const count = 400
	packet := func(i int) []byte {
		return tuntest.Echo(own4, peer4, 2, uint16(i), bytes.Repeat([]byte{byte(i)}, i*37%1450))
	}
	sent := make(chan error, 1)
	go func() {
		b.host.SetWriteDeadline(time.Now().Add(patience))
		for i := range count {
			if _, err := b.host.Write(packet(i)); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	deadline(t, client)
	var got []byte
	for want := count; want > 0; {
		b := make([]byte, 1+len(got)%700)
		n, err := client.Read(b)
		if err != nil {
			t.Fatalf("%d packets to go: %v", want, err)
		}
		got = append(got, b[:n]...)
		for len(got) > 1 && len(got) >= 2+int(binary.BigEndian.Uint16(got)) {
			p := got[2:][:binary.BigEndian.Uint16(got)]
			if i := count - want; !bytes.Equal(p, packet(i)) {
				t.Fatalf("packet %d is another", i)
			}
			got, want = got[2+len(p):], want-1
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	b.counts(t, "txPackets", count)
}

// A channel that ends within a packet leaves it to the next, whole.
func TestStreamReplacedWithinAPacket(t *testing.T) {
	for _, next := range []tun.Format{tun.FormatStream, tun.FormatPacket} {
		b := newBench(t).configure(t)
		former := b.connectBy(t, tun.FormatStream)
		packet := func(i int) []byte { return tuntest.Echo(own4, peer4, 1, uint16(i), make([]byte, 1400)) }
		sent := b.fill(t, packet)
		client := b.connectBy(t, next)
		deadline(t, former)
		had, err := io.ReadAll(former)
		if err != nil {
			t.Fatal(err)
		}
		var want [][]byte
		for i := range sent { // and then it has a part of one
			if rest, whole := bytes.CutPrefix(had, framed(packet(i))); whole {
				had = rest
			} else {
				want = append(want, packet(i))
			}
		}
		if len(want) == 0 || !bytes.HasPrefix(framed(want[0]), had) {
			t.Fatalf("the former had %x, and not %d packets", had, len(want))
		}
		if next == tun.FormatStream {
			expectFramed(t, "the rest", client, want)
		} else {
			expect(t, "the rest", client, want)
		}
		if len(b.ended) > 0 {
			t.Error("replacing was reported:", <-b.ended)
		}
	}
}

// Super-packets are split for a stream, each packet behind its length, and its
// packets are merged.
func TestStreamOfSuperPackets(t *testing.T) {
	b := newOffloadBench(t, vnet.OffloadAll).configure(t)
	client := b.connectBy(t, tun.FormatStream)
	packets, size := 0, 0
	for _, p := range pairs(true) {
		complete := p.packet(0, 1000, []byte("partial"))
		put(t, b.host, p.super(50, 1000))
		put(t, b.host, partialOf(p, []byte("partial")))
		expectFramed(t, p.name, client, append(p.packets(50), complete))
		packets, size = packets+51, size+50*(p.headers+1000)+len(complete)
		b.counts(t, "txPackets", uint64(packets))
		b.counts(t, "txBytes", uint64(size))
	}
	for _, p := range pairs(false) {
		put(t, client, framed(p.packets(20)...))
		want := p.super(20, 1000)
		got := get(t, b.host)
		if vnet.Decode(got).GSOType != vnet.Decode(want).GSOType || len(got) != len(want) {
			t.Errorf("%s: %d bytes, want %d\n%.60x\n%.60x", p.name, len(got), len(want), got, want)
		}
		nothing(t, b.host)
	}
}

func TestStreamCapture(t *testing.T) {
	b := newBench(t).configure(t)
	client := b.connectBy(t, tun.FormatStream)
	stream := b.capture(t)
	in, out := ofSize(100, false), ofSize(200, true)
	put(t, client, framed(in))
	get(t, b.host)
	put(t, b.host, out)
	getFramed(t, client)
	for _, want := range [][]byte{in, out} {
		if p, ok := nextBlock(t, stream); !ok || p.kind != 6 || !bytes.Equal(p.data(), want) {
			t.Fatalf("captured %+v, want %x", p, want)
		}
	}
}

// Descriptors that a client sends along are closed.
func TestStreamTakesNoDescriptors(t *testing.T) {
	for _, format := range []tun.Format{tun.FormatPacket, tun.FormatStream} {
		b := newBench(t).configure(t)
		client := b.connectBy(t, format)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.FileConn(client)
		if err != nil {
			t.Fatal(err)
		}
		message := ofSize(100, false)
		if format == tun.FormatStream {
			message = framed(message)
		}
		for range 5 {
			if _, _, err := conn.(*net.UnixConn).WriteMsgUnix(message, unix.UnixRights(int(w.Fd())), nil); err != nil {
				t.Fatal(err)
			}
			get(t, b.host)
		}
		conn.Close()
		w.Close()
		deadline(t, r)
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("somebody still has the descriptor: %v", err)
		}
		r.Close()
	}
}

func TestStreamAllocatesNothing(t *testing.T) {
	for _, offload := range []vnet.Offload{vnet.NoOffload, vnet.OffloadAll} {
		b := newOffloadBench(t, offload).configure(t)
		client := b.connectBy(t, tun.FormatStream)
		deadline(t, client)
		deadline(t, b.host)
		p := pairs(true)[0]
		mark, burst := ofSize(100, true), p.packets(20)
		if offload != vnet.NoOffload {
			mark, burst = message(vnet.Header{}, mark), [][]byte{p.super(20, 1000)}
		}
		buffer, want := make([]byte, 1<<17), len(framed(p.packets(20)...))+102
		if n := testing.AllocsPerRun(20, func() {
			for _, m := range burst {
				b.host.Write(m)
			}
			b.host.Write(mark)
			if _, err := io.ReadFull(client, buffer[:want]); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("host → client, TUN %d: %v allocations", offload, n)
		}
		in := framed(append(pairs(false)[0].packets(20), ofSize(100, false))...)
		if n := testing.AllocsPerRun(20, func() {
			for part := range slices.Chunk(in, 5000) {
				client.Write(part)
			}
			for {
				n, err := b.host.Read(buffer)
				if err != nil {
					t.Fatal(err)
				}
				if n < 200 {
					return
				}
			}
		}); n != 0 {
			t.Errorf("client → host, TUN %d: %v allocations", offload, n)
		}
		b.Close()
	}
}
