package ui

import (
	"context"
	"time"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

const (
	dialTime = 10 * time.Second

	// absence is how long the daemon may be away, as in an upgrade. After 10 s
	// its sessions have ended.
	absence = 12 * time.Second
)

// Dial connects to the bus at an address, or to the system bus where that is
// empty. The error is an Error.
func Dial(ctx context.Context, bus string) (*client.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	var opts []client.Option
	if bus != "" {
		opts = append(opts, client.WithAddress(bus))
	}
	d, err := client.Dial(ctx, opts...)
	if err != nil {
		return nil, &Error{ExitNotRunning, err, hintBus}
	}
	return d, nil
}

// ReasonRestarted is why a session has ended of which a daemon that was away
// knows nothing.
const ReasonRestarted = "the daemon was restarted"

// Follow follows a session of a config through what Watch tells, from before
// the session began. It calls told with each new state, until that says that
// it is enough, or the session has ended: then with the reason, which is of
// package wire or ReasonRestarted. The error is client.ErrClosed at the end of
// the changes, and client.ErrNotRunning where the daemon went and does not
// come back.
func Follow(changes <-chan client.Change, config, session string, told func(client.State) (enough bool)) (reason string, ended bool, err error) {
	f := follower{config: config, session: session}
	var late <-chan time.Time
	for {
		select {
		case change, ok := <-changes:
			switch {
			case !ok:
				return "", false, client.ErrClosed
			case change.Kind == client.Stopped:
				f.away, late = true, time.After(absence)
			case change.Kind == client.Synced:
				late = nil
			}
			news := f.take(change)
			if f.ended || news && told(f.state) {
				return f.reason, f.ended, nil
			}
		case <-late:
			return "", false, client.ErrNotRunning
		}
	}
}

type follower struct {
	config  string // path
	session string // path

	seen  bool // the config was seen with the session: what comes is about it
	away  bool // the daemon went away in the meantime
	state client.State

	ended  bool
	reason string
}

// take says whether there is a new state.
func (f *follower) take(change client.Change) (news bool) {
	p := change.Config
	if p == nil || p.Path != f.config {
		return false
	}
	f.seen = f.seen || p.Session == f.session
	switch {
	case !f.seen: // from before the session
	case change.Kind == client.Removed:
		f.ended, f.reason = true, wire.ReasonRemoved
	case p.Session != f.session:
		f.ended, f.reason = true, p.FailureReason
		if f.reason == "" && f.away {
			f.reason = ReasonRestarted
		}
	case p.State != f.state:
		f.state = p.State
		return true
	}
	return false
}
