package clienttest

import (
	"fmt"
	"os"
	"slices"
	"strings"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

type dict = map[string]godbus.Variant

func fail(name, format string, args ...any) *godbus.Error {
	return godbus.NewError(name, []any{fmt.Sprintf(format, args...)})
}

func (s *Service) managerTable() map[string]any {
	return map[string]any{
		"RegisterProvider": s.registerProvider, "UnregisterProvider": s.unregisterProvider,
		"ListProviders": s.listProviders, "ForgetProvider": s.forgetProvider,
		"CreateConfig": s.createConfig, "DestroyConfig": s.destroyConfig, "FindConfig": s.findConfig,
		"ListConfigs": s.listConfigs, "ListSessions": s.listSessions, "ShowAddDialog": s.showAddDialog,
		"RegisterAgent": s.registerAgent, "Explain": s.explain, "Unlock": s.unlock,
	}
}

func (s *Service) registerProvider(app string, options dict, sender godbus.Sender) (dict, *godbus.Error) {
	defer s.mu.Unlock()
	if err := s.enter(sender, "Manager.RegisterProvider"); err != nil {
		return nil, err
	}
	if p := s.providers[app]; p != nil && p.sender != string(sender) && options["replace"].Value() != true {
		return nil, fail(wire.ErrAlreadyExists, "%s is registered by another connection", app)
	}
	s.providers[app] = &provider{string(sender), options}
	for path, c := range s.configs {
		if c.app == app && c.source == wire.SourcePlatform {
			s.deliver(path)
		}
	}
	return dict{"version": godbus.MakeVariant("test"), "features": godbus.MakeVariant(s.features)}, nil
}

func (s *Service) unregisterProvider(app string, _ dict, sender godbus.Sender) *godbus.Error {
	defer s.mu.Unlock()
	if err := s.enter(sender, "Manager.UnregisterProvider"); err != nil {
		return err
	}
	for _, each := range s.sessions {
		if s.configs[each.config].app == app {
			s.end(each, wire.ReasonProviderGone)
		}
	}
	delete(s.providers, app)
	return nil
}

func (s *Service) listProviders(sender godbus.Sender) ([]struct {
	App  string
	More dict
}, *godbus.Error,
) {
	defer s.mu.Unlock()
	var out []struct {
		App  string
		More dict
	}
	err := s.enter(sender, "Manager.ListProviders")
	for app, p := range s.providers {
		more := dict{"registered": godbus.MakeVariant(true)}
		for _, key := range []string{"displayName", "icon"} {
			if v, ok := p.options[key]; ok {
				more[key] = v
			}
		}
		out = append(out, struct {
			App  string
			More dict
		}{app, more})
	}
	return out, err
}

// registerAgent takes everybody for an agent, and starts nothing.
func (s *Service) registerAgent(_ dict, sender godbus.Sender) *godbus.Error {
	defer s.mu.Unlock()
	return s.enter(sender, "Manager.RegisterAgent")
}

func (s *Service) forgetProvider(app string, _ dict, sender godbus.Sender) *godbus.Error {
	defer s.mu.Unlock()
	err := s.enter(sender, "Manager.ForgetProvider")
	for path, c := range s.configs {
		if c.app == app {
			s.remove(path)
		}
	}
	return err
}

func (s *Service) createConfig(app, name string, options dict, sender godbus.Sender) (godbus.ObjectPath, *godbus.Error) {
	defer s.mu.Unlock()
	if err := s.enter(sender, "Manager.CreateConfig"); err != nil {
		return wire.NoPath, err
	}
	path := godbus.ObjectPath(ConfigPath(app, name))
	if s.configs[path] != nil {
		return wire.NoPath, fail(wire.ErrAlreadyExists, "a config named %q exists", name)
	}
	source, p := wire.SourcePlatform, s.providers[app]
	if p != nil && p.sender == string(sender) {
		source = wire.SourceProvider
	}
	data, _ := options["data"].Value().(dict)
	s.addConfig(app, name, source, data)
	s.configs[path].autoConnect = options["autoConnect"].Value() == true
	if p != nil && source == wire.SourcePlatform {
		s.deliver(path)
	}
	return path, nil
}

func (s *Service) destroyConfig(path godbus.ObjectPath, _ dict, sender godbus.Sender) *godbus.Error {
	defer s.mu.Unlock()
	if err := s.enter(sender, "Manager.DestroyConfig"); err != nil {
		return err
	}
	if s.configs[path] == nil {
		return fail(wire.ErrNotFound, "there is no such config")
	}
	s.remove(path)
	return nil
}

func (s *Service) remove(path godbus.ObjectPath) {
	s.end(s.sessions[s.configs[path].session], wire.ReasonRemoved)
	delete(s.configs, path)
	s.broadcast(wire.RootPath, wire.ObjectManagerInterface+".InterfacesRemoved", path, []string{wire.ConfigInterface})
}

func (s *Service) findConfig(app, name string, _ dict, sender godbus.Sender) (godbus.ObjectPath, *godbus.Error) {
	defer s.mu.Unlock()
	if err := s.enter(sender, "Manager.FindConfig"); err != nil {
		return wire.NoPath, err
	}
	path := godbus.ObjectPath(ConfigPath(app, name))
	if s.configs[path] == nil {
		return wire.NoPath, fail(wire.ErrNotFound, "there is no config %q of %s", name, app)
	}
	return path, nil
}

func (s *Service) listConfigs(sender godbus.Sender) ([]struct {
	Path             godbus.ObjectPath
	App, Name, State string
}, *godbus.Error,
) {
	defer s.mu.Unlock()
	var out []struct {
		Path             godbus.ObjectPath
		App, Name, State string
	}
	err := s.enter(sender, "Manager.ListConfigs")
	for path, c := range s.configs {
		out = append(out, struct {
			Path             godbus.ObjectPath
			App, Name, State string
		}{path, c.app, c.name, c.state})
	}
	return out, err
}

func (s *Service) listSessions(sender godbus.Sender) ([]struct {
	Path, Config godbus.ObjectPath
	Interface    string
}, *godbus.Error,
) {
	defer s.mu.Unlock()
	var out []struct {
		Path, Config godbus.ObjectPath
		Interface    string
	}
	err := s.enter(sender, "Manager.ListSessions")
	for path, each := range s.sessions {
		out = append(out, struct {
			Path, Config godbus.ObjectPath
			Interface    string
		}{path, each.config, "vpn0"})
	}
	return out, err
}

func (s *Service) showAddDialog(app string, _ dict, sender godbus.Sender) *godbus.Error {
	defer s.mu.Unlock()
	if err := s.enter(sender, "Manager.ShowAddDialog"); err != nil {
		return err
	}
	if s.providers[app] == nil {
		return fail(wire.ErrProviderNotRunning, "%s is not running", app)
	}
	s.signal(s.providers[app].sender, wire.RootPath, wire.ManagerInterface+".UIEvent", wire.ShowAddDialog, godbus.ObjectPath(wire.NoPath))
	return nil
}

// explain says of everything that it goes into the tunnel.
func (s *Service) explain(destination string, options dict, sender godbus.Sender) (dict, *godbus.Error) {
	defer s.mu.Unlock()
	v := godbus.MakeVariant
	uid := v(uint32(os.Getuid()))
	if given, ok := options["uid"]; ok {
		uid = given
	}
	return dict{
		"destination": v(destination), "uid": uid, "action": v("tunnel"), "why": v("0.0.0.0/0 goes into the tunnel"),
		"rule": v(uint32(4650)), "table": v(uint32(1448083456)), "route": v("0.0.0.0/0"), "device": v("vpn0"), "source": v("10.8.0.2"),
		"dnsServers": v([]string{"10.8.0.1"}),
	}, s.enter(sender, "Manager.Explain")
}

func (s *Service) unlock(_ dict, sender godbus.Sender) *godbus.Error {
	defer s.mu.Unlock()
	if err := s.enter(sender, "Manager.Unlock"); err != nil {
		return err
	}
	for path, c := range s.configs {
		if c.lockdown {
			c.lockdown = false
			s.changed(path, wire.ConfigInterface, "Lockdown")
		}
	}
	return nil
}

// health is that of a stand-in, and says so.
func (s *Service) health() []struct{ Code, Severity, Text string } {
	list := []struct{ Code, Severity, Text string }{{"test", "info", "this is not the daemon"}}
	for _, c := range s.configs {
		if c.lockdown {
			return append(list, struct{ Code, Severity, Text string }{"lockdown", "info", "a lockdown is in force"})
		}
	}
	return list
}

func pathOf(msg godbus.Message) godbus.ObjectPath {
	path, _ := msg.Headers[godbus.FieldPath].Value().(godbus.ObjectPath)
	return path
}

func senderOf(msg godbus.Message) godbus.Sender {
	sender, _ := msg.Headers[godbus.FieldSender].Value().(string)
	return godbus.Sender(sender)
}

// onConfig wraps a method of configs.
func (s *Service) onConfig(method string, do func(path godbus.ObjectPath, c *config, options dict) *godbus.Error) any {
	return func(msg godbus.Message, options dict) *godbus.Error {
		defer s.mu.Unlock()
		if err := s.enter(senderOf(msg), "Config."+method); err != nil {
			return err
		}
		c := s.configs[pathOf(msg)]
		if c == nil {
			return fail(wire.ErrNotFound, "there is no such config")
		}
		return do(pathOf(msg), c, options)
	}
}

func (s *Service) configTable() map[string]any {
	return map[string]any{
		"Connect": s.connect,
		"Disconnect": s.onConfig("Disconnect", func(_ godbus.ObjectPath, c *config, _ dict) *godbus.Error {
			s.end(s.sessions[c.session], "")
			return nil
		}),
		"Remove": s.onConfig("Remove", func(path godbus.ObjectPath, c *config, _ dict) *godbus.Error {
			if p := s.providers[c.app]; p != nil {
				s.end(s.sessions[c.session], wire.ReasonRemoved)
				s.signal(p.sender, wire.RootPath, wire.ManagerInterface+".ConfigRemoved", path, c.name)
			}
			s.remove(path)
			return nil
		}),
		"ShowConfigureDialog": s.onConfig("ShowConfigureDialog", func(path godbus.ObjectPath, c *config, _ dict) *godbus.Error {
			if s.providers[c.app] == nil {
				return fail(wire.ErrProviderNotRunning, "%s is not running", c.app)
			}
			s.signal(s.providers[c.app].sender, wire.RootPath, wire.ManagerInterface+".UIEvent", wire.ShowConfigureDialog, path)
			return nil
		}),
		"Update": s.onConfig("Update", func(path godbus.ObjectPath, c *config, changes dict) *godbus.Error {
			if v, ok := changes["autoConnect"]; ok {
				c.autoConnect = v.Value() == true
				s.changed(path, wire.ConfigInterface, "AutoConnect")
			}
			if v, ok := changes["lockdown"]; ok {
				c.lockdown = v.Value() == true
				s.changed(path, wire.ConfigInterface, "Lockdown")
			}
			if data, ok := changes["data"].Value().(dict); ok {
				c.data = data
				s.changed(path, wire.ConfigInterface, "Data")
			}
			return nil
		}),
	}
}

func (s *Service) connect(msg godbus.Message, _ dict) (godbus.ObjectPath, *godbus.Error) {
	defer s.mu.Unlock()
	if err := s.enter(senderOf(msg), "Config.Connect"); err != nil {
		return wire.NoPath, err
	}
	path := pathOf(msg)
	c := s.configs[path]
	switch {
	case c == nil:
		return wire.NoPath, fail(wire.ErrNotFound, "there is no such config")
	case s.sessions[c.session] != nil:
		return c.session, nil
	case s.providers[c.app] == nil:
		return wire.NoPath, fail(wire.ErrProviderNotRunning, "%s is not running", c.app)
	}
	s.serial++
	each := &session{path: godbus.ObjectPath(fmt.Sprintf("%s/%d", wire.SessionRoot, s.serial)), config: path, state: wire.StateConnecting}
	s.sessions[each.path] = each
	s.broadcast(wire.RootPath, wire.ObjectManagerInterface+".InterfacesAdded", each.path, s.interfaces(each.path))
	c.session, c.reason = each.path, ""
	s.setState(path, wire.StateConnecting)
	s.message(each, wire.MessageConnected, "")
	return each.path, nil
}

func (s *Service) getAll(msg godbus.Message, iface string) (dict, *godbus.Error) {
	defer s.mu.Unlock()
	if err := s.enter(senderOf(msg), "Properties.GetAll"); err != nil {
		return nil, err
	}
	all, ok := s.interfaces(pathOf(msg))[iface]
	if !ok {
		return nil, fail(wire.ErrNotFound, "there is no such object")
	}
	return all, nil
}

func (s *Service) managedObjects(sender godbus.Sender) (map[godbus.ObjectPath]map[string]dict, *godbus.Error) {
	defer s.mu.Unlock()
	out := make(map[godbus.ObjectPath]map[string]dict)
	if err := s.enter(sender, "ObjectManager.GetManagedObjects"); err != nil {
		return nil, err
	}
	for path := range s.configs {
		out[path] = s.interfaces(path)
	}
	for path := range s.sessions {
		out[path] = s.interfaces(path)
	}
	return out, nil
}

func (s *Service) interfaces(path godbus.ObjectPath) map[string]dict {
	v := godbus.MakeVariant
	if path == wire.RootPath {
		return map[string]dict{wire.ManagerInterface: {
			"Version": v("test"), "Features": v(s.features), "Sessions": v([]godbus.ObjectPath{}),
			"Health": v(s.health()),
		}}
	}
	if c := s.configs[path]; c != nil {
		return map[string]dict{wire.ConfigInterface: {
			"App": v(c.app), "Name": v(c.name), "Owner": v(uint32(os.Getuid())), "Source": v(c.source),
			"State": v(c.state), "Session": v(c.session), "Data": v(c.data), "AutoConnect": v(c.autoConnect),
			"Lockdown": v(c.lockdown), "LastConnected": v(uint64(1700000000000000)), "FailureReason": v(c.reason),
		}}
	}
	each := s.sessions[path]
	if each == nil {
		return nil
	}
	return map[string]dict{wire.SessionInterface: {
		"Config": v(each.config), "State": v(each.state), "Interface": v("vpn0"), "InterfaceIndex": v(int32(7)),
		"Addresses": v(each.list("address")), "MTU": v(uint32(1500)), "InclusionList": v(each.list("inclusionList")),
		"ExclusionList": v(each.list("exclusionList")), "DNSServers": v(each.list("dnsServers")),
		"DomainSearch": v(each.list("domainSearch")), "MatchDomains": v(each.list("matchDomains")),
		"Reconnect": v(false), "ConnectedSince": v(uint64(1700000000000000)), "FailureReason": v(""),
		"Uplink": v(dict{
			"interface": v("eth0"), "index": v(int32(2)), "gateway": v("192.0.2.1"), "family": v("ipv4"),
			"dnsServers": v([]string{"192.0.2.53"}), "domains": v([]string{"lan"}),
		}),
		"Statistics": v(map[string]uint64{"txPackets": 3, "txBytes": 300, "rxPackets": 2, "rxBytes": 200, "dropped.source": 1}),
	}}
}

// list is a parameter as a list of strings.
func (each *session) list(key string) []string {
	switch value := each.parameters[key].Value().(type) {
	case string:
		return strings.Fields(value)
	case []string:
		return slices.Clone(value)
	}
	return []string{}
}
