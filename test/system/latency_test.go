package system

import (
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// delays are how long things took that were done again and again.
type delays []time.Duration

// at is the delay that the part has that is told: 0.5 is the median.
func (d delays) at(part float64) time.Duration {
	slices.Sort(d)
	return d[int(part*float64(len(d)-1))]
}

// samples is how many of what is timed there are.
const samples = 100

// pings are round trips.
func (m *machine) pings(t testing.TB, to string) (all delays) {
	t.Helper()
	out := m.Host.Run(t, "ping", "-n", "-i0.02", "-W10", "-c"+strconv.Itoa(samples), to)
	for _, found := range regexp.MustCompile(`time=([0-9.]+) ms`).FindAllStringSubmatch(out, -1) {
		ms, err := strconv.ParseFloat(found[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, time.Duration(ms*float64(time.Millisecond)))
	}
	if len(all) < samples*9/10 {
		t.Fatalf("of %d pings to %s %d were answered", samples, to, len(all))
	}
	return all
}

// asked are the times of calls to the daemon.
func (v *vpn) asked() (all delays) {
	v.t.Helper()
	for range samples {
		begin := time.Now()
		v.ui.must(v.ui.manager("ListConfigs"))
		v.ui.property(v.config, "State")
		all = append(all, time.Since(begin)/2)
		time.Sleep(5 * time.Millisecond)
	}
	return all
}

// flood sends a stream to an address until the test ends, as fast as it goes.
func (l *line) flood(t testing.TB, to string) (sent func() int64) {
	t.Helper()
	listener := l.far.Listen(t, "tcp", net.JoinHostPort(to, "0"))
	conn, err := l.Host.Dial("tcp", listener.Addr().String(), harness.Timeout)
	if err != nil {
		t.Fatal(err)
	}
	other, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var total atomic.Int64
	var running sync.WaitGroup
	running.Go(func() { _, _ = io.Copy(io.Discard, other) })
	running.Go(func() {
		for block := make([]byte, 1<<17); ; {
			n, err := conn.Write(block)
			total.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	t.Cleanup(func() {
		conn.Close()
		other.Close()
		running.Wait()
	})
	return total.Load
}

// While a stream fills the tunnel, other packets pass, and the daemon answers.
func TestLatencyUnderLoad(t *testing.T) {
	t.Parallel()
	for _, format := range []string{wire.FormatPacket, wire.FormatOffload} {
		t.Run(format, func(t *testing.T) {
			l := newLine(t, format)
			idle := l.pings(t, includedIPv4)
			sent, begin := l.flood(t, includedIPv4), time.Now()
			loaded, outside := l.pings(t, includedIPv4), l.pings(t, harness.ServerIPv4)
			calls := l.asked()
			t.Logf("%s: %.2f Gbit/s; round trip idle p50 %v p99 %v, loaded p50 %v p99 %v; outside the tunnel p50 %v p99 %v; call p50 %v p99 %v",
				format, float64(sent())*8/float64(time.Since(begin).Nanoseconds()), idle.at(0.5), idle.at(0.99),
				loaded.at(0.5), loaded.at(0.99), outside.at(0.5), outside.at(0.99), calls.at(0.5), calls.at(0.99))
			for what, d := range map[string]time.Duration{
				"round trip": loaded.at(0.5), "round trip outside": outside.at(0.5), "call": calls.at(0.5),
			} {
				if d > 500*time.Millisecond {
					t.Errorf("%s: a %s takes %v", format, what, d)
				}
			}
		})
	}
}

// slowly takes a message every 20 ms, until the channel ends.
func slowly(t testing.TB, channel *os.File) (taken func() int64) {
	t.Helper()
	var n atomic.Int64
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for message := make([]byte, vnet.MaxMessage); ; time.Sleep(20 * time.Millisecond) {
			if _, err := channel.Read(message); err != nil {
				return
			}
			n.Add(1)
		}
	}()
	t.Cleanup(func() {
		channel.Close()
		<-ended
	})
	return n.Load
}

// blast sends more datagrams into the tunnel than any client takes, 40 at a
// time, until stop is called.
func (v *vpn) blast(t testing.TB) (stop func()) {
	t.Helper()
	conn, err := v.Host.Dial("udp", net.JoinHostPort(includedIPv4, "9"), harness.Timeout)
	if err != nil {
		t.Fatal(err)
	}
	const size = 1000
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) })
	}
	if err != nil {
		t.Fatal(err)
	}
	quit := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for datagrams := make([]byte, 40*size); ; {
			for range 5 {
				_, _ = conn.Write(datagrams) // full queues are what is wanted
			}
			select {
			case <-tick.C:
			case <-quit:
				return
			}
		}
	})
	stop = sync.OnceFunc(func() {
		close(quit)
		running.Wait()
		conn.Close()
	})
	t.Cleanup(stop)
	return stop
}

// A client that takes its time delays what is in its tunnel, and nothing else;
// what waits is in the kernel.
func TestSlowClient(t *testing.T) {
	t.Parallel()
	for _, format := range []string{wire.FormatPacket, wire.FormatOffload} {
		t.Run(format, func(t *testing.T) {
			v := newVPN(t)
			harness.StartWeb(t, v.Server, 80)
			session := v.connect()
			channel, _ := v.openFormat(session, format)
			v.configure(session, fullTunnel())
			v.notify(session, wire.NotifyConnected)
			taken := slowly(t, channel)
			stop := v.blast(t)
			memory := v.status(t, "VmRSS")
			outside, calls := v.pings(t, harness.ServerIPv4), v.asked()
			if got, err := v.Host.Fetch(t, "http://"+harness.ServerIPv4+"/"); got != harness.HostIPv4 {
				t.Errorf("beside the tunnel a page came from %q (%v)", got, err)
			}
			grown := v.status(t, "VmRSS") - memory
			begin := time.Now()
			v.configure(session, fullTunnel())
			update := time.Since(begin)
			stop()
			t.Logf("%s: %d messages taken; outside the tunnel p50 %v p99 %v; call p50 %v p99 %v, SetParameters %v; %d KiB more",
				format, taken(), outside.at(0.5), outside.at(0.99), calls.at(0.5), calls.at(0.99), update, grown)
			// What waits for the client waits for 10 s and more.
			if outside.at(0.5) > 500*time.Millisecond || calls.at(0.5) > 500*time.Millisecond || update > 5*time.Second {
				t.Errorf("%s: a slow client holds up others", format)
			}
			if grown > 48<<10 { // a second of what is sent would be more
				t.Errorf("%s: the daemon has grown by %d KiB", format, grown)
			}
			begin = time.Now()
			v.disconnect()
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("%s: the end took %v", format, took)
			}
		})
	}
}
