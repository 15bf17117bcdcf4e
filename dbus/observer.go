package dbus

import (
	"context"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/driver"
)

// Observe tells those concerned what happened. The system bus would carry a
// broadcast to every user, so each signal goes to one connection: to those
// that may see the object, or to the one that it is for.
func (s *Server) Observe(n driver.Notice) {
	switch n := n.(type) {
	case driver.ConfigAdded:
		s.added(n.Config.Owner, configPath(n.Config.ID), wire.ConfigInterface, configProperties(n.Config))
	case driver.ConfigChanged:
		s.changed(n.After.Owner, configPath(n.After.ID), wire.ConfigInterface, changed(configProperties(n.Before), configProperties(n.After)))
	case driver.ConfigGone:
		s.removed(n.Config.Owner, configPath(n.Config.ID), wire.ConfigInterface)
	case driver.HealthChanged:
		s.healthChanged(n.Problems)
	case driver.SessionAdded:
		s.added(n.Session.Owner, sessionPath(n.Session.ID), wire.SessionInterface, sessionProperties(n.Session))
		s.sessionsChanged(n.Session.Owner, []driver.SessionInfo{n.Session})
	case driver.SessionChanged:
		s.changed(n.After.Owner, sessionPath(n.After.ID), wire.SessionInterface, changed(sessionProperties(n.Before), sessionProperties(n.After)))
	case driver.SessionGone:
		s.removed(n.Session.Owner, sessionPath(n.Session.ID), wire.SessionInterface)
		s.sessionsChanged(n.Session.Owner, nil)
	case driver.PlatformMessage:
		s.out.put(signal(n.To, string(sessionPath(n.Session)), wire.SessionInterface, "PlatformMessage", configPath(n.Config), n.Message, n.Error))
	case driver.ConfigCreated:
		s.out.put(signal(n.To, wire.RootPath, wire.ManagerInterface, "ConfigCreated", configPath(n.Config.ID), n.Config.Name, toDict(n.Config.Data)))
	case driver.ConfigRemoved:
		s.out.put(signal(n.To, wire.RootPath, wire.ManagerInterface, "ConfigRemoved", configPath(n.ID), n.Name))
	case driver.StartProvider:
		s.out.put(signal(n.To, wire.RootPath, wire.ManagerInterface, "StartProvider", n.App))
	case driver.UIEvent:
		s.out.put(signal(n.To, wire.RootPath, wire.ManagerInterface, "UIEvent", n.Event, configPath(n.Config)))
	}
}

func (s *Server) added(owner uint32, path godbus.ObjectPath, iface string, all properties) {
	for _, p := range s.calls.listeners(owner) {
		s.out.put(signal(p.name, wire.RootPath, wire.ObjectManagerInterface, "InterfacesAdded", path, map[string]properties{iface: all}))
	}
}

func (s *Server) removed(owner uint32, path godbus.ObjectPath, iface string) {
	for _, p := range s.calls.listeners(owner) {
		s.out.put(signal(p.name, wire.RootPath, wire.ObjectManagerInterface, "InterfacesRemoved", path, []string{iface}))
	}
}

func (s *Server) changed(owner uint32, path godbus.ObjectPath, iface string, diff properties) {
	if len(diff) == 0 {
		return
	}
	for _, p := range s.calls.listeners(owner) {
		s.out.put(signal(p.name, string(path), wire.PropertiesInterface, "PropertiesChanged", iface, diff, []string{}))
	}
}

// sessionsChanged tells of the manager's list of sessions. There is one
// session a host, so the list of all is the list of those who see it.
func (s *Server) sessionsChanged(owner uint32, sessions []driver.SessionInfo) {
	all := s.managerProperties(sessions, nil)
	s.changed(owner, wire.RootPath, wire.ManagerInterface, properties{"Sessions": all["Sessions"]})
}

// healthChanged tells everybody: what is wrong with the host is no secret.
func (s *Server) healthChanged(problems []driver.Problem) {
	diff := properties{"Health": healthProperty(problems)}
	for _, p := range s.calls.everybody() {
		s.out.put(signal(p.name, wire.RootPath, wire.PropertiesInterface, "PropertiesChanged", wire.ManagerInterface, diff, []string{}))
	}
}

// Packets by signal: how many go out before the client has to answer.
const (
	packetsPerPing = 128
	pingsInFlight  = 2
)

// Receiver hands packets to a provider by signal. D-Bus has no flow control,
// so the provider is pinged now and then: while too many pings are without an
// answer, the receiver waits, and the TUN is not read.
func (s *Server) Receiver(ctx context.Context, to string, session driver.SessionID) func([]byte) error {
	sent := 0
	pings := make(chan struct{}, pingsInFlight) // a token for each without an answer
	return func(packet []byte) error {
		if sent%packetsPerPing == 0 {
			select {
			case pings <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		s.out.put(signal(to, string(sessionPath(session)), wire.SessionInterface, "PacketReceived", append([]byte{}, packet...)))
		if sent++; sent%packetsPerPing == 0 {
			s.out.then(func() { s.ping(ctx, to, pings) })
		}
		return nil
	}
}

// ping asks for an answer after the signals so far. Any answer will do, and
// so will none: then the provider is gone.
func (s *Server) ping(ctx context.Context, to string, pings <-chan struct{}) {
	await, err := s.stream.Ping(callOf(to, wire.RootPath, wire.PeerInterface, "Ping"))
	if err != nil {
		return // of a bus that is lost, which ends the session's ctx
	}
	go func() {
		await(ctx)
		<-pings
	}()
}
