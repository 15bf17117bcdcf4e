package resolved

import (
	"context"
	"errors"
	"fmt"
	"time"

	godbus "github.com/godbus/dbus/v5"
)

// grace is how long nobody may own the name before that counts: a restart is
// over by then.
const grace = 2 * time.Second

// Watch calls changed(true) when another process has become resolved, which
// may know nothing of what was set, and changed(false) when there has been none
// for 2 s. It calls it once at the beginning, when no change can be missed any
// more, and always from the same goroutine. It blocks until ctx ends, and then
// returns nil; it returns an error when the bus is lost or the Resolver closed.
func (r *Resolver) Watch(ctx context.Context, changed func(running bool)) error {
	err := r.watch(ctx, changed)
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("cannot watch systemd-resolved: %w", err)
}

func (r *Resolver) watch(ctx context.Context, changed func(running bool)) error {
	begin, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := r.bus.connect(begin)
	if err != nil {
		return err
	}
	signals := make(chan *godbus.Signal, 16)
	conn.Signal(signals)
	defer conn.RemoveSignal(signals)
	match := []godbus.MatchOption{
		godbus.WithMatchSender(busName), godbus.WithMatchInterface(busName),
		godbus.WithMatchMember("NameOwnerChanged"), godbus.WithMatchArg(0, name),
	}
	if err := conn.AddMatchSignalContext(begin, match...); err != nil {
		return timedOut(begin, err)
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer cancel()
		_ = conn.RemoveMatchSignalContext(end, match...) // the bus does it when we leave it
	}()
	running, _, err := r.State(begin)
	if err != nil {
		return err
	}
	changed(running)
	return follow(ctx, conn, signals, changed)
}

func follow(ctx context.Context, conn *godbus.Conn, signals <-chan *godbus.Signal, changed func(running bool)) error {
	var gone <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-conn.Context().Done():
			return errors.New("the connection to the bus was lost")
		case <-gone:
			gone = nil
			changed(false)
		case signal, ok := <-signals:
			if !ok {
				return errors.New("the connection to the bus was lost")
			}
			switch owner, ours := newOwner(signal); {
			case !ours:
			case owner == "":
				gone = time.After(grace)
			default:
				gone = nil
				changed(true)
			}
		}
	}
}

// newOwner reads a NameOwnerChanged. Any user can send us a signal of that
// name; only the bus has the bus's name.
func newOwner(s *godbus.Signal) (owner string, ok bool) {
	if s.Sender != busName || s.Name != busName+".NameOwnerChanged" || len(s.Body) != 3 {
		return "", false
	}
	if changed, _ := s.Body[0].(string); changed != name {
		return "", false
	}
	owner, ok = s.Body[2].(string)
	return owner, ok
}
