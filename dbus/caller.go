package dbus

import (
	"context"
	"errors"

	godbus "github.com/godbus/dbus/v5"
)

// busName is the bus itself.
const busName = "org.freedesktop.DBus"

// identify finds out, once, which user a peer is, at its first call, c. An error,
// an answer without a uid or no answer leave it unknown.
func (s *Server) identify(p *peer, c *call) error {
	s.calls.mu.Lock()
	known := p.known
	s.calls.mu.Unlock()
	if known {
		return nil
	}
	ctx, cancel := context.WithTimeout(p.ctx, busTimeout)
	defer cancel()
	var credentials map[string]godbus.Variant
	err := s.conn.BusObject().CallWithContext(ctx, busName+".GetConnectionCredentials", 0, p.name).Store(&credentials)
	if err != nil {
		return err
	}
	uid, ok := credentials["UnixUserID"].Value().(uint32)
	if !ok {
		return errors.New("the bus knows no uid")
	}
	s.calls.identified(p, uid, c)
	return nil
}
