// Package tunnel runs one WireGuard tunnel on a session of vpnproviderd, from
// its beginning to its end.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-wireguard/internal/wgconf"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/client/wgtun"
)

// callTime bounds each call of the daemon's: none of these asks the user.
const callTime = 25 * time.Second

// Log takes messages for the user. Both may be called from any goroutine.
type Log struct {
	Say   func(format string, args ...any)
	Debug func(format string, args ...any) // what only wireguard-go's makers read
}

// EndError says that the daemon ended the session, and why. User interfaces
// show that, too.
type EndError string

func (e EndError) Error() string { return "the session ended: " + string(e) }

// Tunnel is a session with wireguard-go on it.
type Tunnel struct {
	session *client.Session
	config  wgconf.Config
	log     Log
	once    *once // for what would be said every few seconds
	tun     *wgtun.Device
	wg      *device.Device

	// What follows belongs to the attempt that runs: there is one at a time.
	up       bool                          // the sockets are open
	applied  bool                          // the daemon has the parameters
	resolved map[wgconf.Key]netip.AddrPort // what the endpoints were found to be
	sent     map[wgconf.Key]uint64         // bytes at the last look, see stale
}

// Open makes the WireGuard device of a session. Nothing is sent before Run,
// which must be called, as it closes what Open opened.
func Open(ctx context.Context, s *client.Session, c wgconf.Config, log Log) (*Tunnel, error) {
	tun, err := wgtun.Open(ctx, s)
	if err != nil {
		return nil, err
	}
	t := &Tunnel{
		session:  s,
		config:   c,
		log:      log,
		once:     &once{say: log.Say},
		tun:      tun,
		resolved: map[wgconf.Key]netip.AddrPort{},
		sent:     map[wgconf.Key]uint64{},
	}
	t.wg = device.NewDevice(tun, wgtun.NewBind(s), &device.Logger{Verbosef: log.Debug, Errorf: t.once.Say})
	if err := t.wg.IpcSet(c.UAPI()); err != nil {
		t.wg.Close()
		return nil, fmt.Errorf("cannot configure WireGuard: %w", err)
	}
	return t, nil
}

// Run connects, follows the physical network, and returns when the session has
// ended; when ctx is done, it ends the session. The error says why it ended:
// an EndError, or what failed here. It is nil if the user wanted it.
func (t *Tunnel) Run(ctx context.Context) error {
	defer t.wg.Close()
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	r := run{Tunnel: t}
	r.begin(work, t.connect)
	defer func() { r.now.end() }()
	look := time.NewTicker(lookInterval)
	defer look.Stop()
	interrupted := ctx.Done()
	for {
		select {
		case m, ok := <-t.session.Messages():
			if !ok {
				return r.failure
			}
			r.message(work, m)
		case <-r.busy:
			r.busy = nil
			if r.failure = r.now.err; r.failure != nil {
				t.call(work, t.session.NotifyFailure)
			}
		case <-look.C:
			if r.busy == nil && r.failure == nil && !r.down {
				r.begin(work, t.refresh)
			}
		case <-interrupted:
			interrupted = nil
			t.call(work, t.session.Disconnect)
		}
	}
}

// run is the state of Run.
type run struct {
	*Tunnel
	now     *attempt
	busy    <-chan struct{} // closed when now has ended; nil once that was seen
	down    bool            // there is no network
	failure error           // why the session ends
}

func (r *run) begin(ctx context.Context, do func(context.Context) error) {
	r.now = begin(ctx, r.now, do)
	r.busy = r.now.done
}

// message does what the platform asks for.
func (r *run) message(ctx context.Context, m client.Message) {
	switch m.Kind {
	case client.MessageDisconnected:
		if r.failure == nil && m.Error != "" {
			r.failure = EndError(m.Error)
		}
	case client.MessageError:
		r.log.Say("%s", m.Error)
	case client.MessageLinkDown:
		r.log.Say("the network is gone, waiting for it")
		r.down = true
		r.now.cancel() // there is nothing to be reached
	case client.MessageLinkUp, client.MessageLinkChanged, client.MessageResume:
		r.log.Say("the network has changed, reconnecting")
		r.down = false
		r.begin(ctx, r.connect)
	case client.MessageSuspend: // nothing to save: resume brings it back
		r.call(ctx, func(ctx context.Context) error { return r.session.Acknowledge(ctx, m.Kind) })
	}
}

// call calls the daemon and tells of an error, unless the session is over
// anyway.
func (t *Tunnel) call(ctx context.Context, do func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if err := do(ctx); err != nil && !isOver(err) {
		t.log.Say("%v", err)
	}
}

// isOver reports whether an error is the end of the session, of which Messages
// tells.
func isOver(err error) bool {
	return errors.Is(err, client.ErrNotFound) || errors.Is(err, client.ErrWrongState) || errors.Is(err, client.ErrClosed)
}

// attempt is something that is done beside the messages, and given up for the
// next.
type attempt struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // valid once done is closed; nil for what was given up
}

// begin gives up the previous attempt, if there is one, and begins another
// when that has stopped.
func begin(ctx context.Context, previous *attempt, do func(context.Context) error) *attempt {
	ctx, cancel := context.WithCancel(ctx)
	a := &attempt{cancel: cancel, done: make(chan struct{})}
	if previous != nil {
		previous.cancel()
	}
	go func() {
		defer close(a.done)
		defer cancel()
		if previous != nil {
			<-previous.done
		}
		if err := do(ctx); ctx.Err() == nil && !isOver(err) {
			a.err = err
		}
	}()
	return a
}

func (a *attempt) end() {
	a.cancel()
	<-a.done
}
