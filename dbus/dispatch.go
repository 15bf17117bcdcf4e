package dbus

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/driver"
)

// How many calls may be in flight: waiting, running, or with an answer that
// the bus has not taken yet.
const (
	callsPerSender = 16
	callsPerUser   = 96 // and of all whose user is not known yet
	callsInAll     = 256

	// SendPacket has limits of its own: packets are many, and soon done with.
	packetsPerSender = 256
	packetsInAll     = 1024

	// longCall is how many bytes a call has that counts as a long one;
	// longInAll is how many the long ones in flight may have. Decoded they can
	// be twenty times as large.
	longCall  = 16 << 10
	longInAll = 4 << 20
)

var errManyCalls = driver.Errorf(driver.KindLimitExceeded, "the user has %d calls in flight", callsPerUser)

// Rate limits how often a sender may call what costs much. The zero Rate is
// no limit.
type Rate struct {
	Burst     int
	PerSecond float64
}

func (r Rate) limiter() *rate.Limiter {
	if r.Burst == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(r.PerSecond), r.Burst)
}

// costly are the members that Rate limits.
func costly(member string) bool {
	return member == "SetParameters" || member == "Connect" || member == "CreateConfig"
}

// peer is a connection that has called. It lives until it leaves the bus.
type peer struct {
	name    string
	ctx     context.Context // ends when it leaves
	cancel  context.CancelFunc
	limiter *rate.Limiter // nil: no limit

	// Protected by dispatcher.mu.
	queue   []*call
	running bool // a goroutine serves the queue
	calls   int  // in flight
	packets int
	unread  int       // bytes that it was sent and is not known to have read
	asked   time.Time // when it was sent a ping that is without an answer

	// Protected by dispatcher.mu; written once.
	known bool
	uid   uint32

	// Protected by dispatcher.mu.
	mute      bool // Unsubscribe was called
	listening bool // Subscribe was called: the service is needed
	watched   bool // as the process of a provider
	resumed   bool // watched by an earlier process
	ended     bool // that process has
	left      bool // the bus
}

// nobody stands for the users that are not known yet.
const nobody = -1

// user must be called with dispatcher.mu held.
func (p *peer) user() int64 {
	if !p.known {
		return nobody
	}
	return int64(p.uid)
}

// load is what is in flight of all senders.
type load struct {
	calls   int // SendPacket aside
	packets int
	long    int // bytes of the long calls
}

// dispatcher starts the calls of each sender in order, one at a time; a call
// that waits steps aside. What is over the limits is refused at once.
type dispatcher struct {
	serve  func(*peer, *call) // sees to it that finish is called
	refuse func(*call, error)
	rate   Rate

	changed func() // what is known of a peer; called with mu held; nil: nobody asks

	mu    sync.Mutex
	peers map[string]*peer
	load
	users map[int64]int // calls in flight of each user, see peer.user
	used  bool          // there was a call since the last question

	unread map[int64]int // bytes of each user, see peer.user
	pings  int           // without an answer
	asked  map[int64]int // of each user

	stopped bool           // no call is served any more
	idle    sync.WaitGroup // goroutines that serve
}

// submit never blocks: it runs in the read loop of the connection.
func (d *dispatcher) submit(c *call) {
	d.mu.Lock()
	p := d.peer(c.sender)
	err := d.admit(p, c)
	if err == nil {
		p.queue = append(p.queue, c)
		if !p.running {
			p.running = true
			d.idle.Go(func() { d.run(p) })
		}
	}
	d.mu.Unlock()
	if err != nil {
		c.close()
		d.refuse(c, err)
	}
}

// peer must be called with mu held.
func (d *dispatcher) peer(name string) *peer {
	p := d.peers[name]
	if p == nil {
		p = &peer{name: name, limiter: d.rate.limiter()}
		p.ctx, p.cancel = context.WithCancel(context.Background())
		d.peers[name] = p
	}
	return p
}

// isPacket says whether the call is a SendPacket, which may be many.
func (c *call) isPacket() bool { return c.member == "SendPacket" && c.iface == wire.SessionInterface }

// isLong says whether the call counts as a long one.
func (c *call) isLong() bool { return c.size > longCall }

// admit counts the call or says why it is refused. It must be called with mu
// held.
func (d *dispatcher) admit(p *peer, c *call) error {
	switch {
	case c.err != nil:
		return c.err
	case d.stopped:
		return errClosing
	case c.isLong() && d.long+c.size > longInAll:
		return driver.Errorf(driver.KindLimitExceeded, "the service has %d bytes of long calls in flight", d.long)
	case c.isPacket():
		return d.admitPacket(p, c)
	case p.calls >= callsPerSender:
		return driver.Errorf(driver.KindLimitExceeded, "the sender has %d calls in flight", callsPerSender)
	case d.users[p.user()] >= callsPerUser && p.user() != nobody:
		return errManyCalls
	case d.users[p.user()] >= callsPerUser, d.calls >= callsInAll:
		return driver.Errorf(driver.KindLimitExceeded, "the service has %d calls in flight", d.calls)
	case costly(c.member) && p.limiter != nil && !p.limiter.Allow():
		return driver.Errorf(driver.KindLimitExceeded, "the sender calls %s too often: %d at once and %v a second are allowed", c.member, d.rate.Burst, d.rate.PerSecond)
	}
	d.count(c, 1, &p.calls, &d.calls)
	d.charge(p.user(), 1)
	c.finish = sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.count(c, -1, &p.calls, &d.calls)
		d.charge(p.user(), -1)
	})
	return nil
}

// charge counts n calls for a user. It must be called with mu held.
func (d *dispatcher) charge(user int64, n int) {
	if d.users == nil {
		d.users = make(map[int64]int)
	}
	if d.users[user] += n; d.users[user] == 0 {
		delete(d.users, user)
	}
}

// identified tells which user a peer is, whose first call is c. What it has in
// flight is the user's from now on; calls that are too many then are refused
// when their turn comes, c the last of them.
func (d *dispatcher) identified(p *peer, uid uint32, c *call) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p.known {
		return
	}
	unread := p.unread
	d.countUnread(p, -unread)
	d.charge(p.user(), -p.calls)
	p.uid, p.known = uid, true
	d.charge(p.user(), p.calls)
	d.countUnread(p, unread)
	d.tellChanged()
	over := d.users[p.user()] - callsPerUser
	for _, queued := range slices.Backward(append([]*call{c}, p.queue...)) {
		if over <= 0 {
			return
		}
		if !queued.isPacket() {
			queued.err = errManyCalls
			over--
		}
	}
}

// admitPacket must be called with mu held.
func (d *dispatcher) admitPacket(p *peer, c *call) error {
	switch {
	case p.packets >= packetsPerSender:
		return driver.Errorf(driver.KindLimitExceeded, "the sender has %d packets in flight", packetsPerSender)
	case d.packets >= packetsInAll:
		return driver.Errorf(driver.KindLimitExceeded, "the service has %d packets in flight", packetsInAll)
	}
	d.count(c, 1, &p.packets, &d.packets)
	c.finish = sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.count(c, -1, &p.packets, &d.packets)
	})
	return nil
}

// count adds to the counters that the call is counted in. It must be called
// with mu held.
func (d *dispatcher) count(c *call, n int, counters ...*int) {
	d.used = true
	for _, counter := range counters {
		*counter += n
	}
	if c.isLong() {
		d.long += n * c.size
	}
}

// run serves a sender's queue until it is empty, or until a call that waits
// has left the rest to another goroutine.
func (d *dispatcher) run(p *peer) {
	for {
		d.mu.Lock()
		if len(p.queue) == 0 {
			p.running = false
			d.mu.Unlock()
			return
		}
		c := p.queue[0]
		p.queue[0] = nil
		p.queue = p.queue[1:]
		d.mu.Unlock()

		detached := false
		c.detach = func() {
			if !detached {
				detached = true
				d.idle.Go(func() { d.run(p) })
			}
		}
		d.serve(p, c)
		c.close()
		if detached {
			return
		}
	}
}

// gone forgets a sender that has left the bus. What it has in flight goes on;
// what waits for a person on its behalf is cancelled.
func (d *dispatcher) gone(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.peers[name]; p != nil {
		p.left = true
		d.countUnread(p, -p.unread)
		p.cancel()
		delete(d.peers, name)
		d.tellChanged()
	}
}

// tellChanged must be called with mu held.
func (d *dispatcher) tellChanged() {
	if d.changed != nil {
		d.changed()
	}
}

// drain refuses new calls and returns when no call is in flight.
func (d *dispatcher) drain() {
	d.mu.Lock()
	d.stopped = true
	d.mu.Unlock()
	d.idle.Wait()
}

// stop is drain, and cancels what waits for a person.
func (d *dispatcher) stop() {
	d.mu.Lock()
	d.stopped = true
	for _, p := range d.peers {
		p.cancel()
	}
	d.mu.Unlock()
	d.idle.Wait()
}

// listeners are the peers that may see what owner owns and want to be told.
func (d *dispatcher) listeners(owner uint32) []*peer {
	return slices.DeleteFunc(d.everybody(), func(p *peer) bool { return p.uid != owner && p.uid != 0 })
}

// everybody are the peers that want to be told.
func (d *dispatcher) everybody() []*peer {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []*peer
	for _, p := range d.peers {
		if p.known && !p.mute {
			list = append(list, p)
		}
	}
	return list
}

// unused says that there has been no call since it was asked last, that none
// is in flight and that nobody listens.
func (d *dispatcher) unused() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	used := d.used || d.calls+d.packets > 0
	d.used = false
	for _, p := range d.peers {
		used = used || p.listening
	}
	return !used
}
