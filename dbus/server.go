// Package dbus is the service side of the contract in dbus/wire: it decodes
// calls, finds out who calls, asks whether they may, passes on to the domain
// in package driver, and tells those concerned what happened.
//
// It uses godbus for authentication, the wire format and the calls that it
// makes itself. It serves calls on the level of messages, because godbus'
// exported objects start a goroutine a call, reorder the calls of one client,
// and can be made to leak descriptors or crash by any user of the bus.
package dbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/stream"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/driver"
)

var errClosing = driver.Errorf(driver.KindFailed, "the service is shutting down")

// busTimeout bounds what we ask of the bus itself.
const busTimeout = 10 * time.Second

// closeTimeout bounds how long the bus may take to accept what is left to be
// sent when the service ends.
const closeTimeout = 3 * time.Second

// Options of a Server.
type Options struct {
	// Address of the bus; empty: the system bus.
	Address string

	// Version of the service.
	Version string

	// Polkit: ask polkit whether callers may. Otherwise the owner of a config
	// and root may do all with it.
	Polkit bool

	// Rate limits the costly calls of a sender.
	Rate Rate

	// Kept is the text that an earlier process gave to Keep last, nil is none.
	// Keep keeps it, in place of the one before; nil: nothing is kept.
	Kept []byte
	Keep func(text []byte) error

	// PacketSockets are told to clients that get a token.
	PacketSockets PacketSockets

	Log *slog.Logger
}

// PacketSockets are the paths of the sockets to which clients bring channels
// with a token.
type PacketSockets struct{ SeqPacket, Stream string }

// Server is the service on one bus. It is the driver.Observer and
// driver.PacketReceiver of the manager that it serves.
type Server struct {
	opts    Options
	log     *slog.Logger
	conn    *godbus.Conn
	stream  *stream.Stream
	out     *outbox
	calls   *dispatcher
	ifaces  map[string]wire.Interface
	methods map[string]handler
	signals chan *godbus.Signal
	manager *driver.Manager // set by Serve, before the first call is answered
	ready   chan struct{}   // closed when manager is set
	closing chan struct{}   // closed by Close
	prompts prompts
	large   chan struct{} // holds a token for each large answer

	bus     string          // which one it is
	present map[string]bool // who was on it when we came; nil: another bus than before

	sameProcesses bool // the bus numbers processes as we do
}

// Dial connects to the bus and takes the name; that it is taken is an error.
// Calls wait until Serve. Close the server when it is not needed any more.
func Dial(ctx context.Context, opts Options) (*Server, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	ifaces, err := wire.Interfaces()
	if err != nil {
		return nil, err
	}
	s := &Server{
		opts: opts, log: opts.Log, ifaces: ifaces, methods: methods(),
		signals: make(chan *godbus.Signal, 64), ready: make(chan struct{}), closing: make(chan struct{}),
		large: make(chan struct{}, largeAnswers),
	}
	s.calls = &dispatcher{serve: s.serve, refuse: s.refuse, rate: opts.Rate, peers: make(map[string]*peer)}
	s.stream = stream.New(stream.Options{
		Call:    func(h stream.Header, message []byte, fds []int) { s.calls.submit(newCall(h, message, fds)) },
		Longest: longest,
	})
	s.out = newOutbox(s.send)
	if err := s.connect(ctx); err != nil {
		s.out.close()
		return nil, fmt.Errorf("cannot connect to the bus: %w", err)
	}
	s.conn.Signal(s.signals)
	s.compareProcesses(ctx)
	if err := s.watchNames(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.resume(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.takeName(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) connect(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	s.conn, err = s.stream.Open(ctx, s.opts.Address, godbus.WithSignalHandler(godbus.NewSequentialSignalHandler()))
	return err
}

// Serve answers calls with the manager, which has this server as Observer and
// PacketReceiver, until ctx ends or the bus is lost; the latter is an error.
// It must be called once.
func (s *Server) Serve(ctx context.Context, manager *driver.Manager) error {
	s.manager = manager
	close(s.ready)
	s.watchResumed()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.conn.Context().Done():
			return errLost
		case err := <-s.out.failed:
			return fmt.Errorf("cannot write to the bus: %w", err)
		case signal, ok := <-s.signals:
			if !ok {
				return errLost
			}
			s.nameChanged(signal)
		}
	}
}

var errLost = errors.New("the connection to the bus was lost")

func (s *Server) watchNames(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	err := s.conn.AddMatchSignalContext(ctx,
		godbus.WithMatchSender(busName), godbus.WithMatchInterface(busName),
		godbus.WithMatchMember("NameOwnerChanged"), godbus.WithMatchOption("arg2", ""))
	if err != nil {
		return fmt.Errorf("cannot watch who leaves the bus: %w", err)
	}
	return nil
}

func (s *Server) takeName(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	var reply godbus.RequestNameReply
	err := s.conn.BusObject().CallWithContext(ctx, busName+".RequestName", 0, wire.BusName, uint32(godbus.NameFlagDoNotQueue)).Store(&reply)
	if err != nil {
		return fmt.Errorf("cannot take the name %s: %w", wire.BusName, err)
	}
	if reply != godbus.RequestNameReplyPrimaryOwner {
		return fmt.Errorf("the name %s is taken on this bus", wire.BusName)
	}
	return nil
}

// nameChanged forgets connections that have left.
func (s *Server) nameChanged(signal *godbus.Signal) {
	if signal.Sender != busName || signal.Name != busName+".NameOwnerChanged" || len(signal.Body) != 3 {
		return
	}
	name, _ := signal.Body[0].(string)
	owner, _ := signal.Body[2].(string)
	if owner != "" || name == "" || name[0] != ':' {
		return
	}
	// In this order: a call of it that is being served either is seen by the
	// manager, or sees that the peer has left.
	s.calls.gone(name)
	s.manager.ConnectionGone(name)
}

// Idle says that nobody has called since it was asked last, that no call is in
// flight and that nobody listens who said so with Subscribe.
func (s *Server) Idle() bool { return s.calls.unused() }

// Release gives the name back, so that who calls has the bus start the service
// again, and returns when those who have called before are answered. It is for
// a service that nobody needs: no call waits for a person then.
func (s *Server) Release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	if err := s.releaseName(ctx); err != nil {
		return err
	}
	s.calls.drain()
	return nil
}

// releaseName gives the name back. The bus passes calls on in order: what it
// sent to us by the name comes before its answer.
func (s *Server) releaseName(ctx context.Context) error {
	if err := s.conn.BusObject().CallWithContext(ctx, busName+".ReleaseName", 0, wire.BusName).Err; err != nil {
		return fmt.Errorf("cannot give the name %s back: %w", wire.BusName, err)
	}
	return nil
}

// Close leaves the bus, once. Calls in flight are finished and their replies
// sent first, so whatever they wait for has to have ended, as it has after
// Manager.Shutdown. A bus that hangs is not waited for.
func (s *Server) Close() error {
	close(s.closing)
	if err := s.stream.SetWriteDeadline(time.Now().Add(closeTimeout)); err != nil {
		s.log.Debug("the connection to the bus is closed already", "error", err)
	}
	s.calls.stop()
	s.out.close()
	return s.conn.Close()
}

// serve answers one call. It runs in a goroutine of the dispatcher.
func (s *Server) serve(p *peer, c *call) {
	select {
	case <-s.ready:
	case <-s.closing:
		s.refuse(c, errClosing)
		return
	}
	defer func() {
		if r := recover(); r != nil {
			s.log.Error("a call made the service panic", "call", c.String(), "sender", c.sender, "panic", r, "stack", string(debug.Stack()))
			s.refuse(c, driver.Errorf(driver.KindFailed, "internal error"))
		}
	}()
	if err := s.identify(p, c); err != nil {
		s.log.Warn("cannot find out who calls", "sender", c.sender, "error", err)
		s.refuse(c, driver.Errorf(driver.KindNotAuthorized, "the bus does not tell who calls"))
		return
	}
	if c.err != nil { // found when it was known who calls
		s.refuse(c, c.err)
		return
	}
	r := &request{call: c, Server: s, peer: p, ctx: context.Background(), caller: driver.Caller{UID: p.uid, Conn: p.name}}
	body, err := s.answer(r)
	if err != nil {
		s.log.Debug("refused", "call", c.String(), "sender", c.sender, "error", err)
		s.refuse(c, err)
		return
	}
	if !r.answered {
		s.reply(c, body)
	}
	if r.after != nil {
		r.after()
	}
}

func (s *Server) reply(c *call, body []any) {
	m := message(godbus.TypeMethodReply, c.sender, body)
	m.Headers[godbus.FieldReplySerial] = godbus.MakeVariant(c.serial)
	// It must not be in flight any more when the caller has the answer.
	s.out.then(c.finish)
	if c.noReply {
		closeReply(m)
		return
	}
	s.out.put(m)
}

func (s *Server) refuse(c *call, err error) {
	if c.finish != nil { // else it never was in flight
		s.out.then(c.finish)
	}
	if c.noReply || c.sender == "" {
		return
	}
	m := message(godbus.TypeError, c.sender, []any{err.Error()})
	m.Headers[godbus.FieldReplySerial] = godbus.MakeVariant(c.serial)
	m.Headers[godbus.FieldErrorName] = godbus.MakeVariant(errorName(err))
	s.out.put(m)
}
