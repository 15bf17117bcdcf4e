package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// supervise carries the provider over restarts of the daemon.
func (p *Provider) supervise() {
	for {
		select {
		case <-p.done:
			return
		case <-p.kick:
		}
		if err := p.recover(); err != nil {
			p.c.mu.Lock()
			p.end(err)
			p.c.mu.Unlock()
			return
		}
	}
}

// recover waits for the daemon and introduces the provider to it again.
func (p *Provider) recover() error {
	deadline := time.NewTimer(p.c.grace)
	defer deadline.Stop()
	for {
		p.c.mu.Lock()
		owner, known := p.c.owner, p.registeredAt
		p.c.mu.Unlock()
		if owner != "" && owner == known {
			return nil
		}
		if owner != "" {
			err := p.reregister()
			if err != nil && !errors.Is(err, ErrNotRunning) {
				return err
			}
			if err == nil {
				continue // unless it changed again meanwhile, done
			}
			deadline.Reset(p.c.grace) // it was there until now
		}
		select {
		case <-p.kick:
		case <-p.done:
			return nil
		case <-deadline.C:
			return fmt.Errorf("%w: it did not come back", ErrNotRunning)
		}
	}
}

// registerTime bounds what a daemon that is back may take. A call that came
// before, and waits for the resolver or for polkit, may hold it up.
const registerTime = time.Minute

// registerPause is how long the provider waits after an error that passes.
const registerPause = time.Second

// reregister registers again. Sessions that did not survive end; one that began
// when the earlier daemon could not tell it any more is told now. What is wrong
// for a while, as a polkit that is restarted in the same upgrade, costs no
// session.
func (p *Provider) reregister() error {
	ctx, cancel := context.WithTimeout(context.Background(), registerTime)
	defer cancel()
	for {
		err := p.register(ctx, p.options)
		if err == nil {
			err = p.settleSessions(ctx)
		}
		if !passes(err) {
			return err
		}
		select {
		case <-time.After(registerPause):
		case <-ctx.Done():
			return err
		case <-p.done:
			return err
		}
	}
}

// passes says whether the same call may succeed a little later.
func passes(err error) bool {
	return errors.Is(err, ErrTimeout) || errors.Is(err, ErrLimitExceeded)
}

func (p *Provider) settleSessions(ctx context.Context) error {
	for {
		settled, err := p.compareSessions(ctx)
		if settled || err != nil {
			return err
		}
	}
}

// compareSessions makes the sessions those that the daemon has of the app. It
// has not settled that if one ended meanwhile, as that one may be taken for one
// that lives.
func (p *Provider) compareSessions(ctx context.Context) (settled bool, err error) {
	p.c.mu.Lock()
	before, endings := p.c.lastSeq, p.c.endings
	p.c.mu.Unlock()
	configs, err := p.Configs(ctx)
	if err != nil {
		return false, err
	}
	own := make(map[string]bool, len(configs))
	for _, c := range configs {
		// Of a session that is being undone, `disconnected` was sent already.
		own[c.Path] = c.State != StateDisconnecting
	}
	listed, err := p.c.ListSessions(ctx)
	if err != nil {
		return false, err
	}
	alive := make(map[string]bool, len(listed))
	for _, s := range listed {
		alive[s.Path] = true
	}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if p.c.provider != p {
		return true, nil // it has ended
	}
	if p.c.endings != endings {
		return false, nil
	}
	for _, s := range p.c.sessions {
		if !alive[s.path] && s.started <= before {
			p.c.endSession(s, wire.ReasonInternalPrefix+"the daemon was restarted")
		}
	}
	for _, s := range listed {
		if own[s.Config] {
			p.c.startSession(s.Path, s.Config, before)
		}
	}
	return true, nil
}

// adopt takes up the sessions of the app that an earlier provider of this
// client left with the daemon: a call that was given up may have registered us
// all the same, and a daemon that came back too late may have kept sessions.
// The others are told by events alone, so nobody else pays for the two calls.
func (p *Provider) adopt(ctx context.Context) error {
	p.c.mu.Lock()
	doubted := p.c.doubted[p.app]
	p.c.mu.Unlock()
	if !doubted {
		return nil
	}
	if err := p.settleSessions(ctx); err != nil {
		return fmt.Errorf("cannot register %s: %w", p.app, err)
	}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	delete(p.c.doubted, p.app)
	return nil
}

// abandon ends a provider that could not be registered. If only the program
// gave up, the daemon may have made it the provider, and is asked to forget
// that; nobody waits for the answer, and no daemon is started for it.
func (p *Provider) abandon(ctx context.Context, err error) {
	p.c.mu.Lock()
	p.end(err)
	p.c.mu.Unlock()
	p.events.discard() // nobody has seen them
	if ctx.Err() == nil {
		return
	}
	msg := p.c.message(wire.RootPath, wire.ManagerInterface+".UnregisterProvider", []any{p.app, dict{}})
	msg.Flags = godbus.FlagNoReplyExpected | godbus.FlagNoAutoStart
	p.c.conn.Send(msg, nil)
}
