package wgtun_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/client/clienttest"
	"github.com/vpnprovider/vpnproviderd/dbus/client/wgtun"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const app = "com.example.WireGuard"

// offset is wireguard-go's, where a header of its own goes before a packet.
const offset = 16

// lab is a provider on a bus where a stand-in is the daemon.
type lab struct {
	service  *clienttest.Service
	provider *client.Provider
}

func newLab(t testing.TB) *lab {
	t.Helper()
	address := clienttest.Bus(t)
	l := &lab{service: clienttest.Start(t, address)}
	c, err := client.Dial(t.Context(), client.WithAddress(address))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if l.provider, err = c.RegisterProvider(t.Context(), app, client.ProviderOptions{}); err != nil {
		t.Fatal(err)
	}
	return l
}

// session connects a new config.
func (l *lab) session(t testing.TB, name string) *client.Session {
	t.Helper()
	cfg, err := l.provider.CreateConfig(t.Context(), name, client.ConfigOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := cfg.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for event := range l.provider.Events() {
		if started, ok := event.(client.SessionStarted); ok && started.Session == s {
			return s
		}
	}
	t.Fatal("no session began")
	return nil
}

// open opens a device on a new session; host is the daemon's end of its
// channel.
func (l *lab) open(t testing.TB, name string) (d *wgtun.Device, s *client.Session, host *os.File) {
	t.Helper()
	s = l.session(t, name)
	d, err := wgtun.Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d, s, l.service.Channel(s.Path())
}

func parameters(mtu uint32) client.Parameters {
	return client.Parameters{Addresses: []netip.Prefix{netip.MustParsePrefix("10.8.0.2/24")}, MTU: mtu}
}

// buffers are as wireguard-go's: whole ones, of the largest size.
func buffers() [][]byte {
	bufs := make([][]byte, 128)
	for i := range bufs {
		bufs[i] = make([]byte, device.MaxMessageSize)
	}
	return bufs
}

// packet is the i-th, of a size that varies.
func packet(i int) []byte {
	p := bytes.Repeat([]byte{byte(i)}, 20+i*37%1400)
	binary.BigEndian.PutUint32(p, uint32(i))
	return p
}

func TestReadAndWrite(t *testing.T) {
	l := newLab(t)
	d, _, host := l.open(t, "Work")
	if name, err := d.Name(); name != "vpn0" || err != nil || d.BatchSize() != 128 || d.File() != nil {
		t.Errorf("name %q (%v), batch %d", name, err, d.BatchSize())
	}
	const n = 1000
	go func() {
		for i := range n {
			if _, err := host.Write(packet(i)); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	bufs, sizes := buffers(), make([]int, 128)
	for next := 0; next < n; {
		got, err := d.Read(bufs, sizes, offset)
		if err != nil {
			t.Fatal(err)
		}
		for i := range got {
			if !bytes.Equal(bufs[i][offset:offset+sizes[i]], packet(next)) {
				t.Fatalf("packet %d is %x", next, bufs[i][offset:offset+sizes[i]])
			}
			next++
		}
	}

	go func() {
		for from := 0; from < n; {
			batch := [][]byte{make([]byte, offset)} // an empty one is skipped
			for ; len(batch) < 128 && from < n; from++ {
				batch = append(batch, append(make([]byte, offset), packet(from)...))
			}
			if sent, err := d.Write(batch, offset); err != nil || sent != len(batch)-1 {
				t.Errorf("%d of %d packets: %v", sent, len(batch), err)
				return
			}
		}
	}()
	for i := range n {
		got, err := host.Read(bufs[0])
		if err != nil || !bytes.Equal(bufs[0][:got], packet(i)) {
			t.Fatalf("packet %d is %x, %v", i, bufs[0][:got], err)
		}
	}
}

func TestEvents(t *testing.T) {
	d, _, _ := newLab(t).open(t, "Work")
	require := func(want tun.Event) {
		t.Helper()
		var got tun.Event
		select {
		case got = <-d.Events():
		default:
		}
		if got != want {
			t.Errorf("event %b, want %b", got, want)
		}
	}
	require(0)
	for _, step := range []struct {
		mtu  uint32
		want tun.Event
	}{{1500, tun.EventUp}, {1500, 0}, {1420, tun.EventMTUUpdate}} {
		if _, err := d.SetParameters(t.Context(), parameters(step.mtu)); err != nil {
			t.Fatal(err)
		}
		require(step.want)
	}
	// Events that nobody takes are merged, and delay nobody.
	for _, mtu := range []uint32{1400, 1300, 1280} {
		if _, err := d.SetParameters(t.Context(), parameters(mtu)); err != nil {
			t.Fatal(err)
		}
	}
	if mtu, err := d.MTU(); mtu != 1280 || err != nil {
		t.Errorf("MTU %d, %v", mtu, err)
	}
	require(tun.EventMTUUpdate)
	require(0)
}

func TestRefusedParametersAreNoEvent(t *testing.T) {
	l := newLab(t)
	d, _, _ := l.open(t, "Work")
	l.service.Fail("Session.SetParameters", wire.ErrInvalidParameter, "no")
	if _, err := d.SetParameters(t.Context(), parameters(1280)); !errors.Is(err, client.ErrInvalidParameter) {
		t.Errorf("error %v", err)
	}
	select {
	case e := <-d.Events():
		t.Errorf("event %b", e)
	default:
	}
}

func TestEnd(t *testing.T) {
	l := newLab(t)
	for name, end := range map[string]func(*wgtun.Device, *client.Session){
		"closed":        func(d *wgtun.Device, _ *client.Session) { _ = d.Close() },
		"session ended": func(_ *wgtun.Device, s *client.Session) { l.service.End(s.Path(), "") },
	} {
		t.Run(name, func(t *testing.T) {
			d, s, _ := l.open(t, name)
			read := make(chan error, 1)
			go func() {
				_, err := d.Read(buffers(), make([]int, 128), offset)
				read <- err
			}()
			end(d, s)
			if err := <-read; !errors.Is(err, os.ErrClosed) {
				t.Errorf("read: %v", err)
			}
			if _, err := d.Write([][]byte{make([]byte, 100)}, offset); !errors.Is(err, os.ErrClosed) {
				t.Errorf("write: %v", err)
			}
			for range 2 {
				if err := d.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			}
			if _, open := <-d.Events(); open {
				t.Error("the events are not closed")
			}
			// wireguard-go may be late with what it does then.
			_, _ = d.SetParameters(t.Context(), parameters(1300))
		})
	}
}

func TestOpenFails(t *testing.T) {
	l := newLab(t)
	s := l.session(t, "Work")
	for _, method := range []string{"Session.OpenPacketChannel", "Properties.GetAll"} {
		l.service.Fail(method, wire.ErrNotFound, "gone")
		if _, err := wgtun.Open(t.Context(), s); !errors.Is(err, client.ErrNotFound) {
			t.Errorf("%s: %v", method, err)
		}
	}
}

func TestNoPacketAllocates(t *testing.T) {
	d, _, host := newLab(t).open(t, "Work")
	bufs, sizes, large := buffers(), make([]int, 128), make([]byte, 1500)
	out := make([][]byte, 64)
	for i := range out {
		out[i] = make([]byte, offset+1400)
	}
	allocated := testing.AllocsPerRun(200, func() {
		if n, err := d.Write(out, offset); n != len(out) || err != nil {
			t.Fatalf("wrote %d: %v", n, err)
		}
		for range out {
			if _, err := host.Read(large); err != nil {
				t.Fatal(err)
			}
		}
		for range out {
			if _, err := host.Write(large[:1400]); err != nil {
				t.Fatal(err)
			}
		}
		for got := 0; got < len(out); {
			n, err := d.Read(bufs, sizes, offset)
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
	})
	if allocated > 0.5 {
		t.Errorf("%v allocations for %d packets each way", allocated, len(out))
	}
}

// udpSockets are the inodes of this process's UDP sockets with a port.
func udpSockets(t testing.TB, port uint16) []uint64 {
	t.Helper()
	names, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	var inodes []uint64
	for _, name := range names {
		var fd int
		if _, err := fmt.Sscan(filepath.Base(name), &fd); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		address, err := unix.Getsockname(fd)
		if err != nil || unix.Fstat(fd, &st) != nil {
			continue
		}
		switch a := address.(type) {
		case *unix.SockaddrInet4:
			if a.Port == int(port) {
				inodes = append(inodes, st.Ino)
			}
		case *unix.SockaddrInet6:
			if a.Port == int(port) {
				inodes = append(inodes, st.Ino)
			}
		}
	}
	return inodes
}

func TestBindProtectsItsSockets(t *testing.T) {
	l := newLab(t)
	s := l.session(t, "Work")
	b := wgtun.NewBind(s)
	other, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	var all []uint64
	for range 3 { // as on every BindUpdate
		receive, port, err := b.Open(0)
		if err != nil {
			t.Fatal(err)
		}
		mine := udpSockets(t, port)
		if len(mine) != len(receive) {
			t.Errorf("%d sockets of port %d for %d receivers: a copy was left open", len(mine), port, len(receive))
		}
		all = append(all, mine...)
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	if got := l.service.Protected(); !slices.Equal(sorted(got), sorted(all)) {
		t.Errorf("protected %v, want %v", got, all)
	}
}

func sorted(list []uint64) []uint64 { return slices.Sorted(slices.Values(list)) }

// A socket that could not be protected would send into its own tunnel.
func TestBindThatCannotProtect(t *testing.T) {
	l := newLab(t)
	b := wgtun.NewBind(l.session(t, "Work"))
	_, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	_ = b.Close()
	l.service.Fail("Session.ProtectSocket", wire.ErrWrongState, "ending")
	if _, _, err := b.Open(port); !errors.Is(err, client.ErrWrongState) {
		t.Errorf("error %v", err)
	}
	if left := udpSockets(t, port); len(left) != 0 {
		t.Errorf("%d sockets are open", len(left))
	}
	l.service.Fail("Session.ProtectSocket", "", "")
	if _, _, err := b.Open(port); err != nil {
		t.Error(err)
	}
	_ = b.Close()
}

// end is a wireguard-go on a session.
type end struct {
	wg      *device.Device
	tun     *wgtun.Device
	session *client.Session
	host    *os.File
	key     *ecdh.PrivateKey
	port    string
}

func (l *lab) wireGuard(t testing.TB, name string) *end {
	t.Helper()
	e := &end{}
	e.tun, e.session, e.host = l.open(t, name)
	var err error
	if e.key, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	e.wg = device.NewDevice(e.tun, wgtun.NewBind(e.session), device.NewLogger(device.LogLevelError, name+": "))
	t.Cleanup(e.wg.Close)
	e.set(t, "private_key="+hex.EncodeToString(e.key.Bytes()))
	if _, err := e.tun.SetParameters(t.Context(), parameters(1420)); err != nil {
		t.Fatal(err)
	}
	if err := e.wg.Up(); err != nil {
		t.Fatal(err)
	}
	text, err := e.wg.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if port, ok := strings.CutPrefix(line, "listen_port="); ok {
			e.port = strings.TrimSpace(port)
		}
	}
	return e
}

func (e *end) set(t testing.TB, lines ...string) {
	t.Helper()
	if err := e.wg.IpcSet(strings.Join(lines, "\n")); err != nil {
		t.Fatal(err)
	}
}

func (e *end) peer(t testing.TB, other *end, allowed string) {
	t.Helper()
	e.set(t, "public_key="+hex.EncodeToString(other.key.PublicKey().Bytes()), "endpoint=127.0.0.1:"+other.port, "allowed_ip="+allowed)
}

// ping is an IPv4 packet with a number.
func ping(from, to byte, number int) []byte {
	p := make([]byte, 20+100)
	p[0], p[9] = 0x45, 17
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], []byte{10, 8, 0, from, 10, 8, 0, to})
	binary.BigEndian.PutUint32(p[20:], uint32(number))
	return p
}

// Two of wireguard-go's devices on two sessions, over the loopback: packets
// come out as they went in, also after the sockets were made anew, and each
// ends with its session.
func TestWireGuard(t *testing.T) {
	l := newLab(t)
	a, b := l.wireGuard(t, "A"), l.wireGuard(t, "B")
	a.peer(t, b, "10.8.0.2/32")
	b.peer(t, a, "10.8.0.1/32")
	buf := make([]byte, 2000)
	pass := func(from, to *end, p []byte) {
		t.Helper()
		if _, err := from.host.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := to.host.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := to.host.Read(buf)
		if err != nil || !bytes.Equal(buf[:n], p) {
			t.Fatalf("got %x, %v", buf[:n], err)
		}
	}
	for i := range 200 {
		pass(a, b, ping(1, 2, i))
		pass(b, a, ping(2, 1, i))
		if i == 100 {
			if err := a.wg.BindUpdate(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := len(l.service.Protected()); n != 6 {
		t.Errorf("%d sockets were protected, want 2 each time they are opened", n)
	}
	for _, e := range []*end{a, b} {
		l.service.End(e.session.Path(), "")
		select {
		case <-e.wg.Wait():
		case <-time.After(20 * time.Second):
			t.Error("wireguard-go goes on without its session")
		}
	}
}
