package tun_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun"
	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

func TestPacketsPassBothWays(t *testing.T) {
	b := newBench(t).configure(t)
	client := b.connect(t)
	for _, c := range []struct{ own, peer netip.Addr }{{own4, peer4}, {own6, peer6}} {
		in := tuntest.Echo(c.peer, c.own, 1, 2, []byte("hello"))
		put(t, client, in)
		if got := get(t, b.host); !bytes.Equal(got, in) {
			t.Errorf("host got %x, want %x", got, in)
		}
		out := tuntest.Echo(c.own, c.peer, 3, 4, []byte("hello you"))
		put(t, b.host, out)
		if got := get(t, client); !bytes.Equal(got, out) {
			t.Errorf("client got %x, want %x", got, out)
		}
	}
	b.counts(t, "rxPackets", 2)
	b.counts(t, "rxBytes", 20+40+2*(8+5))
	b.counts(t, "txPackets", 2)
	b.counts(t, "txBytes", 20+40+2*(8+9))
}

func TestOrderAndContentOfManyPackets(t *testing.T) {
	b := newBench(t).configure(t)
	client := b.connect(t)
	const packets = 5000
	run := func(from, to *os.File, source, target netip.Addr) error {
		sent := make(chan error, 1)
		go func() {
			for i := range packets {
				p := tuntest.Echo(source, target, 0, uint16(i), bytes.Repeat([]byte{byte(i)}, i%1400))
				if _, err := from.Write(p); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		got := make([]byte, 2000)
		for i := range packets {
			n, err := to.Read(got)
			if err != nil {
				return err
			}
			want := tuntest.Echo(source, target, 0, uint16(i), bytes.Repeat([]byte{byte(i)}, i%1400))
			if !bytes.Equal(got[:n], want) {
				return fmt.Errorf("packet %d differs", i)
			}
		}
		return <-sent
	}
	deadline(t, b.host)
	deadline(t, client)
	up := make(chan error, 1)
	go func() { up <- run(b.host, client, own4, peer4) }()
	if err := run(client, b.host, peer6, own6); err != nil {
		t.Error("client → host:", err)
	}
	if err := wait(t, up); err != nil {
		t.Error("host → client:", err)
	}
	b.counts(t, "rxPackets", packets)
	b.counts(t, "txPackets", packets)
}

func TestNothingPassesBeforeThePolicy(t *testing.T) {
	b := newBench(t)
	client := b.connect(t)
	put(t, client, tuntest.Echo(peer4, own4, 1, 1, nil))
	put(t, client, make([]byte, 9000))
	b.counts(t, "dropped.notConfigured", 2)
	put(t, b.host, tuntest.Echo(own4, peer4, 1, 1, nil))
	b.counts(t, "dropped.notConfigured", 3)
	nothing(t, b.host)
	nothing(t, client)
	var refused *tun.DropError
	if err := b.Send(tuntest.Echo(peer4, own4, 1, 1, nil)); !errors.As(err, &refused) || refused.Reason != "notConfigured" {
		t.Errorf("Send: %v", err)
	}
}

func TestPolicyIsReplacedAtOnce(t *testing.T) {
	b := newBench(t).configure(t)
	client := b.connect(t)
	packet := tuntest.Echo(peer4, own4, 1, 1, nil)
	put(t, client, packet)
	get(t, b.host)

	narrow := policy()
	narrow.Exclude = append(narrow.Exclude, netip.PrefixFrom(peer4, 32))
	if err := b.SetPolicy(narrow); err != nil {
		t.Fatal(err)
	}
	put(t, client, packet)
	b.counts(t, "dropped.source", 1)

	// A refused policy changes nothing.
	broken := policy()
	broken.MTU = 0
	if err := b.SetPolicy(broken); err == nil {
		t.Error("MTU 0 was accepted")
	}
	put(t, client, packet)
	b.counts(t, "dropped.source", 2)
	nothing(t, b.host)
}

func TestPolicyKeepsItsOwnCopy(t *testing.T) {
	b := newBench(t)
	p := policy()
	if err := b.SetPolicy(p); err != nil {
		t.Fatal(err)
	}
	for i := range p.Addresses {
		p.Addresses[i] = peer4
	}
	if err := b.Send(tuntest.Echo(peer4, own4, 1, 1, nil)); err != nil {
		t.Error(err)
	}
}

func TestInvalidPolicies(t *testing.T) {
	b := newBench(t)
	for name, change := range map[string]func(*tun.Policy){
		"no MTU":         func(p *tun.Policy) { p.MTU = 0 },
		"small MTU":      func(p *tun.Policy) { p.MTU = 575 },
		"big MTU":        func(p *tun.Policy) { p.MTU = 65536 },
		"no address":     func(p *tun.Policy) { p.Addresses = append(p.Addresses, netip.Addr{}) },
		"mapped address": func(p *tun.Policy) { p.Addresses = append(p.Addresses, netip.MustParseAddr("::ffff:10.0.0.1")) },
		"zone":           func(p *tun.Policy) { p.Host = append(p.Host, netip.MustParseAddr("fe80::1%eth0")) },
		"no host":        func(p *tun.Policy) { p.Host = append(p.Host, netip.Addr{}) },
		"included":       func(p *tun.Policy) { p.Include = append(p.Include, netip.Prefix{}) },
		"excluded":       func(p *tun.Policy) { p.Exclude = append(p.Exclude, netip.Prefix{}) },
	} {
		p := policy()
		change(&p)
		if err := b.SetPolicy(p); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestLargePackets(t *testing.T) {
	b := newBench(t).configure(t)
	client := b.connect(t)
	full := tuntest.Echo(peer4, own4, 1, 1, make([]byte, 1500-28))
	put(t, client, full)
	if got := get(t, b.host); !bytes.Equal(got, full) {
		t.Error("a packet of the MTU's size changed")
	}
	for i, size := range []int{1501, 2048, 2049, 9000, 65535} {
		put(t, client, tuntest.Echo(peer4, own4, 1, 1, make([]byte, size-28)))
		b.counts(t, "dropped.tooBig", uint64(i+1))
	}
	put(t, b.host, tuntest.Echo(own4, peer4, 1, 1, make([]byte, 1501-28)))
	b.counts(t, "dropped.tooBig", 6)
	nothing(t, client)

	// The MTU may grow while the goroutines already wait with small memory.
	for _, mtu := range []int{9000, 65535} {
		p := policy()
		p.MTU = mtu
		if err := b.SetPolicy(p); err != nil {
			t.Fatal(err)
		}
		in := tuntest.Echo(peer6, own6, 1, 1, bytes.Repeat([]byte("in"), (mtu-48)/2))
		put(t, client, in)
		if got := get(t, b.host); !bytes.Equal(got, in) {
			t.Errorf("MTU %d: client's packet of %d bytes came as %d", mtu, len(in), len(got))
		}
		out := tuntest.Echo(own6, peer6, 1, 1, bytes.Repeat([]byte("ou"), (mtu-48)/2))
		put(t, b.host, out)
		if got := get(t, client); !bytes.Equal(got, out) {
			t.Errorf("MTU %d: host's packet of %d bytes came as %d", mtu, len(out), len(got))
		}
	}
}

func TestSend(t *testing.T) {
	b := newBench(t).configure(t)
	packet := tuntest.Echo(peer4, own4, 1, 1, nil)
	if err := b.Send(packet); err != nil {
		t.Fatal(err)
	}
	if got := get(t, b.host); !bytes.Equal(got, packet) {
		t.Errorf("host got %x", got)
	}
	b.counts(t, "rxPackets", 1)
	for reason, packet := range map[string][]byte{
		"length":      nil,
		"source":      tuntest.Echo(own4, own4, 1, 1, nil),
		"destination": tuntest.Echo(peer4, peer4, 1, 1, nil),
	} {
		var refused *tun.DropError
		if err := b.Send(packet); !errors.As(err, &refused) || refused.Reason != reason {
			t.Errorf("%s: %v", reason, err)
		}
		b.counts(t, "dropped."+reason, 1)
	}
	nothing(t, b.host)
}

func TestStatisticsNames(t *testing.T) {
	got := newBench(t).Statistics()
	names := strings.Fields(`txPackets txBytes rxPackets rxBytes dropped.length dropped.version dropped.source
		dropped.destination dropped.protocol dropped.tooBig dropped.header dropped.checksum dropped.notConfigured
		dropped.outSource dropped.outDestination dropped.write`)
	for _, name := range names {
		if _, ok := got[name]; !ok {
			t.Errorf("no %s", name)
		}
	}
	if len(got) != len(names) {
		t.Errorf("%d statistics, want %d: %v", len(got), len(names), got)
	}
}

// A full client blocks the tunnel, which then leaves the packets in the TUN;
// none is lost when the client reads on.
func TestFullChannelStopsReadingTheTUN(t *testing.T) {
	b := newBench(t).configure(t)
	client := b.connect(t)
	packet := func(i int) []byte {
		p := binary.BigEndian.AppendUint32(nil, uint32(i))
		return tuntest.Echo(own4, peer4, 1, 1, append(p, make([]byte, 1400)...))
	}
	// Both the channel and the device fill up, and stay so.
	sent := b.fill(t, packet)
	if tx := b.Statistics()["txPackets"]; int(tx) >= sent {
		t.Errorf("%d packets sent, the tunnel took %d: the TUN was not left unread", sent, tx)
	}
	for i := range sent {
		if got := get(t, client); !bytes.Equal(got, packet(i)) {
			t.Fatalf("packet %d of %d is another", i, sent)
		}
	}
	b.counts(t, "txPackets", uint64(sent))
}

func TestDescriptorsInMessagesAreClosed(t *testing.T) {
	b := newBench(t).configure(t)
	client := b.connect(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	raw, err := client.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	packet := tuntest.Echo(peer4, own4, 1, 1, nil)
	for range 3 {
		raw.Control(func(fd uintptr) {
			err = unix.Sendmsg(int(fd), packet, unix.UnixRights(int(w.Fd()), int(w.Fd())), nil, 0)
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := get(t, b.host); !bytes.Equal(got, packet) {
			t.Error("the packet with descriptors changed")
		}
	}
	// The pipe ends only when no descriptor of its writing end is left.
	w.Close()
	deadline(t, r)
	if _, err := r.Read(make([]byte, 1)); !isEnd(err) {
		t.Errorf("a passed descriptor is still open: %v", err)
	}
}

func TestTunnelIsSafeForConcurrentUse(t *testing.T) {
	for name, offload := range map[string]vnet.Offload{"packets": vnet.NoOffload, "super-packets": vnet.OffloadAll} {
		t.Run(name, func(t *testing.T) { useConcurrently(t, newOffloadBench(t, offload).configure(t), offload) })
	}
}

// useConcurrently does all that can be done with a tunnel at once.
func useConcurrently(t *testing.T, b *bench, offload vnet.Offload) {
	t.Helper()
	stop := make(chan struct{})
	var busy sync.WaitGroup
	work := func(f func()) {
		busy.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					f()
				}
			}
		})
	}
	clients := make(chan *os.File, 1000)
	for _, format := range formats() {
		work(func() {
			ours, theirs, err := tun.NewChannel(format)
			if err != nil {
				t.Error(err)
				return
			}
			if err := b.Attach(ours, format); err != nil && !errors.Is(err, tun.ErrClosed) {
				t.Error(err)
			}
			select {
			case clients <- theirs:
			default:
				theirs.Close()
			}
		})
	}
	in, out := pairs(false)[0], pairs(true)[0]
	work(func() { // the client sends in either format, and goes
		select {
		case c := <-clients:
			for _, packet := range in.packets(3) {
				c.Write(packet)
			}
			c.Write(in.super(20, 1000))
			c.Close()
		default:
		}
	})
	work(func() {
		if offload == vnet.NoOffload {
			b.host.Write(tuntest.Echo(own4, peer4, 1, 1, nil))
			return
		}
		b.host.Write(message(vnet.Header{}, tuntest.Echo(own4, peer4, 1, 1, nil)))
		b.host.Write(out.super(20, 1000))
	})
	work(func() {
		b.host.SetReadDeadline(time.Now().Add(time.Millisecond))
		b.host.Read(make([]byte, vnet.MaxMessage))
	})
	work(func() { b.SetPolicy(policy()) })
	work(func() { b.Send(tuntest.Echo(peer4, own4, 1, 1, nil)) })
	work(func() { b.SetSink(func([]byte) error { return nil }); b.SetSink(nil) })
	work(func() { b.Statistics() })
	work(func() {
		if stream, err := b.Capture("vpn0"); err == nil {
			stream.Read(make([]byte, 100))
			stream.Close()
		}
	})
	work(func() {
		for len(b.ended) > 0 {
			<-b.ended
		}
	})
	time.Sleep(time.Second)
	b.host.SetWriteDeadline(time.Now())
	if err := b.Close(); err != nil { // also ends a Send that waits for the host
		t.Error(err)
	}
	close(stop)
	busy.Wait()
	for len(clients) > 0 {
		(<-clients).Close()
	}
	if len(b.failed) > 0 {
		t.Error("failed:", <-b.failed)
	}
}
