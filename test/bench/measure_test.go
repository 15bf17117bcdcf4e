package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
	"github.com/vpnprovider/vpnproviderd/routing/nft"
	"github.com/vpnprovider/vpnproviderd/routing/resolvconf"
	"github.com/vpnprovider/vpnproviderd/routing/rtnl"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// Payloads in bytes.
const (
	smallPayload = 64
	fullPayload  = 1400
	segment      = 1448 // TCP's in a packet of
	fullPacket   = 1500
)

func gigabits(r Result) float64    { return float64(r.Bytes) * 8 / float64(r.Elapsed.Nanoseconds()) }
func perGigabyte(r Result) float64 { return r.CPU.Seconds() / (float64(r.Bytes) / 1e9) }

func (l *lab) tcp(kind Kind, b *bed, d Direction, period time.Duration) Measurement {
	l.Helper()
	r := l.stream(b, d, period)
	return Measurement{Kind: kind, Row: b.row, Direction: d, Value: gigabits(r), Cost: perGigabyte(r), Foreign: r.Foreign}
}

func (l *lab) small(b *bed, d Direction, period time.Duration) Measurement {
	l.Helper()
	r := l.datagrams(b, d, smallPayload, period)
	return Measurement{
		Kind: Small, Row: b.row, Direction: d, Foreign: r.Foreign,
		Value: float64(r.Packets) / 1e3 / r.Elapsed.Seconds(),
		Cost:  r.CPU.Seconds() * 1e6 / float64(r.Packets),
	}
}

func (l *lab) full(b *bed, d Direction, period time.Duration) Measurement {
	l.Helper()
	r := l.datagrams(b, d, fullPayload, period)
	return Measurement{Kind: Full, Row: b.row, Direction: d, Value: gigabits(r), Cost: perGigabyte(r), Foreign: r.Foreign}
}

func (l *lab) trip(b *bed, count int) Measurement {
	l.Helper()
	r := l.run(b.near, harness.Command{Argv: []string{"--address", Far, "--count", strconv.Itoa(count), "--pids", pidList(b.pids)}}, "ping")
	return Measurement{Kind: Trip, Row: b.row, Value: float64(r.P50.Nanoseconds()) / 1e3, Foreign: r.Foreign}
}

// bare is what a channel's messages cost without anything else: those of a TCP
// stream's full packets, its acknowledgements aside.
func (l *lab) bare(ns *harness.Namespace, period time.Duration) Measurement {
	l.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		l.Fatal(err)
	}
	ends := [2]*os.File{os.NewFile(uintptr(fds[0]), "one end"), os.NewFile(uintptr(fds[1]), "other end")}
	args := []string{"--time", period.String(), "--size", strconv.Itoa(fullPacket)}
	push := ns.Start(l, harness.Command{Argv: append([]string{l.peer, "push"}, args...), Files: ends[:1]})
	_ = ends[0].Close()
	args = append(args, "--pids", strconv.Itoa(push.PID()))
	pull := ns.Start(l, harness.Command{Argv: append([]string{l.peer, "pull"}, args...), Files: ends[1:]})
	_ = ends[1].Close()
	l.result(push)
	r := l.result(pull)
	r.Bytes = r.Packets * segment
	return Measurement{Kind: SocketPair, Row: Bare, Value: gigabits(r), Cost: perGigabyte(r), Foreign: r.Foreign}
}

// connect is on a daemon of its own, which is idle afterwards.
func (l *lab) connect(h *host, count int) Measurement {
	l.Helper()
	r := l.run(h.Namespace, harness.Command{
		Argv: []string{"--bus", h.bus.Address, "--count", strconv.Itoa(count), "--pids", pidList([]int{h.daemon.Process().PID(), h.bus.Process().PID()})},
		UID:  harness.Alice,
	}, "connect")
	return Measurement{Kind: Connect, Row: Daemon, Value: r.P50.Seconds() * 1e3, Foreign: r.Foreign}
}

// routeCount is what the bar is about.
const routeCount = 10_000

// blocks have gaps between them, so that none can be merged.
func blocks() (all []netip.Prefix) {
	for i := range routeCount {
		at := 2 * i
		all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{44, byte(at >> 8), byte(at), 0}), 24))
	}
	return all
}

// routes adds the routes to a TUN that was not there before.
func (l *lab) routes(row string, add func(ns *harness.Namespace, link netlink.Link) error) Measurement {
	l.Helper()
	ns := l.namespace("routes")
	device := l.tun(ns, "vpn0", Near, 0)
	defer device.Close()
	var link netlink.Link
	err := ns.Do(func() (err error) {
		link, err = netlink.LinkByName("vpn0")
		return err
	})
	if err != nil {
		l.Fatal(err)
	}
	usage, err := StartUsage([]int{os.Getpid()}, nil)
	if err != nil {
		l.Fatal(err)
	}
	var r Result
	if err = add(ns, link); err == nil {
		err = usage.Stop(&r)
	}
	if err != nil {
		l.Fatal(err)
	}
	l.checkRoutes(ns)
	return Measurement{Kind: Routes, Row: row, Value: r.Elapsed.Seconds() * 1e3, Foreign: r.Foreign}
}

// checkRoutes wants every block to be excluded, in whichever table.
func (l *lab) checkRoutes(ns *harness.Namespace) {
	l.Helper()
	var have []netlink.Route
	err := ns.Do(func() (err error) {
		filter := &netlink.Route{Type: unix.RTN_THROW, Table: unix.RT_TABLE_UNSPEC}
		have, err = netlink.RouteListFiltered(netlink.FAMILY_V4, filter, netlink.RT_FILTER_TYPE|netlink.RT_FILTER_TABLE)
		return err
	})
	if err != nil {
		l.Fatal(err)
	}
	destinations := map[string]bool{}
	for _, r := range have {
		destinations[r.Dst.String()] = true
	}
	for _, block := range blocks() {
		if !destinations[block.String()] {
			l.Fatalf("%v is not excluded", block)
		}
	}
}

// addEach is the library's way: a call a route, on one socket.
func addEach(ns *harness.Namespace, _ netlink.Link) error {
	return ns.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		for _, block := range blocks() {
			dst := &net.IPNet{IP: block.Addr().AsSlice(), Mask: net.CIDRMask(block.Bits(), 32)}
			route := netlink.Route{Type: unix.RTN_THROW, Dst: dst, Table: 100}
			if err := h.RouteAdd(&route); err != nil {
				return fmt.Errorf("cannot add %v: %w", block, err)
			}
		}
		return nil
	})
}

// apply is all that SetParameters does to the network.
func apply(ns *harness.Namespace, link netlink.Link) error {
	var kernel *rtnl.Kernel
	var firewall *nft.Firewall
	err := ns.Do(func() (err error) {
		if kernel, err = rtnl.NewKernel(); err != nil {
			return err
		}
		firewall, err = nft.New()
		return err
	})
	if err != nil {
		return err
	}
	defer kernel.Close()
	defer firewall.Close()
	network := routing.New(kernel, firewall, resolvconf.None{}, slog.New(slog.DiscardHandler))
	return network.Apply(context.Background(), routing.Config{
		Link:      routing.Link{Name: "vpn0", Index: link.Attrs().Index},
		MTU:       1500,
		Addresses: []netip.Prefix{netip.MustParsePrefix(Near + "/30")},
		Include:   []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
		Exclude:   blocks(),
	})
}

// idle is how long a daemon is left alone before it counts as idle, and watched
// how long it is looked at.
const (
	idle    = 2 * time.Minute
	watched = time.Minute
)

// idleDaemon waits until nobody has called the daemon for a while, and watches it.
func (l *lab) idleDaemon(h *host, lastCall time.Time) (memory, wakeUps Measurement) {
	l.Helper()
	pid := h.daemon.Process().PID()
	time.Sleep(time.Until(lastCall.Add(idle)))
	before := l.switches(pid)
	time.Sleep(watched)
	n := l.switches(pid) - before
	status := l.status(fmt.Sprintf("/proc/%d/status", pid))
	return Measurement{Kind: Memory, Row: Daemon, Value: float64(status["VmRSS"]) / 1024, Tries: 1},
		Measurement{Kind: WakeUps, Row: Daemon, Value: float64(n) / watched.Seconds(), Tries: 1}
}

// switches are how often threads of the process have gone to sleep: as often as
// they were woken. One that was preempted did not sleep.
func (l *lab) switches(pid int) (n int64) {
	l.Helper()
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err == nil && len(names) == 0 {
		err = errors.New("the daemon has ended")
	}
	if err != nil {
		l.Fatal(err)
	}
	for _, name := range names {
		n += l.status(name)["voluntary_ctxt_switches"]
	}
	return n
}

// status reads the numbers of a status file of proc(5).
func (l *lab) status(name string) map[string]int64 {
	l.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		l.Fatal(err)
	}
	numbers := map[string]int64{}
	for line := range strings.Lines(string(content)) {
		key, value, _ := strings.Cut(line, ":")
		first, _, _ := strings.Cut(strings.TrimSpace(value), " ")
		if n, err := strconv.ParseInt(first, 10, 64); err == nil {
			numbers[key] = n
		}
	}
	return numbers
}
