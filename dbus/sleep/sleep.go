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
	events Events
	log    *slog.Logger

	owner string   // of logind's name; empty: it is not there
	lock  *os.File // logind waits while it is open
}

// Watch calls events until ctx ends, which is no error. logind may come, go
// and be replaced meanwhile, and need not be there at all.
func Watch(ctx context.Context, address string, events Events, log *slog.Logger) error {
	conn, err := dial(ctx, address)
	if err != nil {
		return fmt.Errorf("cannot connect to the bus: %w", err)
	}
	defer conn.Close()
	w := &watcher{conn: conn, events: events, log: log}
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

// dial uses a connection of its own: logind answers with a descriptor.
func dial(ctx context.Context, address string) (*godbus.Conn, error) {
	opts := []godbus.ConnOption{godbus.WithContext(ctx), godbus.WithSignalHandler(godbus.NewSequentialSignalHandler())}
	type result struct {
		conn *godbus.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() { // godbus has no time limit of its own
		var r result
		if address == "" {
			r.conn, r.err = godbus.ConnectSystemBus(opts...)
		} else {
			r.conn, r.err = godbus.Connect(address, opts...)
		}
		done <- r
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-time.After(callTimeout):
		go func() {
			if r := <-done; r.err == nil {
				r.conn.Close()
			}
		}()
		return nil, errors.New("the bus does not answer")
	}
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
			w.inhibit(ctx)
			w.events.After()
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
	var fd godbus.UnixFD
	err := w.conn.Object(login1, manager).CallWithContext(ctx, login1+".Manager.Inhibit", 0,
		"sleep", "vpnproviderd", "VPN apps get ready", "delay").Store(&fd)
	if err != nil {
		w.log.Warn("sleep cannot be held up", "error", err)
		return
	}
	w.lock = os.NewFile(uintptr(fd), "sleep inhibitor")
}

// release lets the machine sleep.
func (w *watcher) release() {
	if w.lock != nil {
		w.lock.Close()
		w.lock = nil
	}
}
