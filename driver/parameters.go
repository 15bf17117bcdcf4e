package driver

import (
	"context"
	"errors"
	"time"

	"github.com/vpnprovider/vpnproviderd/driver/params"
	"github.com/vpnprovider/vpnproviderd/routing"
)

// applyTimeout bounds one change of the network; callers on the bus give up
// after 25 s.
const applyTimeout = 20 * time.Second

// SetParameters validates all, then applies all or nothing. The dictionary
// holds Go values of D-Bus types. It gives warnings, one sentence each.
func (m *Manager) SetParameters(ctx context.Context, by Caller, id SessionID, dict map[string]any) ([]string, error) {
	var s *session
	var asked uint64
	if err := m.owned(by, id, func(own *session) error { s, asked = own, own.asked; return nil }); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	// The session's end takes the place of whatever is being applied.
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	if err := acquire(ctx, s.work); err != nil {
		return nil, s.abandoned(err)
	}
	defer func() { <-s.work }()

	p, host, warnings, err := m.check(ctx, s, dict)
	if err != nil {
		return nil, err
	}
	if err := m.apply(ctx, s, p, host, asked); err != nil {
		return nil, s.abandoned(err)
	}
	return warnings, nil
}

// check parses the dictionary and holds it against the host. Every problem is
// named.
func (m *Manager) check(ctx context.Context, s *session, dict map[string]any) (params.Parameters, params.Host, []string, error) {
	p, warnings, parseErr := params.Parse(dict)
	host, err := m.opts.Host.Facts(ctx, s.link.Index)
	if err != nil {
		return p, host, nil, Errorf(KindFailed, "cannot read the host's network: %v", err)
	}
	if err := params.Join(parseErr, p.Conflicts(host)); err != nil {
		return p, host, nil, Errorf(KindInvalidParameter, "%v", err)
	}
	omitted := p.Omitted(host)
	for _, text := range omitted {
		m.log.Warn("parameters", "SESSION", s.id, "CONFIG", s.config.ID, "APP", s.config.App, "warning", text)
	}
	return p, host, append(warnings, omitted...), nil
}

// apply makes the parameters hold. asked is session.asked as it was when the call
// began. session.work is held.
func (m *Manager) apply(ctx context.Context, s *session, p params.Parameters, host params.Host, asked uint64) error {
	if err := m.opts.Network.Apply(ctx, network(p, s.link)); err != nil {
		kind := KindFailed
		if errors.Is(err, context.DeadlineExceeded) { // systemd-resolved, say
			kind = KindTimeout
		}
		return Errorf(kind, "cannot apply the parameters: %v", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.state == Disconnecting {
		return Errorf(KindWrongState, "session %d is ending", s.id)
	}
	if err := s.tunnel.Permit(traffic(p, host)); err != nil {
		// The network has the new parameters and the tunnel cannot follow.
		s.endLocked(EventBroken, ReasonInternal+err.Error())
		return Errorf(KindFailed, "cannot set the packet filter: %v", err)
	}
	// Without reconnect nothing is told and answered any more, linkUp neither: then
	// these are the last word.
	s.late = p.Reconnect && s.asked != asked
	s.transition(EventParameters, func() { s.params, s.set = p, true })
	return nil
}

// abandoned tells the end of the session from other failures.
func (s *session) abandoned(err error) error {
	if s.ctx.Err() != nil {
		return Errorf(KindWrongState, "session %d is ending", s.id)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return Errorf(KindTimeout, "the parameters could not be applied within %s", applyTimeout)
	}
	return err
}

func traffic(p params.Parameters, host params.Host) Traffic {
	return Traffic{
		Addresses: addresses(p.Addresses), Include: p.Inclusion, Exclude: p.Exclusion,
		Host: host.Addresses, MTU: int(p.MTU),
	}
}

func network(p params.Parameters, link routing.Link) routing.Config {
	return routing.Config{
		Link: link, MTU: p.MTU, Addresses: p.Addresses, Broadcast: p.Broadcast,
		Include: p.Inclusion, Exclude: p.Exclusion,
		AllowLAN: p.AllowLAN, AllowIPv4: p.AllowIPv4, AllowIPv6: p.AllowIPv6,
		DNS: routing.DNS{Servers: p.DNSServers, Search: p.DomainSearch, Match: p.MatchDomains},
	}
}
