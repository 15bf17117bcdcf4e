package main

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/vpnprovider/vpnproviderd/driver"
)

const (
	// refreshTimeout bounds one look at the network, with what follows of it.
	refreshTimeout = 10 * time.Second

	// At most so many of them follow each other at once, and come a second in
	// the long run: a program that undoes what we do as soon as it is done does
	// not take the processor.
	refreshBurst = 50
	refreshRate  = 10

	// retryAfter is when what could not be done is tried again.
	retryAfter = time.Second
)

// keeper keeps the network as it shall be while what surrounds it changes, and
// tells the manager of the uplink and of what is wrong.
type keeper struct {
	host    *host
	manager *driver.Manager
	log     *slog.Logger
	changes chan struct{} // something has changed; holds one

	mu       sync.Mutex
	problems []driver.Problem
	blind    []driver.Problem
}

func newKeeper(h *host, manager *driver.Manager, log *slog.Logger) *keeper {
	return &keeper{host: h, manager: manager, log: log, changes: make(chan struct{}, 1)}
}

// changed makes run look. It does not wait.
func (k *keeper) changed() {
	select {
	case k.changes <- struct{}{}:
	default: // it will look anyway
	}
}

// watch runs a monitor until ctx ends. One that ends earlier is a problem.
func (k *keeper) watch(ctx context.Context, what string, monitor func(context.Context, func()) error) {
	err := monitor(ctx, k.changed)
	if err == nil {
		return
	}
	k.log.Error("changes are not seen any more", "of", what, "error", err)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.blind = append(k.blind, driver.Problem{
		Code: driver.ProblemBlind, Severity: driver.SeverityError, Text: "changes of the " + what + " are not seen any more: " + err.Error(),
	})
	k.tell()
}

// run looks whenever something has changed, until ctx ends.
func (k *keeper) run(ctx context.Context) {
	var retry <-chan time.Time
	limit := rate.NewLimiter(refreshRate, refreshBurst)
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.changes:
		case <-retry:
		}
		retry = nil
		if !k.refresh(ctx) {
			retry = time.After(retryAfter)
		}
		_ = limit.Wait(ctx) // fails at the end of ctx alone
	}
}

// refresh says whether the network is what it shall be.
func (k *keeper) refresh(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, refreshTimeout)
	defer cancel()
	var problems []driver.Problem
	k.host.opening.Lock()
	failed := k.host.network.Refresh(ctx)
	k.host.opening.Unlock()
	if failed != nil && ctx.Err() == nil {
		k.log.Warn("cannot follow a change of the network", "error", failed)
		problems = append(problems, driver.Problem{
			Code: driver.ProblemNetwork, Severity: driver.SeverityError, Text: "the network is not what it shall be: " + failed.Error(),
		})
	}
	uplink, err := k.host.uplink(ctx)
	if err != nil {
		k.log.Warn("cannot find the uplink", "error", err)
	} else {
		k.manager.SetUplink(uplink)
	}
	overrides, err := k.host.kernel.Overrides(ctx)
	if err != nil {
		k.log.Warn("cannot look for rules of others", "error", err)
	}
	for _, text := range overrides {
		problems = append(problems, driver.Problem{Code: driver.ProblemOverridden, Severity: driver.SeverityWarning, Text: text})
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range problems {
		if p.Code == driver.ProblemOverridden && !slices.Contains(k.problems, p) {
			k.log.Warn("the tunnel may be bypassed", "because", p.Text)
		}
	}
	k.problems = problems
	k.tell()
	return failed == nil
}

// tell must be called with mu held.
func (k *keeper) tell() { k.manager.SetHealth(slices.Concat(k.blind, k.problems)) }
