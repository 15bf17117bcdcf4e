package driver

import (
	"context"
	"errors"
)

// Connect is what a Connect call brings along.
type Connect struct {
	// Authorize asks whether the caller may connect; it may wait for a
	// person. nil: it may.
	Authorize func(context.Context) error

	// Override asks whether the caller may end the session of another user.
	// nil: it may not, unless it manages what belongs to others.
	Override func(context.Context) error

	// Trust asks whether the app may carry the host's traffic, where its user
	// has not agreed to that yet. nil: it may.
	Trust func(ctx context.Context, app string) error

	// PassLockdown asks whether the caller may connect a config that is not one
	// of those in lockdown, while there is a lockdown. nil: it may.
	PassLockdown func(context.Context) error

	// OnlyIfIdle: the call ends no session, and gives way to calls without it.
	OnlyIfIdle bool

	// Waiting is told whenever the call is about to wait for something.
	Waiting func()
}

// attempt is a Connect that has no session yet; Disconnect cancels it.
type attempt struct {
	cancel   context.CancelCauseFunc
	givesWay bool // it is one with OnlyIfIdle
}

func (c *config) cancelWaiting() {
	for a := range c.waiting {
		a.cancel(errCancelled)
	}
}

var errDown = Errorf(KindFailed, "the service is shutting down")

var errCancelled = Errorf(KindFailed, "cancelled")

// Connect gives the config a session, or the one that it has. It returns when
// the session exists and the provider was told; cancelling ctx, Disconnect
// and removal end it earlier.
func (m *Manager) Connect(ctx context.Context, by Caller, id ConfigID, req Connect) (SessionID, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	m.mu.Lock()
	c, err := m.visible(by, id)
	if err != nil {
		m.mu.Unlock()
		return 0, err
	}
	if c.Session != 0 && c.State != Disconnecting {
		defer m.mu.Unlock()
		return c.Session, nil
	}
	if m.down {
		m.mu.Unlock()
		return 0, errDown
	}
	a := &attempt{cancel: cancel, givesWay: req.OnlyIfIdle}
	if c.waiting == nil {
		c.waiting = make(map[*attempt]struct{})
	}
	c.waiting[a] = struct{}{}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(c.waiting, a)
		m.mu.Unlock()
	}()
	session, err := m.connect(ctx, by, c, req)
	if err != nil && ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return session, err
}

func (m *Manager) connect(ctx context.Context, by Caller, c *config, req Connect) (SessionID, error) {
	if req.Authorize != nil {
		if err := req.Authorize(ctx); err != nil {
			return 0, err
		}
	}
	if err := m.passLockdown(ctx, c, req); err != nil {
		return 0, err
	}
	if err := m.agree(ctx, c, req); err != nil {
		return 0, err
	}
	if _, err := m.await(ctx, providerKey{c.Owner, c.App}, req.waits); err != nil {
		return 0, err
	}
	override := by.managesOthers()
	for {
		session, err := m.connectAlone(ctx, by, c, req, override)
		if !errors.Is(err, errForeign) {
			return session, err
		}
		// A person may be asked, for minutes: nobody else waits for that.
		if req.Override == nil || req.Override(ctx) != nil {
			return 0, err
		}
		override = true
	}
}

// connectAlone is the part of connect that is done for one call at a time.
// override: the caller may end another user's session; errForeign where that
// would have to be.
func (m *Manager) connectAlone(ctx context.Context, by Caller, c *config, req Connect, override bool) (SessionID, error) {
	select {
	case m.connecting <- struct{}{}:
	default:
		req.waits()
		if err := acquire(ctx, m.connecting); err != nil {
			return 0, err
		}
	}
	defer func() { <-m.connecting }()
	if err := m.makeWay(ctx, c, req, override); err != nil {
		return 0, err
	}
	return m.open(ctx, by, c)
}

var (
	errForeign = Errorf(KindBusy, "another user is connected")
	errNotIdle = Errorf(KindBusy, "another config is connected, or about to be")
)

func (r Connect) waits() {
	if r.Waiting != nil {
		r.Waiting()
	}
}

// vacant says whether a Connect with OnlyIfIdle may go on: nothing is active,
// and no other call, of anybody, is about to change that. Such calls give way to
// none of their own kind, or two of them would both give up. It must be called
// with mu held.
func (m *Manager) vacant() bool {
	for _, c := range m.configs {
		for a := range c.waiting {
			if !a.givesWay {
				return false
			}
		}
	}
	return m.active == nil
}

// makeWay ends the session that is in the way of a new one of c.
func (m *Manager) makeWay(ctx context.Context, c *config, req Connect, override bool) error {
	for {
		m.mu.Lock()
		s := m.active
		if req.OnlyIfIdle && !m.vacant() {
			m.mu.Unlock()
			return errNotIdle
		}
		if _, err := m.running(providerKey{c.Owner, c.App}); err != nil || s == nil || s.config == c && s.state != Disconnecting {
			m.mu.Unlock()
			return err
		}
		foreign := s.state != Disconnecting && s.config.Owner != c.Owner
		m.mu.Unlock()
		if foreign && !override {
			return errForeign
		}
		req.waits()
		select {
		case <-s.end(EventStop, ReasonReplaced):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// open makes the session. m.connecting is held.
func (m *Manager) open(ctx context.Context, by Caller, c *config) (SessionID, error) {
	m.mu.Lock()
	if m.down {
		m.mu.Unlock()
		return 0, errDown
	}
	if m.configs[c.ID] != c {
		m.mu.Unlock()
		return 0, notFound("config", string(c.ID))
	}
	if c.Session != 0 {
		defer m.mu.Unlock()
		return c.Session, nil
	}
	p, err := m.running(providerKey{c.Owner, c.App})
	if err != nil {
		m.mu.Unlock()
		return 0, err
	}
	slot, err := m.takeSlot()
	m.mu.Unlock()
	if err != nil {
		return 0, err
	}
	s, err := m.newSession(ctx, c, p, slot)
	if err != nil {
		m.freeSlot(slot)
		return 0, m.openFailed(c, err)
	}
	s.opener = by.Conn
	return m.begin(ctx, s)
}

// begin publishes a session whose TUN exists.
func (m *Manager) begin(ctx context.Context, s *session) (SessionID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case m.down:
		err = errDown
	case m.configs[s.config.ID] != s.config:
		err = notFound("config", string(s.config.ID))
	default:
		var p *provider
		if p, err = m.running(s.provider); err == nil && p.conn != s.conn {
			err = Errorf(KindProviderNotRunning, "the provider of app %q was replaced", s.provider.app)
		}
	}
	if err != nil {
		close(s.ready)
		s.cancel()
		m.closeTunnel(s.tunnel, s.link)
		return 0, err
	}
	m.active = s
	s.transition(EventConnect)
	close(s.ready)
	return s.id, nil
}

// openFailed records why there is no TUN.
func (m *Manager) openFailed(c *config, cause error) error {
	m.log.Error("cannot open the tunnel", "CONFIG", c.ID, "APP", c.App, "error", cause)
	m.mu.Lock()
	defer m.mu.Unlock()
	out, _ := next(c.State, EventOpenFailed, circumstances{})
	m.change(c, func(i *ConfigInfo) { i.State, i.FailureReason = out.next, ReasonInternal+cause.Error() })
	m.keep()
	return Errorf(KindFailed, "cannot open the tunnel: %v", cause)
}

// Disconnect ends the config's session, and Connects that wait for one. It
// returns when everything is undone; without a session it does nothing.
// authorize asks whether the caller may end a session, unless it is the one
// who connected it or its provider; nil: it may.
func (m *Manager) Disconnect(ctx context.Context, by Caller, id ConfigID, authorize func(context.Context) error) error {
	m.mu.Lock()
	c, err := m.visible(by, id)
	if err != nil {
		m.mu.Unlock()
		return err
	}
	c.cancelWaiting()
	if c.Session == 0 {
		m.mu.Unlock()
		return nil
	}
	s := m.active
	m.mu.Unlock()
	return s.stop(ctx, by, authorize)
}

// stop ends the session for a caller who may have to be asked about: that
// session, and not one that follows while the question is open.
func (s *session) stop(ctx context.Context, by Caller, authorize func(context.Context) error) error {
	if authorize != nil && by.Conn != s.opener && by.Conn != s.conn {
		if err := authorize(ctx); err != nil {
			return err
		}
	}
	<-s.end(EventStop, ReasonUser)
	return nil
}
