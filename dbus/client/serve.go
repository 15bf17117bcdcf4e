package client

import (
	"context"
	"sync"
	"time"
)

// farewell is how long Serve tries to tell the daemon of a session's failure.
const farewell = 5 * time.Second

// Serve is the loop of an app that has nothing to do but its sessions: it takes
// the place of Events. It calls handle for each session, in a goroutine of its
// own, with a context that ends with the session. When handle returns before
// that, the session fails if it returned an error, and is disconnected else. What
// is not taken of Messages when handle has returned and the session has ended is
// dropped.
//
// Serve returns once the provider or ctx has ended and every handle has
// returned: with Err, or with the error of ctx.
func (p *Provider) Serve(ctx context.Context, handle func(context.Context, *Session) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var sessions sync.WaitGroup
	defer sessions.Wait()
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case event, ok := <-p.Events():
			if !ok {
				return p.Err()
			}
			if started, ok := event.(SessionStarted); ok {
				sessions.Go(func() { started.Session.serve(ctx, handle) })
			}
		}
	}
}

func (s *Session) serve(parent context.Context, handle func(context.Context, *Session) error) {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	err := handle(ctx, s)
	context.AfterFunc(s.life, s.messages.discard)
	if s.life.Err() != nil {
		return // it ended by itself
	}
	ctx, cancel = context.WithTimeout(context.WithoutCancel(parent), farewell)
	defer cancel()
	if err != nil {
		_ = s.NotifyFailure(ctx) // it may end at this moment, or the bus be gone
		return
	}
	_ = s.Disconnect(ctx)
}
