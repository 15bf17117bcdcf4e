package main

import (
	"fmt"
	"time"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// absence is how long the daemon may be away, as in an upgrade. After 10 s its
// sessions have ended.
const absence = 12 * time.Second

const (
	reasonReplaced  = "replaced"
	reasonRemoved   = "removed"
	reasonRestarted = "the daemon was restarted"
)

// follower follows a config through a session, to its end.
type follower struct {
	cli     *cli
	name    string
	path    string // of the config
	session string // path

	seen      bool // the config was seen with the session: what comes is about it
	away      bool // the daemon went away in the meantime
	state     client.State
	connected bool // it was, once
}

// follow takes changes until the session has ended, which is no error where
// the user wanted it. When the daemon does not come back that is
// client.ErrNotRunning.
func (f *follower) follow(changes <-chan client.Change) (reason string, err error) {
	var late <-chan time.Time
	for {
		select {
		case change, ok := <-changes:
			switch {
			case !ok:
				return "", client.ErrClosed
			case change.Kind == client.Stopped:
				f.away, late = true, time.After(absence)
			case change.Kind == client.Synced:
				late = nil
			}
			if reason, ended := f.take(change); ended {
				return reason, nil
			}
		case <-late:
			return "", fmt.Errorf("%s: %w", f.name, client.ErrNotRunning)
		}
	}
}

// take tells the user of a new state, and whether the session has ended.
func (f *follower) take(change client.Change) (reason string, ended bool) {
	p := change.Config
	if p == nil || p.Path != f.path {
		return "", false
	}
	f.seen = f.seen || p.Session == f.session
	if !f.seen {
		return "", false // from before our session
	}
	if change.Kind == client.Removed {
		return "", true
	}
	if p.Session != f.session {
		if p.FailureReason == "" && f.away {
			return reasonRestarted, true
		}
		return p.FailureReason, true
	}
	if p.State != f.state {
		f.state = p.State
		f.connected = f.connected || p.State == client.StateConnected
		f.cli.say("%s: %s", f.name, p.State)
		if p.State == client.StateConnected {
			f.cli.ready()
		}
	}
	return "", false
}

// result is what the program makes of the end.
func (f *follower) result(reason string) error {
	switch {
	case reason == "", reason == reasonRemoved:
		f.cli.say("%s: disconnected", f.name)
		return nil
	case reason == reasonReplaced:
		f.cli.say("%s: disconnected, as another VPN was connected", f.name)
		return nil
	case f.connected:
		return &failure{exitFailed, fmt.Errorf("%s: the connection has ended: %s", f.name, reason), ""}
	default:
		return &failure{exitNotConnected, fmt.Errorf("%s: cannot connect: %s", f.name, reason), ""}
	}
}
