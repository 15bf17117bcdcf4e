package dbus

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/driver"
)

// waiting is a dispatcher whose calls wait until they are released.
type waiting struct {
	dispatcher
	release chan struct{}
	served  sync.Map // *call
}

func newWaiting(t *testing.T) *waiting {
	t.Helper()
	w := &waiting{release: make(chan struct{})}
	w.dispatcher = dispatcher{
		serve: func(_ *peer, c *call) {
			<-w.release
			w.served.Store(c, true)
			c.finish()
		},
		refuse: func(c *call, err error) { c.err = err },
		peers:  make(map[string]*peer),
	}
	t.Cleanup(w.stop)
	return w
}

// fill submits calls of the sender until one is refused.
func (w *waiting) fill(sender, member string, size int) (n int, err error) {
	for ; n < 10000; n++ {
		c := &call{sender: sender, member: member, iface: wire.SessionInterface, size: size}
		w.submit(c)
		if c.err != nil {
			return n, c.err
		}
	}
	return n, nil
}

// know makes the sender known as one of the user.
func (w *waiting) know(sender string, uid uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.peer(sender)
	p.known, p.uid = true, uid
}

func requireFilled(t *testing.T, what string, n int, err error, want int) {
	t.Helper()
	if n != want || driver.KindOf(err) != driver.KindLimitExceeded {
		t.Errorf("%s: %d calls, then %v, want %d", what, n, err, want)
	}
}

// However many connections a user has, others have room; and so have those
// whose user is not known yet.
func TestCallsOfAUser(t *testing.T) {
	t.Parallel()
	w := newWaiting(t)
	n, err := w.fill(":1.0", "Disconnect", 100)
	requireFilled(t, "a sender", n, err, callsPerSender)
	for i := range 10 {
		w.know(fmt.Sprint(":2.", i), 1000)
	}
	all := 0
	for i := range 10 {
		n, _ := w.fill(fmt.Sprint(":2.", i), "Disconnect", 100)
		all += n
	}
	requireFilled(t, "a user", all, driver.Errorf(driver.KindLimitExceeded, ""), callsPerUser)
	all = callsPerSender
	for i := range 10 {
		n, _ := w.fill(fmt.Sprint(":3.", i), "Disconnect", 100)
		all += n
	}
	requireFilled(t, "the unknown", all, driver.Errorf(driver.KindLimitExceeded, ""), callsPerUser)
	for i := range 10 {
		w.know(fmt.Sprint(":4.", i), uint32(2000+i))
		n, _ := w.fill(fmt.Sprint(":4.", i), "Disconnect", 100)
		all += n
	}
	requireFilled(t, "everybody", all+callsPerUser, driver.Errorf(driver.KindLimitExceeded, ""), callsInAll)

	// What has ended gives its place back.
	close(w.release)
	for i := range 10 {
		deadline := time.Now().Add(10 * time.Second)
		for {
			c := &call{sender: fmt.Sprint(":2.", i), member: "Disconnect"}
			if w.submit(c); c.err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal(c.err)
			}
		}
	}
	w.stop()
	if len(w.users) != 0 || w.load != (load{}) {
		t.Errorf("in flight there still is %v %+v", w.users, w.load)
	}
}

// Packets have their own limits, and so have long calls.
func TestPacketsAndLongCalls(t *testing.T) {
	t.Parallel()
	w := newWaiting(t)
	defer close(w.release)
	n, err := w.fill(":1.0", "SendPacket", 1500)
	requireFilled(t, "packets of a sender", n, err, packetsPerSender)
	all := n
	for i := range 10 {
		more, _ := w.fill(fmt.Sprint(":1.", i+1), "SendPacket", 1500)
		all += more
	}
	requireFilled(t, "packets", all, driver.Errorf(driver.KindLimitExceeded, ""), packetsInAll)

	all = 0
	for i := range 10 {
		more, _ := w.fill(fmt.Sprint(":2.", i), "SetParameters", 1<<20)
		all += more
	}
	requireFilled(t, "calls of 1 MiB", all, driver.Errorf(driver.KindLimitExceeded, ""), longInAll>>20)
	n, err = w.fill(":2.1", "SetParameters", longCall)
	requireFilled(t, "short calls besides", n, err, callsPerSender)
}

// A user gets no more places by new connections, whose calls are counted as
// nobody's until it is known whose they are; and takes nobody's from others.
func TestCallsBeforeTheUserIsKnown(t *testing.T) {
	t.Parallel()
	w := newWaiting(t)
	served := 0
	for i := range 12 {
		sender := fmt.Sprint(":1.", i)
		calls := make([]*call, callsPerSender)
		for k := range calls {
			calls[k] = &call{sender: sender, member: "ShowAddDialog"}
			if w.submit(calls[k]); calls[k].err != nil {
				t.Fatalf("call %d of connection %d: %v", k, i, calls[k].err)
			}
		}
		w.identified(w.peer(sender), 1000, calls[0])
		w.identified(w.peer(sender), 1000, calls[0]) // changes nothing
		for _, c := range calls {
			switch {
			case c.err == nil:
				served++
			case driver.KindOf(c.err) != driver.KindLimitExceeded:
				t.Errorf("connection %d: %v", i, c.err)
			}
		}
	}
	// Those that are refused are in flight until their turn comes.
	if served != callsPerUser {
		t.Errorf("%d calls of the user are served, want %d", served, callsPerUser)
	}
	n, err := w.fill(":2.0", "Disconnect", 100)
	requireFilled(t, "another connection", n, err, callsPerSender)
	close(w.release)
	w.stop()
	if len(w.users) != 0 || w.load != (load{}) {
		t.Errorf("in flight there still is %v %+v", w.users, w.load)
	}
}
