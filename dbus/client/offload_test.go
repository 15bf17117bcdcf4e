package client_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/tun"
	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

var (
	here4, there4 = netip.MustParseAddrPort("10.9.0.2:1000"), netip.MustParseAddrPort("10.20.1.1:2000")
	here6, there6 = netip.MustParseAddrPort("[fd00:9::2]:1000"), netip.MustParseAddrPort("[fd00:20::1]:2000")
)

// offloadChannel is a channel of the format "offload" and the daemon's end.
func offloadChannel(t testing.TB) (*client.Channel, *os.File) {
	t.Helper()
	daemon, theirs, err := tun.NewChannel(tun.FormatOffload)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(theirs.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	ch := client.NewOffloadChannel(t, fd)
	t.Cleanup(func() { _, _ = ch.Close(), daemon.Close() })
	if err := daemon.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return ch, daemon
}

// segments are packets of one TCP connection.
func segments(from, to netip.AddrPort, count, size int) (packets [][]byte) {
	for i := range count {
		p := tuntest.Segment(from, to, uint32(i*size), tuntest.ACK, nil, bytes.Repeat([]byte{byte(i)}, size))
		if from.Addr().Is4() {
			binary.BigEndian.PutUint16(p[4:], uint16(i))
			tuntest.FixHeader(p)
		}
		packets = append(packets, p)
	}
	return packets
}

// datagrams are 40 packets of one UDP flow.
func datagrams(from, to netip.AddrPort) (packets [][]byte) {
	for i := range 40 {
		p := tuntest.Datagram(from, to, bytes.Repeat([]byte{byte(i)}, 1200))
		if from.Addr().Is4() {
			binary.BigEndian.PutUint16(p[4:], uint16(i))
			tuntest.FixHeader(p)
		}
		packets = append(packets, p)
	}
	return packets
}

// merged is the first message that packets are merged to.
func merged(merge *vnet.Coalescer, packets [][]byte) (message []byte) {
	merge.Reset()
	for _, p := range packets {
		merge.Add(p)
	}
	for _, v := range merge.Vectors(0, nil) {
		message = append(message, unsafe.Slice(v.Base, v.Len)...)
	}
	return message
}

func readMessage(t testing.TB, f *os.File) []byte {
	t.Helper()
	b := make([]byte, vnet.MaxMessage)
	n, err := f.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// readAll reads count packets with so many buffers a call.
func readAll(t testing.TB, ch *client.Channel, count, buffersACall int) (packets [][]byte) {
	t.Helper()
	bufs, sizes := buffers(buffersACall, 2048)
	for len(packets) < count {
		n, err := ch.ReadPackets(bufs, sizes)
		if err != nil || n == 0 {
			t.Fatal(n, err)
		}
		for i := range n {
			packets = append(packets, bytes.Clone(bufs[i][:sizes[i]]))
		}
	}
	return packets
}

func TestOffloadChannelPutsPacketsTogether(t *testing.T) {
	ch, daemon := offloadChannel(t)
	equal(t, ch.Info().Format, "packet")
	equal(t, ch.Info().MaxMessage >= 65535, true)
	for _, packets := range [][][]byte{
		segments(there4, here4, 40, 1400), segments(there6, here6, 40, 1400), datagrams(there4, here4), datagrams(there6, here6),
	} {
		if n, err := ch.WritePackets(packets); n != 40 || err != nil {
			t.Fatal(n, err)
		}
		var p vnet.Packet
		if err := p.Check(readMessage(t, daemon)); err != nil || p.Segments() != 40 {
			t.Fatalf("%d segments, %v", p.Segments(), err)
		}
		for i, want := range packets {
			headers := make([]byte, p.HeadersLen())
			if got := slices.Concat(headers[:0], p.Segment(i, headers)); !bytes.Equal(append(headers, got...), want) {
				t.Fatalf("packet %d differs", i)
			}
		}
	}
	// More than go at once, of two connections by turns.
	one, other := segments(there4, here4, 300, 100), segments(there6, here6, 300, 100)
	var packets [][]byte
	for i := range one {
		packets = append(packets, one[i], other[i])
	}
	if n, err := ch.WritePackets(packets); n != 600 || err != nil {
		t.Fatal(n, err)
	}
	for total := 0; total < 600; {
		var p vnet.Packet
		if err := p.Check(readMessage(t, daemon)); err != nil || p.Segments() < 44 {
			t.Fatalf("%d segments, %v", p.Segments(), err)
		}
		total += p.Segments()
	}
	// What is no packet goes alone, and what is nothing, or too much, not at all.
	for _, p := range [][]byte{{1}, make([]byte, 65536)} {
		if n, err := ch.Write(p); n != len(p) || err != nil {
			t.Error(n, err)
		}
		if got := readMessage(t, daemon); !bytes.Equal(got, append(make([]byte, vnet.HeaderLen), p...)) {
			t.Errorf("%d bytes came", len(got))
		}
	}
	if _, err := ch.Write(nil); err == nil {
		t.Error("an empty packet was sent")
	}
	if _, err := ch.Write(make([]byte, 65537)); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("a packet that is too long: %v", err)
	}
	if n, err := ch.WritePackets([][]byte{{1}, {2}, {}, {3}}); n != 2 || err == nil {
		t.Errorf("WritePackets: %d, %v", n, err)
	}
	for _, want := range []byte{1, 2} {
		if got := readMessage(t, daemon); got[vnet.HeaderLen] != want {
			t.Errorf("%x came", got)
		}
	}
}

func TestOffloadChannelTakesPacketsApart(t *testing.T) {
	ch, daemon := offloadChannel(t)
	merge := vnet.NewCoalescer(128, vnet.OffloadAll)
	for _, packets := range [][][]byte{
		segments(here4, there4, 40, 1400), segments(here6, there6, 40, 1400), datagrams(here4, there4), datagrams(here6, there6),
	} {
		for _, buffersACall := range []int{1, 3, 40, 200} {
			message := merged(merge, packets)
			single := append(make([]byte, vnet.HeaderLen), packets[7]...)
			for _, m := range [][]byte{message, single, {1, 2, 3}, append([]byte{0, 77}, single...), message} {
				if _, err := daemon.Write(m); err != nil {
					t.Fatal(err)
				}
			}
			want := slices.Concat(packets, [][]byte{packets[7]}, packets)
			for i, got := range readAll(t, ch, len(want), buffersACall) {
				if !bytes.Equal(got, want[i]) {
					t.Fatalf("%d buffers: packet %d differs: %d bytes", buffersACall, i, len(got))
				}
			}
			// What does not fit is lost, and costs nothing else.
			if _, err := daemon.Write(message); err != nil {
				t.Fatal(err)
			}
			bufs, sizes := buffers(40, 2048)
			bufs[5], bufs[6], bufs[7] = bufs[5][:30], bufs[6][:len(packets[6])-1], bufs[7][:len(packets[7])]
			n, err := ch.ReadPackets(bufs, sizes)
			if n != 40 || err != nil || sizes[5] != 0 || sizes[6] != 0 || !bytes.Equal(bufs[7], packets[7]) || !bytes.Equal(bufs[8][:sizes[8]], packets[8]) {
				t.Errorf("ReadPackets: %d, %v, %v", n, sizes, err)
			}
		}
	}
	if _, err := ch.Read(nil); !errors.Is(err, io.ErrShortBuffer) {
		t.Errorf("Read into nothing: %v", err)
	}
}

// The checksum of a packet that the kernel left to others is complete.
func TestOffloadChannelCompletesChecksums(t *testing.T) {
	ch, daemon := offloadChannel(t)
	want := tuntest.Datagram(here4, there4, []byte("hello"))
	message := append(make([]byte, vnet.HeaderLen), want...)
	vnet.Header{Flags: vnet.NeedsChecksum, ChecksumStart: 20, ChecksumOffset: 6}.Encode(message)
	binary.BigEndian.PutUint16(message[vnet.HeaderLen+26:], tuntest.PseudoSum(want, tuntest.UDP, 20, false))
	if _, err := daemon.Write(message); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, ch, 1, 1); !bytes.Equal(got[0], want) {
		t.Errorf("%x, want %x", got[0], want)
	}
}

func TestOffloadChannelEnds(t *testing.T) {
	t.Run("by the daemon", func(t *testing.T) {
		ch, daemon := offloadChannel(t)
		for range 2 {
			if _, err := daemon.Write(append(make([]byte, vnet.HeaderLen), "last words"...)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := ch.Write([]byte("unread")); err != nil {
			t.Fatal(err)
		}
		daemon.Close()
		bufs, sizes := buffers(1, 100)
		for range 2 {
			if n, err := ch.ReadPackets(bufs, sizes); n != 1 || err != nil || string(bufs[0][:sizes[0]]) != "last words" {
				t.Errorf("ReadPackets: %d, %v", n, err)
			}
		}
		for range 2 {
			if n, err := ch.ReadPackets(bufs, sizes); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("ReadPackets after the end: %d, %v", n, err)
			}
		}
		if _, err := ch.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("Write: %v", err)
		}
	})
	testChannelEnds(t, func(t *testing.T) (*client.Channel, *os.File) {
		t.Helper()
		return offloadChannel(t)
	})
}

func TestOffloadChannelAllocatesNothing(t *testing.T) {
	ch, daemon := offloadChannel(t)
	bufs, sizes := buffers(64, 2048)
	packets := append(segments(there4, here4, 40, 1400), tuntest.Echo(there4.Addr(), here4.Addr(), 1, 1, nil))
	one, buf := packets[40], make([]byte, vnet.MaxMessage)
	if allocs := testing.AllocsPerRun(200, func() {
		if _, err := ch.WritePackets(packets); err != nil {
			t.Fatal(err)
		}
		if _, err := ch.Write(one); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			n, err := daemon.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := daemon.Write(buf[:n]); err != nil {
				t.Fatal(err)
			}
		}
		for got := 0; got < 41; {
			n, err := ch.ReadPackets(bufs[:41-got], sizes)
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
		if n, err := ch.Read(buf); n != len(one) || err != nil {
			t.Fatal(n, err)
		}
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// The format is the daemon's best unless the caller asks for one, and then the
// messages are the caller's.
func TestOpenChannelFormats(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct {
		features []string
		asked    string
		wire     bool // the daemon's end has headers
		info     client.ChannelInfo
		err      error
	}{
		{[]string{"packet"}, "", false, client.ChannelInfo{MTU: 1500, Format: "packet", Batch: 128, MaxMessage: 2048}, nil},
		{[]string{"packet", "offload"}, "", true, client.ChannelInfo{MTU: 1500, Format: "packet", Batch: 128, MaxMessage: 65536}, nil},
		{[]string{"packet", "offload"}, wire.FormatPacket, false, client.ChannelInfo{MTU: 1500, Format: "packet", Batch: 128, MaxMessage: 2048}, nil},
		{[]string{"packet", "offload"}, wire.FormatOffload, false, client.ChannelInfo{MTU: 1500, Format: "offload", Batch: 16, MaxMessage: 65546}, nil},
		{[]string{"packet"}, wire.FormatOffload, false, client.ChannelInfo{}, client.ErrNotSupported},
	} {
		f.service.SetFeatures(c.features...) // told at registration
		err := f.provider.Unregister(t.Context())
		if err == nil {
			f.provider, err = f.client.RegisterProvider(t.Context(), app, client.ProviderOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		s := f.connect(t)
		ch, err := s.OpenChannel(t.Context(), client.ChannelOptions{Format: c.asked})
		if !errors.Is(err, c.err) {
			t.Fatalf("%+v: %v", c, err)
		}
		if err != nil {
			continue
		}
		equal(t, ch.Info(), c.info)
		if _, err := ch.Write([]byte("abc")); err != nil {
			t.Fatal(err)
		}
		want := []byte("abc")
		if c.wire {
			want = append(make([]byte, vnet.HeaderLen), want...)
		}
		if got := readMessage(t, f.service.Channel(s.Path())); !bytes.Equal(got, want) {
			t.Errorf("%+v: the daemon reads %x", c, got)
		}
		_ = ch.Close()
		f.service.End(s.Path(), "")
	}
}

func TestRelayOverOffload(t *testing.T) {
	ch, daemon := offloadChannel(t)
	tool, ours := socketpair(t, unix.SOCK_DGRAM)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- client.Relay(ctx, ch, ours) }()
	go func() { // the daemon echoes
		buf := make([]byte, vnet.MaxMessage)
		for {
			n, err := daemon.Read(buf)
			if err != nil {
				return
			}
			_, _ = daemon.Write(buf[:n])
		}
	}()
	packets := segments(there4, here4, 2000, 1000)
	go func() {
		for _, p := range packets {
			if _, err := tool.Write(p); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 2048)
	for i, want := range packets {
		if n, err := tool.Read(buf); err != nil || !bytes.Equal(buf[:n], want) {
			t.Fatalf("packet %d: %d bytes, %v", i, n, err)
		}
	}
	cancel()
	if err := take(t, ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Relay: %v", err)
	}
}

// device is a TUN in memory that has super-packets.
type device struct{ *tuntest.Device }

func (device) Offload() vnet.Offload { return vnet.OffloadAll }

// The library and the daemon's data path, with nothing between: what one merges
// the other takes apart.
func TestOffloadChannelOnATunnel(t *testing.T) {
	tuns, host, err := tuntest.New()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	tunnel, err := tun.New(device{tuns}, tun.Events{})
	if err != nil {
		t.Fatal(err)
	}
	defer tunnel.Close()
	if err := tunnel.SetPolicy(tun.Policy{
		Addresses: []netip.Addr{here4.Addr(), here6.Addr()}, MTU: 1500,
		Include: []netip.Prefix{netip.PrefixFrom(there4.Addr(), 32), netip.PrefixFrom(there6.Addr(), 128)},
	}); err != nil {
		t.Fatal(err)
	}
	ours, theirs, err := tun.NewChannel(tun.FormatOffload)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(theirs.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	ch := client.NewOffloadChannel(t, fd)
	defer ch.Close()
	if err := tunnel.Attach(ours, tun.FormatOffload); err != nil {
		t.Fatal(err)
	}
	if err := host.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for _, packets := range [][][]byte{
		segments(there4, here4, 40, 1400), segments(there6, here6, 40, 1400), datagrams(there4, here4), datagrams(there6, here6),
	} {
		if _, err := ch.WritePackets(packets); err != nil {
			t.Fatal(err)
		}
		var p vnet.Packet
		if err := p.Check(readMessage(t, host)); err != nil || p.Segments() != 40 {
			t.Fatalf("%d segments, %v", p.Segments(), err)
		}
	}
	merge := vnet.NewCoalescer(128, vnet.OffloadAll)
	for _, packets := range [][][]byte{
		segments(here4, there4, 40, 1400), segments(here6, there6, 40, 1400), datagrams(here4, there4), datagrams(here6, there6),
	} {
		if _, err := host.Write(merged(merge, packets)); err != nil {
			t.Fatal(err)
		}
		for i, got := range readAll(t, ch, 40, 64) {
			if !bytes.Equal(got, packets[i]) {
				t.Fatalf("packet %d differs", i)
			}
		}
	}
	// The last are counted when they have been sent, and read by then.
	for deadline := time.Now().Add(10 * time.Second); tunnel.Statistics()["txPackets"] < 160 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	for name, n := range tunnel.Statistics() {
		if want := map[string]uint64{"rxPackets": 160, "txPackets": 160}[name]; (want > 0 || name[0] == 'd') && n != want {
			t.Errorf("%s is %d", name, n)
		}
	}
}

// One direction of an offload channel, as the daemon fills it.
func BenchmarkReadOffload(b *testing.B) {
	ch, daemon := offloadChannel(b)
	message := merged(vnet.NewCoalescer(128, vnet.OffloadAll), segments(here4, there4, 44, 1400))
	go func() {
		for {
			if _, err := daemon.Write(message); err != nil {
				return
			}
		}
	}()
	bufs, sizes := buffers(128, 2048)
	b.SetBytes(1400)
	b.ReportAllocs()
	for got := 0; got < b.N; {
		n, err := ch.ReadPackets(bufs, sizes)
		if err != nil {
			b.Fatal(err)
		}
		got += n
	}
}

func BenchmarkWriteOffload(b *testing.B) {
	ch, daemon := offloadChannel(b)
	go func() {
		for buf := make([]byte, vnet.MaxMessage); ; {
			if _, err := daemon.Read(buf); err != nil {
				return
			}
		}
	}()
	packets := segments(there4, here4, 128, 1400)
	b.SetBytes(1400)
	b.ReportAllocs()
	for sent := 0; sent < b.N; sent += len(packets) {
		if _, err := ch.WritePackets(packets); err != nil {
			b.Fatal(err)
		}
	}
}
