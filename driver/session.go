package driver

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vpnprovider/vpnproviderd/driver/params"
	"github.com/vpnprovider/vpnproviderd/routing"
)

// Platform messages.
const (
	MessageConnected    = "connected"
	MessageDisconnected = "disconnected"
	MessageError        = "error"
	MessageLinkDown     = "linkDown"
	MessageLinkUp       = "linkUp"
	MessageLinkChanged  = "linkChanged"
	MessageSuspend      = "suspend"
	MessageResume       = "resume"
)

// Reasons for the end of a session, kept as FailureReason and told as the
// text of `error` and `disconnected`.
const (
	ReasonUser            = ""
	ReasonReplaced        = "replaced"
	ReasonRemoved         = "removed"
	ReasonProviderFailure = "provider failure"
	ReasonProviderGone    = "provider gone"
	ReasonChannelClosed   = "channel closed"
	ReasonTimeout         = "connection timed out"
	ReasonUplinkLost      = "underlying network disconnected"
	ReasonShutdown        = "shutdown"
	ReasonInternal        = "internal error: "
)

// session is one connection of a config: a TUN, the network state that goes
// with it, and the provider that owns it until it ends.
type session struct {
	m        *Manager
	id       SessionID
	config   *config
	provider providerKey
	conn     string // the provider's connection, the same for ever
	opener   string // the connection that connected it
	signals  bool   // packets by signal while there is no channel
	link     routing.Link
	tunnel   Tunnel

	// work is held by the one that changes the network for this session.
	work chan struct{}

	// ready is closed when the session is known to others, or never will be.
	ready chan struct{}

	// undone is closed when nothing is left of the session but the TUN.
	undone chan struct{}

	// ctx ends when the session begins to end.
	ctx    context.Context
	cancel context.CancelFunc

	// Protected by Manager.mu.
	state    State
	final    State // what follows disconnecting
	notified bool
	down     bool          // the last link message was linkDown
	asked    uint64        // how often reconnecting began, or began anew
	late     bool          // the parameters to be taken over were begun before the last of these
	asleep   chan struct{} // closed by Acknowledge; nil: nothing to acknowledge
	gone     bool          // the provider has left the bus
	reason   string
	params   params.Parameters
	set      bool // params hold
	since    uint64
	timer    *time.Timer // of connecting and reconnecting
	deadline time.Time   // when it ends the session; zero: it does not run
	opened   bool        // the client has, or had, a channel
	channel  *time.Timer // runs while a channel is missing
	tokens   []token
}

// newSession opens the TUN. m.connecting is held, so the number of the slot
// and the session are its own.
func (m *Manager) newSession(ctx context.Context, c *config, p *provider, slot int) (*session, error) {
	id, err := m.opts.NextSession()
	if err != nil {
		return nil, err
	}
	s := m.prepare(ctx, id, c, p.conn, p.PacketSignals)
	s.link, s.tunnel, err = m.opts.Opener.Open(ctx, slot, s.events())
	if err != nil {
		s.cancel()
		return nil, err
	}
	return s, nil
}

// prepare makes a session of the config that nobody knows and that has no TUN.
func (m *Manager) prepare(ctx context.Context, id SessionID, c *config, conn string, signals bool) *session {
	s := &session{
		m: m, id: id, config: c, provider: providerKey{c.Owner, c.App}, conn: conn, signals: signals, state: Idle,
		work: make(chan struct{}, 1), ready: make(chan struct{}), undone: make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return s
}

// events are what its tunnel tells.
func (s *session) events() TunnelEvents {
	events := TunnelEvents{
		ChannelClosed: s.channelClosed,
		Failed: func(err error) {
			<-s.ready
			s.end(EventBroken, ReasonInternal+err.Error())
		},
	}
	if s.signals {
		events.Packet = s.m.opts.Packets.Receiver(s.ctx, s.conn, s.id)
	}
	return events
}

// transition is the one place where a state changes: of the session, and with
// it of its config. It says whether the event belonged to the state; only
// then it makes the edits that come with the event. What it makes is kept before
// anybody is told. It must be called with Manager.mu held.
func (s *session) transition(event Event, edits ...func()) bool {
	out, ok := next(s.state, event, circumstances{
		notified: s.notified, reconnect: s.params.Reconnect, down: s.down, late: s.late, final: s.final,
	})
	if !ok {
		return false
	}
	m, before, was := s.m, s.info(), s.config.ConfigInfo
	fresh, entered := s.state == Idle, out.next == Connected && s.state != Connected
	s.enter(event, out, entered, edits)
	m.keep()
	switch {
	case fresh:
		m.tell(SessionAdded{Session: s.info()})
	case event == EventUndone: // nobody asks a session that is gone
	default:
		m.tell(SessionChanged{Before: before, After: s.info()})
	}
	m.tell(ConfigChanged{Before: was, After: s.config.ConfigInfo})
	if entered {
		m.save(s.config)
	}
	s.message(out.message, "")
	m.log.Info("session", "SESSION", s.id, "CONFIG", s.config.ID, "APP", s.config.App, "event", event, "state", s.state, "reason", s.reason)
	return true
}

// enter is the part of transition that changes the session and its config.
func (s *session) enter(event Event, out outcome, entered bool, edits []func()) {
	c, fresh := &s.config.ConfigInfo, s.state == Idle
	s.state = out.next
	for _, edit := range edits {
		edit()
	}
	if out.next == Disconnecting {
		s.final = out.end
	}
	switch out.message {
	case MessageLinkDown:
		s.down = true
	case MessageLinkUp, MessageLinkChanged:
		s.down = false
	}
	// What has a session reconnect, once more or not, sets the timer; nothing else
	// in that state does.
	if out.next == Reconnecting && out.timer != timerKeeps {
		s.asked++
	}
	if entered && s.since == 0 {
		s.since = microseconds(time.Now())
	}
	c.State = out.next
	switch {
	case fresh:
		c.Session, c.FailureReason = s.id, ""
	case event == EventUndone:
		c.Session, c.FailureReason = 0, s.reason
	}
	if entered {
		c.LastConnected = microseconds(time.Now())
	}
	s.setTimer(out.timer)
}

// info must be called with Manager.mu held.
func (s *session) info() SessionInfo {
	return SessionInfo{
		ID: s.id, Config: s.config.ID, Owner: s.config.Owner, State: s.state, Link: s.link,
		Parameters: s.params, ConnectedSince: s.since, FailureReason: s.reason, Uplink: s.m.uplink,
	}
}

func (s *session) setTimer(t timing) {
	switch t {
	case timerKeeps:
	case timerStops:
		stopTimer(&s.timer)
		s.deadline = time.Time{}
	case timerStarts:
		s.startTimer(s.m.opts.ConnectTimeout)
	}
}

func (s *session) startTimer(d time.Duration) {
	stopTimer(&s.timer)
	s.endAfter(d, &s.timer, EventTimeout, ReasonTimeout)
	s.deadline = time.Now().Add(d)
}

// endAfter has a timer end the session, unless another one is in its place, or
// none, by the time that it has the lock. It must be called with Manager.mu held.
func (s *session) endAfter(d time.Duration, place **time.Timer, event Event, reason string) {
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		s.m.mu.Lock()
		defer s.m.mu.Unlock()
		if *place == t {
			s.endLocked(event, reason)
		}
	})
	*place = t
}

// message tells the provider; the empty message is none. It must be called
// with Manager.mu held.
func (s *session) message(message, text string) {
	if message != "" && !s.gone {
		s.m.tell(PlatformMessage{To: s.conn, Session: s.id, Config: s.config.ID, Message: message, Error: text})
	}
}

// channelClosed gives the client time to open another channel. It may have done
// so while this waited for the lock.
func (s *session) channelClosed(error) {
	<-s.ready
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.signals || !s.state.HasSession() || s.state == Disconnecting || s.channel != nil || s.tunnel.Attached() {
		return
	}
	s.missChannel()
}

// missChannel must be called with Manager.mu held.
func (s *session) missChannel() {
	s.endAfter(s.m.opts.ChannelTimeout, &s.channel, EventChannelClosed, ReasonChannelClosed)
}

// channelOpened must be called with Manager.mu held.
func (s *session) channelOpened() {
	stopTimer(&s.channel)
}

func stopTimer(place **time.Timer) {
	if *place != nil {
		(*place).Stop()
		*place = nil
	}
}

// session finds one that the caller may see; the last one stays to be found
// until it is undone.
func (m *Manager) session(by Caller, id SessionID) (*session, error) {
	if s := m.active; s != nil && s.id == id && by.sees(s.config.Owner) {
		return s, nil
	}
	return nil, Errorf(KindNotFound, "there is no session %d", id)
}

// owned finds a session that is the caller's to use, and does work with mu
// held.
func (m *Manager) owned(by Caller, id SessionID, work func(*session) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.session(by, id)
	switch {
	case err != nil:
		return err
	case s.conn != by.Conn:
		return Errorf(KindNotOwner, "session %d belongs to its provider", id)
	case s.state == Disconnecting:
		return Errorf(KindWrongState, "session %d is ending", id)
	}
	return work(s)
}

// Notify takes what the provider says of its connection.
func (m *Manager) Notify(by Caller, id SessionID, connected bool) error {
	undone := closed()
	err := m.owned(by, id, func(s *session) error {
		if !connected {
			undone = s.endLocked(EventNotifyFailure, ReasonProviderFailure)
			return nil
		}
		s.notified = true
		s.transition(EventNotifyConnected)
		return nil
	})
	<-undone
	return err
}

// Acknowledge says that the provider has finished with a platform message.
func (m *Manager) Acknowledge(by Caller, id SessionID, message string) error {
	if err := checkText("message", message); err != nil {
		return err
	}
	return m.owned(by, id, func(s *session) error {
		if message == MessageSuspend && s.asleep != nil {
			close(s.asleep)
			s.asleep = nil
		}
		return nil
	})
}

// EndSession is Disconnect, on the session.
func (m *Manager) EndSession(ctx context.Context, by Caller, id SessionID, authorize func(context.Context) error) error {
	m.mu.Lock()
	s, err := m.session(by, id)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	return s.stop(ctx, by, authorize)
}

// SendPacket puts one packet into the tunnel.
func (m *Manager) SendPacket(by Caller, id SessionID, packet []byte) error {
	if len(packet) == 0 {
		return Errorf(KindInvalidParameter, "the packet is empty")
	}
	tunnel, err := m.tunnel(by, id, true)
	if err != nil {
		return err
	}
	if err := tunnel.Send(packet); err != nil {
		return Errorf(KindInvalidParameter, "the packet was refused: %v", err)
	}
	return nil
}

// tunnel gives the tunnel of the caller's session; configured: only after the
// first parameters.
func (m *Manager) tunnel(by Caller, id SessionID, configured bool) (t Tunnel, err error) {
	err = m.owned(by, id, func(s *session) error {
		if configured && !s.set {
			return Errorf(KindWrongState, "session %d has no parameters yet", id)
		}
		t = s.tunnel
		return nil
	})
	return t, err
}

// OpenChannel gives the client's end of a new packet channel, which the
// caller of this owns, and the MTU. An earlier channel is closed.
func (m *Manager) OpenChannel(by Caller, id SessionID, format ChannelFormat) (*os.File, uint32, error) {
	if _, err := m.tunnel(by, id, false); err != nil {
		return nil, 0, err
	}
	ours, theirs, err := m.opts.Opener.NewChannel(format)
	if err != nil {
		return nil, 0, Errorf(KindFailed, "cannot make a packet channel: %v", err)
	}
	mtu, err := m.attach(by, id, ours, format)
	if err != nil {
		return nil, 0, errors.Join(err, theirs.Close())
	}
	return theirs, mtu, nil
}

// AttachChannel makes the client's own socket the channel. It owns the file,
// also where it fails.
func (m *Manager) AttachChannel(by Caller, id SessionID, ch *os.File, format ChannelFormat) (uint32, error) {
	if _, err := m.tunnel(by, id, false); err != nil {
		ch.Close()
		return 0, err
	}
	if err := m.opts.Opener.CheckChannel(ch); err != nil {
		ch.Close()
		return 0, Errorf(KindInvalidParameter, "%v", err)
	}
	return m.attach(by, id, ch, format)
}

func (m *Manager) attach(by Caller, id SessionID, ch *os.File, format ChannelFormat) (mtu uint32, err error) {
	attached := false
	err = m.owned(by, id, func(s *session) error {
		attached = true
		if err := s.tunnel.Attach(ch, format); err != nil {
			return Errorf(KindFailed, "cannot use the packet channel: %v", err)
		}
		s.channelOpened()
		if !s.opened {
			s.opened = true
			m.keep()
		}
		if mtu = s.params.MTU; mtu == 0 {
			mtu = params.DefaultMTU
		}
		return nil
	})
	if !attached {
		ch.Close()
	}
	return mtu, err
}

// OpenCapture gives the end to read of a pipe with the session's packets, which
// the caller of this owns. Besides the provider the owner and root may have it,
// but not who only manages the sessions of others.
func (m *Manager) OpenCapture(by Caller, id SessionID) (*os.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.session(by, id)
	switch {
	case err != nil:
		return nil, err
	case by.UID != 0 && by.UID != s.config.Owner:
		return nil, Errorf(KindNotOwner, "session %d belongs to another user", id)
	case s.state == Disconnecting:
		return nil, Errorf(KindWrongState, "session %d is ending", id)
	}
	tunnel, ok := s.tunnel.(Capturer)
	if !ok {
		return nil, Errorf(KindNotSupported, "session %d cannot be captured", id)
	}
	stream, err := tunnel.Capture()
	switch {
	case errors.Is(err, ErrCaptures):
		return nil, Errorf(KindLimitExceeded, "session %d is being captured too many times", id)
	case err != nil:
		return nil, Errorf(KindFailed, "cannot capture: %v", err)
	}
	return stream, nil
}

// ProtectSocket exempts one socket from the tunnel. It does not keep the
// file.
func (m *Manager) ProtectSocket(by Caller, id SessionID, socket *os.File) error {
	var bound []netip.Addr
	err := m.owned(by, id, func(s *session) error {
		bound = addresses(s.params.Addresses)
		return nil
	})
	if err != nil {
		return err
	}
	return m.opts.Host.Protect(socket, bound)
}

func addresses(prefixes []netip.Prefix) []netip.Addr {
	return slices.Collect(func(yield func(netip.Addr) bool) {
		for _, p := range prefixes {
			if !yield(p.Addr()) {
				return
			}
		}
	})
}

// IsProvider says whether the caller is the provider that owns the session.
func (m *Manager) IsProvider(by Caller, id SessionID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.session(by, id)
	return err == nil && s.conn == by.Conn
}
