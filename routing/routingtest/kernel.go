// Package routingtest has a kernel, a firewall and a resolver in memory for tests of
// package routing and of its users. They can fail at any operation.
package routingtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// ErrInjected is the error of an operation that was told to fail.
var ErrInjected = errors.New("injected failure")

// Failures decides which operations fail. One may be shared by a Kernel, a
// Firewall and a Resolver, which then count together. The zero value lets all succeed.
type Failures struct {
	mu   sync.Mutex
	done int
	at   map[int]bool
}

// At makes the operations with these numbers fail, counted from 0 from now on.
func (f *Failures) At(numbers ...int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done, f.at = 0, map[int]bool{}
	for _, n := range numbers {
		f.at[n] = true
	}
}

// Done is the number of operations since At.
func (f *Failures) Done() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.done
}

// Next counts one operation and says whether it fails.
func (f *Failures) Next() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.done
	f.done++
	if f.at[n] {
		return fmt.Errorf("operation %d: %w", n, ErrInjected)
	}
	return nil
}

// Kernel is a routing.Kernel that behaves as Linux does where it matters:
// what depends on a link goes with it, with its last IPv4 address, with an MTU
// below 1280, or when it goes down. It may be used concurrently.
type Kernel struct {
	Failures *Failures

	// Trace, when set, is called after each operation, without a lock held.
	Trace func(op routing.Op)

	// Blind has Facts fail.
	Blind bool

	// Jumbled lists addresses in another order than that in which they came.
	Jumbled bool

	mu    sync.Mutex
	state routing.State
	facts routing.Facts
}

// NewKernel returns a kernel with IPv6 and no links.
func NewKernel(f *Failures) *Kernel {
	return &Kernel{
		Failures: f,
		state:    routing.State{Links: map[int]routing.LinkState{}, Routes: map[routing.RouteKey]routing.Route{}},
		facts:    routing.Facts{IPv6: true, LinkIPv6: true},
	}
}

// AddLink adds a link as a TUN is when it was opened: down and empty.
func (k *Kernel) AddLink(index int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.state.Links[index] = routing.LinkState{Index: index, MTU: 1500}
}

// RemoveLink takes a link away, with all that depends on it, as when the
// process that had the TUN died.
func (k *Kernel) RemoveLink(index int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.state.Links, index)
	k.drop(index, true, true)
	k.drop(index, false, true)
}

// SetFacts changes what surrounds the tunnel; Link of f is not used.
func (k *Kernel) SetFacts(f routing.Facts) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.facts = f
}

// Remove takes an object away, as another program may.
func (k *Kernel) Remove(o routing.Object) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.delete(o)
}

// State is all that is there, also what is not ours.
func (k *Kernel) State() routing.State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state.Clone()
}

// String is State with one object a line, in the order that matters: among the
// addresses and rules of a family.
func (k *Kernel) String() string {
	s := k.State()
	var lines []string
	for _, i := range slices.Sorted(maps.Keys(s.Links)) {
		lines = append(lines, fmt.Sprintf("link %+v", s.Links[i]))
	}
	slices.SortStableFunc(s.Addresses, func(a, b routing.Address) int { return a.Addr.BitLen() - b.Addr.BitLen() })
	for _, a := range s.Addresses {
		lines = append(lines, fmt.Sprintf("address %+v", a))
	}
	slices.SortStableFunc(s.Rules, func(a, b routing.Rule) int { return bit(a.IPv6) - bit(b.IPv6) })
	for _, r := range s.Rules {
		lines = append(lines, fmt.Sprintf("rule %+v", r))
	}
	routes := make([]string, 0, len(s.Routes))
	for _, r := range s.Routes {
		routes = append(routes, fmt.Sprintf("route %+v", r))
	}
	slices.Sort(routes)
	for _, m := range s.Marked {
		routes = append(routes, fmt.Sprintf("marked %d", m.Link))
	}
	return strings.Join(append(lines, routes...), "\n")
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Execute implements routing.Kernel.
func (k *Kernel) Execute(ctx context.Context, ops []routing.Op) []error {
	errs := make([]error, len(ops))
	failed := false
	for i, op := range ops {
		if errs[i] = ctx.Err(); errs[i] == nil {
			errs[i] = k.execute(op)
		}
		failed = failed || errs[i] != nil
		if k.Trace != nil {
			k.Trace(op)
		}
	}
	if !failed {
		return nil
	}
	return errs
}

func (k *Kernel) execute(op routing.Op) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.Failures.Next(); err != nil {
		k.half(op)
		return err
	}
	if op.Verb == routing.Delete {
		k.delete(op.Object)
		return nil
	}
	return k.put(op)
}

// half carries out a part of what failed: a link's settings are several calls, of
// which the one that clears the alias is the last.
func (k *Kernel) half(op routing.Op) {
	o, ok := op.Object.(routing.LinkState)
	if now, there := k.state.Links[o.Index]; ok && there && op.Verb != routing.Delete {
		now.MTU = o.MTU
		if o.Alias != "" {
			now.Alias = o.Alias
		}
		k.setLink(now)
	}
}

func (k *Kernel) put(op routing.Op) error {
	switch o := op.Object.(type) {
	case routing.LinkState:
		if _, ok := k.state.Links[o.Index]; !ok {
			if op.Verb == routing.Restore {
				return nil
			}
			return fmt.Errorf("link %d: no such device", o.Index)
		}
		k.setLink(o)
	case routing.Address:
		l, ok := k.state.Links[o.Link]
		if !ok || !o.Addr.Is4() && l.MTU < routing.IPv6MinMTU {
			return fmt.Errorf("address %s: no such device", o.Addr)
		}
		if !slices.ContainsFunc(k.state.Addresses, func(a routing.Address) bool {
			return a.Link == o.Link && a.Addr == o.Addr
		}) {
			k.state.Addresses = append(k.state.Addresses, o)
		}
	case routing.Route:
		if l := k.state.Links[o.Link]; o.Type == routing.Unicast &&
			(!l.Up || !o.Dst.Addr().Is4() && l.MTU < routing.IPv6MinMTU) {
			return fmt.Errorf("route %s: network is down", o.Dst)
		}
		k.state.Routes[o.RouteKey] = o
	case routing.Rule:
		if !slices.Contains(k.state.Rules, o) {
			k.state.Rules = append(k.state.Rules, o)
		}
	case routing.MarkedLink:
		if !slices.Contains(k.state.Marked, o) {
			k.state.Marked = append(k.state.Marked, o)
			slices.SortFunc(k.state.Marked, func(a, b routing.MarkedLink) int { return a.Link - b.Link })
		}
	}
	return nil
}

func (k *Kernel) setLink(o routing.LinkState) {
	goesDown := k.state.Links[o.Index].Up && !o.Up
	k.state.Links[o.Index] = o
	if goesDown {
		k.drop(o.Index, true, false)
	}
	if goesDown || o.MTU < routing.IPv6MinMTU {
		k.drop(o.Index, false, true)
	}
}

// drop removes the routes of a family that lead into a link, and its addresses.
func (k *Kernel) drop(link int, v4, addresses bool) {
	for key, r := range k.state.Routes {
		if r.Type == routing.Unicast && r.Link == link && key.Dst.Addr().Is4() == v4 {
			delete(k.state.Routes, key)
		}
	}
	if addresses {
		k.state.Addresses = slices.DeleteFunc(k.state.Addresses, func(a routing.Address) bool {
			return a.Link == link && a.Addr.Is4() == v4
		})
	}
}

func (k *Kernel) delete(o routing.Object) {
	switch o := o.(type) {
	case routing.LinkState:
		delete(k.state.Links, o.Index)
		k.drop(o.Index, true, true)
		k.drop(o.Index, false, true)
	case routing.Address:
		k.state.Addresses = slices.DeleteFunc(k.state.Addresses, func(a routing.Address) bool {
			return a.Link == o.Link && a.Addr == o.Addr
		})
		if o.Addr.Is4() && !slices.ContainsFunc(k.state.Addresses, func(a routing.Address) bool {
			return a.Link == o.Link && a.Addr.Is4()
		}) {
			k.drop(o.Link, true, true)
		}
	case routing.Route:
		delete(k.state.Routes, o.RouteKey)
	case routing.Rule:
		k.state.Rules = slices.DeleteFunc(k.state.Rules, func(r routing.Rule) bool { return r == o })
	case routing.MarkedLink:
		k.state.Marked = slices.DeleteFunc(k.state.Marked, func(m routing.MarkedLink) bool { return m == o })
	}
}

// List implements routing.Kernel.
func (k *Kernel) List(context.Context) (routing.State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.state.Clone()
	s.Marked = nil
	maps.DeleteFunc(s.Links, func(_ int, l routing.LinkState) bool { return l.Alias != routing.Alias })
	s.Addresses = slices.DeleteFunc(s.Addresses, func(a routing.Address) bool {
		_, ours := s.Links[a.Link]
		return !ours
	})
	if k.Jumbled {
		slices.Reverse(s.Addresses)
	}
	return s, nil
}

// Facts implements routing.Kernel.
func (k *Kernel) Facts(_ context.Context, link int) (routing.Facts, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l, ok := k.state.Links[link]
	if k.Blind {
		return routing.Facts{}, ErrInjected
	}
	if link != 0 && !ok {
		return routing.Facts{}, fmt.Errorf("link %d: no such device", link)
	}
	f := k.facts
	f.Link, f.Subnets, f.Strict = l, slices.Clone(f.Subnets), slices.Clone(f.Strict)
	for i := range f.Strict {
		ours := routing.MarkedLink{Link: f.Strict[i].Link}
		f.Strict[i].Marked = f.Strict[i].Marked || slices.Contains(k.state.Marked, ours)
	}
	return f, nil
}

// Fate is where a packet to dst goes.
type Fate string

// The fates.
const (
	Clear   Fate = "clear"  // as without us
	Tunnel  Fate = "tunnel" // into a link of ours
	Refused Fate = "refused"
)

// Fate of an unmarked packet.
func (k *Kernel) Fate(dst netip.Addr) Fate { return FateIn(k.State(), dst) }

// FateIn is Fate for some state.
func FateIn(s routing.State, dst netip.Addr) Fate {
	for _, rule := range s.Rules {
		if rule.IPv6 == dst.Is4() {
			continue
		}
		best := routing.Route{RouteKey: routing.RouteKey{Metric: ^uint32(0)}}
		for k, r := range s.Routes {
			if k.Table != rule.Table || !k.Dst.Contains(dst) {
				continue
			}
			if best.Type == 0 || k.Dst.Bits() > best.Dst.Bits() ||
				k.Dst.Bits() == best.Dst.Bits() && k.Metric < best.Metric {
				best = r
			}
		}
		switch best.Type {
		case routing.Unicast:
			return Tunnel
		case routing.Unreachable:
			return Refused
		case routing.Throw: // the next rule
		}
	}
	return Clear
}
