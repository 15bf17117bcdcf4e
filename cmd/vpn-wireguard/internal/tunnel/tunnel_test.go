package tunnel

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-wireguard/internal/wgconf"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/client/clienttest"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	app     = "com.example.WireGuard"
	timeout = 20 * time.Second
)

// lab is a provider on a bus where a stand-in is the daemon, and a WireGuard
// server on the loopback.
type lab struct {
	t       *testing.T
	address string
	service *clienttest.Service
	config  *client.Config
	events  <-chan client.Event
	server  *server

	mu    sync.Mutex
	lines []string // what the tunnel said
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, address: clienttest.Bus(t)}
	l.service = clienttest.Start(t, l.address)
	c, err := client.Dial(t.Context(), client.WithAddress(l.address))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	p, err := c.RegisterProvider(t.Context(), app, client.ProviderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if l.config, err = p.CreateConfig(t.Context(), "Work", client.ConfigOptions{}); err != nil {
		t.Fatal(err)
	}
	l.events = p.Events()
	l.server = newServer(t)
	return l
}

func (l *lab) say(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *lab) said(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(strings.Join(l.lines, "\n"), text)
}

// await polls until the condition holds.
func (l *lab) await(what string, holds func() bool) {
	l.t.Helper()
	for end := time.Now().Add(timeout); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.t.Fatalf("%s: not within %v; it said\n%s", what, timeout, strings.Join(l.lines, "\n"))
		}
	}
}

func (l *lab) awaitConnected() {
	l.t.Helper()
	l.await("the state is connected", func() bool { return l.state() == client.StateConnected })
}

func (l *lab) state() client.State {
	l.t.Helper()
	p, err := l.config.Properties(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	return p.State
}

// running is a tunnel that runs.
type running struct {
	*Tunnel
	session *client.Session
	stop    context.CancelFunc
	ended   chan error
}

// start connects, with a client that knows the server at an endpoint.
func (l *lab) start(endpoint string, more ...string) *running {
	l.t.Helper()
	s, err := l.config.Connect(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	for event := range l.events {
		if started, ok := event.(client.SessionStarted); ok && started.Session == s {
			break
		}
	}
	c, err := wgconf.Parse("test.conf", []byte(l.server.clientConfig(endpoint, more...)))
	if err != nil {
		l.t.Fatal(err)
	}
	tunnel, err := Open(l.t.Context(), s, c, Log{Say: l.say, Debug: func(string, ...any) {}})
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(l.t.Context())
	r := &running{Tunnel: tunnel, session: s, stop: stop, ended: make(chan error, 1)}
	go func() {
		r.ended <- tunnel.Run(ctx)
		close(r.ended)
	}()
	l.t.Cleanup(func() {
		stop()
		<-r.ended
	})
	return r
}

func (r *running) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.ended:
		return err
	case <-time.After(timeout):
		t.Fatal("the tunnel has not ended")
		return nil
	}
}

// server is a wireguard-go whose packets the test reads and writes.
type server struct {
	wg        *device.Device
	tun       *tuntest.ChannelTUN
	key       *ecdh.PrivateKey
	clientKey *ecdh.PrivateKey
}

func newKey(t *testing.T) *ecdh.PrivateKey {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{key: newKey(t), clientKey: newKey(t), tun: tuntest.NewChannelTUN()}
	s.wg = device.NewDevice(s.tun.TUN(), conn.NewStdNetBind(), device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(s.wg.Close)
	err := s.wg.IpcSet("private_key=" + hex.EncodeToString(s.key.Bytes()) +
		"\npublic_key=" + hex.EncodeToString(s.clientKey.PublicKey().Bytes()) + "\nallowed_ip=10.66.0.2/32\nallowed_ip=fd66::2/128\n")
	if err == nil {
		err = s.wg.Up()
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *server) port() string {
	text, _ := s.wg.IpcGet()
	return fmt.Sprint(parseStatus(text).ListenPort)
}

func (s *server) clientConfig(endpoint string, more ...string) string {
	inBase64 := base64.StdEncoding.EncodeToString
	lines := []string{
		"[Interface]", "PrivateKey = " + inBase64(s.clientKey.Bytes()), "Address = 10.66.0.2/24, fd66::2/64",
		"DNS = 10.66.0.1, corp.example",
		"[Peer]", "PublicKey = " + inBase64(s.key.PublicKey().Bytes()), "AllowedIPs = 0.0.0.0/0, ::/0",
	}
	if endpoint != "" {
		lines = append(lines, "Endpoint = "+endpoint)
	}
	return strings.Join(append(lines, more...), "\n")
}

// packet is an IPv4 packet with a number.
func packet(from, to byte, number int) []byte {
	p := make([]byte, 20+100)
	p[0], p[9] = 0x45, 17
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], []byte{10, 66, 0, from, 10, 66, 0, to})
	binary.BigEndian.PutUint32(p[20:], uint32(number))
	return p
}

// pass sends packets through the tunnel, there and back.
func (l *lab) pass(r *running) {
	l.t.Helper()
	host := l.service.Channel(r.session.Path())
	for i := range 20 {
		there, back := packet(2, 1, i), packet(1, 2, i)
		if _, err := host.Write(there); err != nil {
			l.t.Fatal(err)
		}
		select {
		case got := <-l.server.tun.Inbound:
			if !bytes.Equal(got, there) {
				l.t.Fatalf("the server got %x", got)
			}
		case <-time.After(timeout):
			l.t.Fatal("the server got nothing")
		}
		l.server.tun.Outbound <- back
		buf := make([]byte, 2000)
		_ = host.SetReadDeadline(time.Now().Add(timeout))
		n, err := host.Read(buf)
		if err != nil || !bytes.Equal(buf[:n], back) {
			l.t.Fatalf("the host got %x, %v", buf[:n], err)
		}
	}
}

func TestConnect(t *testing.T) {
	l := newLab(t)
	r := l.start("localhost:"+l.server.port(), "PersistentKeepalive = 25")
	l.awaitConnected()
	l.pass(r)
	p := l.service.Parameters(r.session.Path())
	for key, want := range map[string]string{
		"address": "10.66.0.2/24", "addresses": "[fd66::2/64]", "mtu": "1420", "inclusionList": "[0.0.0.0/0 ::/0]",
		"dnsServers": "[10.66.0.1]", "domainSearch": "[corp.example]", "reconnect": "true", "exclusionList": "<nil>",
	} {
		if got := fmt.Sprint(p[key]); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	s := r.Status()
	if s.Interface != "vpn0" || s.ListenPort == 0 || len(s.Peers) != 1 {
		t.Fatalf("status %+v", s)
	}
	peer := s.Peers[0]
	if time.Since(peer.LatestHandshake) > time.Minute || peer.RxBytes < 2000 || peer.TxBytes < 2000 || peer.Keepalive != 25 ||
		!strings.HasSuffix(peer.Endpoint, ":"+l.server.port()) || fmt.Sprint(peer.AllowedIPs) != "[0.0.0.0/0 ::/0]" || peer.PresharedKey {
		t.Errorf("peer %+v", peer)
	}
	if err := l.config.Disconnect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.wait(t); err != nil {
		t.Errorf("ended with %v", err)
	}
}

// Nothing is routed into a tunnel before its server answers.
func TestServerThatIsNotThere(t *testing.T) {
	l := newLab(t)
	hole, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	r := l.start(hole.LocalAddr().String())
	l.await("it says so", func() bool { return l.said("no answer from 127.0.0.1:") })
	if state := l.state(); state != client.StateConnecting || len(l.service.Parameters(r.session.Path())) != 0 {
		t.Errorf("the state is %s", state)
	}
	r.stop()
	if err := r.wait(t); err != nil || l.state() != client.StateIdle {
		t.Errorf("ended with %v, in state %s", err, l.state())
	}
}

func TestServerThatComesLater(t *testing.T) {
	l := newLab(t)
	hole, err := net.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(hole.LocalAddr().String())
	r := l.start("127.0.0.1:" + port)
	l.await("it says so", func() bool { return l.said("no answer from 127.0.0.1:" + port) })
	_ = hole.Close()
	if err := l.server.wg.IpcSet("listen_port=" + port); err != nil {
		t.Fatal(err)
	}
	l.awaitConnected()
	l.pass(r)
}

func TestNameThatIsNotFound(t *testing.T) {
	l := newLab(t)
	l.start("nowhere.invalid:51820")
	l.await("it says so", func() bool { return l.said("cannot find the peer") })
	if state := l.state(); state != client.StateConnecting {
		t.Errorf("the state is %s", state)
	}
}

// Who only waits for its peers is connected at once.
func TestPeersWithoutEndpoint(t *testing.T) {
	l := newLab(t)
	l.start("")
	l.awaitConnected()
}

func TestNetworkChanges(t *testing.T) {
	l := newLab(t)
	r := l.start("127.0.0.1:" + l.server.port())
	l.awaitConnected()
	for _, messages := range [][]string{
		{wire.MessageLinkChanged},
		{wire.MessageLinkDown, wire.MessageLinkUp},
		{wire.MessageResume},
		{wire.MessageLinkChanged, wire.MessageLinkChanged, wire.MessageLinkDown, wire.MessageLinkUp},
		{"unknown", wire.MessageResume},
	} {
		before := len(l.service.Protected())
		l.service.SetState(l.config.Path(), wire.StateReconnecting)
		for _, m := range messages {
			l.service.Message(r.session.Path(), m, "")
		}
		l.awaitConnected()
		if n := len(l.service.Protected()); n <= before {
			t.Errorf("%v: no new sockets", messages)
		}
		l.pass(r)
	}
	if !l.said("the network is gone") || !l.said("reconnecting") {
		t.Errorf("it said %q", l.lines)
	}
}

// A network that is gone stays `reconnecting`.
func TestNetworkStaysAway(t *testing.T) {
	l := newLab(t)
	r := l.start("127.0.0.1:" + l.server.port())
	l.awaitConnected()
	l.service.SetState(l.config.Path(), wire.StateReconnecting)
	l.service.Message(r.session.Path(), wire.MessageLinkDown, "")
	l.service.Message(r.session.Path(), wire.MessageSuspend, "")
	l.await("suspend is acknowledged", func() bool { return fmt.Sprint(l.service.Acknowledged()) == "[suspend]" })
	if state := l.state(); state != client.StateReconnecting {
		t.Errorf("the state is %s", state)
	}
	l.service.End(r.session.Path(), wire.ReasonTimeout)
	if err := r.wait(t); err == nil || !strings.Contains(err.Error(), wire.ReasonTimeout) {
		t.Errorf("ended with %v", err)
	}
}

func TestRefusedParameters(t *testing.T) {
	l := newLab(t)
	l.service.Fail("Session.SetParameters", wire.ErrInvalidParameter, "address: is the gateway")
	r := l.start("127.0.0.1:" + l.server.port())
	if err := r.wait(t); !errors.Is(err, client.ErrInvalidParameter) || !strings.Contains(err.Error(), "is the gateway") {
		t.Errorf("ended with %v", err)
	}
	if state := l.state(); state != client.StateFailed {
		t.Errorf("the state is %s", state)
	}
}

func TestPortInUse(t *testing.T) {
	l := newLab(t)
	r := l.start("127.0.0.1:"+l.server.port(), "[Peer]", "PublicKey = 0F9CZ7yQNz0HiyJOy24ruBNHbMkbpPsjpUUxe7UGHk8=")
	l.awaitConnected()
	taken := r.Status().ListenPort
	r.stop()
	if err := r.wait(t); err != nil {
		t.Error(err)
	}
	hole, err := net.ListenPacket("udp4", fmt.Sprintf(":%d", taken))
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	text := strings.Replace(l.server.clientConfig(""), "[Peer]", fmt.Sprintf("ListenPort = %d\n[Peer]", taken), 1)
	c, err := wgconf.Parse("x", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.config.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for event := range l.events {
		if started, ok := event.(client.SessionStarted); ok && started.Session == s {
			break
		}
	}
	second, err := Open(t.Context(), s, c, Log{Say: l.say, Debug: func(string, ...any) {}})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("ended with %v", err)
	}
}

// The daemon is away for a moment just when the network changes.
func TestDaemonRestarts(t *testing.T) {
	l := newLab(t)
	r := l.start("127.0.0.1:" + l.server.port())
	l.awaitConnected()
	before := len(l.service.Protected())
	l.service.Message(r.session.Path(), wire.MessageLinkChanged, "")
	l.service.Stop()
	time.Sleep(50 * time.Millisecond) // so that calls find nobody
	l.service.Restart(l.address)
	l.await("it has new sockets", func() bool { return len(l.service.Protected()) > before })
	l.pass(r)
}

// systemd-resolved does not answer the daemon for a while when the network has
// changed, which ends nothing.
func TestDaemonIsHeldUp(t *testing.T) {
	l := newLab(t)
	r := l.start("127.0.0.1:" + l.server.port())
	l.awaitConnected()
	l.service.Fail("Session.SetParameters", wire.ErrTimeout, "cannot set the DNS: no answer in time")
	l.service.SetState(l.config.Path(), wire.StateReconnecting)
	l.service.Message(r.session.Path(), wire.MessageLinkChanged, "")
	l.await("it waits", func() bool { return l.said("no answer in time; trying again") })
	l.service.Fail("Session.SetParameters", "", "")
	l.awaitConnected()
	l.pass(r)
}

func TestParameters(t *testing.T) {
	c, err := wgconf.Parse("x", []byte(`[Interface]
PrivateKey = qOrRbvAo2sEIrGI+w97dl3FBEVlvZ1DA4AnURNTFK20=
Address = 10.66.0.2/24, fe80::2/64
MTU = 1300
[Peer]
PublicKey = DsUxJIDCuNZmkl7Bl8HdaI9dB0pfQCoCR1yd7QqMQXo=
AllowedIPs = 10.1.2.3/8, ff02::/16, 224.0.0.5, 128.0.0.0/1, 0.0.0.0/1
[Peer]
PublicKey = 0F9CZ7yQNz0HiyJOy24ruBNHbMkbpPsjpUUxe7UGHk8=
AllowedIPs = 10.0.0.0/8, fe80::/64, ::/0
`))
	if err != nil {
		t.Fatal(err)
	}
	p, warnings := parameters(c)
	if got := fmt.Sprint(p.Addresses, p.InclusionList, p.MTU, p.Reconnect); got != "[10.66.0.2/24] [10.0.0.0/8 128.0.0.0/1 0.0.0.0/1 ::/0] 1300 true" {
		t.Errorf("got %s", got)
	}
	if text := strings.Join(warnings, "\n"); len(warnings) != 4 || !strings.Contains(text, "fe80::2/64") || !strings.Contains(text, "224.0.0.5/32") {
		t.Errorf("warnings %q", warnings)
	}
	c.NoRoutes = true
	if p, _ := parameters(c); len(p.InclusionList) != 0 {
		t.Errorf("Table = off includes %v", p.InclusionList)
	}
}

// Names are looked up again for a peer that has been sent to in vain.
func TestStale(t *testing.T) {
	l := newLab(t)
	r := l.start("localhost:" + l.server.port())
	l.awaitConnected()
	l.pass(r)
	r.stop()
	if err := r.wait(t); err != nil {
		t.Error(err)
	}
	// Run has ended: its state is ours now, and its peers are gone from
	// wireguard-go.
	late := time.Now().Add(time.Hour)
	for _, step := range []struct {
		sent     uint64
		resolved bool
		want     int
	}{{0, true, 0}, {0, false, 1}} {
		r.sent[r.config.Peers[0].PublicKey] = step.sent
		if !step.resolved {
			clear(r.resolved)
		}
		if got := r.stale(late); len(got) != step.want {
			t.Errorf("%+v: stale are %v", step, got)
		}
	}
}
