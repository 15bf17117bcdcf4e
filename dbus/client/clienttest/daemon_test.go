package clienttest_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/client/clienttest"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const app = "com.example.Demo"

func TestMain(m *testing.M) { harness.Main(m) }

// host is a network with the daemon on it.
type host struct {
	*harness.Topology
	bus    *harness.Bus
	daemon *harness.Daemon
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{Topology: harness.NewTopology(t)}
	h.bus = harness.StartBus(t, h.Host, harness.BusOptions{Policy: harness.ShippedPolicy})
	h.daemon = harness.StartDaemon(t, h.Host, h.bus, harness.DaemonOptions{})
	return h
}

func dial(t *testing.T, address string) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), client.WithAddress(address))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func take[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v, ok := <-from:
		if !ok {
			t.Fatalf("channel of %T closed", v)
		}
		return v
	case <-time.After(harness.Timeout):
		t.Fatalf("nothing came within %v", harness.Timeout)
		panic("unreachable")
	}
}

func register(t *testing.T, c *client.Client) (*client.Provider, *client.Config) {
	t.Helper()
	p, err := c.RegisterProvider(t.Context(), app, client.ProviderOptions{DisplayName: "Demo"})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := p.CreateConfig(t.Context(), "Work", client.ConfigOptions{Data: map[string]any{"server": "x", "n": 1, "list": []string{"a"}}})
	if err != nil {
		t.Fatal(err)
	}
	return p, cfg
}

func connect(t *testing.T, p *client.Provider, cfg *client.Config) *client.Session {
	t.Helper()
	s, err := cfg.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if started, ok := take(t, p.Events()).(client.SessionStarted); !ok || started.Session != s {
		t.Fatalf("got %+v, want session %s", started, s.Path())
	}
	return s
}

var tunnel = client.Parameters{
	Addresses:     []netip.Prefix{netip.MustParsePrefix("10.8.0.2/24"), netip.MustParsePrefix("fd08::2/64")},
	InclusionList: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:113::/48")},
	ExclusionList: []netip.Prefix{netip.MustParsePrefix("203.0.113.99/32")},
	DNSServers:    []netip.Addr{netip.MustParseAddr(harness.PrivateDNS)},
	DomainSearch:  []string{"corp.example"},
	MTU:           1400,
}

// The library against the daemon, on a real kernel: packets, properties, what
// vpnctl prints, and the end.
func TestDaemon(t *testing.T) {
	h := newHost(t)
	before := h.Host.Snapshot(t, h.daemon.ResolvConf)
	c := dial(t, h.bus.Address)
	p, cfg := register(t, c)
	s := connect(t, p, cfg)
	ch, err := s.OpenChannel(t.Context(), client.ChannelOptions{})
	if err != nil {
		t.Fatal(err)
	}
	echoed := make(chan error, 1)
	go func() { echoed <- echo(ch) }()
	if _, err := s.SetParameters(t.Context(), client.Parameters{MTU: 3}); !errors.Is(err, client.ErrInvalidParameter) || !strings.Contains(err.Error(), "mtu") || !strings.Contains(err.Error(), "address") {
		t.Errorf("SetParameters: %v", err)
	}
	if _, err := s.SetParameters(t.Context(), tunnel); err != nil {
		t.Fatal(err)
	}
	if ch.MTU() != 1400 || ch.Info().MaxMessage < 1500 || ch.Info().Format != "packet" {
		t.Errorf("MTU %d, info %+v", ch.MTU(), ch.Info())
	}
	if err := s.NotifyConnected(t.Context()); err != nil {
		t.Error(err)
	}
	h.Host.Run(t, "ping", "-c5", "-i0.02", "-W20", "203.0.113.7")
	h.Host.Run(t, "ping", "-c5", "-i0.02", "-W20", "-s1300", "2001:db8:113::7")
	var properties client.SessionProperties
	// A packet is counted when it has been written, and answered by then.
	harness.Eventually(t, harness.Timeout, "the packets are counted", func() (err error) {
		if properties, err = s.Properties(t.Context()); err != nil {
			return err
		}
		if n := properties.Statistics; n.TxPackets < 10 || n.RxPackets < 10 {
			return fmt.Errorf("%+v", n)
		}
		return nil
	})
	if !slices.Equal(properties.Addresses, tunnel.Addresses) || properties.MTU != 1400 || properties.State != client.StateConnected ||
		!slices.Equal(properties.InclusionList, tunnel.InclusionList) || !slices.Equal(properties.ExclusionList, tunnel.ExclusionList) ||
		!slices.Equal(properties.DNSServers, tunnel.DNSServers) || properties.Config != cfg.Path() ||
		time.Since(properties.ConnectedSince) > time.Minute ||
		properties.Statistics.Dropped == nil {
		t.Errorf("properties %+v", properties)
	}
	if u := properties.Uplink; u != nil && (u.Interface != "h0" || u.Gateway != harness.RouterIPv4) {
		t.Errorf("uplink %+v", u)
	}
	protect(t, h, s)

	ctl := func(args ...string) string {
		t.Helper()
		return h.Host.Run(t, append([]string{harness.Binary(t, "vpnctl"), "--bus", h.bus.Address}, args...)...)
	}
	for want, text := range map[string]string{
		"connected": ctl("list"), "Data server:": ctl("show", "Work"), "10.8.0.2/24, fd08::2/64": ctl("status"),
		`"txPackets"`: ctl("status", "--json"), "Work: connected": ctl("connect", "Work"), "Work: disconnected": ctl("disconnect"),
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
	if m := take(t, s.Messages()); m.Kind != client.MessageDisconnected || m.Error != "" {
		t.Errorf("got %+v", m)
	}
	if err := take(t, echoed); !errors.Is(err, io.EOF) {
		t.Errorf("the channel ended with %v", err)
	}
	h.Host.RequireSnapshot(t, before, h.daemon.ResolvConf)
}

// protect shows that a protected socket leaves beside the tunnel, to a block
// that is included.
func protect(t *testing.T, h *host, s *client.Session) {
	t.Helper()
	clear := h.Clear(t)
	err := h.Host.Do(func() error {
		plain, err := net.Dial("udp4", "203.0.113.8:9999")
		if err != nil {
			return err
		}
		defer plain.Close()
		if _, err := plain.Write([]byte("plain")); err != nil {
			return err
		}
		d := net.Dialer{ControlContext: s.DialControl}
		protected, err := d.DialContext(t.Context(), "udp4", "203.0.113.9:9999")
		if err != nil {
			return err
		}
		defer protected.Close()
		_, err = protected.Write([]byte("protected"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, harness.Timeout, "the protected packet is in clear", func() error {
		if clear.Count(t, harness.To("203.0.113.9/32")) == 0 {
			return errors.New("it is not")
		}
		return nil
	})
	if n := clear.Count(t, harness.To("203.0.113.8/32")); n != 0 {
		t.Errorf("%d other packets in clear", n)
	}
}

// echo answers pings in batches until the channel ends.
func echo(ch *client.Channel) error {
	bufs, sizes := make([][]byte, 64), make([]int, 64)
	for i := range bufs {
		bufs[i] = make([]byte, ch.Info().MaxMessage)
	}
	for {
		n, err := ch.ReadPackets(bufs, sizes)
		if err != nil {
			return err
		}
		var answers [][]byte
		for i := range n {
			if p := bufs[i][:sizes[i]]; pong(p) {
				answers = append(answers, p)
			}
		}
		if _, err := ch.WritePackets(answers); err != nil {
			return err
		}
	}
}

// pong turns an echo request into its answer. Addresses change places, which
// leaves the checksums right; the type lowers the sum by 8 << 8 (ICMP) or
// raises it by 1 << 8 (ICMPv6).
func pong(p []byte) bool {
	header, at, size := 20, 12, 4
	if p[0]>>4 == 6 {
		header, at, size = 40, 8, 16
	}
	if len(p) < header+8 || p[header] != 8 && p[header] != 128 {
		return false
	}
	for i := range size {
		p[at+i], p[at+size+i] = p[at+size+i], p[at+i]
	}
	sum := uint32(binary.BigEndian.Uint16(p[header+2:]))
	if p[header] == 8 {
		p[header], sum = 0, sum+0x0800
	} else {
		p[header], sum = 129, sum+0xffff-0x0100
	}
	binary.BigEndian.PutUint16(p[header+2:], uint16(sum>>16+sum&0xffff))
	return true
}

// The daemon dies and comes back without its sessions: the provider is told of
// the end, is registered again, and the next connection works.
func TestDaemonIsKilled(t *testing.T) {
	h := newHost(t)
	c := dial(t, h.bus.Address)
	p, cfg := register(t, c)
	s := connect(t, p, cfg)
	changes, err := c.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h.daemon.Kill9()
	h.daemon.Start(t)
	if m := take(t, s.Messages()); m.Kind != client.MessageDisconnected || !strings.HasPrefix(m.Error, "internal error: ") {
		t.Errorf("got %+v", m)
	}
	var kinds []client.ChangeKind
	for range 7 {
		kinds = append(kinds, take(t, changes).Kind)
	}
	want := []client.ChangeKind{client.Added, client.Added, client.Synced, client.Stopped, client.Removed, client.Changed, client.Synced}
	if !slices.Equal(kinds, want) {
		t.Errorf("changes %v, want %v", kinds, want)
	}
	s = connect(t, p, cfg)
	if _, err := s.SetParameters(t.Context(), tunnel); err != nil {
		t.Error(err)
	}
}

// Relay serves a tool's datagram socket against the daemon.
func TestDaemonRelay(t *testing.T) {
	h := newHost(t)
	c := dial(t, h.bus.Address)
	p, cfg := register(t, c)
	s := connect(t, p, cfg)
	if _, err := s.SetParameters(t.Context(), tunnel); err != nil {
		t.Fatal(err)
	}
	ch, err := s.OpenChannel(t.Context(), client.ChannelOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()
	tool, ours := datagramPair(t)
	ended := make(chan error, 1)
	go func() { ended <- client.Relay(t.Context(), ch, ours) }()
	go func() {
		buf := make([]byte, 65536)
		for {
			n, err := tool.Read(buf)
			if err != nil {
				return
			}
			if pong(buf[:n]) {
				_, _ = tool.Write(buf[:n])
			}
		}
	}()
	h.Host.Run(t, "ping", "-c10", "-i0.02", "-W20", "203.0.113.7")
	if err := cfg.Disconnect(t.Context()); err != nil {
		t.Error(err)
	}
	if err := take(t, ended); err != nil {
		t.Errorf("Relay: %v", err)
	}
}

// The stand-in behaves as the daemon where a program would notice: same calls,
// same errors, same order of events.
func TestServiceIsLikeTheDaemon(t *testing.T) {
	address := clienttest.Bus(t)
	clienttest.Start(t, address)
	standIn := story(t, address)
	real := story(t, newHost(t).bus.Address)
	if !slices.Equal(standIn, real) {
		t.Errorf("the stand-in:\n  %s\nthe daemon:\n  %s", strings.Join(standIn, "\n  "), strings.Join(real, "\n  "))
	}
}

// story does what providers and users do and writes down what they see.
func story(t *testing.T, address string) []string {
	t.Helper()
	var seen []string
	note := func(words ...string) { seen = append(seen, strings.Join(words, " ")) }
	noteError := func(what string, err error) {
		t.Helper()
		if e, ok := errors.AsType[*client.Error](err); ok {
			note(what, e.Name)
		} else if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*harness.Timeout)
	defer cancel()
	c, user := dial(t, address), dial(t, address)
	changes, err := user.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, err = user.FindConfig(ctx, app, "Work")
	noteError("find before", err)
	_, err = user.CreateConfig(ctx, app, "Given", client.ConfigOptions{})
	noteError("create by the user", err)
	p, cfg := register(t, c)
	note("path", cfg.Path())
	_, err = p.CreateConfig(ctx, "Work", client.ConfigOptions{})
	noteError("create again", err)
	_, err = user.RegisterProvider(ctx, app, client.ProviderOptions{})
	noteError("register elsewhere", err)
	noteError("show", user.ShowAddDialog(ctx, app))

	for _, end := range []func(*client.Session) error{
		func(s *client.Session) error { return user.Session(s.Path()).Disconnect(ctx) },
		func(s *client.Session) error { return s.NotifyFailure(ctx) },
		func(*client.Session) error { return user.Config(cfg.Path()).Remove(ctx) },
	} {
		handle, err := user.Config(cfg.Path()).Connect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		s := nextSession(t, p, note)
		if s.Path() != handle.Path() {
			t.Errorf("session %s, the user's is %s", s.Path(), handle.Path())
		}
		noteError("not the owner", handle.NotifyConnected(ctx))
		_, err = s.SetParameters(ctx, client.Parameters{})
		noteError("no address", err)
		_, err = s.SetParameters(ctx, tunnel)
		noteError("parameters", err)
		noteError("notify", s.NotifyConnected(ctx))
		noteError("end", end(s))
		_, err = s.Properties(ctx)
		noteError("after the end", err)
		for m := range s.Messages() {
			note("message", string(m.Kind), m.Error)
		}
	}
	_, err = cfg.Properties(ctx)
	noteError("after Remove", err)
	noteError("unregister", p.Unregister(ctx))
	for e := range p.Events() {
		noteEvent(note, e)
	}
	noteError("forget", user.ForgetProvider(ctx, app))
	return append(seen, watched(t, changes)...)
}

// nextSession notes events up to the start of a session.
func nextSession(t *testing.T, p *client.Provider, note func(...string)) *client.Session {
	t.Helper()
	for {
		e := take(t, p.Events())
		noteEvent(note, e)
		if started, ok := e.(client.SessionStarted); ok {
			return started.Session
		}
	}
}

func noteEvent(note func(...string), e client.Event) {
	switch e := e.(type) {
	case client.ConfigCreated:
		note("event created", e.Name)
	case client.ConfigRemoved:
		note("event removed", e.Name)
	case client.UIEvent:
		note("event", string(e.Kind))
	case client.SessionStarted:
		note("event session", e.Session.Config().Path())
	}
}

// watched is what the changes tell, up to the end of the last config. Several
// new properties may come together or apart: only states count.
func watched(t *testing.T, changes <-chan client.Change) []string {
	t.Helper()
	var seen []string
	states := make(map[string]client.State)
	for {
		change := take(t, changes)
		path, state := "", client.State("")
		switch {
		case change.Config != nil:
			path, state = change.Config.Name, change.Config.State
		case change.Session != nil:
			path, state = "session", change.Session.State
		}
		if change.Kind != client.Changed {
			seen = append(seen, "change "+string(change.Kind)+" "+path)
		} else if states[path] != state {
			seen = append(seen, "change "+path+" "+string(state))
		}
		states[path] = state
		if change.Kind == client.Removed && path == "Given" {
			return seen
		}
	}
}

func datagramPair(t *testing.T) (a, b *os.File) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(pair[0]), "tool"), os.NewFile(uintptr(pair[1]), "ours")
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}
