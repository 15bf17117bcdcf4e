package bench

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// lab is where beds are made.
type lab struct {
	testing.TB
	peer       string          // the program
	congestion map[string]bool // TCP congestion controls that were used
}

func newLab(t testing.TB) *lab {
	t.Helper()
	harness.Require(t, "ip", "dbus-daemon")
	l := &lab{TB: t, peer: filepath.Join(harness.TempDir(t), "peer"), congestion: map[string]bool{}}
	if out, err := exec.Command("go", "build", "-o", l.peer, "./peer").CombinedOutput(); err != nil {
		t.Fatalf("cannot build the peer: %v\n%s", err, out)
	}
	return l
}

// bed is a host whose tunnel leads to another namespace: near tells of the
// host's side, far of what lies behind the tunnel. Each row has a bed of its
// own, with processes that do nothing while other rows are measured.
type bed struct {
	row       string
	near, far *harness.Namespace
	pids      []int // the processes between the two
}

// start starts a peer and waits until it is ready.
func (l *lab) start(ns *harness.Namespace, c harness.Command, role string) *harness.Process {
	l.Helper()
	c.Argv = append([]string{l.peer, role}, c.Argv...)
	p := ns.Start(l, c)
	for _, f := range c.Files {
		_ = f.Close()
	}
	p.Await(l, `(?m)^ready$`)
	return p
}

// namespace is one that says nothing by itself, and forgets what earlier
// connections were like.
func (l *lab) namespace(name string) *harness.Namespace {
	l.Helper()
	ns := harness.NewNamespace(l, name)
	ns.Sysctl(l, "net.ipv6.conf.default.disable_ipv6", "1")
	ns.Sysctl(l, "net.ipv4.tcp_no_metrics_save", "1")
	return ns
}

// tun makes a TUN that is up and has the address.
func (l *lab) tun(ns *harness.Namespace, name, address string, flags uint16) *os.File {
	l.Helper()
	var file *os.File
	err := ns.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), name)
		request, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | flags)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			return os.NewSyscallError("ioctl TUNSETIFF", err)
		}
		if flags&unix.IFF_VNET_HDR == 0 {
			return nil
		}
		const all = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_USO4 | unix.TUN_F_USO6
		return os.NewSyscallError("ioctl TUNSETOFFLOAD", unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, all))
	})
	if err != nil {
		l.Fatalf("cannot make a TUN: %v", err)
	}
	ns.IP(l, "addr add "+address+"/30 dev "+name, "link set "+name+" up")
	return file
}

// direct is a root client between two TUNs, without a daemon.
func (l *lab) direct(row, mode string, flags uint16) *bed {
	l.Helper()
	b := &bed{row: row, near: l.namespace(row + " near"), far: l.namespace(row + " far")}
	files := []*os.File{l.tun(b.near, "tun0", Near, flags), l.tun(b.far, "tun1", Far, flags)}
	p := l.start(b.near, harness.Command{Argv: []string{"--mode", mode}, Files: files}, "copy")
	b.pids = []int{p.PID()}
	return b
}

// host is a host with bus and daemon.
type host struct {
	*harness.Namespace
	bus    *harness.Bus
	daemon *harness.Daemon
}

func (l *lab) host(name string, env ...string) *host {
	l.Helper()
	h := &host{Namespace: harness.NewHost(l, name)}
	h.Sysctl(l, "net.ipv4.tcp_no_metrics_save", "1")
	h.bus = harness.StartBus(l, h.Namespace, harness.BusOptions{Policy: harness.ShippedPolicy})
	h.daemon = harness.StartDaemon(l, h.Namespace, h.bus, harness.DaemonOptions{Env: env})
	return h
}

// has says whether the daemon has a feature.
func (h *host) has(t testing.TB, feature string) bool {
	t.Helper()
	c, err := client.Dial(t.Context(), client.WithAddress(h.bus.Address))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p, err := c.Properties(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.Contains(p.Features, feature)
}

// daemon is an unprivileged app on the daemon. It is nil when the daemon does
// not know the format of the channel.
func (l *lab) daemon(row, mode string, flags uint16) *bed {
	l.Helper()
	h := l.host(row + " near")
	if mode == wire.FormatOffload && !h.has(l, "offload") {
		l.Logf("the daemon has no feature offload: no row %s", row)
		return nil
	}
	b := &bed{row: row, near: h.Namespace, far: l.namespace(row + " far")}
	p := l.start(b.near, harness.Command{
		Argv:  []string{"--mode", mode, "--bus", h.bus.Address},
		Files: []*os.File{l.tun(b.far, "tun1", Far, flags)},
		UID:   harness.Alice,
	}, "provide")
	b.pids = []int{p.PID(), h.daemon.Process().PID(), h.bus.Process().PID()}
	return b
}

// wireguard is wireguard-go on both sides of a link: far, and as root near, on
// TUNs of its own; or near as an app on the daemon.
func (l *lab) wireguard(row, mode string) *bed {
	l.Helper()
	b := &bed{row: row, far: l.namespace(row + " far")}
	near := harness.Command{}
	if mode == "" {
		b.near = l.namespace(row + " near")
		near.Files = []*os.File{l.tun(b.near, "tun0", Near, unix.IFF_VNET_HDR)}
		b.near.IP(l, "link set tun0 mtu 1420")
	} else {
		h := l.host(row + " near")
		if mode == wire.FormatOffload && !h.has(l, "offload") {
			return nil
		}
		b.near = h.Namespace
		near.UID = harness.Alice
		near.Argv = []string{"--bus", h.bus.Address, "--mode", mode}
		b.pids = []int{h.daemon.Process().PID(), h.bus.Process().PID()}
	}
	harness.Veth(l, b.near, "h0", b.far, "h1")
	b.near.IP(l, "addr add 10.98.0.1/30 dev h0")
	b.far.IP(l, "addr add 10.98.0.2/30 dev h1")
	far := harness.Command{Files: []*os.File{l.tun(b.far, "tun1", Far, unix.IFF_VNET_HDR)}}
	b.far.IP(l, "link set tun1 mtu 1420")

	nearKey, farKey := l.key(), l.key()
	near.Argv = append(near.Argv, "--peer", wireguardConfig(nearKey, farKey, "10.98.0.2:51820"))
	far.Argv = append(far.Argv, "--peer", wireguardConfig(farKey, nearKey, "10.98.0.1:51820"))
	b.pids = append(b.pids, l.start(b.far, far, "wireguard").PID(), l.start(b.near, near, "wireguard").PID())
	return b
}

func (l *lab) key() *ecdh.PrivateKey {
	l.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		l.Fatal(err)
	}
	return key
}

func wireguardConfig(own, other *ecdh.PrivateKey, endpoint string) string {
	return fmt.Sprintf("private_key=%s\nlisten_port=51820\npublic_key=%s\nendpoint=%s\nallowed_ip=0.0.0.0/0\n",
		hex.EncodeToString(own.Bytes()), hex.EncodeToString(other.PublicKey().Bytes()), endpoint)
}

// ends are the sender's side and the receiver's, and the receiver's address.
func (b *bed) ends(d Direction) (from, to *harness.Namespace, address string) {
	if d == Down {
		return b.far, b.near, Near + ":5001"
	}
	return b.near, b.far, Far + ":5001"
}

// run runs a role to its end and returns what it measured.
func (l *lab) run(ns *harness.Namespace, c harness.Command, role string) Result {
	l.Helper()
	c.Argv = append([]string{l.peer, role}, c.Argv...)
	p := ns.Start(l, c)
	return l.result(p)
}

func (l *lab) result(p *harness.Process) (r Result) {
	l.Helper()
	err := p.Wait(l)
	if err != nil {
		l.Fatalf("a peer ended: %v\n%s", err, p.Output())
	}
	lines := strings.Split(strings.TrimSpace(p.Output()), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &r); err != nil {
		l.Fatalf("a peer printed no result: %v\n%s", err, p.Output())
	}
	return r
}

// stream has one side receive and measure what the other sends.
func (l *lab) stream(b *bed, d Direction, period time.Duration) Result {
	l.Helper()
	from, to, address := b.ends(d)
	args := []string{"--address", address, "--time", period.String()}
	receive := l.start(to, harness.Command{Argv: append(args, "--pids", pidList(b.pids))}, "receive")
	sent := l.run(from, harness.Command{Argv: args}, "send")
	r := l.result(receive)
	l.congestion[sent.Congestion] = true
	return r
}

// datagrams is stream with datagrams of size bytes, more than arrive.
func (l *lab) datagrams(b *bed, d Direction, size int, period time.Duration) Result {
	l.Helper()
	from, to, address := b.ends(d)
	args := []string{"--address", address, "--time", period.String(), "--size", strconv.Itoa(size)}
	blast := from.Start(l, harness.Command{Argv: append([]string{l.peer, "blast"}, args...)})
	defer blast.Kill()
	args = append(args, "--sender", strconv.Itoa(blast.PID()), "--pids", pidList(b.pids))
	return l.run(to, harness.Command{Argv: args}, "sink")
}

func pidList(pids []int) string {
	var texts []string
	for _, pid := range pids {
		texts = append(texts, strconv.Itoa(pid))
	}
	return strings.Join(texts, ",")
}
