package routing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// backTimeout bounds the way back after a failure, which goes on when the
	// caller has given up, and what follows the DNS of an end.
	backTimeout = 10 * time.Second

	// endTimeout bounds an end, from its turn on. A resolver that hangs is given
	// most of it.
	endTimeout = 20 * time.Second
)

// Network is the host's network as far as it is ours. There is one in a
// process. Methods may be called concurrently; they wait for each other.
//
// It holds no resources: a Network that is dropped leaves the network as it
// is, and a new one finds it by Resume or Sweep.
type Network struct {
	kernel   Kernel
	firewall Firewall
	resolver Resolver
	log      *slog.Logger

	// lockdown is written with mu held.
	lockdown atomic.Bool

	mu   sync.Mutex
	want Config

	// have is what was really achieved, goal a State that carries out want: where
	// a failed Apply goes back to.
	have, goal State

	// unplanned: goal is none yet, as want could not be planned.
	unplanned bool

	// lacks is why the filter that was planned last is not all that it shall be.
	lacks error

	// base is what the links were before they became ours.
	base map[int]LinkState

	// uplinks are the links that led off this host at some time: they do not
	// become local networks by losing their default route.
	uplinks map[int]bool
}

// New returns a Network that has nothing. It keeps what it is given.
func New(k Kernel, f Firewall, r Resolver, log *slog.Logger) *Network {
	return &Network{
		kernel: k, firewall: f, resolver: r, log: log, base: map[int]LinkState{}, uplinks: map[int]bool{},
	}
}

// Apply makes the network what c wants, in place of what the last one wanted.
// With an error everything is as it was before the call; where even that could
// not be reached, the error says so, and the next Apply starts from what is
// really there.
//
// The zero Config undoes everything but a lockdown, and there is no way back from
// that: its link goes away next. With an error the rest is left to the next
// Refresh, Lock or Apply. Where the DNS cannot be restored the rest is undone all
// the same. An end takes its time whatever ctx says: the wait for its turn may
// have used that up.
func (n *Network) Apply(ctx context.Context, c Config) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !c.Active() {
		var cancel context.CancelFunc
		ctx, cancel = ownTime(ctx, endTimeout)
		defer cancel()
	}
	return errors.Join(n.apply(ctx, c.clone(), n.lockdown.Load()))
}

// ownTime is ctx with another end.
func ownTime(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), limit)
}

// Lock begins or ends the lockdown, whatever else is applied. It stays when the
// process ends. Errors are as those of Apply.
func (n *Network) Lock(ctx context.Context, on bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	left, err := n.apply(ctx, n.want, on)
	if left != nil { // of an earlier end, which was told of it
		n.log.Warn("the DNS could not be restored once more", "error", left)
	}
	return err
}

// Locked says whether a lockdown is wanted. It does not wait.
func (n *Network) Locked() bool { return n.lockdown.Load() }

// apply gives what reconcile gives; with err everything is as before, unless c is
// an end.
func (n *Network) apply(ctx context.Context, c Config, lockdown bool) (left, err error) {
	want, planErr := n.plan(ctx, c, lockdown)
	if planErr != nil {
		err = fmt.Errorf("cannot plan the network: %w", planErr)
	} else if left, err = n.reconcile(ctx, want); err == nil {
		n.reached(c, lockdown, want)
		n.askAgain(ctx)
		return left, nil
	}
	switch {
	case !c.Active() && n.want.Active():
		// What is left of the tunnel is not wanted any more, and cannot be had
		// once its link is gone.
		n.want, n.goal, n.unplanned = c, want, planErr != nil
		return left, err
	case planErr != nil: // nothing was touched
		return nil, err
	}
	back, cancel := ownTime(ctx, backTimeout)
	defer cancel()
	if undo := n.goBack(back); undo != nil {
		return nil, errors.Join(err, fmt.Errorf("cannot go back to the previous state: %w", undo))
	}
	return nil, err
}

// askAgain makes up for what the resolver could not tell, and may be able to by now;
// if not, each Refresh asks again.
func (n *Network) askAgain(ctx context.Context) {
	if n.lacks == nil {
		return
	}
	if err := n.refresh(ctx); err != nil {
		n.log.Warn("the network is not yet all that it shall be", "error", err)
	}
}

// goBack goes to what was wanted before.
func (n *Network) goBack(ctx context.Context) error {
	if n.unplanned {
		goal, err := n.plan(ctx, n.want, n.lockdown.Load())
		if err != nil {
			return err
		}
		n.goal, n.unplanned = goal, false
	}
	if err := errors.Join(n.reconcile(ctx, n.goal)); err != nil {
		return err
	}
	n.forget()
	return nil
}

// Refresh goes to the same configuration again, from what is really there and
// for what surrounds it now: local networks that came or went are followed,
// what others deleted is put back, and the DNS is sent again. It goes as far
// as it can; with an error the rest is left to the next Refresh or Apply.
func (n *Network) Refresh(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.refresh(ctx)
}

func (n *Network) refresh(ctx context.Context) error {
	lockdown := n.lockdown.Load()
	if !n.want.Active() && !lockdown && n.have.Empty() {
		return nil
	}
	if err := n.putBackFilter(ctx); err != nil {
		return err
	}
	if err := n.look(ctx); err != nil {
		return fmt.Errorf("cannot refresh the network: %w", err)
	}
	want, err := n.plan(ctx, n.want, lockdown)
	if err != nil {
		return fmt.Errorf("cannot plan the network: %w", err)
	}
	if n.unplanned {
		n.goal, n.unplanned = want, false
	}
	n.have.Addresses = inOrderOf(want.Addresses, n.have.Addresses)
	left, err := n.reconcile(ctx, want)
	if err != nil {
		return err
	}
	n.reached(n.want, lockdown, want)
	return errors.Join(left, n.lacks)
}

// adopt takes what an earlier process left for our own, without changing
// anything. There is no goal yet: what was left is not known to be one.
func (n *Network) adopt(ctx context.Context, lockdown bool) error {
	if err := n.look(ctx); err != nil {
		return fmt.Errorf("cannot find what an earlier run left: %w", err)
	}
	found := n.have.Firewall != nil && n.have.Firewall.Lockdown
	n.lockdown.Store(lockdown || found)
	n.goal = State{}
	return nil
}

// Resume makes c of what an earlier process left, in place and with no gap, with
// the lockdown if it is wanted or was found. It goes as far as it can; with an
// error the rest is left to the next Refresh or Apply.
func (n *Network) Resume(ctx context.Context, c Config, lockdown bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.want, n.unplanned = c.clone(), true // until refresh has planned it
	n.lockdown.Store(lockdown)
	if err := n.adopt(ctx, lockdown); err != nil {
		return err
	}
	return n.refresh(ctx)
}

// Sweep removes all that carries our marks, of this or of an earlier process,
// but the lockdown if it is wanted or was found: that one holds from the first
// step on.
func (n *Network) Sweep(ctx context.Context, lockdown bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.want, n.unplanned = Config{}, true
	if err := n.adopt(ctx, lockdown); err != nil {
		return err
	}
	lockdown = n.lockdown.Load()
	if n.have.Empty() && !lockdown {
		return nil
	}
	n.log.Info("removing what an earlier run left", "routes", len(n.have.Routes),
		"rules", len(n.have.Rules), "links", len(n.have.Links), "firewall", n.have.Firewall != nil,
		"dns", n.have.DNS != nil, "lockdown", lockdown)
	n.base = map[int]LinkState{}
	want, err := n.plan(ctx, Config{}, lockdown)
	if err != nil {
		return fmt.Errorf("cannot plan the network: %w", err)
	}
	left, err := n.reconcile(ctx, want)
	if err != nil {
		return err
	}
	n.reached(Config{}, lockdown, want)
	return left
}

// State is what is in effect, as far as is known. The caller must not change
// it.
func (n *Network) State() State {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.have.Clone()
}

// Passes says whether an unmarked packet of this host may leave by the link.
func (n *Network) Passes(link int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.have.Firewall.Passes(link)
}

// Resolution is what is in effect of the DNS; nil: nothing of ours. It is not
// changed any more.
func (n *Network) Resolution() *Resolution {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.have.DNS
}

// Decision is what becomes of the unmarked packets to a destination.
type Decision struct {
	// Link is the tunnel's; zero: there is none, and the next is zero too.
	Link Link

	// Route that our table has for them. Its Type is Unicast where they go
	// into the tunnel and Unreachable where they are refused; otherwise, as
	// with Throw, they go where they would without us.
	Route Route
}

// Decide says what becomes of the packets to dst, by what is in effect.
func (n *Network) Decide(dst netip.Addr) Decision {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.want.Active() {
		return Decision{}
	}
	dst = dst.Unmap().WithZone("")
	r, _ := NewLookup(n.have).Route(Table(n.want.Link.Slot), netip.PrefixFrom(dst, dst.BitLen()))
	return Decision{Link: n.want.Link, Route: r}
}

// look makes have what the kernel, the firewall and the resolver show.
func (n *Network) look(ctx context.Context) error {
	have, err := n.kernel.List(ctx)
	if err != nil {
		return err
	}
	left, err := n.resolver.Leftover(ctx)
	if err != nil {
		return err
	}
	if left || n.have.DNS != nil {
		have.DNS = &Resolution{} // not known to be what is wanted
	}
	if have.Firewall, err = n.firewall.Find(ctx); err != nil {
		return err
	}
	have.Marked = n.have.Marked // also where another program has removed the filter
	if have.Firewall != nil {
		for _, link := range have.Firewall.Marked {
			have.put(MarkedLink{Link: link})
		}
	}
	n.have = have
	return nil
}

// plan is Plan for the present facts, with the links that we no longer use as
// they were before. It takes note of the link as it is.
func (n *Network) plan(ctx context.Context, c Config, lockdown bool) (State, error) {
	var facts Facts
	var unknown error
	if c.Active() {
		if err := c.check(); err != nil {
			return State{}, err
		}
	}
	if c.Active() || lockdown {
		var err error
		if facts, err = n.kernel.Facts(ctx, c.Link.Index); err != nil {
			return State{}, err
		}
		if len(c.DNS.Servers) > 0 {
			facts.Asker, unknown = n.resolver.Asker(ctx)
		}
		n.note(facts)
	}
	want := Plan(c, lockdown, facts)
	n.lacks = nil
	if want.Firewall != nil && want.Firewall.Names {
		n.lacks = unknown
	}
	for index, l := range n.base {
		_, used := want.Links[index]
		_, there := n.have.Links[index]
		if !used && there {
			want.put(l)
		}
	}
	return want, nil
}

// note takes note of what facts say of the past, and makes them what they would
// be without us.
func (n *Network) note(f Facts) {
	if f.Link.Index != 0 {
		n.noteLink(f.Link)
	}
	for i := range f.Strict {
		ours := MarkedLink{Link: f.Strict[i].Link}
		if !f.Strict[i].Marked {
			n.have.remove(ours) // another program did
		} else if slices.Contains(n.have.Marked, ours) {
			f.Strict[i].Marked = false
		}
	}
	for _, s := range f.Subnets {
		if !s.Virtual {
			n.uplinks[s.Link] = true
		}
	}
	for i := range f.Subnets {
		s := &f.Subnets[i]
		s.Virtual = s.Virtual && !n.uplinks[s.Link]
	}
}

func (n *Network) noteLink(l LinkState) {
	if _, known := n.base[l.Index]; !known {
		base := l
		if base.Alias == Alias { // adopted
			base.Alias, base.Up = "", false
		}
		n.base[l.Index] = base
		n.goal.put(base)
	}
	n.have.put(l)
}

// reached takes note that want, which carries out c and the lockdown, is in
// effect.
func (n *Network) reached(c Config, lockdown bool, want State) {
	n.want, n.goal, n.unplanned = c, want, false
	n.lockdown.Store(lockdown)
	n.goal.Addresses = slices.Clone(n.have.Addresses) // with the broadcast addresses that they really have
	n.forget()
	if !c.Active() {
		clear(n.base) // of links that are gone
	}
	if !c.Active() && !lockdown {
		clear(n.uplinks)
	}
}

// forget drops the links that are as they were before they became ours.
func (n *Network) forget() {
	for index, l := range n.base {
		if n.have.Links[index] == l {
			delete(n.base, index)
			delete(n.have.Links, index)
			delete(n.goal.Links, index)
		}
	}
}
