package client_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// openChannel is a session's channel and the daemon's end of it.
func openChannel(t *testing.T) (*fixture, *client.Session, *client.Channel, *os.File) {
	t.Helper()
	f := newFixture(t)
	s := f.connect(t)
	ch, err := s.OpenChannel(t.Context(), client.ChannelOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ch.Close() })
	return f, s, ch, f.service.Channel(s.Path())
}

// numbered is packet i, of a length that depends on it.
func numbered(i int) []byte {
	p := bytes.Repeat([]byte{byte(i)}, 20+i%1400)
	binary.BigEndian.PutUint32(p, uint32(i))
	return p
}

func buffers(n, size int) ([][]byte, []int) {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, size)
	}
	return bufs, make([]int, n)
}

func TestChannelMovesPacketsInOrder(t *testing.T) {
	_, s, ch, daemon := openChannel(t)
	equal(t, ch.Info(), client.ChannelInfo{MTU: 1500, Format: "packet", Batch: 128, MaxMessage: 2048})
	const n = 5000
	errs := make(chan error, 2)
	go func() { // the daemon echoes, one at a time
		buf := make([]byte, 2048)
		for range n {
			size, err := daemon.Read(buf)
			if err == nil {
				_, err = daemon.Write(buf[:size])
			}
			if err != nil {
				errs <- err
				return
			}
		}
		errs <- nil
	}()
	go func() {
		for i := 0; i < n; {
			var packets [][]byte
			for range 1 + i%300 { // also more than a system call takes
				if i < n {
					packets = append(packets, numbered(i))
					i++
				}
			}
			if sent, err := ch.WritePackets(packets); err != nil || sent != len(packets) {
				errs <- errors.Join(err, errors.New("not all sent"))
				return
			}
		}
		errs <- nil
	}()
	bufs, sizes := buffers(200, ch.Info().MaxMessage)
	for i := 0; i < n; {
		got, err := ch.ReadPackets(bufs, sizes)
		if err != nil {
			t.Fatal(err)
		}
		for j := range got {
			if !bytes.Equal(bufs[j][:sizes[j]], numbered(i)) {
				t.Fatalf("packet %d differs: %d bytes", i, sizes[j])
			}
			i++
		}
	}
	for range 2 {
		if err := take(t, errs); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.SetParameters(t.Context(), client.Parameters{Addresses: prefixes("10.0.0.2/32"), MTU: 1280}); err != nil || ch.MTU() != 1280 {
		t.Errorf("MTU %d, %v", ch.MTU(), err)
	}
}

func TestChannelSinglePackets(t *testing.T) {
	_, _, ch, daemon := openChannel(t)
	if n, err := ch.Write([]byte("abc")); n != 3 || err != nil {
		t.Errorf("Write: %d, %v", n, err)
	}
	buf := make([]byte, 10)
	if n, err := daemon.Read(buf); string(buf[:n]) != "abc" || err != nil {
		t.Errorf("daemon read %q, %v", buf[:n], err)
	}
	if _, err := ch.Write(nil); err == nil {
		t.Error("an empty packet was sent")
	}
	if n, err := ch.WritePackets([][]byte{{1}, {}, {2}}); n != 1 || err == nil {
		t.Errorf("WritePackets: %d, %v", n, err)
	}
	if _, err := daemon.Read(buf); err != nil {
		t.Error(err)
	}
	for _, p := range []string{"0123456789", "0123456789x", "ok"} {
		if _, err := daemon.Write([]byte(p)); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []struct {
		n   int
		err error
	}{{10, nil}, {0, io.ErrShortBuffer}, {2, nil}} {
		if n, err := ch.Read(buf); n != want.n || !errors.Is(err, want.err) {
			t.Errorf("Read: %d, %v, want %v", n, err, want)
		}
	}
	if _, err := ch.Read(nil); !errors.Is(err, io.ErrShortBuffer) {
		t.Errorf("Read into nothing: %v", err)
	}
	// In a batch, what is too long costs nothing else.
	for _, p := range []string{"1", "0123456789x", "22"} {
		if _, err := daemon.Write([]byte(p)); err != nil {
			t.Fatal(err)
		}
	}
	bufs, sizes := buffers(8, 10)
	if n, err := ch.ReadPackets(bufs, sizes); n != 3 || err != nil || sizes[0] != 1 || sizes[1] != 0 || sizes[2] != 2 {
		t.Errorf("ReadPackets: %d, %v, %v", n, sizes, err)
	}
}

func TestChannelEnds(t *testing.T) {
	t.Run("by the session", func(t *testing.T) {
		f, s, ch, daemon := openChannel(t)
		for _, p := range []string{"last", "words"} {
			if _, err := daemon.Write([]byte(p)); err != nil {
				t.Fatal(err)
			}
		}
		// Unread by the daemon: then Linux tells of a reset before the words.
		if _, err := ch.Write([]byte("unread")); err != nil {
			t.Fatal(err)
		}
		f.service.End(s.Path(), "")
		bufs, sizes := buffers(8, 100)
		if n, err := ch.ReadPackets(bufs, sizes); n != 2 || err != nil || string(bufs[1][:sizes[1]]) != "words" {
			t.Errorf("ReadPackets: %d, %v", n, err)
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
		_, _, ch, daemon := openChannel(t)
		return ch, daemon
	})
}

// testChannelEnds is about the ends that are the same whatever the format.
func testChannelEnds(t *testing.T, open func(*testing.T) (ch *client.Channel, daemon *os.File)) {
	t.Helper()
	t.Run("by Close", func(t *testing.T) {
		ch, daemon := open(t)
		result := make(chan error, 1)
		go func() {
			_, err := ch.Read(make([]byte, 10))
			result <- err
		}()
		if err := ch.Close(); err != nil {
			t.Error(err)
		}
		if err := take(t, result); !errors.Is(err, os.ErrClosed) {
			t.Errorf("waiting Read: %v", err)
		}
		if _, err := ch.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Write: %v", err)
		}
		if n, err := daemon.Read(make([]byte, 10)); n != 0 || err != io.EOF {
			t.Errorf("the daemon reads %d, %v", n, err)
		}
	})
	t.Run("by an empty message", func(t *testing.T) {
		ch, daemon := open(t)
		if err := sendEmpty(daemon); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := ch.Read(make([]byte, 10)); !errors.Is(err, io.EOF) {
				t.Errorf("Read: %v", err)
			}
		}
	})
}

func sendEmpty(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	ctlErr := raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), nil, 0, nil) })
	return errors.Join(ctlErr, err)
}

func TestChannelAllocatesNothing(t *testing.T) {
	_, _, ch, daemon := openChannel(t)
	bufs, sizes := buffers(16, 2048)
	packets := [][]byte{numbered(1), numbered(2), numbered(3)}
	one := numbered(4)
	buf := make([]byte, 2048)
	allocs := testing.AllocsPerRun(200, func() {
		if _, err := ch.WritePackets(packets); err != nil {
			t.Fatal(err)
		}
		if _, err := ch.Write(one); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			n, err := daemon.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := daemon.Write(buf[:n]); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := ch.Read(buf); err != nil {
			t.Fatal(err)
		}
		if n, err := ch.ReadPackets(bufs, sizes); n != 3 || err != nil {
			t.Fatal(n, err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func TestAttach(t *testing.T) {
	f := newFixture(t)
	s := f.connect(t)
	ours, theirs := socketpair(t, unix.SOCK_SEQPACKET)
	info, err := s.Attach(t.Context(), theirs)
	if err != nil || info.MTU != 1500 {
		t.Fatalf("Attach: %+v, %v", info, err)
	}
	if _, err := f.service.Channel(s.Path()).Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if n, err := ours.Read(buf); string(buf[:n]) != "hello" || err != nil {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	_, datagram := socketpair(t, unix.SOCK_DGRAM)
	if _, err := s.Attach(t.Context(), datagram); !errors.Is(err, client.ErrInvalidParameter) {
		t.Errorf("a datagram socket: %v", err)
	}
}

func socketpair(t *testing.T, kind int) (a, b *os.File) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(pair[0]), "a"), os.NewFile(uintptr(pair[1]), "b")
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

func TestRelay(t *testing.T) {
	_, _, ch, daemon := openChannel(t)
	tool, ours := socketpair(t, unix.SOCK_DGRAM)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- client.Relay(ctx, ch, ours) }()

	const n = 3000
	errs := make(chan error, 2)
	echo := func(f *os.File) {
		buf := make([]byte, 2048)
		for range n {
			size, err := f.Read(buf)
			if err == nil {
				_, err = f.Write(buf[:size])
			}
			if err != nil {
				errs <- err
				return
			}
		}
		errs <- nil
	}
	go echo(daemon)
	go func() {
		for i := range n {
			if _, err := tool.Write(numbered(i)); err != nil {
				errs <- err
				return
			}
		}
		errs <- nil
	}()
	buf := make([]byte, 2048)
	for i := range n {
		size, err := tool.Read(buf)
		if err != nil || !bytes.Equal(buf[:size], numbered(i)) {
			t.Fatalf("packet %d: %d bytes, %v", i, size, err)
		}
	}
	for range 2 {
		if err := take(t, errs); err != nil {
			t.Error(err)
		}
	}
	// What no channel carries is dropped, and nothing else.
	if err := sendEmpty(tool); err != nil {
		t.Fatal(err)
	}
	for _, p := range [][]byte{make([]byte, 5000), []byte("after")} {
		if _, err := tool.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if size, err := daemon.Read(buf); string(buf[:size]) != "after" || err != nil {
		t.Errorf("the daemon reads %d bytes, %v", size, err)
	}
	cancel()
	if err := take(t, ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Relay: %v", err)
	}
	// Both are open still.
	if _, err := tool.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if size, err := ours.Read(buf); size != 1 || err != nil {
		t.Errorf("read %d, %v", size, err)
	}
	if _, err := daemon.Write([]byte("y")); err != nil {
		t.Error(err)
	}
	if size, err := ch.Read(buf); size != 1 || err != nil {
		t.Errorf("read %d, %v", size, err)
	}
}

func TestRelayAllocatesNothing(t *testing.T) {
	_, _, ch, daemon := openChannel(t)
	tool, ours := socketpair(t, unix.SOCK_DGRAM)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- client.Relay(ctx, ch, ours) }()
	buf := make([]byte, 2048)
	turn := func() { // one packet there and back
		if _, err := tool.Write(buf[:100]); err != nil {
			t.Fatal(err)
		}
		if _, err := daemon.Read(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := daemon.Write(buf[:100]); err != nil {
			t.Fatal(err)
		}
		if _, err := tool.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	turn() // with what is allocated once
	if allocs := testing.AllocsPerRun(1000, turn); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
	cancel()
	<-ended
}

func TestRelayEnds(t *testing.T) {
	t.Run("with the session", func(t *testing.T) {
		f, s, ch, _ := openChannel(t)
		_, ours := socketpair(t, unix.SOCK_DGRAM)
		ended := make(chan error, 1)
		go func() { ended <- client.Relay(t.Context(), ch, ours) }()
		f.service.End(s.Path(), "")
		if err := take(t, ended); err != nil {
			t.Errorf("Relay: %v", err)
		}
	})
	t.Run("with the tool, at the next packet", func(t *testing.T) {
		_, _, ch, daemon := openChannel(t)
		tool, ours := socketpair(t, unix.SOCK_DGRAM)
		ended := make(chan error, 1)
		go func() { ended <- client.Relay(t.Context(), ch, ours) }()
		_ = tool.Close()
		if _, err := daemon.Write([]byte("knock")); err != nil {
			t.Fatal(err)
		}
		if err := take(t, ended); err != nil {
			t.Errorf("Relay: %v", err)
		}
	})
	t.Run("a slow tool is waited for, but not for ever", func(t *testing.T) {
		_, _, ch, daemon := openChannel(t)
		_, ours := socketpair(t, unix.SOCK_DGRAM)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- client.Relay(ctx, ch, ours) }()
		if err := daemon.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		var err error
		for err == nil { // until everything between is full
			_, err = daemon.Write(make([]byte, 1400))
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("daemon: %v", err)
		}
		cancel()
		if err := take(t, ended); !errors.Is(err, context.Canceled) {
			t.Errorf("Relay: %v", err)
		}
	})
	t.Run("at once, with another kind of socket", func(t *testing.T) {
		_, _, ch, _ := openChannel(t)
		_, ours := socketpair(t, unix.SOCK_SEQPACKET)
		before := openFDs(t)
		if err := client.Relay(t.Context(), ch, ours); err == nil {
			t.Error("accepted")
		}
		if n := openFDs(t); n != before {
			t.Errorf("%d descriptors open, %d before", n, before)
		}
	})
}

// One direction of a channel, as the daemon fills it.
func BenchmarkReadPackets(b *testing.B) {
	for _, batch := range []int{1, 16, 64, 128} {
		b.Run(strconv.Itoa(batch), func(b *testing.B) {
			ch, peer := bareChannels(b)
			bufs, sizes := buffers(batch, 2048)
			packets := make([][]byte, 64)
			for i := range packets {
				packets[i] = make([]byte, 1400)
			}
			go func() {
				for {
					if _, err := peer.WritePackets(packets); err != nil {
						return
					}
				}
			}()
			b.SetBytes(1400)
			b.ReportAllocs()
			for got := 0; got < b.N; {
				n, err := ch.ReadPackets(bufs, sizes)
				if err != nil {
					b.Fatal(err)
				}
				got += n
			}
		})
	}
}

func bareChannels(b *testing.B) (ch, peer *client.Channel) {
	b.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	ch, peer = client.NewChannel(b, pair[0]), client.NewChannel(b, pair[1])
	b.Cleanup(func() { _, _ = ch.Close(), peer.Close() })
	return ch, peer
}
