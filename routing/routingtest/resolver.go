package routingtest

import (
	"context"
	"sync"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// Resolver is a routing.Resolver in memory. It may be used concurrently.
type Resolver struct {
	Failures *Failures

	// Link makes it one whose settings belong to the link.
	Link bool

	// Broken has Revert fail, Stuck has it take all the time that there is.
	Broken, Stuck bool

	// User is Asker; Shy has that fail so many times first.
	User uint32
	Shy  int

	mu   sync.Mutex
	set  *routing.Resolution
	sets int
}

// NewResolver returns one with nothing set.
func NewResolver(f *Failures) *Resolver { return &Resolver{Failures: f} }

// Current is what is set; nil: nothing.
func (r *Resolver) Current() *routing.Resolution {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.set
}

// Sets is how often Set succeeded.
func (r *Resolver) Sets() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sets
}

// Set implements routing.Resolver.
func (r *Resolver) Set(_ context.Context, want routing.Resolution) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.Failures.Next(); err != nil {
		return err
	}
	r.set = &want
	r.sets++
	return nil
}

// Revert implements routing.Resolver.
func (r *Resolver) Revert(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Stuck {
		<-ctx.Done()
		return ctx.Err()
	}
	if r.Broken {
		return ErrInjected
	}
	if err := r.Failures.Next(); err != nil {
		return err
	}
	r.set = nil
	return nil
}

// Leftover implements routing.Resolver.
func (r *Resolver) Leftover(context.Context) (bool, error) {
	return r.Current() != nil, nil
}

// PerLink implements routing.Resolver.
func (r *Resolver) PerLink() bool { return r.Link }

// Asker implements routing.Resolver.
func (r *Resolver) Asker(context.Context) (uint32, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Shy > 0 {
		r.Shy--
		return 0, ErrInjected
	}
	return r.User, nil
}
