package driver

import (
	"net/netip"
	"slices"
	"time"
)

// Uplink is where the host's traffic leaves besides the tunnel: its default
// route. The zero Uplink is none.
type Uplink struct {
	Interface string
	Index     int
	Gateway   netip.Addr // not valid on a link that needs none
	IPv6      bool

	// Nameservers and Domains are the physical network's. Ask those, over a
	// protected socket, for the address of a server while the tunnel has the
	// DNS.
	Nameservers []netip.Addr
	Domains     []string
}

// Up says that there is one.
func (u Uplink) Up() bool { return u.Index != 0 }

// same says that traffic leaves by the same way; only that counts as a change.
func (u Uplink) same(v Uplink) bool { return u.Index == v.Index && u.Gateway == v.Gateway }

func (u Uplink) equal(v Uplink) bool {
	return u.same(v) && u.Interface == v.Interface && u.IPv6 == v.IPv6 &&
		slices.Equal(u.Nameservers, v.Nameservers) && slices.Equal(u.Domains, v.Domains)
}

// SetUplink says what the uplink is now. What that means for the session is
// told and done before it returns, the undo of an ended one aside.
func (m *Manager) SetUplink(u Uplink) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.uplink
	if before.equal(u) {
		return
	}
	s := m.active
	if s == nil {
		m.uplink = u
		return
	}
	was := s.info()
	m.uplink = u
	m.keep()
	m.tell(SessionChanged{Before: was, After: s.info()})
	switch {
	case before.same(u) || !before.Up() && !u.Up():
	case !u.Up():
		s.happens(EventUplinkLost)
	case !before.Up():
		s.happens(EventUplinkBack)
	default:
		s.happens(EventUplinkReplaced)
	}
}

// happens is what the host does to a session. It must be called with
// Manager.mu held.
func (s *session) happens(event Event) {
	c := circumstances{reconnect: s.params.Reconnect, down: s.down}
	if out, ok := next(s.state, event, c); ok && out.end != "" {
		s.endLocked(event, ReasonUplinkLost)
		return
	}
	s.transition(event)
}

// sleepTimeout is how long the machine's sleep may be held up.
const sleepTimeout = 3 * time.Second

// Sleep says that the machine is about to sleep. The channel it returns is
// closed when the provider has got ready for that, or had the time to.
func (m *Manager) Sleep() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.active
	if s == nil || !s.transition(EventSleep) {
		return closed()
	}
	if s.asleep == nil {
		s.asleep = make(chan struct{})
	}
	acknowledged, ready := s.asleep, make(chan struct{})
	go func() {
		defer close(ready)
		select {
		case <-acknowledged:
		case <-s.ctx.Done():
		case <-time.After(sleepTimeout):
		}
	}()
	return ready
}

// Wake says that the machine has slept.
func (m *Manager) Wake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.active; s != nil {
		s.asleep = nil
		s.happens(EventWake)
	}
}
