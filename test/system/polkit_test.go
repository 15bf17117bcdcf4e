package system

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const (
	polkitd       = "/usr/lib/polkit-1/polkitd"
	polkitBusName = "org.freedesktop.PolicyKit1"
	polkitPolicy  = "/usr/share/dbus-1/system.d/org.freedesktop.PolicyKit1.conf"
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

// startPolkit runs the real polkitd on the host, with our actions and the
// rules above alone.
func (m *machine) startPolkit(t testing.TB) *harness.Process {
	t.Helper()
	p := m.Host.Start(t, harness.Command{Argv: []string{polkitd, "--no-debug"}})
	conn := m.bus.Dial(t)
	harness.Eventually(t, harness.Timeout, "polkitd is on the bus", func() error {
		var there bool
		if err := conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, polkitBusName).Store(&there); err != nil {
			return err
		}
		if !there {
			return errors.New(p.Output())
		}
		return nil
	})
	return p
}

func (m *machine) polkitFiles(t testing.TB) {
	t.Helper()
	actions, rules, none := harness.TempDir(t), harness.TempDir(t), harness.TempDir(t)
	policy, err := os.ReadFile(filepath.Join(harness.ModuleRoot(t), "dbus-policy", "org.vpnprovider1.policy"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		filepath.Join(actions, "org.vpnprovider1.policy"): string(policy),
		filepath.Join(rules, "50-test.rules"):             polkitRules,
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	err = m.Host.Do(func() error {
		for target, source := range map[string]string{
			"/usr/share/polkit-1/actions": actions, "/usr/share/polkit-1/rules.d": rules, "/etc/polkit-1/rules.d": none,
		} {
			if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
				return &os.PathError{Op: "bind", Path: target, Err: err}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The daemon as it is shipped: its own user asks a real polkitd about other
// users. What polkit does not allow, nobody may; nor where it cannot be asked.
func TestPolkit(t *testing.T) {
	t.Parallel()
	harness.Require(t, polkitd)
	m := newHost(t)
	m.serviceUser(t)
	m.polkitFiles(t)
	m.startBus(t, polkitPolicy)
	m.startAsService(t, "--authorization", "polkit", "--resolv-conf", "/run/dns/resolv.conf")

	alice := m.dial(t, harness.Alice)
	alice.refused(alice.manager("RegisterProvider", app, dict{}), wire.ErrNotAuthorized)

	polkit := m.startPolkit(t)
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
	m.startPolkit(t)
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
	begun := time.Now()
	done, interactive := another.begin(v.config, "Disconnect", dict{}), another.beginInteractively(v.config, "Disconnect", dict{})
	for range 20 {
		another.must(another.manager("ListConfigs"))
		v.provider.must(v.provider.on(session, "Acknowledge", "resume", dict{}))
		v.configure(session, fullTunnel())
	}
	held := time.Since(begun)
	another.refused(<-done, wire.ErrTimeout, "polkit")
	if waited := time.Since(begun); waited < held || held > 4*time.Second {
		t.Errorf("other calls took %v while polkit was asked, the call itself %v", held, waited)
	}
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
