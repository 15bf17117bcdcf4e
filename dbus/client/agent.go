package client

import (
	"context"
	"fmt"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// agent hands over which apps to start.
type agent struct {
	c       *Client
	signals *queue[*godbus.Signal]
	out     chan string
}

// Agent makes the client an agent of its user: the ids of apps that somebody
// needs and that do not run come on the channel, and the agent starts them.
// The daemon waits 20 s for an app to register. The client stays an agent over
// restarts of the daemon. The channel is closed when ctx is done, the client
// is closed or the bus is lost; the daemon takes the client for an agent until
// it is closed.
func (c *Client) Agent(ctx context.Context) (<-chan string, error) {
	a := &agent{c: c, out: make(chan string)}
	c.mu.Lock()
	if c.lost {
		c.mu.Unlock()
		return nil, ErrClosed
	}
	a.signals = newQueue[*godbus.Signal](&c.wg, ctx.Done())
	c.agents[a] = struct{}{}
	c.mu.Unlock()
	if err := a.register(ctx); err != nil {
		a.forget()
		return nil, err
	}
	c.wg.Go(func() { a.run(ctx) })
	return a.out, nil
}

func (a *agent) register(ctx context.Context) error {
	if _, err := a.c.manager(ctx, "RegisterAgent", []any{dict{}}); err != nil {
		return fmt.Errorf("cannot become an agent: %w", err)
	}
	return nil
}

func (a *agent) forget() {
	a.c.mu.Lock()
	delete(a.c.agents, a)
	a.c.mu.Unlock()
	a.signals.finish()
}

func (a *agent) run(ctx context.Context) {
	defer close(a.out)
	defer a.forget()
	for sig := range a.signals.out {
		if sig.Sender == busName { // the daemon has come back and knows no agents
			if a.register(ctx) != nil && ctx.Err() != nil {
				return
			}
			continue
		}
		var app string
		if godbus.Store(sig.Body, &app) != nil {
			continue
		}
		select {
		case a.out <- app:
		case <-ctx.Done():
			return
		case <-a.c.stop:
			return
		}
	}
}

// agentSignal must be called with the client's lock held.
func (c *Client) agentSignal(sig *godbus.Signal) {
	for a := range c.agents {
		a.signals.push(sig)
	}
}

const startProvider = wire.ManagerInterface + ".StartProvider"
