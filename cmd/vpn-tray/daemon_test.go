package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-tray/internal/model"
	"github.com/vpnprovider/vpnproviderd/test/harness"
	"github.com/vpnprovider/vpnproviderd/test/screenshots/desktop"
)

// sessionBus is a user's bus that can start the app com.example.Echo. The test
// is another user, and plays the desktop.
const sessionBus = `<busconfig>
  <type>session</type>
  <auth>EXTERNAL</auth>
  <listen>unix:path=%[1]s/session</listen>
  <servicedir>%[1]s</servicedir>
  <policy context="default">
    <allow user="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
  </policy>
</busconfig>`

const echoService = `[D-BUS Service]
Name=com.example.Echo
Exec=/bin/sh -c "echo $$ >%[1]s/pid; exec %[1]s/echo"
`

// desk is a host with the daemon, and an ordinary user's desktop on it.
type desk struct {
	*harness.Topology
	bus    *harness.Bus
	daemon *harness.Daemon
	dir    string
	panel  *desktop.Panel
	notes  *desktop.Notifications
	tray   *harness.Process
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{Topology: harness.NewTopology(t), dir: harness.TempDir(t)}
	d.bus = harness.StartBus(t, d.Host, harness.BusOptions{Policy: harness.ShippedPolicy})
	d.daemon = harness.StartDaemon(t, d.Host, d.bus, harness.DaemonOptions{})
	build := exec.Command("go", "build", "-o", filepath.Join(d.dir, "echo"), "./dbus/client/examples/echo")
	build.Dir = harness.ModuleRoot(t)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, text := range map[string]string{"bus.conf": sessionBus, "echo.service": echoService} {
		if err := os.WriteFile(filepath.Join(d.dir, name), fmt.Appendf(nil, text, d.dir), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(d.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	d.asAlice(t, "dbus-daemon", "--config-file="+d.dir+"/bus.conf", "--nofork", "--nopidfile", "--nosyslog", "--print-address").Await(t, `unix:path=`)
	session := "unix:path=" + d.dir + "/session"
	d.panel = desktop.StartPanel(t, session)
	d.notes = desktop.StartNotifications(t, session)
	d.tray = d.asAlice(t, harness.Binary(t, "vpn-tray"))
	return d
}

func (d *desk) asAlice(t *testing.T, argv ...string) *harness.Process {
	t.Helper()
	return d.Host.Start(t, harness.Command{Argv: argv, UID: harness.Alice, Env: []string{"DBUS_SESSION_BUS_ADDRESS=unix:path=" + d.dir + "/session"}})
}

func (d *desk) vpnctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := d.Host.Output(t, harness.Command{Argv: append([]string{harness.Binary(t, "vpnctl")}, args...), UID: harness.Alice})
	if err != nil {
		t.Errorf("vpnctl %q: %v\n%s", args, err, out)
	}
	return out
}

// With the daemon itself, on a kernel: a click starts the app and connects it;
// its death is told; the daemon and the bus may be restarted.
func TestWithTheDaemon(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.panel.Await(t, "There are no VPNs (grey)")
	d.vpnctl(t, "create", "com.example.Echo", "Echo")
	d.panel.Await(t, "Not connected (grey)", "Echo")
	d.panel.Click(t, "Echo")
	d.panel.Await(t, "Echo: connected [x]", "Connected to Echo (grey)")
	expectIcon(t, d.panel, model.Connected)
	d.Host.Run(t, "ping", "-c1", "-W20", "198.18.0.1")

	pid, err := os.ReadFile(filepath.Join(d.dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	d.Host.Run(t, "sh", "-c", "kill -9 "+string(pid))
	d.panel.Await(t, "Echo: failed, its app has ended")
	expectIcon(t, d.panel, model.Failed)
	d.notes.Await(t, 0, "1: Echo is not connected | Its app has ended.")
	d.panel.Click(t, "Echo: failed, its app has ended")
	d.panel.Await(t, "Echo: connected [x]")
	d.notes.Await(t, 1, "1: closed")
	d.panel.Click(t, "Settings", "Echo")
	d.panel.Click(t, "Add", "Echo")

	d.vpnctl(t, "disconnect")
	d.vpnctl(t, "lockdown", "on", "Echo")
	d.panel.Await(t, "Echo: lockdown", "Lockdown: nothing leaves without a VPN (grey)")
	expectIcon(t, d.panel, model.Lockdown)
	d.panel.Click(t, "End the lockdown")
	d.panel.Await(t, "Echo", "Not connected (grey)")

	d.panel.Click(t, "Echo")
	d.panel.Await(t, "Echo: connected [x]")
	d.daemon.Kill9()
	d.panel.Await(t, "The VPN service is not running (grey)", "Echo (grey)")
	expectIcon(t, d.panel, model.Failed)
	d.notes.Await(t, 2, "2: The VPN service has stopped | VPNs are not connected.")
	d.daemon.Start(t)
	harness.Eventually(t, harness.Timeout, "Echo can be connected again", func() error {
		entries, err := d.panel.Menu()
		if err == nil && len(entries) > 1 && entries[1].Enabled {
			return nil
		}
		return fmt.Errorf("the menu is %q, %w", entries, err)
	})
	d.vpnctl(t, "disconnect")
	d.again(t)

	d.bus.Kill(t)
	d.panel.Await(t, "The VPN service is not running (grey)")
	d.bus.Start(t)
	d.daemon.Process().Kill()
	d.daemon.Start(t)
	d.panel.Await(t, "Not connected (grey)")
	d.again(t)
	select {
	case <-d.tray.Exited():
		t.Error("the tray has ended")
	default:
	}
}

// again connects Echo, whatever has become of it: the app may be about to
// register with a daemon that has come back.
func (d *desk) again(t *testing.T) {
	t.Helper()
	harness.Eventually(t, harness.Timeout, "Echo is connected", func() error {
		entries, err := d.panel.Menu()
		if err != nil || len(entries) < 2 {
			return fmt.Errorf("%q, %w", entries, err)
		}
		if entries[1].Label == "Echo: connected" {
			return nil
		}
		if !entries[1].Checked {
			err = d.panel.Event(entries[1].ID, "clicked")
		}
		return errors.Join(fmt.Errorf("%q", entries), err)
	})
}
