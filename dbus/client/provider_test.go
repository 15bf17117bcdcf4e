package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/client/clienttest"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// fixture is a provider with a config.
type fixture struct {
	address  string
	service  *clienttest.Service
	client   *client.Client
	provider *client.Provider
	config   *client.Config
}

func newFixture(t *testing.T, opts ...client.Option) *fixture {
	t.Helper()
	f := &fixture{address: clienttest.Bus(t)}
	f.service = clienttest.Start(t, f.address)
	f.client = dial(t, f.address, opts...)
	var err error
	f.provider, err = f.client.RegisterProvider(t.Context(), app, client.ProviderOptions{DisplayName: "Demo", PacketSignals: true})
	if err == nil {
		f.config, err = f.provider.CreateConfig(t.Context(), "Work", client.ConfigOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// connect starts a session.
func (f *fixture) connect(t *testing.T) *client.Session {
	t.Helper()
	handle, err := f.config.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	started, ok := take(t, f.provider.Events()).(client.SessionStarted)
	if !ok || started.Session != handle {
		t.Fatalf("got %+v, want the session %p", started, handle)
	}
	return started.Session
}

func TestSession(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	s := f.connect(t)
	if s.Config().Path() != f.config.Path() {
		t.Errorf("config %s", s.Config().Path())
	}
	if _, err := s.SetParameters(ctx, client.Parameters{}); !errors.Is(err, client.ErrInvalidParameter) {
		t.Errorf("empty parameters: %v", err)
	}
	params := client.Parameters{
		Addresses:     []netip.Prefix{netip.MustParsePrefix("10.8.0.2/24"), netip.MustParsePrefix("fd00::2/64")},
		Broadcast:     netip.MustParseAddr("10.8.0.255"),
		MTU:           1400,
		InclusionList: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
		ExclusionList: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32")},
		DNSServers:    []netip.Addr{netip.MustParseAddr("10.8.0.1")},
		DomainSearch:  []string{"corp.example"}, MatchDomains: []string{"corp.example"},
		Reconnect: true, AllowLAN: true, AllowFamilies: []string{"ipv6"},
	}
	if warnings, err := s.SetParameters(ctx, params); err != nil || len(warnings) != 0 {
		t.Fatalf("SetParameters: %v, %v", warnings, err)
	}
	equal(t, f.service.Parameters(s.Path()), map[string]any{
		"address": "10.8.0.2/24", "addresses": []string{"fd00::2/64"}, "broadcastAddress": "10.8.0.255", "mtu": uint32(1400),
		"inclusionList": []string{"0.0.0.0/0"}, "exclusionList": []string{"192.0.2.7/32"}, "dnsServers": []string{"10.8.0.1"},
		"domainSearch": []string{"corp.example"}, "matchDomains": []string{"corp.example"},
		"reconnect": true, "allowLan": true, "allowFamilies": []string{"ipv6"},
	})
	if err := s.NotifyConnected(ctx); err != nil {
		t.Error(err)
	}
	p, err := s.Properties(ctx)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, p, client.SessionProperties{
		Path: s.Path(), Config: f.config.Path(), State: client.StateConnected, Interface: "vpn0", InterfaceIndex: 7,
		Addresses: params.Addresses[:1], MTU: 1500, InclusionList: params.InclusionList, ExclusionList: params.ExclusionList,
		DNSServers: params.DNSServers, DomainSearch: params.DomainSearch, MatchDomains: params.MatchDomains,
		ConnectedSince: time.UnixMicro(1700000000000000),
		Uplink: &client.Uplink{
			Interface: "eth0", Index: 2, Gateway: "192.0.2.1", Family: "ipv4",
			DNSServers: []netip.Addr{netip.MustParseAddr("192.0.2.53")}, Domains: []string{"lan"},
		},
		Statistics: client.Statistics{TxPackets: 3, TxBytes: 300, RxPackets: 2, RxBytes: 200, Dropped: map[string]uint64{"source": 1}},
	})
	again, err := f.config.Connect(ctx)
	if err != nil || again != s {
		t.Errorf("Connect again: %p, %v", again, err)
	}
	f.service.Message(s.Path(), "linkDown", "")
	f.service.Message(s.Path(), "somethingNew", "x")
	equal(t, take(t, s.Messages()), client.Message{Kind: client.MessageLinkDown})
	equal(t, take(t, s.Messages()), client.Message{Kind: "somethingNew", Error: "x"})
	if err := s.Acknowledge(ctx, client.MessageSuspend); err != nil || f.service.Acknowledged()[0] != "suspend" {
		t.Errorf("Acknowledge: %v", err)
	}
	if err := f.config.Disconnect(ctx); err != nil {
		t.Error(err)
	}
	equal(t, take(t, s.Messages()), client.Message{Kind: client.MessageDisconnected})
	closed(t, s.Messages())
	closed(t, s.Packets())
	if _, err := s.Properties(ctx); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("Properties of an ended session: %v", err)
	}

	s = f.connect(t)
	if err := s.NotifyFailure(ctx); err != nil {
		t.Error(err)
	}
	equal(t, take(t, s.Messages()), client.Message{Kind: client.MessageDisconnected, Error: wire.ReasonProviderFailure})
}

func TestEventsAreOrderedAndComplete(t *testing.T) {
	f := newFixture(t)
	const n = 2000 // far more than any buffer
	for i := range n {
		f.service.AddConfig(app, fmt.Sprint(i), map[string]any{"i": int64(i)})
	}
	for i := range n {
		e, ok := take(t, f.provider.Events()).(client.ConfigCreated)
		if !ok || e.Name != fmt.Sprint(i) || e.Data["i"] != int64(i) || e.Config.Path() != clienttest.ConfigPath(app, e.Name) {
			t.Fatalf("event %d: %+v", i, e)
		}
	}
	f.service.UIEvent(app, wire.ShowAddDialog, "")
	f.service.UIEvent(app, wire.ShowConfigureDialog, f.config.Path())
	if e, ok := take(t, f.provider.Events()).(client.UIEvent); !ok || e.Kind != client.ShowAddDialog || e.Config != nil {
		t.Errorf("got %+v", e)
	}
	if e, ok := take(t, f.provider.Events()).(client.UIEvent); !ok || e.Kind != client.ShowConfigureDialog || e.Config.Path() != f.config.Path() {
		t.Errorf("got %+v", e)
	}
	own, err := f.provider.Configs(t.Context())
	if err != nil || len(own) != n+1 {
		t.Errorf("Configs: %d, %v", len(own), err)
	}
	if err := f.config.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if e, ok := take(t, f.provider.Events()).(client.ConfigRemoved); !ok || e.Name != "Work" {
		t.Errorf("got %+v", e)
	}
}

func TestUnregister(t *testing.T) {
	f := newFixture(t)
	s := f.connect(t)
	f.service.AddConfig(app, "untaken", nil)
	if err := f.provider.Unregister(t.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, take(t, s.Messages()), client.Message{Kind: client.MessageDisconnected, Error: wire.ReasonProviderGone})
	closed(t, s.Messages())
	if e, ok := take(t, f.provider.Events()).(client.ConfigCreated); !ok || e.Name != "untaken" {
		t.Errorf("got %+v", e)
	}
	closed(t, f.provider.Events())
	if err := f.provider.Err(); err != nil {
		t.Errorf("Err: %v", err)
	}
	again, err := f.client.RegisterProvider(t.Context(), app, client.ProviderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.DestroyConfig(t.Context(), f.config); err != nil {
		t.Error(err)
	}
	if _, err := f.client.RegisterProvider(t.Context(), "com.example.Other", client.ProviderOptions{}); err == nil {
		t.Error("a second provider on one client")
	}
	list, err := f.client.ListProviders(t.Context())
	equal(t, list, []client.ProviderInfo{{App: app, Registered: true}})
	if err != nil {
		t.Error(err)
	}
}

func TestReplace(t *testing.T) {
	f := newFixture(t)
	second := dial(t, f.address)
	if _, err := second.RegisterProvider(t.Context(), app, client.ProviderOptions{}); !errors.Is(err, client.ErrAlreadyExists) {
		t.Errorf("without Replace: %v", err)
	}
	if _, err := second.RegisterProvider(t.Context(), app, client.ProviderOptions{Replace: true}); err != nil {
		t.Errorf("with Replace: %v", err)
	}
}

// An upgrade of the daemon does not cost the tunnel.
func TestDaemonRestarts(t *testing.T) {
	f := newFixture(t)
	kept := f.connect(t)
	other, err := f.provider.CreateConfig(t.Context(), "Other", client.ConfigOptions{})
	if err != nil {
		t.Fatal(err)
	}
	handle, err := other.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lost := take(t, f.provider.Events()).(client.SessionStarted).Session
	if lost != handle {
		t.Error("another session")
	}
	before := f.service.Member(app)
	f.service.Stop()
	f.service.Lose(lost.Path())
	f.service.Restart(f.address)
	equal(t, take(t, lost.Messages()), client.Message{Kind: client.MessageDisconnected, Error: "internal error: the daemon was restarted"})
	f.service.Message(kept.Path(), "linkChanged", "")
	equal(t, take(t, kept.Messages()), client.Message{Kind: client.MessageLinkChanged})
	if _, err := kept.SetParameters(t.Context(), client.Parameters{Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32")}}); err != nil {
		t.Error(err)
	}
	if f.service.Member(app) != before {
		t.Error("the provider is not registered as before")
	}
	f.service.UIEvent(app, wire.ShowAddDialog, "")
	if e, ok := take(t, f.provider.Events()).(client.UIEvent); !ok {
		t.Errorf("got %+v", e)
	}
}

// A session that the earlier daemon could not tell any more is told, and once.
func TestDaemonRestartsBeforeItTells(t *testing.T) {
	f := newFixture(t)
	f.service.Stop()
	path := f.service.Begin(f.config.Path())
	f.service.Restart(f.address)
	e, ok := take(t, f.provider.Events()).(client.SessionStarted)
	if !ok || e.Session.Path() != path || e.Session.Config().Path() != f.config.Path() {
		t.Fatalf("got %+v", e)
	}
	f.service.Message(path, wire.MessageConnected, "")
	f.service.Message(path, wire.MessageLinkDown, "")
	equal(t, take(t, e.Session.Messages()), client.Message{Kind: client.MessageLinkDown})
	f.service.UIEvent(app, wire.ShowAddDialog, "")
	if e, ok := take(t, f.provider.Events()).(client.UIEvent); !ok {
		t.Errorf("got %+v", e)
	}
}

// What is called while there is no daemon, the next one answers.
func TestCallsOfASessionWaitForTheDaemon(t *testing.T) {
	f := newFixture(t)
	s := f.connect(t)
	f.service.Stop()
	results := make(chan error)
	go func() {
		_, err := s.SetParameters(t.Context(), client.Parameters{Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32")}})
		results <- err
	}()
	go func() {
		channel, err := s.OpenChannel(t.Context(), client.ChannelOptions{})
		if err == nil {
			err = channel.Close()
		}
		results <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.NotifyConnected(ctx); err == nil {
		t.Error("a call was answered by nobody")
	}
	f.service.Restart(f.address)
	for range 2 {
		if err := take(t, results); err != nil {
			t.Error(err)
		}
	}
	// Who only looks on is told at once.
	f.service.Stop()
	other := dial(t, f.address)
	if err := other.Session(s.Path()).Disconnect(t.Context()); !errors.Is(err, client.ErrNotRunning) {
		t.Errorf("a handle: %v", err)
	}
}

// A daemon that is back is waited for while it is held up.
func TestDaemonIsHeldUp(t *testing.T) {
	f := newFixture(t, client.WithGrace(time.Second))
	s := f.connect(t)
	f.service.Stop()
	f.service.Delay("Manager.RegisterProvider", 2*time.Second)
	f.service.Restart(f.address)
	time.Sleep(3 * time.Second)
	f.service.Message(s.Path(), wire.MessageLinkDown, "")
	equal(t, take(t, s.Messages()), client.Message{Kind: client.MessageLinkDown})
	if err := f.provider.Err(); err != nil {
		t.Error(err)
	}
}

func TestDaemonStaysAway(t *testing.T) {
	f := newFixture(t, client.WithGrace(100*time.Millisecond))
	s := f.connect(t)
	f.service.Stop()
	if m := take(t, s.Messages()); m.Kind != client.MessageDisconnected || m.Error == "" {
		t.Errorf("got %+v", m)
	}
	closed(t, s.Messages())
	closed(t, f.provider.Events())
	if !errors.Is(f.provider.Err(), client.ErrNotRunning) {
		t.Errorf("Err: %v", f.provider.Err())
	}
	// The next one may register when the daemon is there again.
	f.service.Restart(f.address)
	if _, err := f.client.RegisterProvider(t.Context(), app, client.ProviderOptions{}); err != nil {
		t.Error(err)
	}
}

func TestProtect(t *testing.T) {
	f := newFixture(t)
	s := f.connect(t)
	before := openFDs(t)
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	if err := s.Protect(t.Context(), udp); err != nil {
		t.Error(err)
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialer := net.Dialer{ControlContext: s.DialControl}
	tcp, err := dialer.DialContext(t.Context(), "tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	config := net.ListenConfig{Control: s.ListenControl(t.Context())}
	listening, err := config.ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listening.Close()
	equal(t, f.service.Protected(), []uint64{inode(t, udp), inode(t, tcp.(*net.TCPConn)), inode(t, listening.(*net.UDPConn))})
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := s.Protect(t.Context(), null); !errors.Is(err, client.ErrInvalidParameter) {
		t.Errorf("a file was protected: %v", err)
	}
	eventually(t, "the descriptors that were sent are closed", func() bool { return openFDs(t) <= before+5 })
}

func inode(t *testing.T, c syscall.Conn) uint64 {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := raw.Control(func(fd uintptr) { err = syscall.Fstat(int(fd), &st) }); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestPacketsOverTheBus(t *testing.T) {
	f := newFixture(t)
	s := f.connect(t)
	if err := s.SendPacket(t.Context(), []byte{0x45, 1, 2}); err != nil {
		t.Error(err)
	}
	if err := s.SendPacket(t.Context(), nil); !errors.Is(err, client.ErrInvalidParameter) {
		t.Errorf("empty: %v", err)
	}
	equal(t, f.service.Packets(s.Path()), [][]byte{{0x45, 1, 2}})
	f.service.Packet(s.Path(), []byte{0x60, 7})
	equal(t, take(t, s.Packets()), []byte{0x60, 7})
}

// What another program of the user can do with a session.
func TestHandleOfAnothersSession(t *testing.T) {
	f := newFixture(t)
	s := f.connect(t)
	user := dial(t, f.address)
	list, err := user.ListSessions(t.Context())
	equal(t, list, []client.SessionInfo{{Path: s.Path(), Config: f.config.Path(), Interface: "vpn0"}})
	if err != nil {
		t.Fatal(err)
	}
	handle := user.Session(s.Path())
	closed(t, handle.Messages())
	if err := handle.NotifyConnected(t.Context()); !errors.Is(err, client.ErrNotOwner) {
		t.Errorf("NotifyConnected: %v", err)
	}
	if err := handle.Disconnect(t.Context()); err != nil {
		t.Error(err)
	}
	if m := take(t, s.Messages()); m.Kind != client.MessageDisconnected {
		t.Errorf("got %+v", m)
	}
}

// Close does not wait for a program that takes nothing.
func TestCloseWithUntakenEvents(t *testing.T) {
	f := newFixture(t)
	s := f.connect(t)
	f.service.AddConfig(app, "untaken", nil)
	f.service.Message(s.Path(), "linkDown", "")
	if _, err := f.client.Watch(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.client.Close() }()
	if err := take(t, done); err != nil {
		t.Error(err)
	}
	for range f.provider.Events() {
	}
	if !errors.Is(f.provider.Err(), client.ErrClosed) {
		t.Errorf("Err: %v", f.provider.Err())
	}
}

func TestOpenChannelCancelledKeepsNoDescriptor(t *testing.T) {
	f := newFixture(t)
	s := f.connect(t)
	before := openFDs(t)
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if ch, err := s.OpenChannel(ctx, client.ChannelOptions{}); err == nil {
			_ = ch.Close()
		}
	}
	// The service holds one end of the last.
	eventually(t, "the descriptors are closed", func() bool { return openFDs(t) <= before+1 })
}
