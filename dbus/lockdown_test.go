package dbus_test

import (
	"net/netip"
	"slices"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/routing"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

func (c *client) lockdown(config godbus.ObjectPath, on bool) *godbus.Call {
	return c.config(config, "Update", dict{"lockdown": godbus.MakeVariant(on)})
}

func (c *client) get(path godbus.ObjectPath, iface, property string) any {
	c.t.Helper()
	var v godbus.Variant
	c.must(c.call(path, wire.PropertiesInterface+".Get", iface, property), &v)
	return v.Value()
}

// Without polkit a config's owner and root decide on its lockdown, and each on
// their own. Everybody is told that there is one, and nobody else whose.
func TestLockdown(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	stranger, root := b.client(harness.Bob), b.client(0)
	stranger.must(stranger.manager("ListConfigs"))
	var theirs godbus.ObjectPath
	stranger.must(stranger.manager("CreateConfig", app, "Theirs", dict{}), &theirs)
	stranger.refused(stranger.lockdown(config, true), wire.ErrNotFound)
	p.heard()
	stranger.heard()
	p.must(p.lockdown(config, true))
	if !b.Locked() || p.get(config, wire.ConfigInterface, "Lockdown") != true {
		t.Error("not locked")
	}
	told := func(c *client) []string {
		t.Helper()
		var list []string
		c.must(c.call(wire.RootPath, wire.PeerInterface+".Ping"))
		for {
			select {
			case s := <-c.signals:
				if s.Name != wire.PropertiesInterface+".PropertiesChanged" {
					continue
				}
				changed, _ := s.Body[1].(dict)
				for name, v := range changed {
					list = append(list, base(string(s.Path))+" "+name+" "+v.String())
				}
			default:
				return list
			}
		}
	}
	const health = ` Health [["lockdown", "info", "a lockdown is in force: nothing leaves this host but through the tunnel"]]`
	compare(t, "the owner", told(p), []string{"config Lockdown true", health})
	compare(t, "a stranger", told(stranger), []string{health})
	if got := stranger.get(wire.RootPath, wire.ManagerInterface, "Health").([][]any); len(got) != 1 || got[0][0] != "lockdown" {
		t.Errorf("a stranger reads %v", got)
	}
	stranger.refused(stranger.manager("Unlock", dict{}), wire.ErrNotAuthorized)
	stranger.refused(stranger.manager("Unlock", dict{"x": godbus.MakeVariant(1)}), wire.ErrInvalidParameter)
	stranger.must(stranger.lockdown(theirs, true))
	p.must(p.config(config, "Update", dict{"lockdown": godbus.MakeVariant(false), "data": godbus.MakeVariant(dict{"k": godbus.MakeVariant("v")})}))
	if !b.Locked() {
		t.Error("another user's lockdown is ended")
	}
	root.must(root.manager("Unlock", dict{}))
	if b.Locked() || stranger.get(theirs, wire.ConfigInterface, "Lockdown") != false {
		t.Error("locked")
	}
	b.Fail("lock", true)
	p.refused(p.lockdown(config, true), wire.ErrFailed)
	if p.get(config, wire.ConfigInterface, "Lockdown") != false || b.Locked() {
		t.Error("locked by a call that failed")
	}
}

func TestExplain(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	p.must(p.config(config, "Connect", dict{}))
	b.SetWay("203.0.113.7", driver.Way{
		Table: 0x56500000, Rule: 4650, Block: netip.MustParsePrefix("0.0.0.0/0"), Interface: "vpn0", Index: 7, Source: netip.MustParseAddr("10.8.0.2"),
		Planned: routing.Decision{Link: routing.Link{Index: 7}, Route: routing.Route{Type: routing.Unicast, RouteKey: routing.RouteKey{Dst: netip.MustParsePrefix("0.0.0.0/0")}}},
	})
	b.SetWay("10.98.0.53", driver.Way{Refused: true})
	b.SetResolution(&routing.Resolution{DNS: routing.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.98.0.53")}}}, false)
	ask := func(c *client, destination string, options dict) map[string]any {
		t.Helper()
		var answer dict
		c.must(c.manager("Explain", destination, options), &answer)
		got := map[string]any{}
		for key, v := range answer {
			got[key] = v.Value()
		}
		return got
	}
	want := map[string]any{
		"destination": "203.0.113.7", "uid": uint32(harness.Alice), "action": "tunnel", "why": "0.0.0.0/0 goes into the tunnel",
		"session": godbus.ObjectPath("/org/vpnprovider1/session/1"), "rule": uint32(4650), "table": uint32(0x56500000),
		"device": "vpn0", "route": "0.0.0.0/0", "source": "10.8.0.2", "dnsServers": []string{},
	}
	if diff := cmp.Diff(want, ask(p, "203.0.113.7", dict{})); diff != "" {
		t.Error(diff)
	}
	delete(want, "session")
	want["uid"] = uint32(7)
	if diff := cmp.Diff(want, ask(b.client(harness.Bob), "203.0.113.7", dict{"uid": godbus.MakeVariant(uint32(7))})); diff != "" {
		t.Errorf("a stranger: %s", diff)
	}
	if got := ask(p, "example.org", dict{}); got["action"] != "blocked" || !slices.Equal(got["dnsServers"].([]string), []string{"10.98.0.53"}) {
		t.Errorf("a name: %v", got)
	}
	p.refused(p.manager("Explain", "not a name", dict{}), wire.ErrInvalidParameter)
	p.refused(p.manager("Explain", "203.0.113.7", dict{"uid": godbus.MakeVariant("alice")}), wire.ErrInvalidParameter)
}

// With polkit the owner of a config alone does not decide: neither by the
// config, nor by another one that opens a way out.
func TestLockdownAsksPolkit(t *testing.T) {
	own := []string{"org.vpnprovider1.manage-own", "org.vpnprovider1.connect", "org.vpnprovider1.trust-provider"}
	a := &authority{yes: own, no: []string{"org.vpnprovider1.set-lockdown"}}
	b := newPolkitBench(t, a)
	p, config := b.provider()
	var other godbus.ObjectPath
	p.must(p.manager("CreateConfig", "", "Home", dict{}), &other)
	p.refused(p.lockdown(config, true), wire.ErrNotAuthorized)
	p.refused(p.config(config, "Update", dict{"lockdown": godbus.MakeVariant(true), "autoConnect": godbus.MakeVariant(true)}), wire.ErrNotAuthorized)
	if p.get(config, wire.ConfigInterface, "AutoConnect") != false {
		t.Error("a part of what was refused is done")
	}
	root := b.client(0)
	root.must(root.lockdown(config, true))
	p.refused(p.lockdown(config, false), wire.ErrNotAuthorized)
	p.refused(p.manager("Unlock", dict{}), wire.ErrNotAuthorized)
	p.refused(p.config(other, "Connect", dict{}), wire.ErrNotAuthorized)
	p.must(p.config(config, "Connect", dict{}))
	p.must(p.manager("DestroyConfig", config, dict{}))
	if !b.Locked() {
		t.Error("the lockdown ended with its config")
	}
	a.decide(append(own, "org.vpnprovider1.set-lockdown"), nil)
	p.must(p.config(other, "Connect", dict{}))
	p.must(p.manager("Unlock", dict{}))
	if b.Locked() {
		t.Error("locked")
	}
}
