package driver

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"unicode"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// Way is what becomes of what a program of one user sends to one address.
type Way struct {
	// Refused: the kernel has no route, and tells the program.
	Refused bool

	// Held: the lockdown drops it.
	Held bool

	// The route that the kernel takes, and the rule that led to its table.
	Table, Rule uint32
	Block       netip.Prefix
	Interface   string
	Index       int
	Gateway     netip.Addr
	Source      netip.Addr

	// Planned is what the tunnel's table says. Its Link is zero where there is
	// no tunnel.
	Planned routing.Decision
}

// Actions of an Explanation.
const (
	ActionTunnel  = "tunnel"
	ActionDirect  = "direct" // where it would go without us
	ActionBlocked = "blocked"
	ActionLocal   = "local" // this host
)

// Explanation says what becomes of a destination.
type Explanation struct {
	Action string
	Why    string // a sentence

	// Session whose tunnel the host has; 0 where there is none, or the caller
	// may not see it.
	Session SessionID

	// Way of the packets; for a name, of the questions to the first server.
	Way Way

	// Servers that a name is asked of.
	Servers []netip.Addr
}

// Explain says what becomes of what a program of uid sends to destination, an
// address, or asks of it, a name. It sends nothing.
func (m *Manager) Explain(ctx context.Context, by Caller, destination string, uid uint32) (Explanation, error) {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	var e Explanation
	var err error
	if dst, parseErr := netip.ParseAddr(destination); parseErr == nil {
		e, err = m.explainAddress(ctx, dst, uid)
	} else if err = checkHostName(destination); err == nil {
		e, err = m.explainName(ctx, destination, uid)
	}
	if err != nil {
		return e, err
	}
	m.View(by, func(v View) {
		for _, s := range v.Sessions() {
			e.Session = s.ID
		}
	})
	return e, nil
}

func checkHostName(name string) error {
	if err := checkText("destination", name); err != nil {
		return err
	}
	if name == "" || strings.ContainsFunc(name, unicode.IsSpace) || strings.ContainsAny(name, "/:%@[]") {
		return Errorf(KindInvalidParameter, "the destination %q is neither an address nor a name", name)
	}
	return nil
}

func (m *Manager) explainAddress(ctx context.Context, dst netip.Addr, uid uint32) (Explanation, error) {
	w, err := m.opts.Host.Way(ctx, dst, uid)
	if err != nil {
		return Explanation{}, Errorf(KindFailed, "cannot find the way to %s: %v", dst, err)
	}
	e := Explanation{Way: w}
	e.Action, e.Why = w.explain()
	return e, nil
}

const localTable = 255 // of Linux

// explain finds the action and a sentence for it.
func (w Way) explain() (action, why string) {
	planned, block := w.Planned.Route.Type, w.Planned.Route.Dst
	into := !w.Refused && w.Planned.Link.Index != 0 && w.Index == w.Planned.Link.Index
	switch {
	case w.Refused && planned == routing.Unreachable:
		return ActionBlocked, fmt.Sprintf("%s is for the tunnel, which has no address of that family", block)
	case w.Refused && planned == routing.Unicast:
		return ActionBlocked, fmt.Sprintf("%s is for the tunnel, whose interface is gone", block)
	case w.Refused:
		return ActionBlocked, "this host has no route to it"
	case w.Table == localTable:
		return ActionLocal, "it is an address of this host"
	case into:
		return ActionTunnel, fmt.Sprintf("%s goes into the tunnel", block)
	case w.Held:
		return ActionBlocked, fmt.Sprintf("a lockdown is in force, and %s does not lead into a tunnel", w.Interface)
	case planned == routing.Unicast || planned == routing.Unreachable:
		return ActionDirect, fmt.Sprintf("%s is for the tunnel, but rule %d of another program (table %d) is asked before", block, w.Rule, w.Table)
	case planned == routing.Throw:
		return ActionDirect, fmt.Sprintf("%s is kept out of the tunnel", block)
	case w.Planned.Link.Index != 0:
		return ActionDirect, "no block that goes into the tunnel has it"
	}
	return ActionDirect, "there is no tunnel"
}

// explainName says which servers a name is asked of, and the way to the first.
func (m *Manager) explainName(ctx context.Context, name string, uid uint32) (Explanation, error) {
	servers, why := m.serversOf(name)
	if len(servers) == 0 {
		return Explanation{Action: ActionBlocked, Why: why + ", and there are none"}, nil
	}
	e, err := m.explainAddress(ctx, servers[0], uid)
	if err != nil {
		return e, err
	}
	e.Servers, e.Why = servers, fmt.Sprintf("%s; of %s: %s", why, servers[0], e.Why)
	return e, nil
}

func (m *Manager) serversOf(name string) (servers []netip.Addr, why string) {
	m.mu.Lock()
	network := m.uplink.Nameservers
	m.mu.Unlock()
	r, splits := m.opts.Host.Resolution()
	if r == nil {
		return network, "the network's servers are asked: the tunnel has none"
	}
	for _, domain := range r.DNS.Match {
		if below(name, domain) {
			return r.DNS.Servers, fmt.Sprintf("the tunnel's servers are asked for names below %s", domain)
		}
	}
	switch {
	case !splits:
		return r.DNS.Servers, "the tunnel's servers are asked for all names"
	case len(r.DNS.Match) > 0:
		return network, "the network's servers are asked: the name is below no domain of the tunnel"
	case r.Full:
		return r.DNS.Servers, "the tunnel's servers are asked for all names"
	}
	return append(append([]netip.Addr{}, r.DNS.Servers...), network...), "the tunnel's servers and the network's are asked for all names"
}

// below says whether a name is the domain, or in it.
func below(name, domain string) bool {
	name, domain = strings.ToLower(strings.Trim(name, ".")), strings.ToLower(strings.Trim(domain, "."))
	return name == domain || strings.HasSuffix(name, "."+domain)
}
