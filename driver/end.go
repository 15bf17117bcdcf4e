package driver

import (
	"context"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// end is endLocked for those who do not hold the lock: timers, the tunnel.
func (s *session) end(event Event, reason string) <-chan struct{} {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	return s.endLocked(event, reason)
}

// endLocked begins the end of the session, whoever caused it; a session that
// is ending already is left to it. The channel it returns is closed when
// everything is undone. It must be called with Manager.mu held.
func (s *session) endLocked(event Event, reason string) <-chan struct{} {
	if !s.transition(event, func() { s.reason = reason }) {
		return s.undone
	}
	if event == EventTimeout {
		s.message(MessageError, reason)
	}
	s.message(MessageDisconnected, reason)
	s.channelOpened()
	s.cancel()
	go s.undo()
	return s.undone
}

// undo takes everything back that the session did to the host, by the way in
// which it was done.
func (s *session) undo() {
	s.work <- struct{}{}
	ctx, cancel := context.WithTimeout(context.Background(), applyTimeout)
	defer cancel()
	if err := s.m.opts.Network.Apply(ctx, routing.Config{}); err != nil {
		// The network remembers what is left; the next change repairs it.
		s.m.log.Error("cannot undo the network", "SESSION", s.id, "error", err)
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.transition(EventUndone)
	s.m.active = nil
	s.m.tell(SessionGone{Session: s.info()})
	s.m.closeTunnel(s.tunnel, s.link)
	close(s.undone)
}
