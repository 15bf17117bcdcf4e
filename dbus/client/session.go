package client

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// MessageKind is what a platform message is about.
type MessageKind string

// Platform messages. Ignore kinds that you do not know: later versions add
// some. `connected` is not among them: it is the event SessionStarted.
const (
	MessageDisconnected MessageKind = wire.MessageDisconnected // the last one
	MessageError        MessageKind = wire.MessageError
	MessageLinkDown     MessageKind = wire.MessageLinkDown
	MessageLinkUp       MessageKind = wire.MessageLinkUp
	MessageLinkChanged  MessageKind = wire.MessageLinkChanged
	MessageSuspend      MessageKind = wire.MessageSuspend // answer with Acknowledge
	MessageResume       MessageKind = wire.MessageResume
)

// Message is one platform message of a session.
type Message struct {
	Kind MessageKind `json:"message"`

	// Error is the reason of `error` and `disconnected`; empty when the user
	// disconnected.
	Error string `json:"error,omitempty"`
}

// repeatInterval is how long a call of a session waits for the next daemon before
// it is tried again.
const repeatInterval = 50 * time.Millisecond

// packetBacklog is how many packets of PacketSignals wait for the program.
const packetBacklog = 512

// Session is one connection, from Connect to its end. The provider that owns
// it gets it from SessionStarted; other programs of the user hold handles that
// can be read and disconnected. After the end its methods answer ErrWrongState
// or ErrNotFound. All methods may be called from any goroutine. Those that the
// provider calls while the daemon is restarted wait for the next one.
type Session struct {
	c        *Client
	path     string
	config   *Config
	started  godbus.Sequence
	messages *queue[Message] // nil in handles
	packets  chan []byte     // nil without packetSignals
	life     context.Context // ended by end, with the last message; nil in handles
	end      context.CancelFunc
	channel  atomic.Pointer[Channel]
}

// Session is a handle on the session at a path, without asking whether it is
// there. Where this client's provider owns it, it is that very session.
func (c *Client) Session(path string) *Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.sessions[godbus.ObjectPath(path)]; s != nil {
		return s
	}
	return &Session{c: c, path: path}
}

// Path of the D-Bus object.
func (s *Session) Path() string { return s.path }

// Config of the session; nil in a handle that another client's provider owns:
// read Properties there.
func (s *Session) Config() *Config { return s.config }

// Messages are the platform messages, in order and none lost. The channel is
// closed after `disconnected`, which always comes unless Close came first. A
// handle of somebody else's session gets none: its channel is closed. Who calls
// Messages takes them to the end, or leaves that to Serve.
func (s *Session) Messages() <-chan Message {
	if s.messages == nil {
		none := make(chan Message)
		close(none)
		return none
	}
	s.feed()
	return s.messages.out
}

// feed starts to hand over messages, once somebody asks for them: an app that
// never does costs no goroutine.
func (s *Session) feed() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.c.closed {
		s.messages.startClosed()
		return
	}
	s.messages.start(&s.c.wg)
}

// Packets are the host's packets where the provider registered with
// PacketSignals and has no packet channel open; else nil. At most 512 wait,
// the rest is dropped, as any slow link does. Closed with the session.
func (s *Session) Packets() <-chan []byte { return s.packets }

// SetParameters applies the parameters, all or nothing, and returns warnings
// about harmless entries. It may be called again at any time while the session
// lives: the whole set is replaced.
func (s *Session) SetParameters(ctx context.Context, p Parameters) (warnings []string, err error) {
	d, err := p.dict()
	if err == nil {
		err = s.do(ctx, "SetParameters", []any{d}, &warnings)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot set the parameters: %w", err)
	}
	if ch := s.channel.Load(); ch != nil {
		ch.setMTU(p.MTU)
	}
	return warnings, nil
}

// NotifyConnected says that the provider reached its server.
func (s *Session) NotifyConnected(ctx context.Context) error {
	return s.notify(ctx, wire.NotifyConnected)
}

// NotifyFailure says that the provider gave up: the session ends as failed.
func (s *Session) NotifyFailure(ctx context.Context) error {
	return s.notify(ctx, wire.NotifyFailure)
}

func (s *Session) notify(ctx context.Context, state string) error {
	if err := s.do(ctx, "NotifyConnectionStateChanged", []any{state, dict{}}); err != nil {
		return fmt.Errorf("cannot notify %q: %w", state, err)
	}
	return nil
}

// Acknowledge says that the provider has finished with a message. The machine
// waits up to 3 s for the acknowledgement of MessageSuspend; no other needs
// one.
func (s *Session) Acknowledge(ctx context.Context, kind MessageKind) error {
	if err := s.do(ctx, "Acknowledge", []any{string(kind), dict{}}); err != nil {
		return fmt.Errorf("cannot acknowledge %q: %w", kind, err)
	}
	return nil
}

// SendPacket sends one IP packet into the tunnel over the bus. It is for the
// odd packet: a Channel is hundreds of times faster.
func (s *Session) SendPacket(ctx context.Context, packet []byte) error {
	if packet == nil {
		packet = []byte{}
	}
	if err := s.do(ctx, "SendPacket", []any{packet}); err != nil {
		return fmt.Errorf("cannot send the packet: %w", err)
	}
	return nil
}

// Disconnect ends the session. The owner's other programs may, too.
func (s *Session) Disconnect(ctx context.Context) error {
	if err := s.do(ctx, "Disconnect", []any{dict{}}); err != nil {
		return fmt.Errorf("cannot disconnect: %w", err)
	}
	return nil
}

// Protect keeps the traffic of one IPv4 or IPv6 socket out of the tunnel, for
// as long as the socket lives. Call it before connecting the socket: its
// source address is chosen then. *os.File and the connections of package net
// are such sockets; see DialControl for net.Dialer.
func (s *Session) Protect(ctx context.Context, socket syscall.Conn) error {
	raw, err := socket.SyscallConn()
	if err == nil {
		err = s.protect(ctx, raw)
	}
	if err != nil {
		return fmt.Errorf("cannot protect the socket: %w", err)
	}
	return nil
}

// DialControl protects the sockets of a net.Dialer before they connect:
//
//	d := net.Dialer{ControlContext: session.DialControl}
//
// Sockets of other families than IP are left alone.
func (s *Session) DialControl(ctx context.Context, network, _ string, socket syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") && !strings.HasPrefix(network, "udp") {
		return nil
	}
	if err := s.protect(ctx, socket); err != nil {
		return fmt.Errorf("cannot protect the socket: %w", err)
	}
	return nil
}

// ListenControl is DialControl for a net.ListenConfig, before sockets bind:
//
//	l := net.ListenConfig{Control: session.ListenControl(ctx)}
func (s *Session) ListenControl(ctx context.Context) func(network, address string, socket syscall.RawConn) error {
	return func(network, address string, socket syscall.RawConn) error {
		return s.DialControl(ctx, network, address, socket)
	}
}

// protect sends a copy of the descriptor, so that the socket may be closed
// while the call waits.
func (s *Session) protect(ctx context.Context, socket syscall.RawConn) error {
	fd, err := duplicate(socket)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return s.doFD(ctx, "ProtectSocket", []any{godbus.UnixFD(fd), dict{}})
}

// Attach makes a connected AF_UNIX SOCK_SEQPACKET socket of the provider's the
// packet channel of the session; the daemon keeps a copy of its own. For tools
// that bring a datagram socket see Relay.
func (s *Session) Attach(ctx context.Context, socket syscall.Conn) (ChannelInfo, error) {
	raw, err := socket.SyscallConn()
	var fd int
	if err == nil {
		fd, err = duplicate(raw)
	}
	if err != nil {
		return ChannelInfo{}, fmt.Errorf("cannot attach the socket: %w", err)
	}
	defer unix.Close(fd)
	var info map[string]godbus.Variant
	if err := s.doFD(ctx, "AttachPacketChannel", []any{godbus.UnixFD(fd), dict{}}, &info); err != nil {
		return ChannelInfo{}, fmt.Errorf("cannot attach the socket: %w", err)
	}
	return channelInfo(info), nil
}

// OpenChannel opens the packet channel. A second call closes the first
// channel. It may be opened from the start; packets flow after the first
// SetParameters.
func (s *Session) OpenChannel(ctx context.Context, o ChannelOptions) (*Channel, error) {
	d := dict{}
	raw := o.Format != ""
	switch {
	case raw:
		d.set("format", o.Format)
	case s.c.daemonHas(wire.FormatOffload):
		d.set("format", wire.FormatOffload)
	}
	var fd godbus.UnixFD
	var info map[string]godbus.Variant
	err := s.doFD(ctx, "OpenPacketChannel", []any{d}, &fd, &info)
	var ch *Channel
	if err == nil {
		ch, err = newChannel(int(fd), channelInfo(info), raw)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open the packet channel: %w", err)
	}
	s.channel.Store(ch)
	return ch, nil
}

// OpenCapture gives a stream of the session's packets, both directions, in
// pcapng, to be read at once: what is not taken in time is missing, and the
// stream says how much. It ends with the session; the caller closes it, which
// ends the capture. The owner's other programs may capture, too, and root.
func (s *Session) OpenCapture(ctx context.Context) (*os.File, error) {
	var fd godbus.UnixFD
	var info map[string]godbus.Variant
	err := s.c.callFD(ctx, s.path, wire.SessionInterface+".OpenCapture", []any{dict{}}, &fd, &info)
	if err == nil {
		// So that Close ends a read that is under way.
		if err = unix.SetNonblock(int(fd), true); err != nil {
			unix.Close(int(fd))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot capture: %w", err)
	}
	return os.NewFile(uintptr(fd), "capture"), nil
}

// daemonHas says whether the daemon that the provider is registered with has a
// feature.
func (c *Client) daemonHas(feature string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.provider != nil && slices.Contains(c.provider.features, feature)
}

func (s *Session) do(ctx context.Context, member string, args []any, results ...any) error {
	return s.repeat(ctx, func() error {
		_, err := s.c.call(ctx, s.path, wire.SessionInterface+"."+member, args, results...)
		return err
	})
}

// doFD is do for methods with descriptors.
func (s *Session) doFD(ctx context.Context, member string, args []any, results ...any) error {
	return s.repeat(ctx, func() error {
		return s.c.callFD(ctx, s.path, wire.SessionInterface+"."+member, args, results...)
	})
}

// repeat calls again where the daemon went away meanwhile: the next one has the
// same sessions, and what a session is told twice it does once.
func (s *Session) repeat(ctx context.Context, call func() error) error {
	deadline := time.Now().Add(s.c.grace)
	for {
		err := call()
		if !errors.Is(err, ErrNotRunning) || s.messages == nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(repeatInterval):
		case <-s.life.Done():
			return err
		case <-s.c.stop:
			return err
		case <-ctx.Done():
			return err
		}
	}
}

// SessionProperties is all that the daemon tells of a session.
type SessionProperties struct {
	Path           string         `json:"path"`
	Config         string         `json:"config"` // path
	State          State          `json:"state"`
	Interface      string         `json:"interface"`
	InterfaceIndex int32          `json:"interfaceIndex"`
	Addresses      []netip.Prefix `json:"addresses"`
	MTU            uint32         `json:"mtu"`
	InclusionList  []netip.Prefix `json:"inclusionList"`
	ExclusionList  []netip.Prefix `json:"exclusionList"`
	DNSServers     []netip.Addr   `json:"dnsServers"`
	DomainSearch   []string       `json:"domainSearch"`
	MatchDomains   []string       `json:"matchDomains"`
	Reconnect      bool           `json:"reconnect"`
	ConnectedSince time.Time      `json:"connectedSince,omitzero"`
	Uplink         *Uplink        `json:"uplink,omitempty"` // nil while there is none
	FailureReason  string         `json:"failureReason,omitempty"`

	// Statistics is as of the last Properties: no signal tells of it.
	Statistics Statistics `json:"statistics"`
}

// Uplink is the physical network below the tunnel.
type Uplink struct {
	Interface  string       `json:"interface"`
	Index      int32        `json:"index"`
	Gateway    string       `json:"gateway,omitempty"`
	Family     string       `json:"family,omitempty"`
	DNSServers []netip.Addr `json:"dnsServers"` // ask these over a protected socket
	Domains    []string     `json:"domains"`
}

// Statistics are the counters of a session.
type Statistics struct {
	TxPackets uint64            `json:"txPackets"` // host to provider
	TxBytes   uint64            `json:"txBytes"`
	RxPackets uint64            `json:"rxPackets"` // provider to host
	RxBytes   uint64            `json:"rxBytes"`
	Dropped   map[string]uint64 `json:"dropped,omitempty"` // by reason
}

// Properties reads everything about the session.
func (s *Session) Properties(ctx context.Context) (SessionProperties, error) {
	all, err := s.c.getAll(ctx, s.path, wire.SessionInterface)
	if err != nil {
		return SessionProperties{}, fmt.Errorf("cannot read the session: %w", err)
	}
	p := SessionProperties{Path: s.path}
	p.apply(all)
	return p, nil
}

func (p *SessionProperties) apply(from properties) {
	from.path("Config", &p.Config)
	get(from, "State", (*string)(&p.State))
	get(from, "Interface", &p.Interface)
	get(from, "InterfaceIndex", &p.InterfaceIndex)
	from.prefixes("Addresses", &p.Addresses)
	get(from, "MTU", &p.MTU)
	from.prefixes("InclusionList", &p.InclusionList)
	from.prefixes("ExclusionList", &p.ExclusionList)
	from.addrs("DNSServers", &p.DNSServers)
	get(from, "DomainSearch", &p.DomainSearch)
	get(from, "MatchDomains", &p.MatchDomains)
	get(from, "Reconnect", &p.Reconnect)
	from.time("ConnectedSince", &p.ConnectedSince)
	get(from, "FailureReason", &p.FailureReason)
	p.Uplink = uplink(from, p.Uplink)
	var counters map[string]uint64
	if get(from, "Statistics", &counters); counters != nil {
		p.Statistics = statistics(counters)
	}
}

func uplink(from properties, before *Uplink) *Uplink {
	if _, ok := from["Uplink"]; !ok {
		return before
	}
	var dict map[string]godbus.Variant
	if get(from, "Uplink", &dict); len(dict) == 0 {
		return nil
	}
	in, u := properties(dict), &Uplink{}
	get(in, "interface", &u.Interface)
	get(in, "index", &u.Index)
	get(in, "gateway", &u.Gateway)
	get(in, "family", &u.Family)
	in.addrs("dnsServers", &u.DNSServers)
	get(in, "domains", &u.Domains)
	return u
}

func statistics(counters map[string]uint64) Statistics {
	s := Statistics{
		TxPackets: counters["txPackets"],
		TxBytes:   counters["txBytes"],
		RxPackets: counters["rxPackets"],
		RxBytes:   counters["rxBytes"],
		Dropped:   make(map[string]uint64),
	}
	for key, n := range counters {
		if reason, ok := strings.CutPrefix(key, "dropped."); ok {
			s.Dropped[reason] = n
		}
	}
	return s
}

// duplicate is a copy of the descriptor that is not inherited by programs that
// are started meanwhile.
func duplicate(socket syscall.RawConn) (int, error) {
	var fd int
	var dupErr error
	err := socket.Control(func(orig uintptr) {
		fd, dupErr = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err == nil {
		err = os.NewSyscallError("fcntl", dupErr)
	}
	return fd, err
}
