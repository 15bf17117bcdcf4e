package tun_test

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vpnprovider/vpnproviderd/tun"
	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

func TestMain(m *testing.M) {
	if step := os.Getenv(crashName); step != "" {
		crash(step)
	}
	if node := os.Getenv(intruderName); node != "" {
		intrude(node)
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

var (
	own4  = netip.MustParseAddr("10.9.0.2")
	own6  = netip.MustParseAddr("fd00:9::2")
	peer4 = netip.MustParseAddr("10.20.1.1")
	peer6 = netip.MustParseAddr("fd00:20::1")
)

func policy() tun.Policy {
	return tun.Policy{
		Addresses: []netip.Addr{own4, own6},
		Include:   []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix("fd00:20::/32")},
		Exclude:   []netip.Prefix{netip.MustParsePrefix("10.20.9.0/24"), netip.MustParsePrefix("fd00:20:9::/48")},
		Host:      []netip.Addr{netip.MustParseAddr("10.20.5.5"), netip.MustParseAddr("fd00:20::5")},
		MTU:       1500,
	}
}

// bench is a tunnel between a host and a client in memory.
type bench struct {
	*tun.Tunnel
	host   *os.File
	ended  chan error // ChannelClosed
	failed chan error
}

func newBench(tb testing.TB) *bench {
	tb.Helper()
	return newOffloadBench(tb, vnet.NoOffload)
}

// offloadDevice is a device with a virtio_net_hdr before each packet, as far as
// the test and the tunnel are concerned.
type offloadDevice struct {
	*tuntest.Device
	offload vnet.Offload
}

func (d offloadDevice) Offload() vnet.Offload { return d.offload }

// newOffloadBench is newBench with a TUN that takes super-packets.
func newOffloadBench(tb testing.TB, offload vnet.Offload) *bench {
	tb.Helper()
	device, host, err := tuntest.New()
	if err != nil {
		tb.Fatal(err)
	}
	b := &bench{host: host, ended: make(chan error, 64), failed: make(chan error, 64)}
	b.Tunnel, err = tun.New(offloadDevice{device, offload}, tun.Events{
		ChannelClosed: func(err error) { b.ended <- err },
		Failed:        func(err error) { b.failed <- err },
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := b.Close(); err != nil {
			tb.Error(err)
		}
		host.Close()
	})
	return b
}

func (b *bench) configure(tb testing.TB) *bench {
	tb.Helper()
	if err := b.SetPolicy(policy()); err != nil {
		tb.Fatal(err)
	}
	return b
}

// connect attaches a new channel and returns the client's end.
func (b *bench) connect(tb testing.TB) *os.File {
	tb.Helper()
	return b.connectBy(tb, tun.FormatPacket)
}

// connectBy is connect with a format. What was sent before the tunnel has the
// channel, it receives at once.
func (b *bench) connectBy(tb testing.TB, format tun.Format, sent ...[]byte) *os.File {
	tb.Helper()
	ours, theirs, err := tun.NewChannel(format)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { theirs.Close() })
	for _, message := range sent {
		put(tb, theirs, message)
	}
	if err := b.Attach(ours, format); err != nil {
		tb.Fatal(err)
	}
	return theirs
}

func put(tb testing.TB, f *os.File, packet []byte) {
	tb.Helper()
	deadline(tb, f)
	if _, err := f.Write(packet); err != nil {
		tb.Fatal(err)
	}
}

// get reads one packet.
func get(tb testing.TB, f *os.File) []byte {
	tb.Helper()
	deadline(tb, f)
	b := make([]byte, vnet.MaxMessage)
	n, err := f.Read(b)
	if err != nil {
		tb.Fatal(err)
	}
	return b[:n]
}

func deadline(tb testing.TB, f *os.File) {
	tb.Helper()
	if err := f.SetDeadline(time.Now().Add(patience)); err != nil {
		tb.Fatal(err)
	}
}

// fill has the host send until nothing has gone into the tunnel for a while, and
// says how many packets did.
func (b *bench) fill(tb testing.TB, packet func(i int) []byte) (sent int) {
	tb.Helper()
	for full := 0; full < 3; {
		b.host.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		switch _, err := b.host.Write(packet(sent)); {
		case err == nil:
			sent, full = sent+1, 0
		case errors.Is(err, os.ErrDeadlineExceeded):
			full++
		default:
			tb.Fatal(err)
		}
	}
	return sent
}

// nothing checks that f has no packet. It only looks: what has to be settled
// before is the caller's affair.
func nothing(tb testing.TB, f *os.File) {
	tb.Helper()
	if err := f.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		tb.Fatal(err)
	}
	if n, err := f.Read(make([]byte, 65536)); !errors.Is(err, os.ErrDeadlineExceeded) {
		tb.Fatalf("read %d bytes, %v; want nothing", n, err)
	}
}

// closed checks that the other side of f has closed it.
func closed(tb testing.TB, f *os.File) {
	tb.Helper()
	deadline(tb, f)
	for b := make([]byte, 65536); ; {
		if _, err := f.Read(b); errors.Is(err, os.ErrDeadlineExceeded) {
			tb.Fatal("still open")
		} else if err != nil {
			return
		}
	}
}

func wait[T any](tb testing.TB, c <-chan T) T {
	tb.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		tb.Fatal("it did not happen")
		panic("unreachable")
	}
}

// eventually polls until it is true.
func eventually(tb testing.TB, what string, is func() bool) {
	tb.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("never: %s", what)
		}
	}
}

// counts checks a statistic; it may still be on its way.
func (b *bench) counts(tb testing.TB, name string, want uint64) {
	tb.Helper()
	eventually(tb, name, func() bool { return b.Statistics()[name] >= want })
	if got := b.Statistics()[name]; got != want {
		tb.Fatalf("%s = %d, want %d", name, got, want)
	}
}

func isEnd(err error) bool { return errors.Is(err, io.EOF) }
