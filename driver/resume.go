package driver

import (
	"context"
	"errors"
	"time"

	"github.com/vpnprovider/vpnproviderd/driver/params"
	"github.com/vpnprovider/vpnproviderd/routing"
)

// Resume goes on where an earlier process was stopped or killed: text is what
// that one gave to Options.Keep last, nil is nothing. alive says whether a
// connection is still there. The session goes on if it can; its provider is told
// if not. What else is left of the network is removed, a lockdown aside. Resume
// is to be called once, before anything else; an error means that something is
// still left.
func (m *Manager) Resume(ctx context.Context, text []byte, alive func(conn string) bool) error {
	k, err := decodeKept(text)
	if err != nil {
		m.log.Error("what an earlier run kept is not understood", "error", err)
		k = kept{}
	}
	m.remember(k, alive)
	if k.Session != nil {
		err := m.resume(ctx, *k.Session)
		if err == nil {
			m.log.Info("the session goes on", "SESSION", k.Session.ID, "CONFIG", k.Session.Config, "state", k.Session.State)
			return nil
		}
		m.lost(*k.Session, err, alive)
	}
	return m.opts.Network.Sweep(ctx, m.WantsLockdown())
}

// remember takes over who is there, and how sessions ended.
func (m *Manager) remember(k kept, alive func(conn string) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range k.Providers {
		if key := (providerKey{p.UID, p.App}); alive(p.Conn) {
			m.providers[key] = &provider{providerKey: key, ProviderOptions: p.ProviderOptions, conn: p.Conn}
		}
	}
	for conn, uid := range k.Agents {
		if alive(conn) {
			m.agents[conn] = uid
		}
	}
	for id, end := range k.Ends {
		if c := m.configs[id]; c != nil {
			c.ended(end)
		}
	}
}

func (c *config) ended(e ending) {
	c.State, c.FailureReason = Idle, e.Reason
	if e.Failed {
		c.State = Failed
	}
}

// resumeTimeout is how long the network may hold up the start, of which it is
// only a part: packets flow meanwhile.
const resumeTimeout = 10 * time.Second

var errProviderGone = errors.New("the provider is gone")

// resume makes the session again that k is of. With an error there is none; what
// it had of the network is to be swept.
func (m *Manager) resume(ctx context.Context, k keptSession) error {
	ctx, cancel := context.WithTimeout(ctx, resumeTimeout)
	defer cancel()
	c := m.configs[k.Config]
	if c == nil {
		return errors.New("the config is gone")
	}
	if p := m.providers[providerKey{c.Owner, c.App}]; p == nil || p.conn != k.Conn {
		return errProviderGone
	}
	host, err := m.opts.Host.Facts(ctx, k.Link.Index)
	if err != nil {
		return err
	}
	s := m.prepare(ctx, k.ID, c, k.Conn, k.Signals)
	s.opener, s.link, s.opened = k.Opener, k.Link, k.Channel
	var passes *Traffic
	// Before the first parameters the link alone is wanted, or it would be taken
	// for what those have left that were being applied.
	wanted := routing.Config{Link: k.Link, MTU: params.DefaultMTU}
	if p := k.Parameters; p != nil {
		t := traffic(*p, host)
		passes, wanted = &t, network(*p, k.Link)
		s.params, s.set = *p, true
	}
	// Packets first: the network is there, but for what changed meanwhile.
	tunnel, channel, err := m.opts.Opener.Adopt(k.Link, passes, s.events())
	if err != nil {
		s.cancel()
		return err
	}
	s.tunnel = tunnel
	if err := m.opts.Network.Resume(ctx, wanted, m.WantsLockdown()); err != nil {
		m.log.Error("the network of the session is not what it shall be", "SESSION", k.ID, "error", err)
	}
	m.goOn(s, k, channel)
	return nil
}

// goOn publishes a session whose tunnel and network are there.
func (m *Manager) goOn(s *session, k keptSession, channel bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.state, s.notified, s.down, s.since = k.State, k.Notified, k.Down, k.Since
	left := m.opts.ConnectTimeout
	if !k.Deadline.IsZero() { // the clock may have been set
		left = min(max(time.Until(k.Deadline), 0), left)
	}
	s.startTimer(left)
	if k.Deadline.IsZero() {
		s.setTimer(timerStops)
	}
	if k.Channel && !channel && !k.Signals {
		s.missChannel()
	}
	c := &s.config.ConfigInfo
	c.State, c.Session, c.FailureReason = k.State, k.ID, ""
	m.slots[k.Link.Slot] = true
	m.uplink = k.Uplink
	m.active = s
	m.keep()
	close(s.ready)
}

// lost tells of a session that does not go on. What is left of it is not swept
// yet, and is not gone on with either if the sweep is killed.
func (m *Manager) lost(k keptSession, cause error, alive func(conn string) bool) {
	m.log.Error("the session cannot go on", "SESSION", k.ID, "CONFIG", k.Config, "error", cause)
	reason := ReasonInternal + cause.Error()
	if errors.Is(cause, errProviderGone) {
		reason = ReasonProviderGone
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.configs[k.Config]; c != nil {
		c.ended(ending{Failed: true, Reason: reason})
	}
	m.keep()
	if alive(k.Conn) {
		m.tell(PlatformMessage{To: k.Conn, Session: k.ID, Config: k.Config, Message: MessageDisconnected, Error: reason})
	}
}
