package system

import (
	"os"
	"path/filepath"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// polkitRules let Alice do what concerns her, with one app, and Bob all of that
// but connect.
const polkitRules = `polkit.addRule(function (action, subject) {
	var own = action.id == "org.vpnprovider1.manage-own", connect = action.id == "org.vpnprovider1.connect";
	var trust = action.id == "org.vpnprovider1.trust-provider" && action.lookup("app") == "` + app + `";
	if (subject.user == "alice" && (own || connect || trust) || subject.user == "bob" && own) {
		return polkit.Result.YES;
	}
	if (subject.user == "bob" && connect) {
		return polkit.Result.NO;
	}
});
`

// The daemon as it is shipped: its own user asks a real polkitd about other
// users. What polkit does not allow, nobody may; nor where it cannot be asked.
func TestPolkit(t *testing.T) {
	t.Parallel()
	m := newHost(t)
	m.serviceUser(t)
	policy, err := os.ReadFile(filepath.Join(harness.ModuleRoot(t), "dbus-policy", "org.vpnprovider1.policy"))
	if err != nil {
		t.Fatal(err)
	}
	m.Host.PolkitFiles(t, map[string]string{"org.vpnprovider1.policy": string(policy), "50-test.rules": polkitRules})
	m.startBus(t, harness.PolkitPolicy)
	m.startAsService(t, "--authorization", "polkit", "--resolv-conf", "/run/dns/resolv.conf")

	alice := m.dial(t, harness.Alice)
	alice.refused(alice.manager("RegisterProvider", app, dict{}), wire.ErrNotAuthorized)

	polkit := m.bus.StartPolkit(t)
	v, bob := m.party(t, harness.Alice, app), m.party(t, harness.Bob, app)
	v.mainJob()
	bob.ui.refused(bob.ui.on(bob.config, "Connect", dict{}), wire.ErrNotAuthorized, "org.vpnprovider1.connect")
	bob.requireState(wire.StateIdle)
	var untrusted godbus.ObjectPath
	v.provider.must(v.provider.manager("RegisterProvider", "com.example.Other", dict{}))
	v.provider.must(v.provider.manager("CreateConfig", "com.example.Other", "x", dict{}), &untrusted)
	v.ui.refused(v.ui.on(untrusted, "Connect", dict{}), wire.ErrNotAuthorized, "com.example.Other", "org.vpnprovider1.trust-provider")
	session, _ := v.establish()
	bob.ui.refused(bob.ui.on(session, "Disconnect", dict{}), wire.ErrNotFound)
	owner := dict{"owner": godbus.MakeVariant(uint32(harness.Bob))}
	v.ui.refused(v.ui.manager("CreateConfig", app, "x", owner), wire.ErrNotAuthorized, "org.vpnprovider1.manage-others")
	// Alice lets polkit ask for a password, and there is nobody to ask.
	v.ui.refused(<-v.ui.beginInteractively(wire.RootPath, "CreateConfig", app, "x", owner), wire.ErrNotAuthorized)
	root := m.dial(t, 0)
	root.must(root.manager("CreateConfig", app, "by root", owner))

	v.testHangingPolkit(polkit, session)

	polkit.Kill()
	v.ui.refused(v.ui.on(v.config, "Connect", dict{}), wire.ErrNotAuthorized)
	v.ui.refused(v.ui.manager("CreateConfig", app, "x", dict{}), wire.ErrNotAuthorized)
	var configs []any
	v.ui.must(v.ui.manager("ListConfigs"), &configs)
	m.bus.StartPolkit(t)
	v.register(dict{})
	v.establish()
	v.disconnect()
}

// testHangingPolkit is about a polkitd that does not answer: who asks is told,
// others are not held up, and a session still ends with its provider, or where
// the one who connected it wants that.
func (v *vpn) testHangingPolkit(polkit *harness.Process, session godbus.ObjectPath) {
	t := v.t
	t.Helper()
	polkit.Signal(unix.SIGSTOP)
	defer polkit.Signal(unix.SIGCONT)
	another := v.dial(t, harness.Alice)
	another.must(another.manager("ListConfigs"))
	done, interactive := another.begin(v.config, "Disconnect", dict{}), another.beginInteractively(v.config, "Disconnect", dict{})
	served := 0
	for ; served < 20 && len(done) == 0; served++ {
		another.must(another.manager("ListConfigs"))
		v.provider.must(v.provider.on(session, "Acknowledge", "resume", dict{}))
		v.configure(session, fullTunnel())
	}
	if served < 2 { // the last may have been answered after it
		t.Error("other calls wait for polkit, too")
	}
	another.refused(<-done, wire.ErrTimeout, "polkit")
	another.refused(<-interactive, wire.ErrTimeout, "polkit")
	v.requireState(wire.StateConnected)
	v.disconnect()
	another.refused(another.on(v.config, "Connect", dict{}), wire.ErrTimeout, "polkit")
	polkit.Signal(unix.SIGCONT)
	v.establish()
	polkit.Signal(unix.SIGSTOP)
	v.provider.Close()
	v.requireClean(t)
	v.provider = v.dial(t, harness.Alice)
}
