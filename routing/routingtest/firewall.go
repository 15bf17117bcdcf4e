package routingtest

import (
	"context"
	"sync"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// Firewall is a routing.Firewall in memory. It may be used concurrently.
type Firewall struct {
	Failures *Failures

	// Trace, when set, is called after each operation, without a lock held.
	Trace func()

	mu      sync.Mutex
	set     *routing.Filter
	touched bool
}

// NewFirewall returns one with nothing set.
func NewFirewall(f *Failures) *Firewall { return &Firewall{Failures: f} }

// Current is what is set; nil: nothing.
func (f *Firewall) Current() *routing.Filter {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.set
}

// Touch makes what is set the work of another process, as after a restart.
func (f *Firewall) Touch() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.touched = true
}

// Flush removes what is set, as another program may.
func (f *Firewall) Flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.set = nil
}

// Set implements routing.Firewall.
func (f *Firewall) Set(_ context.Context, want *routing.Filter) error {
	if f.Trace != nil {
		defer f.Trace()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.Failures.Next(); err != nil {
		return err
	}
	f.set, f.touched = want, false
	return nil
}

// Find implements routing.Firewall.
func (f *Firewall) Find(context.Context) (*routing.Filter, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.set == nil || !f.touched {
		return f.set, nil
	}
	return &routing.Filter{Lockdown: f.set.Lockdown, Marked: f.set.Marked, Unsure: true}, nil
}
