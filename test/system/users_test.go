package system

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// Another user who listens to all that the bus lets pass, and asks the daemon
// all that it can be asked, learns nothing of Alice's.
func TestPrivacy(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	bob := v.dial(t, harness.Bob)
	monitor := bob.Object("org.freedesktop.DBus", "/org/freedesktop/DBus")
	if err := monitor.Call("org.freedesktop.DBus.Monitoring.BecomeMonitor", 0, []string{}, uint32(0)).Err; err == nil {
		t.Fatal("bob is a monitor of the bus")
	}
	for _, rule := range []string{"", "eavesdrop='true'", "type='signal'", "sender='" + wire.BusName + "'", "path_namespace='" + wire.RootPath + "'"} {
		monitor.Call("org.freedesktop.DBus.AddMatch", 0, rule) // the bus may refuse
	}
	bob.must(bob.manager("Subscribe"))
	heard := make(chan *godbus.Message, 1<<14)
	bob.Eavesdrop(heard)

	secret := func(i int) string { return fmt.Sprintf("Secret-%d", i) }
	const cycles = 100
	var paths []string
	for i := range cycles {
		// The control: what Alice broadcasts herself is heard.
		if err := v.ui.Emit("/", "org.example.Control.Heard"); err != nil {
			t.Fatal(err)
		}
		v.provider.must(v.provider.manager("CreateConfig", app, secret(i), dict{"data": godbus.MakeVariant(dict{"server": godbus.MakeVariant("secret.example")})}), &v.config)
		session, _ := v.establish()
		paths = append(paths, string(v.config), string(session))
		v.disconnect()
		v.ui.must(v.ui.on(v.config, "Remove", dict{}))
	}
	// What was sent to bob before this call's answer is there with it.
	bob.Eavesdrop(nil)
	bob.must(bob.call(wire.RootPath, wire.PeerInterface+".Ping"))
	needles := append([]string{"ecret", app, tunnelIPv4, tunnelIPv6, harness.PrivateDNS, "vpn0", wire.RootPath + "/"}, paths...)
	control := 0
	for len(heard) > 0 {
		m := <-heard
		text := fmt.Sprint(m.Headers, m.Body)
		for _, needle := range needles {
			if strings.Contains(text, needle) {
				t.Errorf("bob got %q: %s", needle, text)
				break
			}
		}
		if m.Headers[godbus.FieldMember].Value() == "Heard" {
			control++
		}
	}
	if control != cycles {
		t.Errorf("bob heard %d of %d broadcasts: this tests nothing", control, cycles)
	}
}

// All calls on another user's objects are answered as on objects that are not
// there.
func TestOthersObjects(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session, _ := v.establish()
	bob := v.party(t, harness.Bob, app)
	if bob.config == v.config {
		t.Fatal("two users have one config")
	}
	number := strings.TrimPrefix(string(session), wire.SessionRoot+"/")
	id := strings.TrimPrefix(string(v.config), wire.ConfigRoot+"/")
	pairs := map[godbus.ObjectPath]godbus.ObjectPath{ // Alice's, and none
		session:  wire.SessionRoot + "/999",
		v.config: wire.ConfigRoot + "/00000000000000000000000000000000",
	}
	for theirs, none := range pairs {
		iface := interfaceOf(theirs)
		for method, args := range map[string][]any{
			wire.PropertiesInterface + ".Get":                   {iface, "State"},
			wire.PropertiesInterface + ".GetAll":                {iface},
			wire.PropertiesInterface + ".Set":                   {iface, "State", godbus.MakeVariant("idle")},
			wire.IntrospectableInterface + ".Introspect":        {},
			wire.ConfigInterface + ".Connect":                   {dict{}},
			wire.ConfigInterface + ".Disconnect":                {dict{}},
			wire.ConfigInterface + ".Remove":                    {dict{}},
			wire.ConfigInterface + ".Update":                    {dict{"data": godbus.MakeVariant(dict{})}},
			wire.ConfigInterface + ".ShowConfigureDialog":       {dict{}},
			wire.SessionInterface + ".Disconnect":               {dict{}},
			wire.SessionInterface + ".SetParameters":            {fullTunnel()},
			wire.SessionInterface + ".SendPacket":               {[]byte{0x45}},
			wire.SessionInterface + ".OpenPacketChannel":        {dict{}},
			wire.SessionInterface + ".Acknowledge":              {"suspend", dict{}},
			wire.ManagerInterface + ".ListConfigs":              {},
			wire.ObjectManagerInterface + ".GetManagedObjects":  {},
			wire.SessionInterface + ".OpenPacketChannel, wrong": {"x"},
		} {
			method, _, _ = strings.Cut(method, ",")
			got, want := bob.ui.call(theirs, method, args...).Err, bob.ui.call(none, method, args...).Err
			text := strings.NewReplacer(number, "999", id, "00000000000000000000000000000000")
			if got == nil || errorName(got) != errorName(want) || text.Replace(got.Error()) != want.Error() {
				t.Errorf("%s on %s: %v, on what is not there: %v", method, theirs, got, want)
			}
		}
	}
	bob.ui.refused(bob.ui.manager("DestroyConfig", v.config, dict{}), wire.ErrNotFound)
	bob.ui.refused(bob.ui.manager("FindConfig", app, configName, dict{"owner": godbus.MakeVariant(uint32(harness.Alice))}), wire.ErrNotFound)
	bob.ui.refused(bob.ui.manager("CreateConfig", app, "x", dict{"owner": godbus.MakeVariant(uint32(harness.Alice))}), wire.ErrNotAuthorized)
	for _, list := range []string{"ListConfigs", "ListSessions"} {
		call := bob.ui.manager(list)
		bob.ui.must(call)
		if text := fmt.Sprint(call.Body); strings.Contains(text, id) || strings.Contains(text, "vpn0") {
			t.Errorf("%s gives bob %s", list, text)
		}
	}
	for _, path := range []godbus.ObjectPath{wire.RootPath, wire.ConfigRoot, wire.SessionRoot} {
		call := bob.ui.call(path, wire.IntrospectableInterface+".Introspect")
		bob.ui.must(call)
		if text := call.Body[0].(string); strings.Contains(text, id) || strings.Contains(text, `<node name="`+number+`"`) {
			t.Errorf("bob introspects %s and gets\n%s", path, text)
		}
	}
	call := bob.ui.call(wire.RootPath, wire.ObjectManagerInterface+".GetManagedObjects")
	bob.ui.must(call)
	if text := fmt.Sprint(call.Body); strings.Contains(text, id) || strings.Contains(text, string(session)) {
		t.Errorf("bob's objects are %s", text)
	}
	if sessions := bob.ui.property(wire.RootPath, "Sessions"); len(sessions.([]godbus.ObjectPath)) != 0 {
		t.Errorf("bob sees the sessions %v", sessions)
	}
	v.requireState(wire.StateConnected)
	v.ping(t, "1", includedIPv4)
}

// The host has one tunnel: another user does not get it while it is in use,
// unless root says so.
func TestOneSessionForAllUsers(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	bob := v.party(t, harness.Bob, app)
	v.establish()
	bob.ui.refused(bob.ui.on(bob.config, "Connect", dict{}), wire.ErrBusy)
	bob.requireState(wire.StateIdle)
	v.requireState(wire.StateConnected)
	v.ping(t, "1", includedIPv4)
	v.disconnect()
	bob.establish()
	v.ui.refused(v.ui.on(v.config, "Connect", dict{}), wire.ErrBusy)
	bob.disconnect()

	session, channel := v.establish()
	v.provider.trace()
	root := v.dial(t, 0)
	root.must(root.on(bob.config, "Connect", dict{}))
	requireTrace(t, "the provider", v.provider.trace(v.config, session),
		"config disconnecting", "disconnected: replaced", "config idle (replaced)", "-session")
	channel.awaitEnd(t)
	bob.requireState(wire.StateConnecting)
	root.must(root.on(bob.config, "Disconnect", dict{}))
	v.requireClean(t)
}

// Several programs of two users connect and disconnect all at once: there is
// one session at most, each call has an answer that makes sense, and in the
// end nothing is left.
func TestConcurrentConnects(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	second, bob := v.party(t, harness.Alice, "com.example.Second"), v.party(t, harness.Bob, app)
	parties := []*vpn{v, second, bob}
	for _, p := range parties {
		go p.provider.configureAll()
	}
	answers := map[string]int{}
	var mu sync.Mutex
	var running sync.WaitGroup
	for i := range 6 {
		p := parties[i%len(parties)]
		c := v.dial(t, []uint32{harness.Alice, harness.Alice, harness.Bob}[i%len(parties)])
		running.Go(func() {
			for range 30 {
				member := "Connect"
				if rand.IntN(3) == 0 {
					member = "Disconnect"
				}
				err := c.on(p.config, member, dict{}).Err
				mu.Lock()
				answers[member+" "+errorName(err)]++
				mu.Unlock()
				switch name := errorName(err); {
				case name == "", name == wire.ErrBusy && member == "Connect":
				case name == wire.ErrFailed && strings.Contains(err.Error(), "cancelled"):
				default:
					t.Errorf("%s: %v", member, err)
				}
				c.arrived()
			}
		})
	}
	running.Wait()
	t.Logf("answers: %v", answers)
	if answers["Connect "] == 0 || answers["Disconnect "] == 0 {
		t.Error("nobody connected")
	}
	root, active := v.dial(t, 0), 0
	var configs []struct {
		Config           godbus.ObjectPath
		App, Name, State string
	}
	root.must(root.manager("ListConfigs"), &configs)
	for _, c := range configs {
		switch c.State {
		case wire.StateIdle, wire.StateFailed:
		default:
			active++
		}
	}
	if active > 1 {
		t.Errorf("%v", configs)
	}
	for _, p := range parties {
		p.disconnect()
		p.requireState(wire.StateIdle)
	}
	v.requireClean(t)
}

// configureAll is a provider that configures each session that begins, until
// the connection is closed.
func (c *conn) configureAll() {
	for s := range c.signals {
		if strings.HasSuffix(s.Name, ".PlatformMessage") && s.Body[1] == wire.MessageConnected {
			c.begin(s.Path, "SetParameters", fullTunnel())
		}
	}
}
