package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-tray/internal/icon"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-tray/internal/model"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/client/clienttest"
	"github.com/vpnprovider/vpnproviderd/test/harness"
	"github.com/vpnprovider/vpnproviderd/test/screenshots/desktop"
)

func TestMain(m *testing.M) { harness.Main(m) }

const demo = "com.example.Demo"

// tray is one that runs between two private buses: with the stand-in for the
// daemon on one, and those for the desktop on the other.
type tray struct {
	*desktop.Process
	*desktop.Panel
	notes           *desktop.Notifications
	service         *clienttest.Service
	system, session string
	endSession      func()
}

func start(t *testing.T) *tray {
	t.Helper()
	l := &tray{system: clienttest.Bus(t)}
	l.session, l.endSession = clienttest.BusToKill(t)
	l.service = clienttest.Start(t, l.system)
	l.Panel = desktop.StartPanel(t, l.session)
	l.notes = desktop.StartNotifications(t, l.session, "body", "body-markup")
	l.Process = l.launch(t)
	return l
}

// launch starts the program.
func (l *tray) launch(t *testing.T) *desktop.Process {
	t.Helper()
	return desktop.Start(t, []string{"DBUS_SESSION_BUS_ADDRESS=" + l.session, "HOME=/nonexistent"}, harness.Binary(t, "vpn-tray"), "--bus", l.system)
}

// provide registers an app with these configs, and returns their paths.
func (l *tray) provide(t *testing.T, names ...string) []string {
	t.Helper()
	c, err := client.Dial(t.Context(), client.WithAddress(l.system))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	p, err := c.RegisterProvider(t.Context(), demo, client.ProviderOptions{DisplayName: "Demo"})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for range p.Events() {
		}
	}()
	var paths []string
	for _, name := range names {
		cfg, err := p.CreateConfig(t.Context(), name, client.ConfigOptions{})
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, cfg.Path())
	}
	return paths
}

// expectIcon waits for a picture.
func expectIcon(t *testing.T, panel *desktop.Panel, want model.Icon) {
	t.Helper()
	const size = 64
	img := icon.Draw(want, size)
	harness.Eventually(t, harness.Timeout, fmt.Sprintf("the icon is %d", want), func() error {
		look, err := panel.Look()
		if err != nil {
			return err
		}
		if look.Width != size || look.Height != size || len(look.Pixels) != 4*size*size {
			return fmt.Errorf("it has %dx%d pixels in %d bytes", look.Width, look.Height, len(look.Pixels))
		}
		for i := range size * size {
			got, want := look.Pixels[4*i:4*i+4], img.Pix[4*i:4*i+4]
			if got[0] != want[3] || !slices.Equal(got[1:], want[:3]) {
				return fmt.Errorf("pixel %d is %v, want %v", i, got, want)
			}
		}
		return nil
	})
}

// A person looks, clicks, and is told.
func TestTray(t *testing.T) {
	t.Parallel()
	l := start(t)
	l.Panel.Await(t, "There are no VPNs (grey)", "Quit")
	expectIcon(t, l.Panel, model.Disconnected)
	work := l.provide(t, "Work", "a_b")[0]
	l.Panel.Await(t, "Not connected (grey)", "Work", "a_b")

	l.Click(t, "Work")
	l.Panel.Await(t, "Work: connecting … [x]", "Connecting to Work … (grey)")
	expectIcon(t, l.Panel, model.Connecting)
	l.connected(t, work)
	l.Panel.Await(t, "Work: connected [x]")
	expectIcon(t, l.Panel, model.Connected)
	if look, err := l.Look(); err != nil || look.ID != "vpn-tray" || look.Title != "VPN" || look.Tip != "Connected to Work" {
		t.Errorf("%q %q %q %v", look.ID, look.Title, look.Tip, err)
	}

	l.service.SetState(work, "reconnecting")
	l.Panel.Await(t, "Work: reconnecting … [x]")
	expectIcon(t, l.Panel, model.Reconnecting)
	l.notes.Await(t, 0, "1: Work is reconnecting | What goes through the VPN is held back until it is connected again.")
	l.service.SetState(work, "connected")
	l.notes.Await(t, 1, "1: Work is connected again | (transient)")

	l.service.End(l.sessionPath(t), "internal error: <b>&")
	l.Panel.Await(t, "Work: failed, internal error: <b>&", "Not connected (grey)")
	expectIcon(t, l.Panel, model.Failed)
	l.notes.Await(t, 2, "1: Work is not connected | Internal error: &lt;b&gt;&amp;.")

	l.Click(t, "Work: failed, internal error: <b>&")
	l.notes.Await(t, 3, "1: closed")
	l.connected(t, work)
	l.Panel.Await(t, "Work: connected [x]")
	l.Click(t, "Work: connected")
	l.Panel.Await(t, "Work", "Not connected (grey)")
	expectIcon(t, l.Panel, model.Disconnected)

	l.service.Fail("Config.Connect", "org.vpnprovider1.Error.Busy", "another user has the tunnel")
	l.Click(t, "a_b")
	l.notes.Await(t, 4, "2: Cannot connect a_b | Another user has the tunnel.")
	l.Panel.Await(t, "a_b")
	l.Click(t, "Quit")
	if code := l.Wait(t); code != ui.ExitOK {
		t.Errorf("exit code %d", code)
	}
}

// connected completes what a click on a config has begun.
func (l *tray) connected(t *testing.T, config string) {
	t.Helper()
	l.sessionPath(t)
	l.service.SetState(config, "connected")
}

// sessionPath waits for the one session.
func (l *tray) sessionPath(t *testing.T) (path string) {
	t.Helper()
	c, err := client.Dial(t.Context(), client.WithAddress(l.system))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	harness.Eventually(t, harness.Timeout, "there is a session", func() error {
		all, err := c.ListSessions(t.Context())
		if err != nil || len(all) != 1 {
			return fmt.Errorf("sessions %v, %w", all, err)
		}
		path = all[0].Path
		return nil
	})
	return path
}

// The dialogs of apps, and the end of a lockdown, are asked for from the menu.
func TestSubmenus(t *testing.T) {
	t.Parallel()
	l := start(t)
	c, err := client.Dial(t.Context(), client.WithAddress(l.system))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p, err := c.RegisterProvider(t.Context(), demo, client.ProviderOptions{DisplayName: "Demo"})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := p.CreateConfig(t.Context(), "Work", client.ConfigOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l.Click(t, "Settings", "Work")
	if event, ok := (<-p.Events()).(client.UIEvent); !ok || event.Config == nil || event.Config.Path() != cfg.Path() {
		t.Errorf("got %+v", event)
	}
	l.Click(t, "Add", "Demo")
	if event, ok := (<-p.Events()).(client.UIEvent); !ok || event.Config != nil {
		t.Errorf("got %+v", event)
	}

	on := true
	if err := cfg.Update(t.Context(), client.ConfigUpdate{Lockdown: &on}); err != nil {
		t.Fatal(err)
	}
	l.Panel.Await(t, "Lockdown: nothing leaves without a VPN (grey)", "Work: lockdown", "End the lockdown")
	expectIcon(t, l.Panel, model.Lockdown)
	l.Click(t, "End the lockdown")
	l.Panel.Await(t, "Not connected (grey)", "Work")
	harness.Eventually(t, harness.Timeout, "the lockdown is no more offered to be ended", func() error {
		if menu, err := l.Menu(); err != nil || strings.Contains(fmt.Sprint(menu), "End the lockdown") {
			return fmt.Errorf("%q %w", menu, err)
		}
		return nil
	})
	if err := cfg.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.Panel.Await(t, "There are no VPNs (grey)")
}

// What has no room stands in a submenu, and a line stays where it is.
func TestManyConfigs(t *testing.T) {
	t.Parallel()
	l := start(t)
	var names []string
	for i := range topRows + 10 {
		names = append(names, fmt.Sprintf("VPN %02d", i))
	}
	paths := l.provide(t, names...)
	l.Panel.Await(t, "VPN 00", "More")
	last := names[len(names)-1]
	l.Click(t, "More", last)
	l.connected(t, paths[len(paths)-1])
	l.Panel.Await(t, "Connected to "+last+" (grey)")
	harness.Eventually(t, harness.Timeout, "all are in the menu", func() error {
		menu, err := l.Menu()
		text := fmt.Sprint(menu)
		for _, name := range names {
			if !strings.Contains(text, name) {
				return fmt.Errorf("no %s in %s, %w", name, text, err)
			}
		}
		if !strings.Contains(text, last+": connected [x]") {
			return fmt.Errorf("%s is not connected: %s", last, text)
		}
		return nil
	})
}

// The panel comes after the tray, and goes and comes again.
func TestPanelComesAndGoes(t *testing.T) {
	t.Parallel()
	l := &tray{system: clienttest.Bus(t), session: clienttest.Bus(t)}
	l.service = clienttest.Start(t, l.system)
	conn, err := godbus.Connect(l.session)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	l.Process = l.launch(t)
	harness.Eventually(t, harness.Timeout, "the tray is there", func() error {
		return conn.BusObject().Call("org.freedesktop.DBus.GetNameOwner", 0, ownName).Err
	})
	for range 3 {
		panel := desktop.StartPanel(t, l.session)
		panel.Await(t, "There are no VPNs (grey)", "Quit")
		expectIcon(t, panel, model.Disconnected)
		if n := panel.Items(); n != 1 {
			t.Errorf("%d icons", n)
		}
		panel.Close()
	}
	// Nobody shows notifications: that harms nothing.
	work := l.provide(t, "Work")[0]
	l.service.SetState(work, "failed")
	l.Process.Await(t, `cannot show "Work is not connected"`)
	if err := l.Running(); err != nil {
		t.Error(err)
	}
}

// Another notification server has other numbers: the old ones are forgotten.
func TestNotificationServerRestarts(t *testing.T) {
	t.Parallel()
	l := start(t)
	work := l.provide(t, "Work")[0]
	l.Panel.Await(t, "Work")
	l.service.SetState(work, "failed")
	l.notes.Await(t, 0, "1: Work is not connected |")
	l.notes.Close()
	plain := desktop.StartNotifications(t, l.session)
	l.service.SetState(work, "idle")
	l.service.SetState(work, "failed")
	plain.Await(t, 0, "1: Work is not connected |")
}

// The daemon is away when the tray starts, is restarted, and the bus with it.
func TestDaemonComesAndGoes(t *testing.T) {
	t.Parallel()
	l := start(t)
	work := l.provide(t, "Work")[0]
	l.Click(t, "Work")
	l.connected(t, work)
	l.Panel.Await(t, "Work: connected [x]")
	l.service.Stop()
	l.Panel.Await(t, "The VPN service is not running (grey)", "Work (grey)", "Start the VPN service")
	expectIcon(t, l.Panel, model.Failed)
	l.notes.Await(t, 0, "1: The VPN service has stopped | VPNs are not connected.")
	l.Click(t, "Start the VPN service") // which nothing does here
	harness.Eventually(t, harness.Timeout, "the user is told", func() error {
		if all := l.notes.Events(); !strings.HasPrefix(all[len(all)-1], "1: The VPN service could not do that | Vpnproviderd is not running") {
			return fmt.Errorf("%q", all)
		}
		return nil
	})
	l.service.Restart(l.system)
	l.Panel.Await(t, "Work: connected [x]")
	expectIcon(t, l.Panel, model.Connected)
}

func TestWithoutDaemon(t *testing.T) {
	t.Parallel()
	l := &tray{session: clienttest.Bus(t)}
	var stop func()
	l.system, stop = clienttest.BusToKill(t)
	l.Panel = desktop.StartPanel(t, l.session)
	l.Process = l.launch(t)
	l.Panel.Await(t, "The VPN service is not running (grey)", "Start the VPN service")
	l.service = clienttest.Start(t, l.system)
	l.Click(t, "Start the VPN service") // it is there, and found sooner by this
	l.Panel.Await(t, "There are no VPNs (grey)")
	stop()
	l.Panel.Await(t, "The VPN service is not running (grey)")
	if err := l.Running(); err != nil {
		t.Error(err)
	}
}

// How it ends, and when it does not even start.
func TestEnds(t *testing.T) {
	t.Parallel()
	l := start(t)
	l.Panel.Await(t, "There are no VPNs (grey)")
	second := l.launch(t)
	if code := second.Wait(t); code != ui.ExitOK || !strings.Contains(second.Output(), "runs already") {
		t.Errorf("a second one: %d %q", code, second.Output())
	}
	l.Signal(syscall.SIGTERM)
	if code := l.Wait(t); code != ui.ExitOK || l.Output() != "" {
		t.Errorf("after SIGTERM %d %q", code, l.Output())
	}
	third := l.launch(t)
	harness.Eventually(t, harness.Timeout, "it registers", func() error {
		if n := l.Items(); n != 2 {
			return fmt.Errorf("%d items", n)
		}
		return nil
	})
	l.endSession()
	if code := third.Wait(t); code != ui.ExitFailed || !strings.Contains(third.Output(), "session bus is gone") {
		t.Errorf("without the session bus %d %q", code, third.Output())
	}
	for _, test := range []struct {
		code int
		says string
		args []string
	}{
		{ui.ExitFailed, "cannot join the session bus", nil},
		{ui.ExitUsage, "Try 'vpn-tray --help'", []string{"--bus"}},
		{ui.ExitUsage, "unexpected argument", []string{"x"}},
		{ui.ExitOK, "vpn-tray 0", []string{"--version"}},
		{ui.ExitOK, "--bus ADDRESS", []string{"--help"}},
	} {
		p := desktop.Start(t, []string{"DBUS_SESSION_BUS_ADDRESS=unix:path=/nonexistent", "HOME=" + os.TempDir()}, append([]string{harness.Binary(t, "vpn-tray")}, test.args...)...)
		if code := p.Wait(t); code != test.code || !strings.Contains(p.Output(), test.says) {
			t.Errorf("%q: %d %q", test.args, code, p.Output())
		}
	}
}
