package main

import (
	"context"
	"log/slog"
	"maps"
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

	// retryAfter is when what could not be done is tried again, and again after
	// twice as long each time, up to retryAtMost: what fails for good costs next
	// to nothing then.
	retryAfter  = time.Second
	retryAtMost = time.Minute
)

// keeper keeps the network as it shall be while what surrounds it changes, and
// tells the manager of the uplink and of what is wrong.
type keeper struct {
	host    *host
	manager *driver.Manager
	log     *slog.Logger
	changes chan struct{} // something has changed; holds one

	mu       sync.Mutex
	problems []driver.Problem // that the last look has found
	blind    map[string]error // why changes are not seen, by what changes
}

func newKeeper(h *host, manager *driver.Manager, log *slog.Logger) *keeper {
	return &keeper{host: h, manager: manager, log: log, changes: make(chan struct{}, 1), blind: make(map[string]error)}
}

// changed makes run look. It does not wait.
func (k *keeper) changed() {
	select {
	case k.changes <- struct{}{}:
	default: // it will look anyway
	}
}

// keep keeps the network until ctx ends.
func (k *keeper) keep(ctx context.Context) {
	var watching sync.WaitGroup
	watching.Go(func() { k.watch(ctx, "network", k.host.kernel.Monitor) })
	watching.Go(func() { k.watch(ctx, "firewall", k.host.firewall.Monitor) })
	watching.Go(func() { k.watch(ctx, "DNS service", k.host.dns.Watch) })
	heed(ctx, k.changes, k.refresh)
	watching.Wait()
}

// watch runs a monitor until ctx ends. One that ends earlier is a problem until
// it runs again: that it does, it tells by its first call.
func (k *keeper) watch(ctx context.Context, what string, monitor func(context.Context, func()) error) {
	for {
		err := monitor(ctx, func() {
			k.sees(what, nil)
			k.changed()
		})
		if err == nil || ctx.Err() != nil {
			return
		}
		k.log.Error("changes are not seen any more", "of", what, "error", err)
		k.sees(what, err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryAtMost):
		}
	}
}

// sees takes note of why changes are not seen; nil: they are.
func (k *keeper) sees(what string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, blind := k.blind[what]; !blind && err == nil {
		return
	}
	delete(k.blind, what)
	if err != nil {
		k.blind[what] = err
	}
	k.tell()
}

// heed calls look whenever something has changed, and again while it says that
// something is left to be done, until ctx ends.
func heed(ctx context.Context, changes <-chan struct{}, look func(context.Context) (done bool)) {
	var retry <-chan time.Time
	wait := retryAfter
	limit := rate.NewLimiter(refreshRate, refreshBurst)
	for {
		select {
		case <-ctx.Done():
			return
		case <-changes:
			wait = retryAfter
		case <-retry:
			wait = min(2*wait, retryAtMost)
		}
		retry = nil
		if !look(ctx) {
			retry = time.After(wait)
		}
		_ = limit.Wait(ctx) // fails at the end of ctx alone
	}
}

// refresh says whether the network is what it shall be.
func (k *keeper) refresh(ctx context.Context) bool {
	bounded, cancel := context.WithTimeout(ctx, refreshTimeout)
	defer cancel()
	k.host.opening.Lock()
	failed := k.host.network.Refresh(bounded)
	k.host.opening.Unlock()
	if ctx.Err() != nil {
		return false // it was given up, which is no problem
	}
	var problems []driver.Problem
	if failed != nil {
		problems = append(problems, driver.Problem{
			Code: driver.ProblemNetwork, Severity: driver.SeverityError, Text: "the network is not what it shall be: " + failed.Error(),
		})
	}
	uplink, err := k.host.uplink(bounded)
	if err != nil {
		k.log.Warn("cannot find the uplink", "error", err)
	} else {
		k.manager.SetUplink(uplink)
	}
	overrides, err := k.host.kernel.Overrides(bounded)
	if err != nil {
		k.log.Warn("cannot look for rules of others", "error", err)
	}
	for _, text := range overrides {
		problems = append(problems, driver.Problem{Code: driver.ProblemOverridden, Severity: driver.SeverityWarning, Text: text})
	}
	k.found(problems)
	return failed == nil
}

// found takes note of what is wrong now, and logs what was not before.
func (k *keeper) found(problems []driver.Problem) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range problems {
		if slices.Contains(k.problems, p) {
			continue
		}
		switch p.Code {
		case driver.ProblemNetwork:
			k.log.Warn("cannot follow a change of the network", "error", p.Text)
		case driver.ProblemOverridden:
			k.log.Warn("the tunnel may be bypassed", "because", p.Text)
		}
	}
	k.problems = problems
	k.tell()
}

// tell must be called with mu held.
func (k *keeper) tell() {
	var all []driver.Problem
	for _, what := range slices.Sorted(maps.Keys(k.blind)) {
		all = append(all, driver.Problem{
			Code: driver.ProblemBlind, Severity: driver.SeverityError, Text: "changes of the " + what + " are not seen any more: " + k.blind[what].Error(),
		})
	}
	k.manager.SetHealth(append(all, k.problems...))
}
