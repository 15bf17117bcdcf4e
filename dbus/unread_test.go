package dbus

import (
	"fmt"
	"testing"
)

// What is unread is counted for each peer and user, an answer proves what was sent
// before its question, and who leaves takes theirs along.
func TestUnread(t *testing.T) {
	w := newWaiting(t)
	defer close(w.release)
	w.know(":1.1", 1000)
	if w.sent(":1.9", unreadUser) != nil || len(w.unread) != 0 {
		t.Error("who has left counts")
	}
	if w.sent(":1.1", unreadEach) != nil {
		t.Error("a peer is asked about little")
	}
	first := w.sent(":1.1", 1)
	if first == nil || w.sent(":1.1", unreadEach) != nil {
		t.Fatal("a peer is asked once about much")
	}
	w.answered(first)
	if p := w.peers[":1.1"]; p.unread != unreadEach || !p.asked.IsZero() {
		t.Errorf("after the answer %+v", p)
	}
	w.gone(":1.1")
	if len(w.unread) != 0 {
		t.Errorf("unread is %v", w.unread)
	}
}

// While too much of a user's is unread, its connections get no large message and
// few small ones, unless they may have answered by now. Other users' get all.
func TestTooMuchUnread(t *testing.T) {
	w := newWaiting(t)
	defer close(w.release)
	asked := 0
	for i := range 100 {
		name := fmt.Sprint(":1.", i)
		w.know(name, 1000)
		if w.sent(name, 2*unreadEach) != nil {
			asked++
		}
	}
	if asked != pingsPerUser {
		t.Errorf("%d pings without an answer", asked)
	}
	if !w.maySend(":1.99", unreadEach) {
		t.Error("nothing is sent while little is unread")
	}
	w.sent(":1.0", unreadUser)
	w.know(":1.100", 1000)
	w.know(":2.0", 2000)
	for _, c := range []struct {
		peer  string
		bytes int
		want  bool
	}{
		{":1.0", 1, false},                // owes too much
		{":1.1", unreadEach, true},        // was asked just now
		{":1.99", 1, false},               // cannot be asked
		{":1.100", unreadEach, true},      // a new connection
		{":1.100", unreadUser / 8, false}, // of which there may be many
		{":2.0", unreadUser / 8, true},
	} {
		if got := w.maySend(c.peer, c.bytes); got != c.want {
			t.Errorf("%d bytes to %s: %v", c.bytes, c.peer, got)
		}
	}
}
