package tun_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun"
	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// twoNetworks have a tunnel each, which are each other's client:
//
//	own4, own6 ── near0 ── near ══ channel ══ far ── far0 ── peer4, peer6
type twoNetworks struct {
	near, far *tun.Tunnel
	inFar     func(func() error)
}

// between moves messages from one end of a channel to another, until it cannot.
type between func(from, to *os.File)

// newTwoNetworks puts the test into the near network. Messages go through via,
// if there is one.
func newTwoNetworks(t *testing.T, format tun.Format, mtu int, via between) *twoNetworks {
	t.Helper()
	namespace(t)
	n := &twoNetworks{inFar: otherNamespace(t)}
	p := policy()
	p.MTU = mtu
	n.near = tunnelOver(t, "near0", p, func(f func() error) {
		t.Helper()
		if err := f(); err != nil {
			t.Fatal(err)
		}
	})
	n.far = tunnelOver(t, "far0", tun.Policy{
		Addresses: []netip.Addr{peer4, peer6}, MTU: mtu,
		Include: []netip.Prefix{netip.PrefixFrom(own4, 32), netip.PrefixFrom(own6, 128)},
	}, n.inFar)
	nearEnd, farEnd := channelPair(t, format)
	if via != nil {
		fromNear, fromFar := farEnd, (*os.File)(nil)
		farEnd, fromFar = channelPair(t, format)
		var busy sync.WaitGroup
		busy.Go(func() { via(fromNear, fromFar) })
		busy.Go(func() { via(fromFar, fromNear) })
		t.Cleanup(func() {
			fromNear.Close()
			fromFar.Close()
			busy.Wait()
		})
	}
	if err := errors.Join(n.near.Attach(nearEnd, format), n.far.Attach(farEnd, format)); err != nil {
		t.Fatal(err)
	}
	return n
}

func channelPair(t *testing.T, format tun.Format) (one, other *os.File) {
	t.Helper()
	one, other, err := tun.NewChannel(format)
	if err != nil {
		t.Fatal(err)
	}
	return one, other
}

func tunnelOver(t *testing.T, name string, p tun.Policy, in func(func() error)) (tunnel *tun.Tunnel) {
	t.Helper()
	in(func() error {
		d, err := tun.Open(name)
		if err != nil {
			return err
		}
		if tunnel, err = tun.New(d, tun.Events{}); err != nil {
			return errors.Join(err, d.Close())
		}
		t.Cleanup(func() { tunnel.Close() })
		return errors.Join(tunnel.SetPolicy(p), bringUp(name, p))
	})
	return tunnel
}

// bringUp gives an interface addresses and routes, and waits until the kernel
// takes packets for the one of IPv6.
func bringUp(name string, p tun.Policy) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = errors.Join(netlink.LinkSetUp(lo), netlink.LinkSetMTU(l, p.MTU))
	}
	for _, a := range p.Addresses {
		err = errors.Join(err, netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen())), Flags: unix.IFA_F_NODAD}))
	}
	err = errors.Join(err, netlink.LinkSetUp(l))
	for _, block := range p.Include {
		err = errors.Join(err, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(block)}))
	}
	for end := time.Now().Add(patience); err == nil; time.Sleep(time.Millisecond) {
		routes, routeErr := netlink.RouteGet(p.Addresses[1].AsSlice())
		if routeErr == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
			break
		}
		if time.Now().After(end) {
			err = errors.New("the IPv6 address never became local")
		}
	}
	return err
}

// bulk is n bytes that are no others when they are moved.
func bulk(n int) []byte {
	b := make([]byte, n)
	random := rand.New(rand.NewPCG(11, 12))
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], random.Uint64())
	}
	return b
}

// transfer sends data to the far network, or from there.
func (n *twoNetworks) transfer(t *testing.T, to netip.Addr, up bool, data []byte) {
	t.Helper()
	var l net.Listener
	n.inFar(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(to, 0).String())
		return err
	})
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	from, into := conn, accepted
	if !up {
		from, into = accepted, conn
	}
	end := time.Now().Add(2 * time.Minute)
	from.SetDeadline(end)
	into.SetDeadline(end)
	sent := make(chan error, 1)
	go func() {
		_, err := from.Write(data)
		sent <- errors.Join(err, from.Close())
	}()
	h := sha256.New()
	received, err := io.Copy(h, into)
	if err = errors.Join(err, <-sent); err != nil || received != int64(len(data)) || [32]byte(h.Sum(nil)) != sha256.Sum256(data) {
		t.Errorf("%v, up %v: %d bytes of %d, %v", to, up, received, len(data), err)
	}
}

// faults are what the kernel of this thread's network found wrong with packets.
func faults() (map[string]string, error) {
	found := map[string]string{}
	look := func(name string, value string) {
		if strings.Contains(name, "Csum") || strings.Contains(name, "HdrErrors") || strings.HasSuffix(name, "UdpInErrors") {
			found[name] = value
		}
	}
	for _, file := range []string{"snmp", "netstat"} {
		text, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err != nil {
			return nil, err
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		for i := 0; i+1 < len(lines); i += 2 {
			values := strings.Fields(lines[i+1])
			for j, name := range strings.Fields(lines[i]) {
				look(strings.TrimSuffix(values[0], ":")+name, values[j])
			}
		}
	}
	text, err := os.ReadFile("/proc/thread-self/net/snmp6")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 2 {
			look(f[0], f[1])
		}
	}
	return found, nil
}

// faultless checks that neither kernel found anything wrong.
func (n *twoNetworks) faultless(t *testing.T) {
	t.Helper()
	check := func() error {
		found, err := faults()
		if err == nil && len(found) < 5 {
			err = fmt.Errorf("only %v", found)
		}
		for name, value := range found {
			if value != "0" {
				err = errors.Join(err, fmt.Errorf("%s is %s", name, value))
			}
		}
		return err
	}
	if err := check(); err != nil {
		t.Error("near:", err)
	}
	n.inFar(check)
	for name, tunnel := range map[string]*tun.Tunnel{"near": n.near, "far": n.far} {
		for counter, value := range tunnel.Statistics() {
			// What an interface says by itself is not for the client.
			if strings.HasPrefix(counter, "dropped.") && counter != "dropped.outSource" && counter != "dropped.outDestination" && value > 0 {
				t.Errorf("%s: %s %d", name, counter, value)
			}
		}
	}
}

// formats are those that keep the bounds of messages.
func formats() map[string]tun.Format {
	return map[string]tun.Format{"packet": tun.FormatPacket, "offload": tun.FormatOffload}
}

func TestTransfer(t *testing.T) {
	size := 64 << 20
	if testing.Short() || raceEnabled {
		size = 4 << 20
	}
	data := bulk(size)
	all := formats()
	all["stream"] = tun.FormatStream
	for name, format := range all {
		for _, mtu := range []int{1280, 1420, 9000} {
			t.Run(name+"/"+strconv.Itoa(mtu), func(t *testing.T) {
				n := newTwoNetworks(t, format, mtu, nil)
				for _, to := range []netip.Addr{peer4, peer6} {
					n.transfer(t, to, true, data)
					n.transfer(t, to, false, data)
				}
				n.faultless(t)
				// What one side sends the other receives, the last of it soon.
				var near, far map[string]uint64
				eventually(t, "both sides count the same", func() bool {
					near, far = n.near.Statistics(), n.far.Statistics()
					return near["txPackets"] == far["rxPackets"] && near["txBytes"] == far["rxBytes"] &&
						near["rxPackets"] == far["txPackets"] && near["rxBytes"] == far["txBytes"]
				})
				// Packets are counted, not super-packets.
				if least := uint64(2 * size / mtu); near["txPackets"] < least || near["txBytes"] < uint64(2*size) {
					t.Errorf("%d packets with %d bytes sent, at least %d with %d", near["txPackets"], near["txBytes"], least, 2*size)
				}
			})
		}
	}
}

// A client that loses, doubles and exchanges messages costs time, and nothing
// else.
func TestTransferWithLossAndReordering(t *testing.T) {
	size := 8 << 20
	if testing.Short() || raceEnabled {
		size = 1 << 20
	}
	data := bulk(size)
	for name, format := range formats() {
		t.Run(name, func(t *testing.T) {
			n := newTwoNetworks(t, format, 1420, func(from, to *os.File) {
				random := rand.New(rand.NewPCG(13, 14))
				var held []byte
				for buffer := make([]byte, vnet.MaxMessage); ; {
					size, err := from.Read(buffer)
					if err != nil {
						return
					}
					switch chance := random.IntN(200); {
					case chance == 0: // lost
						continue
					case chance == 1: // twice
						to.Write(buffer[:size])
					case chance < 6 && held == nil: // later
						held = bytes.Clone(buffer[:size])
						continue
					}
					to.Write(buffer[:size])
					if held != nil && random.IntN(3) == 0 {
						to.Write(held)
						held = nil
					}
				}
			})
			for _, to := range []netip.Addr{peer4, peer6} {
				n.transfer(t, to, true, data)
				n.transfer(t, to, false, data)
			}
			n.faultless(t)
		})
	}
}

// The kernel really hands out super-packets of every kind, and takes them.
func TestKernelHasSuperPackets(t *testing.T) {
	var mu sync.Mutex
	seen := map[byte]int{}
	n := newTwoNetworks(t, tun.FormatOffload, 1420, func(from, to *os.File) {
		for buffer := make([]byte, vnet.MaxMessage); ; {
			size, err := from.Read(buffer)
			if err != nil {
				return
			}
			mu.Lock()
			seen[vnet.Decode(buffer).GSOType]++
			mu.Unlock()
			to.Write(buffer[:size])
		}
	})
	for _, to := range []netip.Addr{peer4, peer6} {
		n.transfer(t, to, true, bulk(1<<20))
		n.transfer(t, to, false, bulk(1<<20))
		n.datagrams(t, to)
	}
	n.faultless(t)
	mu.Lock()
	defer mu.Unlock()
	for kind, name := range map[byte]string{vnet.TCP4: "TCP", vnet.TCP6: "TCP over IPv6", vnet.UDP: "UDP"} {
		if seen[kind] < 2 {
			t.Errorf("%d super-packets of %s", seen[kind], name)
		}
	}
}

func TestDatagramsOfASuperPacket(t *testing.T) {
	for name, format := range formats() {
		t.Run(name, func(t *testing.T) {
			n := newTwoNetworks(t, format, 1420, nil)
			n.datagrams(t, peer4)
			n.datagrams(t, peer6)
			n.faultless(t)
		})
	}
}

// datagrams has the kernel send many datagrams as one.
func (n *twoNetworks) datagrams(t *testing.T, to netip.Addr) {
	t.Helper()
	var receiver *net.UDPConn
	n.inFar(func() (err error) {
		receiver, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 0)))
		return err
	})
	defer receiver.Close()
	sender, err := net.DialUDP("udp", nil, receiver.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	const size, count = 1000, 40
	raw, err := sender.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) })
	if err != nil {
		t.Fatal(err)
	}
	data := bulk(size*count - 100)
	if _, err := sender.Write(data); err != nil {
		t.Fatal(err)
	}
	var got []byte
	receiver.SetReadDeadline(time.Now().Add(patience))
	for buffer := make([]byte, 2*size); len(got) < len(data); {
		m, err := receiver.Read(buffer)
		if err != nil || m != size && len(got)+m != len(data) {
			t.Fatalf("%v: %d bytes after %d, %v", to, m, len(got), err)
		}
		got = append(got, buffer[:m]...)
	}
	if !bytes.Equal(got, data) {
		t.Errorf("%v: other datagrams came", to)
	}
}
