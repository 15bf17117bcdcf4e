package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/stream"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// Client is one connection to the bus. Its methods may be called from any
// goroutine. After Close every call answers ErrClosed.
type Client struct {
	conn   *godbus.Conn
	stream *stream.Stream // below conn
	flags  godbus.Flags
	grace  time.Duration // how long a vanished daemon may take to come back

	stop      chan struct{} // closed by Close
	closeOnce sync.Once
	closeErr  error
	wg        sync.WaitGroup // every goroutine of ours

	mu       sync.Mutex
	lost     bool            // the connection is gone
	closed   bool            // by Close: no goroutine may be started any more
	uid      *uint32         // as the bus sees us, once it was asked
	owner    string          // unique name of the daemon, "" while it is away
	leaving  string          // who was owner last, while there is none
	ownerSeq godbus.Sequence // of the signal that said so
	lastSeq  godbus.Sequence // of the last signal
	provider *Provider
	sessions map[godbus.ObjectPath]*Session // of provider
	endings  int                            // how many the daemon has told of
	doubted  map[string]bool                // apps that the daemon may take us for unasked
	watchers map[*watcher]struct{}
	agents   map[*agent]struct{}
}

// Option changes how Dial connects.
type Option func(*options)

type options struct {
	address string
	flags   godbus.Flags
	grace   time.Duration
}

// WithAddress connects to the bus at a D-Bus address instead of the system
// bus.
func WithAddress(address string) Option {
	return func(o *options) { o.address = address }
}

// WithoutInteraction says that nobody sits there: the daemon answers
// ErrNotAuthorized where it would let polkit ask the user for a password.
func WithoutInteraction() Option {
	return func(o *options) { o.flags &^= godbus.FlagAllowInteractiveAuthorization }
}

// Dial connects to the system bus (DBUS_SYSTEM_BUS_ADDRESS is honoured). It
// does not need the daemon: the bus starts it at the first call where it is
// installed so. ctx bounds Dial alone.
func Dial(ctx context.Context, opts ...Option) (*Client, error) {
	o := options{flags: godbus.FlagAllowInteractiveAuthorization, grace: 10 * time.Second}
	for _, opt := range opts {
		opt(&o)
	}
	c := &Client{
		flags:    o.flags,
		grace:    o.grace,
		stop:     make(chan struct{}),
		sessions: make(map[godbus.ObjectPath]*Session),
		watchers: make(map[*watcher]struct{}),
		agents:   make(map[*agent]struct{}),
		doubted:  make(map[string]bool),
	}
	c.stream = stream.New(stream.Options{Signal: func(h stream.Header) bool { return c.isDaemon(h.Sender) }})
	var err error
	if c.conn, err = c.stream.Open(ctx, o.address, godbus.WithSignalHandler(dispatcher{c})); err != nil {
		return nil, fmt.Errorf("cannot reach the bus: %w", clientError(err))
	}
	if err := c.findDaemon(ctx); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("cannot reach the bus: %w", err)
	}
	return c, nil
}

// findDaemon learns who the daemon is. The match comes first, so that no change
// of owner falls between.
func (c *Client) findDaemon(ctx context.Context) error {
	// The daemon's own signals are addressed to us and need no match.
	err := c.conn.AddMatchSignalContext(ctx,
		godbus.WithMatchSender(busName), godbus.WithMatchInterface(busName),
		godbus.WithMatchMember("NameOwnerChanged"), godbus.WithMatchArg(0, wire.BusName))
	if err != nil {
		return clientError(err)
	}
	call := c.conn.BusObject().CallWithContext(ctx, busName+".GetNameOwner", 0, wire.BusName)
	var owner string
	if err := clientError(call.Store(&owner)); err != nil {
		if errors.Is(err, ErrNotRunning) {
			return nil // no owner yet
		}
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ownerSeq < call.ResponseSequence {
		c.owner, c.ownerSeq = owner, call.ResponseSequence
	}
	return nil
}

// Close leaves the bus: the daemon ends the sessions of this client's
// provider. Every channel that the client handed out is closed; events that
// were not taken are dropped. It returns when all goroutines of the client
// have ended, except those of the program's own calls.
func (c *Client) Close() error {
	c.closeOnce.Do(func() {
		c.mu.Lock()
		c.closed = true
		c.mu.Unlock()
		close(c.stop)
		c.closeErr = c.conn.Close()
		c.wg.Wait()
	})
	return c.closeErr
}

// call calls a method of the daemon's and stores what it answers. It returns
// the place of the answer in the stream of signals.
func (c *Client) call(ctx context.Context, path, method string, args []any, results ...any) (godbus.Sequence, error) {
	done := make(chan *godbus.Call, 1)
	c.conn.SendWithContext(ctx, c.message(path, method, args), done)
	answer := <-done
	return answer.ResponseSequence, clientError(answer.Store(results...))
}

// message makes a call by hand: godbus' own helper drops the flag that allows
// polkit to ask.
func (c *Client) message(path, method string, args []any) *godbus.Message {
	iface, member := splitMember(method)
	msg := &godbus.Message{
		Type:  godbus.TypeMethodCall,
		Flags: c.flags,
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldDestination: godbus.MakeVariant(wire.BusName),
			godbus.FieldPath:        godbus.MakeVariant(godbus.ObjectPath(path)),
			godbus.FieldInterface:   godbus.MakeVariant(iface),
			godbus.FieldMember:      godbus.MakeVariant(member),
		},
		Body: args,
	}
	if len(args) > 0 {
		msg.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(args...))
	}
	return msg
}

// callFD is call for methods that take or give a descriptor, which do not pass
// through godbus. The caller owns the one among the results.
func (c *Client) callFD(ctx context.Context, path, method string, args []any, results ...any) error {
	body, fds, err := c.stream.Ask(ctx, c.message(path, method, args))
	if err == nil {
		err = godbus.Store(body, results...)
	}
	for _, result := range results {
		fd, ok := result.(*godbus.UnixFD)
		if !ok || err != nil {
			continue
		}
		if i := slices.Index(fds, int(*fd)); i >= 0 {
			fds = slices.Delete(fds, i, i+1)
		} else {
			err = fmt.Errorf("the answer to %s has no descriptor", method)
		}
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	return clientError(err)
}

func (c *Client) getAll(ctx context.Context, path, iface string) (properties, error) {
	var all map[string]godbus.Variant
	_, err := c.call(ctx, path, wire.PropertiesInterface+".GetAll", []any{iface}, &all)
	return all, err
}

// ownUID asks the bus whose connection this is, once: it is the bus that
// vouches for us, and its users may be numbered otherwise than ours.
func (c *Client) ownUID(ctx context.Context) (uint32, error) {
	c.mu.Lock()
	known := c.uid
	c.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	var uid uint32
	call := c.conn.BusObject().CallWithContext(ctx, busName+".GetConnectionUnixUser", 0, c.conn.Names()[0])
	if err := clientError(call.Store(&uid)); err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.uid = &uid
	return uid, nil
}
