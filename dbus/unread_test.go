package dbus

import (
	"fmt"
	"testing"
)

// What is unread is counted for each peer and in all, an answer proves what was
// sent before its question, and who leaves takes theirs along.
func TestUnread(t *testing.T) {
	w := newWaiting(t)
	defer close(w.release)
	w.know(":1.1", 1000)
	w.know(":1.2", 1001)
	if w.sent(":1.9", unreadAll) != nil || w.unread != 0 {
		t.Error("who has left counts")
	}
	if w.sent(":1.1", unreadEach) != nil {
		t.Error("a peer is asked about little")
	}
	first := w.sent(":1.1", 1)
	if first == nil || w.sent(":1.1", unreadEach) != nil {
		t.Fatal("a peer is asked once about much")
	}
	w.sent(":1.2", unreadAll)
	if w.owes(":1.1") || !w.owes(":1.2") {
		t.Error("who owes is who was sent too much")
	}
	w.answered(first)
	if p := w.peers[":1.1"]; p.unread != unreadEach || !p.asked.IsZero() {
		t.Errorf("after the answer %+v", p)
	}
	w.gone(":1.2")
	if w.unread != unreadEach || w.owes(":1.1") {
		t.Errorf("%d bytes are unread", w.unread)
	}
	// However many connections a user has, few pings are without an answer.
	asked := 0
	for i := range 100 {
		name := fmt.Sprint(":2.", i)
		w.know(name, 2000)
		if w.sent(name, 2*unreadEach) != nil {
			asked++
		}
	}
	if asked != pingsPerUser {
		t.Errorf("%d pings", asked)
	}
	w.sent(":1.1", unreadAll)
	if !w.owes(":2.99") { // it cannot be asked
		t.Error("connections that cannot be asked are sent more")
	}
}
