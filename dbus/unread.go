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
// give by themselves; and while all that is unread is too much, who has owed an
// answer for long, or for much, is sent nothing. With the 256 connections that
// dbus-daemon allows a user, that keeps three users from stopping it.
const (
	unreadEach = 64 << 10
	unreadAll  = 32 << 20

	// Until a ping is answered a peer is sent so much more, for so long.
	unreadAsked = 2 << 20
	answerTime  = 2 * time.Second

	// unreadDescriptor is as many bytes as a descriptor counts for.
	unreadDescriptor = 2 << 20

	// The bus counts calls without an answer too, and allows a service 128.
	pingsPerUser = 8
	pingsInAll   = 64
)

// owes says whether a peer gets nothing for now: it was sent much, and has not
// answered, or cannot be asked because too many others of its user's have not.
func (d *dispatcher) owes(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.peers[name]
	if p == nil || d.unread <= unreadAll || p.unread <= unreadEach {
		return false
	}
	return p.asked.IsZero() || p.unread > unreadAsked || time.Since(p.asked) > answerTime
}

// sent counts what a peer was sent. ask is what it has to be asked now, if anything.
func (d *dispatcher) sent(name string, bytes int) (ask *probe) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.peers[name]
	if p == nil { // it has left
		return nil
	}
	p.unread += bytes
	d.unread += bytes
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
		q.unread -= q.bytes
		d.unread -= q.bytes
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
	if s.calls.owes(to) {
		s.log.Debug("somebody who does not read is sent nothing", "to", to)
		return nil
	}
	n, err := s.stream.Send(m)
	if errors.Is(err, stream.ErrEncode) {
		return s.sendInstead(m, err)
	}
	if err != nil {
		return err
	}
	for _, v := range m.Body {
		if _, ok := v.(godbus.UnixFD); ok {
			n += unreadDescriptor
		}
	}
	ask := s.calls.sent(to, n)
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
