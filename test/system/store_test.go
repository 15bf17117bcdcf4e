package system

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// restarts are the ways in which a daemon ends and comes back.
func restarts(t *testing.T, m *machine) map[string]func() {
	t.Helper()
	return map[string]func(){
		"stopped": func() {
			m.daemon.Stop(t)
			m.startAgain(t)
		},
		"killed": func() {
			m.daemon.Kill9()
			m.startAgain(t)
		},
	}
}

// Configs, with all that is in them, are there again after a restart.
func TestConfigsPersist(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	data := dict{
		"text": godbus.MakeVariant("Ä \" \\ </x>"), "number": godbus.MakeVariant(int64(-1 << 62)), "fraction": godbus.MakeVariant(0.1),
		"flag": godbus.MakeVariant(true), "bytes": godbus.MakeVariant([]byte{0, 255}), "byte": godbus.MakeVariant(byte(7)),
		"list":  godbus.MakeVariant([]godbus.Variant{godbus.MakeVariant("a"), godbus.MakeVariant(uint16(1))}),
		"table": godbus.MakeVariant(dict{"deep": godbus.MakeVariant(dict{"er": godbus.MakeVariant([]string{})})}),
	}
	v.provider.must(v.provider.manager("CreateConfig", app, "a ", dict{"data": godbus.MakeVariant(data)}))
	v.ui.must(v.ui.on(v.config, "Update", dict{"data": godbus.MakeVariant(data)}))
	bob := v.party(t, harness.Bob, app)
	session, _ := v.establish()
	for name, restart := range restarts(t, v.machine) {
		before := v.allConfigs(bob.config)
		restart()
		v.Host.RequireSnapshot(t, v.before, resolvConf)
		if after := v.allConfigs(bob.config); after != before {
			t.Errorf("%s:\n%s\nbefore:\n%s", name, after, before)
		}
		v.register(dict{})
		next, _ := v.establish()
		if number(t, next) <= number(t, session) {
			t.Errorf("%s: session %s comes after %s", name, next, session)
		}
		session = next
	}
}

func number(t testing.TB, session godbus.ObjectPath) (n int) {
	t.Helper()
	if _, err := fmt.Sscanf(string(session), wire.SessionRoot+"/%d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// allConfigs is all that root sees of them, as without a session.
func (v *vpn) allConfigs(known ...godbus.ObjectPath) string {
	v.t.Helper()
	var objects map[godbus.ObjectPath]map[string]dict
	root := v.dial(v.t, 0)
	root.must(root.call(wire.RootPath, wire.ObjectManagerInterface+".GetManagedObjects"), &objects)
	for _, path := range append(known, v.config) {
		if objects[path] == nil {
			v.t.Fatalf("%s is not there", path)
		}
	}
	for path, o := range objects {
		delete(o[wire.ConfigInterface], "State")
		delete(o[wire.ConfigInterface], "Session")
		delete(o[wire.ConfigInterface], "FailureReason")
		if strings.HasPrefix(string(path), wire.SessionRoot) {
			delete(objects, path)
		}
	}
	return fmt.Sprint(objects)
}

// A damaged file is set aside and named in the journal; it harms no other, and
// the config can be made again.
func TestDamagedConfig(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	var broken, cut godbus.ObjectPath
	v.provider.must(v.provider.manager("CreateConfig", app, "Broken", dict{}), &broken)
	v.provider.must(v.provider.manager("CreateConfig", app, "Cut", dict{}), &cut)
	v.daemon.Stop(t)
	file := func(config godbus.ObjectPath) string {
		return filepath.Join(v.daemon.StateDir, "configs", fmt.Sprint(harness.Alice), strings.TrimPrefix(string(config), wire.ConfigRoot+"/")+".json")
	}
	if err := os.WriteFile(file(broken), []byte("\x00\xff not JSON"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file(cut), 20); err != nil {
		t.Fatal(err)
	}
	v.startAgain(t)
	for _, config := range []godbus.ObjectPath{broken, cut} {
		v.ui.refused(v.ui.on(config, "Connect", dict{}), wire.ErrNotFound)
		if log := v.daemon.Process().Output(); !contains(log, file(config), "damaged") {
			t.Errorf("the log does not name %s:\n%s", file(config), log)
		}
		if aside, err := filepath.Glob(file(config) + "?*"); err != nil || len(aside) != 1 {
			t.Errorf("%s was set aside as %q, %v", file(config), aside, err)
		}
	}
	v.register(dict{})
	v.establish()
	v.provider.must(v.provider.manager("CreateConfig", app, "Broken", dict{}))
}

// A provider learns once what was created and removed while it was away, over
// any restarts.
func TestDeliveredOnce(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	ui := m.dial(t, harness.Alice)
	for name, restart := range restarts(t, m) {
		var config, never godbus.ObjectPath
		ui.must(ui.manager("CreateConfig", app, configName, dict{"data": godbus.MakeVariant(dict{"x": godbus.MakeVariant("y")})}), &config)
		ui.must(ui.manager("CreateConfig", app, "Never", dict{}), &never)
		if source := ui.property(config, "Source"); source != wire.SourcePlatform {
			t.Errorf("the source is %v", source)
		}
		ui.must(ui.on(never, "Remove", dict{}))
		register := func(want ...string) {
			t.Helper()
			provider := m.dial(t, harness.Alice)
			provider.must(provider.manager("RegisterProvider", app, dict{}))
			requireTrace(t, name, provider.arrived(config, never), want...) // before the answer
			requireTrace(t, name, provider.trace(config, never))
			provider.Close()
		}
		restart()
		register("ConfigCreated")
		restart()
		register()
		ui.must(ui.on(config, "Remove", dict{}))
		restart()
		register("ConfigRemoved")
		restart()
		register()
	}
}
