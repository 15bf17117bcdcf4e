package tun_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun"
	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
)

// block is one of a pcapng stream.
type block struct {
	kind    uint32
	body    []byte
	options map[uint16][]byte // of a packet or statistics
}

// data is a packet's.
func (b block) data() []byte { return b.body[20:][:binary.LittleEndian.Uint32(b.body[12:])] }

func (b block) number(option uint16) (n uint64) {
	for i, c := range b.options[option] {
		n |= uint64(c) << (8 * i)
	}
	return n
}

// nextBlock reads one block and checks its form.
func nextBlock(tb testing.TB, r io.Reader) (b block, ok bool) {
	tb.Helper()
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); errors.Is(err, io.EOF) {
		return b, false
	} else if err != nil {
		tb.Fatal(err)
	}
	b.kind = binary.LittleEndian.Uint32(head[:])
	length := binary.LittleEndian.Uint32(head[4:])
	b.body = make([]byte, length-8)
	if _, err := io.ReadFull(r, b.body); err != nil {
		tb.Fatal(err)
	}
	if n := binary.LittleEndian.Uint32(b.body[len(b.body)-4:]); length%4 != 0 || n != length {
		tb.Fatalf("block %#x of %d bytes says %d at its end", b.kind, length, n)
	}
	b.body = b.body[:len(b.body)-4]
	options := map[uint32]int{1: 8, 5: 12}[b.kind]
	if b.kind == 6 {
		options = 20 + (len(b.data())+3)&^3
	}
	b.options = make(map[uint16][]byte)
	for left := b.body[options:]; b.kind < 10 && len(left) > 4; {
		n := int(binary.LittleEndian.Uint16(left[2:]))
		b.options[binary.LittleEndian.Uint16(left)] = left[4:][:n]
		left = left[4+(n+3)&^3:]
	}
	return b, true
}

// capture begins a capture and reads what comes before its packets.
func (b *bench) capture(tb testing.TB) *os.File {
	tb.Helper()
	stream, err := b.Capture("vpn7x")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { stream.Close() })
	section, _ := nextBlock(tb, stream)
	device, _ := nextBlock(tb, stream)
	if section.kind != 0x0a0d0d0a || device.kind != 1 || binary.LittleEndian.Uint16(device.body) != 101 || string(device.options[2]) != "vpn7x" {
		tb.Fatalf("it begins with %v %v", section, device)
	}
	return stream
}

// Packets are in a capture as they passed, with time and direction, and those
// that were refused are not. The last block counts.
func TestCapture(t *testing.T) {
	b := newBench(t).configure(t)
	client := b.connect(t)
	stream := b.capture(t)
	in, out, sent := echo(peer4, own4, 1), echo(own4, peer4, 1), echo(peer6, own6, 2)
	before := time.Now().Truncate(time.Microsecond)
	put(t, client, echo(peer4, peer4, 1)) // refused
	put(t, client, in)
	get(t, b.host)
	put(t, b.host, out)
	get(t, client)
	if err := b.Send(sent); err != nil {
		t.Fatal(err)
	}
	for i, want := range [][]byte{in, out, sent} {
		p, ok := nextBlock(t, stream)
		us := int64(binary.LittleEndian.Uint32(p.body[4:]))<<32 | int64(binary.LittleEndian.Uint32(p.body[8:]))
		flags := []uint64{1, 2, 1}[i]
		if !ok || p.kind != 6 || !bytes.Equal(p.data(), want) || p.number(2) != flags || time.UnixMicro(us).Before(before) || time.UnixMicro(us).After(time.Now()) {
			t.Fatalf("packet %d is %+v, want %x", i, p, want)
		}
	}
	b.Close()
	last, _ := nextBlock(t, stream)
	if last.kind != 5 || last.number(4) != 3 || last.number(5) != 0 {
		t.Errorf("the last block is %+v", last)
	}
	if more, ok := nextBlock(t, stream); ok {
		t.Errorf("%+v after the end", more)
	}
}

// A sink's packets are in a capture, too.
func TestCaptureOfSink(t *testing.T) {
	b := newBench(t).configure(t)
	b.SetSink(func([]byte) error { return nil })
	stream := b.capture(t)
	out := echo(own4, peer4, 1)
	put(t, b.host, out)
	if p, _ := nextBlock(t, stream); !bytes.Equal(p.data(), out) {
		t.Errorf("%+v", p)
	}
}

// A reader that does not read holds up nothing; it learns what it has missed.
func TestSlowCapture(t *testing.T) {
	b := newBench(t).configure(t)
	client := b.connect(t)
	stream := b.capture(t)
	out := tuntest.Datagram(netip.AddrPortFrom(own4, 1), netip.AddrPortFrom(peer4, 2), make([]byte, 1372))
	const packets = 3000 // of 1400 bytes: more than the pipe and both buffers hold
	for range packets {
		put(t, b.host, out)
		get(t, client)
	}
	read, lost := 0, uint64(0)
	for uint64(read)+lost < packets {
		put(t, b.host, out) // the count comes with a packet
		get(t, client)
		p, _ := nextBlock(t, stream)
		if !bytes.Equal(p.data(), out) {
			t.Fatalf("packet %d: %+v", read, p)
		}
		read++
		lost += p.number(4)
	}
	if lost == 0 {
		t.Errorf("of %d packets all waited", packets)
	}
}

// There are not too many, one that is closed makes room for another, also
// without a packet, and none outlives the tunnel.
func TestCaptures(t *testing.T) {
	b := newBench(t).configure(t)
	var all []*os.File
	for range tun.MaxCaptures {
		all = append(all, b.capture(t))
	}
	if _, err := b.Capture("vpn0"); !errors.Is(err, tun.ErrCaptures) {
		t.Fatalf("one too many: %v", err)
	}
	all[1].Close()
	eventually(t, "room for one more", func() bool {
		stream, err := b.Capture("vpn0")
		if err == nil {
			all[1] = stream
			t.Cleanup(func() { stream.Close() })
		}
		return err == nil
	})
	b.Close()
	for _, stream := range all {
		if _, err := io.Copy(io.Discard, stream); err != nil {
			t.Error(err)
		}
	}
	if _, err := b.Capture("vpn0"); !errors.Is(err, tun.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// The pipe is one as programs expect it: reads block, and nothing inherits it.
func TestCaptureIsAPlainPipe(t *testing.T) {
	b := newBench(t)
	stream := b.capture(t)
	raw, err := stream.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		flags, _ := unix.FcntlInt(fd, unix.F_GETFL, 0)
		inherit, _ := unix.FcntlInt(fd, unix.F_GETFD, 0)
		if flags&unix.O_NONBLOCK != 0 || inherit&unix.FD_CLOEXEC == 0 {
			t.Errorf("flags %#x, %#x", flags, inherit)
		}
	})
}

// A capture allocates nothing for a packet.
func TestCaptureAllocatesNothing(t *testing.T) {
	b := newBench(t).configure(t)
	client := b.connect(t)
	stream := b.capture(t)
	go io.Copy(io.Discard, stream)
	deadline(t, client)
	deadline(t, b.host)
	in, buffer := echo(peer4, own4, 1), make([]byte, 2000)
	if n := testing.AllocsPerRun(20, func() {
		for range 100 {
			client.Write(in)
			b.host.Read(buffer)
		}
	}); n != 0 {
		t.Errorf("%v allocations in 100 packets", n)
	}
}
