package system

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// office is a file of the administrator's for Alice.
const office = `app = "com.example.Demo"
name = "Office"
user = 4201
autoConnect = true

[data]
server = "vpn.example.com"
port = 443
ratio = 0.5
on = true
list = ["a", 1]
inner = { deep.er = "x" }
`

// put writes a file of the administrator's as a tool does: in one go.
func (m *machine) put(t testing.TB, name, text string) string {
	t.Helper()
	dir := filepath.Join(m.daemon.ConfigDir, "configs.d")
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o644), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
	return path
}

// awaitTrace waits until the connection has been told these, in order.
func (c *conn) awaitTrace(want []string, objects ...godbus.ObjectPath) {
	c.t.Helper()
	var got []string
	if len(want) > 0 {
		got = c.traceTo(want[len(want)-1], objects...)
	}
	requireTrace(c.t, "the connection", got, want...)
}

// find gives the path of Alice's config of that name, once it is there.
func (c *conn) find(name string) (config godbus.ObjectPath) {
	c.t.Helper()
	harness.Eventually(c.t, harness.Timeout, "there is a config "+name, func() error {
		call := c.manager("FindConfig", app, name, dict{})
		if call.Err != nil {
			return call.Err
		}
		return call.Store(&config)
	})
	return config
}

// The administrator's files are configs: there from the start, changed and gone
// with the file, told to the provider, with all types of D-Bus, and not the
// user's to change, nor root's on the bus.
func TestPlatformConfigs(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.provider.trace()
	v.ui.trace()
	file := v.put(t, "office.toml", office)
	config := v.ui.find("Office")
	v.ui.awaitTrace([]string{"+config"}, config)
	v.provider.awaitTrace([]string{"+config", "ConfigCreated"}, config)
	p := v.ui.properties(config)
	var types []string
	for key, value := range p["Data"].Value().(dict) {
		types = append(types, key+" "+value.Signature().String())
	}
	slices.Sort(types)
	if got := strings.Join(types, ", "); got != "inner a{sv}, list av, on b, port x, ratio d, server s" ||
		p["Source"].Value() != wire.SourcePlatform || p["AutoConnect"].Value() != true {
		t.Errorf("the config is %v, the types %s", p, got)
	}
	root := v.dial(t, 0)
	for _, by := range []*conn{v.ui, v.provider, root} {
		by.refused(by.on(config, "Remove", dict{}), wire.ErrNotAuthorized, file)
		by.refused(by.manager("DestroyConfig", config, dict{}), wire.ErrNotAuthorized, file)
		by.refused(by.on(config, "Update", dict{"autoConnect": godbus.MakeVariant(false)}), wire.ErrNotAuthorized, file)
		by.refused(by.on(config, "Update", dict{"lockdown": godbus.MakeVariant(true)}), wire.ErrNotAuthorized, file)
	}
	bob := v.dial(t, harness.Bob)
	bob.refused(bob.on(config, "Remove", dict{}), wire.ErrNotFound)

	// It is connected as any other.
	v.config = config
	session, _ := v.establish()
	v.ping(t, "1", includedIPv4)

	// Another version: the session does not notice, only the config changes.
	v.put(t, "office.toml", strings.Replace(office, "443", "8443", 1))
	harness.Eventually(t, harness.Timeout, "the change is followed", func() error {
		if data := v.ui.property(config, "Data").(dict); data["port"].Value() != int64(8443) {
			return fmt.Errorf("the data is %v", data)
		}
		return nil
	})
	v.requireState(wire.StateConnected)
	v.provider.trace()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	v.provider.awaitTrace([]string{
		"config disconnecting", "disconnected: removed", "config idle (removed)", "-session", "ConfigRemoved", "-config",
	}, config, session)
	v.requireClean(t)
	v.ui.refused(v.ui.manager("FindConfig", app, "Office", dict{}), wire.ErrNotFound)
}

// A bad file is named in the log with line and key; it harms no other, and what
// its last good version made stays, over restarts, for as long as the file does.
func TestPlatformConfigsBad(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.put(t, "office.toml", office)
	v.put(t, "home.toml", strings.Replace(office, "Office", "Home", 1))
	config := v.ui.find("Office")
	logged := func(want string) {
		t.Helper()
		harness.Eventually(t, harness.Timeout, "the log says "+want, func() error {
			if log := v.daemon.Process().Output(); !strings.Contains(log, want) {
				return errors.New(log)
			}
			return nil
		})
	}
	v.ui.trace()
	file := v.put(t, "office.toml", strings.Replace(office, "autoConnect = true", "autoConnect = 1", 1))
	logged(file + ":4: autoConnect: is a whole number, not true or false")
	v.put(t, "twice.toml", strings.Replace(office, "Office", "Home", 1))
	logged("home.toml has the same app, name and user")
	open := v.put(t, "open.toml", strings.Replace(office, "Office", "Open", 1))
	if err := os.Chmod(open, 0o666); err != nil {
		t.Fatal(err)
	}
	v.daemon.Process().Signal(unix.SIGHUP)
	logged("others than its owner may write it (mode 0666): chmod go-w open.toml")
	foreign := v.put(t, "foreign.toml", strings.Replace(office, "Office", "Foreign", 1))
	if err := os.Chown(foreign, harness.Alice, 0); err != nil {
		t.Fatal(err)
	}
	logged("it belongs to uid 4201, not to root: chown root foreign.toml")
	v.daemon.Stop(t)
	v.startAgain(t)
	logged(file + ":4: autoConnect: ")
	requireConfigs := func(want string) {
		t.Helper()
		var names []string
		var configs []struct {
			Config           godbus.ObjectPath
			App, Name, State string
		}
		v.ui.must(v.ui.manager("ListConfigs"), &configs)
		for _, c := range configs {
			names = append(names, c.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("there are the configs %q, want %q", got, want)
		}
	}
	requireConfigs("Home Office Work")
	if p := v.ui.properties(config); p["Data"].Value().(dict)["server"].Value() != "vpn.example.com" || p["AutoConnect"].Value() != true {
		t.Errorf("the last good version was lost: %v", p)
	}

	// The folder, writable by all, is no administrator's any more.
	dir := filepath.Dir(file)
	if err := errors.Join(os.Chmod(dir, 0o777), os.Remove(file)); err != nil {
		t.Fatal(err)
	}
	v.daemon.Process().Signal(unix.SIGHUP)
	logged("is not the administrator's alone")
	requireConfigs("Home Office Work")
	v.ui.trace()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	v.daemon.Process().Signal(unix.SIGHUP)
	v.ui.awaitTrace([]string{"-config"}, config)
	requireConfigs("Home Work")
}

// SIGHUP has the files read, and the service manager told when that is done.
func TestReload(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.daemon.Process().Signal(unix.SIGHUP)
	harness.Eventually(t, harness.Timeout, "the service manager is told", func() error {
		got := strings.Join(v.daemon.Notified(), "\n")
		if at := strings.Index(got, "RELOADING=1\nMONOTONIC_USEC="); at < 0 || !strings.Contains(got[at:], "\nREADY=1") {
			return errors.New(got)
		}
		return nil
	})
	v.mainJob()
}

// A file's config is told to its provider once, and its removal where the
// creation was told, over any restarts.
func TestPlatformConfigsDeliveredOnce(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	ui := m.dial(t, harness.Alice)
	for name, restart := range restarts(t, m) {
		file := m.put(t, "office.toml", office)
		never := m.put(t, "never.toml", strings.Replace(office, "Office", "Never", 1))
		config, neverConfig := ui.find("Office"), ui.find("Never")
		gone := func(path string, config godbus.ObjectPath) {
			t.Helper()
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			harness.Eventually(t, harness.Timeout, "it is gone", func() error {
				if errorName(ui.call(config, wire.PropertiesInterface+".GetAll", wire.ConfigInterface).Err) != wire.ErrNotFound {
					return errors.New("it is there")
				}
				return nil
			})
		}
		gone(never, neverConfig)
		register := func(want ...string) {
			t.Helper()
			provider := m.dial(t, harness.Alice)
			provider.must(provider.manager("RegisterProvider", app, dict{}))
			requireTrace(t, name, provider.arrived(config, neverConfig), want...) // before the answer
			requireTrace(t, name, provider.trace(config, neverConfig))
			provider.Close()
		}
		restart()
		register("ConfigCreated")
		restart()
		register()
		gone(file, config)
		restart()
		register("ConfigRemoved")
		restart()
		register()
	}
}

// A lockdown in a file is in force whatever becomes of the daemon, and ends when
// the file says so or by Unlock, not with the file.
func TestPlatformLockdown(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	blocked := func(want bool) {
		t.Helper()
		harness.Eventually(t, harness.Timeout, fmt.Sprintf("the lockdown is %v", want), func() error {
			_, err := v.Host.Output(t, harness.Command{Argv: []string{"ping", "-n", "-c1", "-W1", harness.ServerIPv4}})
			if (err != nil) != want {
				return errors.New("it is not")
			}
			return nil
		})
	}
	locked := strings.Replace(office, "autoConnect", "lockdown", 1)
	file := v.put(t, "office.toml", locked)
	blocked(true)
	v.daemon.Stop(t)
	v.startAgain(t)
	blocked(true)
	v.put(t, "office.toml", office)
	blocked(false)
	v.put(t, "office.toml", locked)
	blocked(true)
	config := v.ui.find("Office")
	v.ui.trace()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	v.ui.awaitTrace([]string{"-config"}, config)
	blocked(true)
	root := v.dial(t, 0)
	root.must(root.manager("Unlock", dict{}))
	blocked(false)
}
