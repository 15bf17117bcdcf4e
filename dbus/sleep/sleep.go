// Package sleep tells when the machine is about to sleep and when it has
// slept, as systemd-logind says, and holds the sleep up for as long as it
// takes to get ready.
package sleep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/stream"
)

const (
	busName = "org.freedesktop.DBus"
	login1  = "org.freedesktop.login1"
	manager = "/org/freedesktop/login1"
	prepare = login1 + ".Manager.PrepareForSleep"

	callTimeout = 10 * time.Second
)

// Events are called from one goroutine.
type Events struct {
	// Before: the machine is about to sleep, and does not before the channel
	// is closed, as far as logind lets it wait.
	Before func() <-chan struct{}

	// After: it has slept.
	After func()
}

// watcher is on one connection to the bus.
type watcher struct {
	conn   *godbus.Conn
	stream *stream.Stream
	events Events
	log    *slog.Logger

	owner string   // of logind's name; empty: it is not there
	lock  *os.File // logind waits while it is open
}

// Watch calls events until ctx ends, which is no error. logind may come, go
// and be replaced meanwhile, and need not be there at all.
func Watch(ctx context.Context, address string, events Events, log *slog.Logger) error {
	w := &watcher{stream: stream.New(stream.Options{Signal: announces}), events: events, log: log}
	conn, err := w.connect(ctx, address)
	if err != nil {
		return fmt.Errorf("cannot connect to the bus: %w", err)
	}
	defer conn.Close()
	w.conn = conn
	defer w.release()
	signals := make(chan *godbus.Signal, 64)
	conn.Signal(signals)
	if err := w.subscribe(ctx); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case s, ok := <-signals:
			if !ok {
				return errors.New("the connection to the bus was lost")
			}
			w.handle(ctx, s)
		}
	}
}

func (w *watcher) connect(ctx context.Context, address string) (*godbus.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return w.stream.Open(ctx, address, godbus.WithSignalHandler(godbus.NewSequentialSignalHandler()))
}

// announces is for the signal that the machine is about to sleep, or has slept.
// Whose it is, handle looks at.
func announces(h stream.Header) bool {
	return h.Path == manager && h.Interface+"."+h.Member == prepare && h.Signature == "b"
}

// subscribe names the sender in every match, and handle compares it: any user
// of the bus can send a signal of that name.
func (w *watcher) subscribe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := errors.Join(
		w.conn.AddMatchSignalContext(ctx, godbus.WithMatchSender(busName), godbus.WithMatchInterface(busName),
			godbus.WithMatchMember("NameOwnerChanged"), godbus.WithMatchArg(0, login1)),
		w.conn.AddMatchSignalContext(ctx, godbus.WithMatchSender(login1), godbus.WithMatchObjectPath(manager),
			godbus.WithMatchInterface(login1+".Manager"), godbus.WithMatchMember("PrepareForSleep")))
	if err != nil {
		return fmt.Errorf("cannot watch logind: %w", err)
	}
	var owner string
	if err := w.conn.BusObject().CallWithContext(ctx, busName+".GetNameOwner", 0, login1).Store(&owner); err == nil {
		w.appeared(ctx, owner)
	}
	return nil
}

func (w *watcher) handle(ctx context.Context, s *godbus.Signal) {
	switch {
	case s.Sender == busName && s.Name == busName+".NameOwnerChanged" && len(s.Body) == 3 && s.Body[0] == login1:
		owner, _ := s.Body[2].(string)
		w.appeared(ctx, owner)
	case w.owner != "" && s.Sender == w.owner && s.Path == manager && s.Name == prepare && len(s.Body) == 1:
		before, ok := s.Body[0].(bool)
		switch {
		case !ok:
		case before:
			select {
			case <-w.events.Before():
			case <-ctx.Done():
			}
			w.release()
		default:
			w.events.After() // does not wait for a logind that waits for polkit
			w.inhibit(ctx)
		}
	}
}

// appeared takes note of who is logind now.
func (w *watcher) appeared(ctx context.Context, owner string) {
	w.release()
	if w.owner = owner; owner != "" {
		w.inhibit(ctx)
	}
}

// inhibit asks logind to wait for us before the next sleep.
func (w *watcher) inhibit(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	w.release()
	args := []any{"sleep", "vpnproviderd", "VPN apps get ready", "delay"}
	_, fds, err := w.stream.Ask(ctx, &godbus.Message{
		Type: godbus.TypeMethodCall, Body: args,
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldDestination: godbus.MakeVariant(login1),
			godbus.FieldPath:        godbus.MakeVariant(godbus.ObjectPath(manager)),
			godbus.FieldInterface:   godbus.MakeVariant(login1 + ".Manager"),
			godbus.FieldMember:      godbus.MakeVariant("Inhibit"),
			godbus.FieldSignature:   godbus.MakeVariant(godbus.SignatureOf(args...)),
		},
	})
	if err == nil && len(fds) == 0 {
		err = errors.New("logind gave no lock")
	}
	if err != nil {
		w.log.Warn("sleep cannot be held up", "error", err)
		return
	}
	w.lock = os.NewFile(uintptr(fds[0]), "sleep inhibitor") // logind is trusted to give but one
}

// release lets the machine sleep.
func (w *watcher) release() {
	if w.lock != nil {
		w.lock.Close()
		w.lock = nil
	}
}
