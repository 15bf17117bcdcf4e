package routing

import (
	"context"
	"fmt"
	"time"
)

// reconcile goes from have to want, and stops at the first step that fails.
// have is true in any case. Where no tunnel is wanted, the DNS is no reason to
// stop: left is why it could not be restored, and all the rest was done.
func (n *Network) reconcile(ctx context.Context, want State) (left, err error) {
	start, ops := time.Now(), 0
	cancel := func() {}
	defer func() { cancel() }()
	for _, s := range steps(n.have, want, n.resolver.PerLink()) {
		var err error
		switch {
		case s.resolve && want.DNS == nil && len(want.Rules) == 0:
			left = n.resolve(ctx, nil)
			// A resolver that hangs has used the time up.
			ctx, cancel = ownTime(ctx, backTimeout)
		case s.resolve:
			err = n.resolve(ctx, want.DNS)
		case s.filters:
			err = n.filter(ctx, s.filter)
		default:
			err = n.execute(ctx, s.ops)
		}
		if err != nil {
			return left, err
		}
		ops += len(s.ops)
	}
	n.log.Debug("network reached", "operations", ops, "took", time.Since(start))
	return left, nil
}

func (n *Network) filter(ctx context.Context, f *Filter) error {
	unsure := both(n.have.Firewall, f)
	unsure.Unsure = true
	n.have.Firewall = unsure // until it is known
	if err := n.firewall.Set(ctx, f); err != nil {
		return fmt.Errorf("cannot set the firewall: %w", err)
	}
	n.have.Firewall = f
	return nil
}

// putBackFilter is the part of Refresh that cannot wait for a look at all the
// rest: without the filter, a lockdown is none.
func (n *Network) putBackFilter(ctx context.Context) error {
	want := n.goal.Firewall
	if want == nil || !want.equal(n.have.Firewall) {
		return nil // a change is to be made up for, in its order
	}
	found, err := n.firewall.Find(ctx)
	if err != nil {
		return fmt.Errorf("cannot refresh the network: %w", err)
	}
	if found == nil {
		n.log.Warn("another program has removed the firewall: it is put back", "lockdown", want.Lockdown)
	}
	if want.equal(found) {
		return nil
	}
	n.have.Firewall = found
	return n.filter(ctx, want)
}

func (n *Network) resolve(ctx context.Context, want *Resolution) error {
	n.have.DNS = &Resolution{} // until it is known
	if want == nil {
		if err := n.resolver.Revert(ctx); err != nil {
			return fmt.Errorf("cannot restore the DNS: %w", err)
		}
	} else if err := n.resolver.Set(ctx, *want); err != nil {
		return fmt.Errorf("cannot set the DNS: %w", err)
	}
	n.have.DNS = want
	return nil
}

// execute keeps have true for each operation. Of many errors it tells one.
func (n *Network) execute(ctx context.Context, ops []Op) error {
	errs := n.kernel.Execute(ctx, ops)
	var first error
	failed := 0
	for i, op := range ops {
		if errs != nil && errs[i] != nil {
			failed++
			if first == nil {
				first = errs[i]
			}
			if l, ok := op.Object.(LinkState); ok && op.Verb != Delete {
				l.Up, l.MTU = n.have.Links[l.Index].Up, 0 // differs from all that is wanted
				n.have.put(l)
			}
			continue
		}
		if op.Verb == Delete {
			n.have.remove(op.Object)
		} else {
			n.have.put(op.Object)
		}
	}
	if failed > 1 {
		return fmt.Errorf("%w (and %d more)", first, failed-1)
	}
	return first
}
