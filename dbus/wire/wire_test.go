package wire_test

import (
	"strings"
	"testing"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// The contract as published. A change here breaks clients.
func TestSignatures(t *testing.T) {
	all, err := wire.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	methods := map[string]string{
		"Manager.RegisterProvider": "sa{sv}>a{sv}", "Manager.UnregisterProvider": "sa{sv}>",
		"Manager.ListProviders": ">a(sa{sv})", "Manager.ForgetProvider": "sa{sv}>",
		"Manager.RegisterAgent": "a{sv}>", "Manager.CreateConfig": "ssa{sv}>o",
		"Manager.DestroyConfig": "oa{sv}>", "Manager.FindConfig": "ssa{sv}>o",
		"Manager.ListConfigs": ">a(osss)", "Manager.ListSessions": ">a(oos)",
		"Manager.ShowAddDialog": "sa{sv}>", "Manager.Explain": "sa{sv}>a{sv}",
		"Manager.Unlock": "a{sv}>", "Manager.Subscribe": ">", "Manager.Unsubscribe": ">",
		"Config.Connect": "a{sv}>o", "Config.Disconnect": "a{sv}>", "Config.Remove": "a{sv}>",
		"Config.ShowConfigureDialog": "a{sv}>", "Config.Update": "a{sv}>",
		"Session.SetParameters": "a{sv}>as", "Session.NotifyConnectionStateChanged": "sa{sv}>",
		"Session.Acknowledge": "sa{sv}>", "Session.SendPacket": "ay>",
		"Session.OpenPacketChannel": "a{sv}>ha{sv}", "Session.AttachPacketChannel": "ha{sv}>a{sv}",
		"Session.CreatePacketToken": "a{sv}>sa{sv}", "Session.ProtectSocket": "ha{sv}>",
		"Session.OpenCapture": "a{sv}>ha{sv}", "Session.Disconnect": "a{sv}>",
	}
	properties := map[string]string{
		"Manager.Version": "s", "Manager.Features": "as", "Manager.Sessions": "ao", "Manager.Health": "a(sss)",
		"Config.App": "s", "Config.Name": "s", "Config.Owner": "u", "Config.Source": "s", "Config.State": "s",
		"Config.Session": "o", "Config.Data": "a{sv}", "Config.AutoConnect": "b", "Config.Lockdown": "b",
		"Config.LastConnected": "t", "Config.FailureReason": "s",
		"Session.Config": "o", "Session.State": "s", "Session.Interface": "s", "Session.InterfaceIndex": "i",
		"Session.Addresses": "as", "Session.MTU": "u", "Session.InclusionList": "as", "Session.ExclusionList": "as",
		"Session.DNSServers": "as", "Session.DomainSearch": "as", "Session.MatchDomains": "as",
		"Session.Reconnect": "b", "Session.ConnectedSince": "t", "Session.Uplink": "a{sv}",
		"Session.FailureReason": "s", "Session.Statistics": "a{st}",
	}
	signals := map[string]string{
		"Manager.ConfigCreated": "osa{sv}", "Manager.ConfigRemoved": "os", "Manager.UIEvent": "so",
		"Manager.StartProvider": "s", "Session.PlatformMessage": "oss", "Session.PacketReceived": "ay",
	}
	for _, name := range []string{wire.ManagerInterface, wire.ConfigInterface, wire.SessionInterface} {
		iface, short := all[name], strings.TrimPrefix(name, wire.BusName+".")
		if !strings.Contains(iface.XML, `<interface name="`+name+`">`) {
			t.Errorf("%s: no XML", name)
		}
		for _, m := range iface.Methods {
			compare(t, methods, short+"."+m.Name, m.In()+">"+m.Out())
		}
		for _, p := range iface.Properties {
			compare(t, properties, short+"."+p.Name, p.Type)
			if p.Access != "read" {
				t.Errorf("%s.%s: access %s", short, p.Name, p.Access)
			}
		}
		for _, s := range iface.Signals {
			var sig strings.Builder
			for _, a := range s.Args {
				sig.WriteString(a.Type)
			}
			compare(t, signals, short+"."+s.Name, sig.String())
		}
	}
	for _, rest := range []map[string]string{methods, properties, signals} {
		for name := range rest {
			t.Errorf("%s: not in the XML", name)
		}
	}
}

func compare(t *testing.T, want map[string]string, name, got string) {
	t.Helper()
	if w, ok := want[name]; !ok || w != got {
		t.Errorf("%s: XML says %q, contract %q (known %v)", name, got, w, ok)
	}
	delete(want, name)
}

func TestStandardInterfaces(t *testing.T) {
	all, err := wire.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{wire.PeerInterface, wire.IntrospectableInterface, wire.PropertiesInterface, wire.ObjectManagerInterface} {
		if all[name].XML == "" {
			t.Errorf("%s: no XML", name)
		}
	}
	statistics, _ := all[wire.SessionInterface].Property("Statistics")
	state, _ := all[wire.SessionInterface].Property("State")
	config, _ := all[wire.SessionInterface].Property("Config")
	if statistics.Emits() || config.Emits() || !state.Emits() {
		t.Errorf("Emits: Statistics %v, Config %v, State %v", statistics.Emits(), config.Emits(), state.Emits())
	}
}
