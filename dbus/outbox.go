package dbus

import (
	"slices"
	"sync"
	"syscall"

	godbus "github.com/godbus/dbus/v5"
)

// outbox sends messages in the order in which they were put in. Putting never
// blocks, so the domain can tell of a change while it holds its lock. What is
// in it is bounded by what put it there: calls in flight, and changes that
// they caused.
type outbox struct {
	send   func(*godbus.Message) error
	failed chan error // one error at most
	done   chan struct{}

	mu     sync.Mutex
	more   *sync.Cond
	items  []any // *godbus.Message or func()
	closed bool
}

func newOutbox(send func(*godbus.Message) error) *outbox {
	o := &outbox{send: send, failed: make(chan error, 1), done: make(chan struct{})}
	o.more = sync.NewCond(&o.mu)
	go o.run()
	return o
}

// put owns the descriptors in the message.
func (o *outbox) put(m *godbus.Message) { o.add(m) }

// then runs f when all that was put in before was sent.
func (o *outbox) then(f func()) { o.add(f) }

func (o *outbox) add(item any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		discard(item)
		return
	}
	o.items = append(o.items, item)
	o.more.Signal()
}

func (o *outbox) run() {
	defer close(o.done)
	for {
		o.mu.Lock()
		for len(o.items) == 0 && !o.closed {
			o.more.Wait()
		}
		items := o.items
		o.items = nil
		o.mu.Unlock()
		if len(items) == 0 {
			return
		}
		for i, item := range items {
			if f, ok := item.(func()); ok {
				f()
				continue
			}
			err := o.send(item.(*godbus.Message))
			discard(item)
			if err != nil {
				o.fail(err, items[i+1:])
				return
			}
		}
	}
}

// fail gives up: the bus is gone.
func (o *outbox) fail(err error, rest []any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	for _, item := range slices.Concat(rest, o.items) {
		discard(item)
	}
	o.items = nil
	o.failed <- err
}

// close returns when all was sent, or could not be.
func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.more.Signal()
	o.mu.Unlock()
	<-o.done
}

func discard(item any) {
	if m, ok := item.(*godbus.Message); ok {
		closeReply(m)
	}
}

// closeReply closes our copies of the descriptors in a message.
func closeReply(m *godbus.Message) {
	for _, v := range m.Body {
		if fd, ok := v.(godbus.UnixFD); ok {
			syscall.Close(int(fd))
		}
	}
}

// message makes a message without the headers that only its type has.
func message(t godbus.Type, to string, body []any) *godbus.Message {
	m := &godbus.Message{Type: t, Body: body, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldDestination: godbus.MakeVariant(to),
	}}
	if t != godbus.TypeMethodCall {
		m.Flags = godbus.FlagNoReplyExpected
	}
	if len(body) > 0 {
		m.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(body...))
	}
	return m
}

func signal(to, path, iface, member string, body ...any) *godbus.Message {
	return named(message(godbus.TypeSignal, to, body), path, iface, member)
}

func callOf(to, path, iface, member string, body ...any) *godbus.Message {
	return named(message(godbus.TypeMethodCall, to, body), path, iface, member)
}

func named(m *godbus.Message, path, iface, member string) *godbus.Message {
	m.Headers[godbus.FieldPath] = godbus.MakeVariant(godbus.ObjectPath(path))
	m.Headers[godbus.FieldInterface] = godbus.MakeVariant(iface)
	m.Headers[godbus.FieldMember] = godbus.MakeVariant(member)
	return m
}
