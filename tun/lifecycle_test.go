package tun_test

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun"
	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
)

func echo(from, to netip.Addr, sequence int) []byte {
	return tuntest.Echo(from, to, 7, uint16(sequence), nil)
}

func TestClientCloses(t *testing.T) {
	b := newBench(t).configure(t)
	client := b.connect(t)
	for i := range 50 { // the client leaves them unread
		put(t, b.host, echo(own4, peer4, i))
		b.counts(t, "txPackets", uint64(i+1))
	}
	for i := range 50 {
		put(t, client, echo(peer4, own4, i))
	}
	client.Close()
	for i := range 50 { // what was sent before still arrives
		if got := get(t, b.host); !bytes.Equal(got, echo(peer4, own4, i)) {
			t.Errorf("packet %d is another", i)
		}
	}
	if err := wait(t, b.ended); !isEnd(err) {
		t.Errorf("ended by %v, want the end of file", err)
	}
	client = b.connect(t) // and the next one works
	put(t, client, echo(peer4, own4, 2))
	get(t, b.host)
	put(t, b.host, echo(own4, peer4, 2))
	get(t, client)
	if len(b.ended) != 0 {
		t.Error("ended again:", <-b.ended)
	}
}

func TestClientShutsDown(t *testing.T) {
	for name, how := range map[string]int{"reading": unix.SHUT_RD, "writing": unix.SHUT_WR, "both": unix.SHUT_RDWR} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t).configure(t)
			client := b.connect(t)
			raw, err := client.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			raw.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), how) })
			if err != nil {
				t.Fatal(err)
			}
			if how == unix.SHUT_RD { // only sending can tell
				put(t, b.host, echo(own4, peer4, 1))
			}
			if err := wait(t, b.ended); err == nil {
				t.Error("no error")
			}
			closed(t, client)
		})
	}
}

func TestEmptyMessageEndsTheChannel(t *testing.T) {
	b := newBench(t).configure(t)
	client := b.connect(t)
	put(t, client, echo(peer4, own4, 1))
	put(t, client, nil)
	client.Write(echo(peer4, own4, 2)) // refused or sent in vain: the channel may have ended by now
	if err := wait(t, b.ended); err == nil || isEnd(err) {
		t.Errorf("ended by %v, want a protocol error", err)
	}
	if got := get(t, b.host); !bytes.Equal(got, echo(peer4, own4, 1)) {
		t.Error("the packet before the empty message is lost")
	}
	closed(t, client)
	nothing(t, b.host)
	if n := b.Statistics()["rxPackets"]; n != 1 {
		t.Errorf("%d packets received, want 1", n)
	}
}

// An empty message and the client's end at once must not be reported twice.
func TestEndIsReportedOnce(t *testing.T) {
	for range 200 {
		b := newBench(t).configure(t)
		client := b.connect(t)
		var busy sync.WaitGroup
		busy.Go(func() {
			for i := range 50 {
				b.host.Write(echo(own4, peer4, i))
			}
		})
		busy.Go(func() { client.Write(nil) })
		busy.Go(func() { client.Close() })
		busy.Wait()
		wait(t, b.ended)
		b.Close()
		if len(b.ended) > 0 {
			t.Fatal("reported again:", <-b.ended)
		}
	}
}

func TestAttachReplaces(t *testing.T) {
	b := newBench(t).configure(t)
	var clients []*os.File
	for i := range 10 {
		client := b.connect(t)
		clients = append(clients, client)
		put(t, client, echo(peer4, own4, i))
		get(t, b.host)
		put(t, b.host, echo(own4, peer4, i))
		if got := get(t, client); !bytes.Equal(got, echo(own4, peer4, i)) {
			t.Error("another packet came")
		}
	}
	for _, former := range clients[:9] {
		closed(t, former)
	}
	if len(b.ended) > 0 {
		t.Error("replacing was reported:", <-b.ended)
	}
}

// The goroutine that waits for room in the former channel must come over at
// once, and bring the packets it has.
func TestAttachWhileTheFormerIsFull(t *testing.T) {
	b := newBench(t).configure(t)
	former := b.connect(t)
	sent := b.fill(t, func(i int) []byte { return echo(own4, peer4, i) })
	client := b.connect(t)
	from := former
	for i := range sent {
		deadline(t, from)
		packet := make([]byte, 2000)
		n, err := from.Read(packet)
		if from == former && isEnd(err) {
			from = client
			packet = get(t, client)
			n = len(packet)
		}
		if !bytes.Equal(packet[:n], echo(own4, peer4, i)) {
			t.Fatalf("packet %d of %d is another", i, sent)
		}
	}
	if from == former {
		t.Error("the former was not full")
	}
	if len(b.ended) > 0 {
		t.Error("replacing was reported:", <-b.ended)
	}
}

func TestAttachTakesTheFileOver(t *testing.T) {
	b := newBench(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := b.Attach(w, tun.FormatPacket); err == nil {
		t.Error("a pipe was attached")
	}
	closed(t, r)

	ours, theirs, err := tun.NewChannel(tun.FormatPacket)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	b.Close()
	if err := b.Attach(ours, tun.FormatPacket); !errors.Is(err, tun.ErrClosed) {
		t.Errorf("Attach after Close: %v", err)
	}
	closed(t, theirs)
}

// A client may bring a socket that blocks, and may make it block later, since
// the flags belong to both.
func TestBlockingSocket(t *testing.T) {
	b := newBench(t).configure(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fds[1], true); err != nil {
		t.Fatal(err)
	}
	client := os.NewFile(uintptr(fds[1]), "client")
	defer client.Close()
	shared, err := unix.Dup(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(shared)
	if err := b.Attach(os.NewFile(uintptr(fds[0]), "channel"), tun.FormatPacket); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(shared, false); err != nil {
		t.Fatal(err)
	}
	for i := range 300 { // more than the socket holds
		put(t, b.host, echo(own4, peer4, i))
		put(t, client, echo(peer4, own4, i))
		get(t, b.host)
	}
	for i := range 300 {
		if got := get(t, client); !bytes.Equal(got, echo(own4, peer4, i)) {
			t.Fatalf("packet %d is another", i)
		}
	}
	if err := b.Close(); err != nil { // nobody hangs in the kernel
		t.Error(err)
	}
}

func TestSinkWhileNoChannel(t *testing.T) {
	b := newBench(t).configure(t)
	got := make(chan []byte)
	sink := func(packet []byte) error {
		got <- bytes.Clone(packet)
		return nil
	}
	for i := range 10 { // nobody wants them yet
		put(t, b.host, echo(own4, peer4, i))
	}
	if n := b.Statistics()["txPackets"]; n != 0 {
		t.Errorf("%d packets went nowhere", n)
	}
	b.SetSink(sink)
	for i := range 5 {
		if p := wait(t, got); !bytes.Equal(p, echo(own4, peer4, i)) {
			t.Fatalf("packet %d is another", i)
		}
	}
	// While the sink works, the rest stays in the TUN.
	eventually(t, "4 packets counted", func() bool { return b.Statistics()["txPackets"] >= 4 })
	if n := b.Statistics()["txPackets"]; n > 5 {
		t.Errorf("%d packets were read ahead", n)
	}
	client := b.connect(t)
	if p := wait(t, got); !bytes.Equal(p, echo(own4, peer4, 5)) { // was under way
		t.Error("packet 5 is another")
	}
	for i := 6; i < 10; i++ {
		if p := get(t, client); !bytes.Equal(p, echo(own4, peer4, i)) {
			t.Fatalf("packet %d is another", i)
		}
	}
	client.Close()
	wait(t, b.ended)
	put(t, b.host, echo(own4, peer4, 10))
	if p := wait(t, got); !bytes.Equal(p, echo(own4, peer4, 10)) {
		t.Error("packet 10 is another")
	}
	b.SetSink(nil)
	put(t, b.host, echo(own4, peer4, 11))
	client = b.connect(t)
	if p := get(t, client); !bytes.Equal(p, echo(own4, peer4, 11)) {
		t.Error("packet 11 is another")
	}
}

func TestSinkFails(t *testing.T) {
	b := newBench(t).configure(t)
	tried := make(chan struct{})
	b.SetSink(func([]byte) error { tried <- struct{}{}; return errors.New("no") })
	for i := range 3 {
		put(t, b.host, echo(own4, peer4, i))
		wait(t, tried)
	}
	b.SetSink(nil)
	if n := b.Statistics()["txPackets"]; n != 0 {
		t.Errorf("%d packets counted", n)
	}
}

func TestDeviceDies(t *testing.T) {
	for name, consumer := range map[string]func(*bench){
		"idle":      func(*bench) {},
		"channel":   func(b *bench) { b.connect(t) },
		"sink":      func(b *bench) { b.SetSink(func([]byte) error { return nil }) },
		"no policy": func(b *bench) { b.connect(t) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			if name != "no policy" {
				b.configure(t)
			}
			consumer(b)
			b.host.Close()
			if err := wait(t, b.failed); err == nil {
				t.Error("no error")
			}
			b.Send(echo(peer4, own4, 1))
			b.Close()
			if len(b.failed) > 0 {
				t.Error("failed again:", <-b.failed)
			}
		})
	}
}

func TestClose(t *testing.T) {
	for name, prepare := range map[string]func(*bench){
		"fresh":   func(*bench) {},
		"channel": func(b *bench) { b.configure(t).connect(t) },
		"full channel": func(b *bench) {
			b.configure(t).connect(t)
			b.fill(t, func(i int) []byte { return echo(own4, peer4, i) })
		},
		"full device": func(b *bench) {
			client := b.configure(t).connect(t)
			for i := 0; ; i++ {
				client.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
				if _, err := client.Write(echo(peer4, own4, i)); err != nil {
					return
				}
			}
		},
		"sink": func(b *bench) { b.configure(t).SetSink(func([]byte) error { return nil }) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			prepare(b)
			var busy sync.WaitGroup
			for range 4 {
				busy.Go(func() {
					if err := b.Close(); err != nil {
						t.Error(err)
					}
				})
			}
			busy.Wait()
			if len(b.ended)+len(b.failed) > 0 {
				t.Error("closing was reported as an event")
			}
			if err := b.Send(echo(peer4, own4, 1)); !errors.Is(err, tun.ErrClosed) {
				t.Errorf("Send after Close: %v", err)
			}
			if err := b.SetPolicy(policy()); !errors.Is(err, tun.ErrClosed) {
				t.Errorf("SetPolicy after Close: %v", err)
			}
			b.SetSink(nil)
			b.SetSink(func([]byte) error { return nil })
			b.Statistics()
		})
	}
}

// An event may use the tunnel, even close it, and may wait for somebody who
// closes it.
func TestEventsMayClose(t *testing.T) {
	device, host, err := tuntest.New()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	var tunnel *tun.Tunnel
	done := make(chan error, 2)
	ready := make(chan struct{})
	tunnel, err = tun.New(device, tun.Events{
		ChannelClosed: func(error) { <-ready; done <- tunnel.Close() },
		Failed:        func(error) { done <- errors.New("failed") },
	})
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs, err := tun.NewChannel(tun.FormatPacket)
	if err != nil {
		t.Fatal(err)
	}
	if err := tunnel.Attach(ours, tun.FormatPacket); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	close(ready)
	if err := wait(t, done); err != nil {
		t.Error(err)
	}
}

func TestNewNeedsAPollableDevice(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := tun.New(f, tun.Events{}); err == nil {
		t.Error("a plain file was accepted")
	}
}

func TestCheckChannel(t *testing.T) {
	socket := func(domain, kind int) *os.File {
		fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(fd), "socket")
	}
	pair := func(kind int) *os.File {
		fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fds[1])
		return os.NewFile(uintptr(fds[0]), "socket")
	}
	listening := socket(unix.AF_UNIX, unix.SOCK_SEQPACKET)
	if err := unix.Bind(int(listening.Fd()), &unix.SockaddrUnix{Name: "@"}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(int(listening.Fd()), 1); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	for _, c := range []struct {
		f    *os.File
		want string
	}{
		{r, "the channel is not a socket"},
		{socket(unix.AF_INET, unix.SOCK_DGRAM), "the channel is a socket of address family 2, not AF_UNIX"},
		{pair(unix.SOCK_STREAM), "the channel is a stream socket, not SOCK_SEQPACKET"},
		{pair(unix.SOCK_DGRAM), "the channel is a datagram socket, not SOCK_SEQPACKET"},
		{socket(unix.AF_UNIX, unix.SOCK_SEQPACKET), "the channel is a socket that is not connected"},
		{listening, "the channel is a socket that is not connected"},
	} {
		if err := tun.CheckChannel(c.f); err == nil || err.Error() != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
		if _, err := c.f.Stat(); err != nil {
			t.Errorf("%s: it was closed", c.want)
		}
		c.f.Close()
	}
	ours, theirs, err := tun.NewChannel(tun.FormatPacket)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	if err := tun.CheckChannel(ours); err != nil {
		t.Error(err)
	}
}

func TestNewChannel(t *testing.T) {
	ours, theirs, err := tun.NewChannel(tun.FormatPacket)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	for _, f := range []*os.File{ours, theirs} {
		fd := f.Fd()
		if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("flags %#x, %v: not closed on exec", flags, err)
		}
		if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("flags %#x, %v: blocking", flags, err)
		}
	}
}
