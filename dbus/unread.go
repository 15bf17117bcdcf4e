package dbus

import (
	"errors"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/stream"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// What is sent to somebody waits in the bus until they read it. dbus-daemon takes
// nothing more from a service, for anybody, while 127 MiB or 64 descriptors of it
// wait. So who was sent much is asked for an answer to a ping, which libraries
// give by themselves; and while too much of a user's is unread, those of the user's
// connections are sent nothing that have owed an answer for long, or for much, or
// that cannot be asked. With all the 256 connections that dbus-daemon allows it, a
// user does not stop it so; two users together might.
const (
	unreadEach = 64 << 10
	unreadUser = 32 << 20

	// Until a ping is answered a peer is sent so much more, for so long.
	unreadAsked = 2 << 20
	answerTime  = 2 * time.Second

	// unreadDescriptor is as many bytes as a descriptor counts for.
	unreadDescriptor = 2 << 20

	// The bus counts calls without an answer too, and allows a service 128.
	pingsPerUser = 8
	pingsInAll   = 64
)

// maySend says whether a peer gets a message of so many bytes.
func (d *dispatcher) maySend(name string, bytes int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.peers[name]
	switch {
	case p == nil || d.unread[p.user()]+bytes <= unreadUser || p.unread+bytes <= unreadEach:
		return true
	case p.asked.IsZero():
		return false
	}
	return p.unread <= unreadAsked && time.Since(p.asked) <= answerTime
}

// sent counts what a peer was sent. ask is what it has to be asked now, if anything.
func (d *dispatcher) sent(name string, bytes int) (ask *probe) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.peers[name]
	if p == nil { // it has left
		return nil
	}
	d.countUnread(p, bytes)
	if p.unread <= unreadEach || !p.asked.IsZero() || d.asked[p.user()] >= pingsPerUser || d.pings >= pingsInAll {
		return nil
	}
	p.asked = time.Now()
	d.countPing(p.user(), 1)
	return &probe{p, p.user(), p.unread}
}

// probe is a ping of a peer, whose answer proves that so many bytes are read.
type probe struct {
	*peer
	ofUser int64
	bytes  int
}

// answered counts the answer, or that the peer has left.
func (d *dispatcher) answered(q *probe) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.countPing(q.ofUser, -1)
	q.asked = time.Time{}
	if !q.left { // else nothing of it counts any more
		d.countUnread(q.peer, -q.bytes)
	}
}

// countUnread must be called with mu held.
func (d *dispatcher) countUnread(p *peer, bytes int) {
	if d.unread == nil {
		d.unread = make(map[int64]int)
	}
	p.unread += bytes
	if d.unread[p.user()] += bytes; d.unread[p.user()] == 0 {
		delete(d.unread, p.user())
	}
}

// countPing must be called with mu held.
func (d *dispatcher) countPing(user int64, n int) {
	if d.asked == nil {
		d.asked = make(map[int64]int)
	}
	d.pings += n
	if d.asked[user] += n; d.asked[user] == 0 {
		delete(d.asked, user)
	}
}

// send is the outbox' way to the bus.
func (s *Server) send(m *godbus.Message) error {
	to, _ := m.Headers[godbus.FieldDestination].Value().(string)
	n, err := s.stream.Send(m, func(bytes int) bool { return s.calls.maySend(to, bytes+costOf(m)) })
	if errors.Is(err, stream.ErrEncode) {
		return s.sendInstead(m, err)
	}
	if err != nil {
		return err
	}
	if n == 0 {
		s.log.Debug("somebody who does not read is sent nothing", "to", to)
		return nil
	}
	ask := s.calls.sent(to, n+costOf(m))
	if ask == nil {
		return nil
	}
	// Any answer will do.
	await, err := s.stream.Ping(callOf(to, wire.RootPath, wire.PeerInterface, "Ping"))
	if err != nil {
		return err
	}
	go func() {
		await(ask.ctx)
		s.calls.answered(ask)
	}()
	return nil
}

// costOf is as many bytes as the descriptors of a message count for.
func costOf(m *godbus.Message) (n int) {
	for _, v := range m.Body {
		if _, ok := v.(godbus.UnixFD); ok {
			n += unreadDescriptor
		}
	}
	return n
}

// sendInstead tells a caller that the answer cannot be sent, because of a text
// that is none; a signal is left out.
func (s *Server) sendInstead(m *godbus.Message, err error) error {
	s.log.Error("a message is not sent", "headers", m.Headers, "error", err)
	if m.Type != godbus.TypeMethodReply {
		return nil
	}
	to, _ := m.Headers[godbus.FieldDestination].Value().(string)
	instead := message(godbus.TypeError, to, []any{"the answer cannot be sent"})
	instead.Headers[godbus.FieldReplySerial] = m.Headers[godbus.FieldReplySerial]
	instead.Headers[godbus.FieldErrorName] = godbus.MakeVariant(wire.ErrFailed)
	return s.send(instead)
}
