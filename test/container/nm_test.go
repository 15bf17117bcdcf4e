package container_test

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// nmPrograms are the paths, on this machine, of those that are installed.
type nmPrograms struct {
	programs
	bridge, ctl, wireguard string
}

func buildNM(t *testing.T) nmPrograms {
	t.Helper()
	return nmPrograms{
		programs: programs{
			daemon: container.Build(t, "./cmd/vpnproviderd"),
			client: container.Build(t, "./test/container/testclient"),
		},
		bridge:    container.Build(t, "./cmd/vpn-nm-bridge"),
		ctl:       container.Build(t, "./cmd/vpnctl"),
		wireguard: container.Build(t, "./cmd/vpn-wireguard"),
	}
}

// TestNetworkManager has the bridge on a desktop with NetworkManager. One
// machine for all, since it takes a while until everybody is there; each part
// begins and ends with nothing connected.
func TestNetworkManager(t *testing.T) {
	harness.Require(t, "systemd-nspawn", "mmdebstrap")
	d := newDesktop(t, buildNM(t))
	d.wireguard("work", "home")
	idle := d.network()
	for _, part := range []struct {
		name string
		test func(*testing.T, *desktop)
	}{
		{"listed", testNMListed},
		{"up and down", testNMUpAndDown},
		{"touches nothing", testNMTouchesNothing},
		{"follows", testNMFollows},
		{"switch", testNMSwitch},
		{"others", testNMOthers},
		{"connecting", testNMConnecting},
		{"failures", testNMFailures},
		{"uplink", testNMUplink},
		{"NetworkManager ends", testNMEnds},
		{"bridge ends", testNMBridgeEnds},
		{"removed", testNMRemoved},
	} {
		ok := t.Run(part.name, func(t *testing.T) {
			d.t = t
			part.test(t, d)
			d.alice("vpnctl disconnect")
			d.requireNetwork(idle)
			// NetworkManager refuses to activate what it still shows.
			d.awaitNotActive("work")
			d.awaitNotActive("home")
			d.awaitNoPlugin()
		})
		d.t = t
		if !ok {
			t.Log(d.sh("nmcli connection; nmcli device"), "\n", d.alice("vpnctl list"))
			break // the next would begin with what this one has left
		}
	}
}

// profiles are the VPN profiles that a user sees.
func (d *desktop) profiles(user string) string {
	d.t.Helper()
	return d.must(user, "nmcli -t -f NAME,TYPE connection show 2>&1 | grep ':vpn$' | sort || :")
}

func (d *desktop) awaitProfiles(want string) {
	d.t.Helper()
	d.await(fmt.Sprintf("the profiles are %q", want), func() error {
		if got := d.profiles(container.Alice); got != want {
			return errors.New(got)
		}
		return nil
	})
}

// awaitNoPlugin waits until those of connections that have ended are gone.
func (d *desktop) awaitNoPlugin() {
	d.t.Helper()
	d.await("the plugins have ended", func() error {
		if got := d.sh("pgrep -u vpnprovider-nm || :"); got != "" {
			return errors.New(got)
		}
		return nil
	})
}

const bothProfiles = "home:vpn\nwork:vpn"

// testNMListed: each config has a profile, in memory and its user's alone.
func testNMListed(t *testing.T, d *desktop) {
	t.Helper()
	d.awaitProfiles(bothProfiles)
	const onDisk = "find /etc/NetworkManager /usr/lib/NetworkManager /var/lib/NetworkManager -name '*.nmconnection'"
	if got := d.sh(onDisk); got != "/etc/NetworkManager/system-connections/uplink.nmconnection" {
		t.Errorf("on the disk:\n%s", got)
	}
	got := d.must(container.Alice, "nmcli --escape no -g connection.permissions,connection.autoconnect,vpn.service-type,vpn.persistent connection show work")
	if got != "user:alice\nno\norg.freedesktop.NetworkManager.vpnprovider\nyes" {
		t.Errorf("the profile:\n%s", got)
	}
	if got := d.must(container.Alice, "nmcli --escape no -g vpn.data connection show work"); !strings.Contains(got, "app = org.vpnprovider.WireGuard") || strings.Contains(got, "failure") {
		t.Errorf("its data: %s", got)
	}
	if got := d.must(container.Bob, "nmcli -t -f NAME connection show; vpnctl list"); strings.Contains(got, "work") {
		t.Errorf("Bob sees:\n%s", got)
	}
}

// testNMUpAndDown is what it is for.
func testNMUpAndDown(t *testing.T, d *desktop) {
	t.Helper()
	d.requireSource("192.0.2.2")
	if out := d.must(container.Alice, "nmcli connection up work"); !strings.Contains(out, "successfully activated") {
		t.Errorf("up: %s", out)
	}
	d.awaitState("work", "connected")
	d.awaitActive("work")
	d.requireSource(tunnelAddress)
	if got := d.sh("nmcli -t -f DEVICE,STATE device | grep vpn0"); got != "vpn0:unmanaged" {
		t.Errorf("the link in NetworkManager: %s", got)
	}
	if got := d.sh("nmcli -t -f DEVICE,STATE device | grep eth0"); got != "eth0:connected" {
		t.Errorf("the uplink in NetworkManager: %s", got)
	}
	pid := d.sh("pgrep -u vpnprovider-nm vpn-nm-bridge")
	if got := d.sh("grep -E '^(Uid|Gid|Groups|CapEff|CapPrm|CapAmb):' /proc/" + pid + "/status"); strings.Contains(got, "\t0\t") ||
		strings.Count(got, ":\t0000000000000000") != 3 || strings.Contains(got, "Groups:\t0") {
		t.Errorf("the plugin is\n%s", got)
	}
	if out := d.must(container.Alice, "nmcli connection down work"); !strings.Contains(out, "successfully deactivated") {
		t.Errorf("down: %s", out)
	}
	d.awaitState("work", "idle")
	d.awaitNotActive("work")
	d.requireSource("192.0.2.2")
	d.awaitNoPlugin()
	for range 3 {
		d.must(container.Alice, "nmcli connection up work; nmcli connection down work && nmcli connection up work")
		d.awaitState("work", "connected")
		d.must(container.Alice, "nmcli connection down work")
	}
	d.awaitState("work", "idle")
}

// testNMTouchesNothing: with and without NetworkManager, the tunnel is the
// same to the last route.
func testNMTouchesNothing(t *testing.T, d *desktop) {
	t.Helper()
	d.sh("systemctl stop NetworkManager")
	d.must(container.Alice, "vpnctl connect work")
	want := d.network()
	d.must(container.Alice, "vpnctl disconnect work")
	d.sh("systemctl start NetworkManager")
	d.awaitActive("uplink")
	d.awaitProfiles(bothProfiles)
	d.must(container.Alice, "nmcli connection up work")
	d.requireNetwork(want)
}

// testNMFollows: what is connected elsewhere is shown.
func testNMFollows(t *testing.T, d *desktop) {
	t.Helper()
	for range 3 {
		d.must(container.Alice, "vpnctl connect work")
		d.awaitActive("work")
		d.must(container.Alice, "vpnctl disconnect work")
		d.awaitNotActive("work")
	}
	// At once again: the end of the one is not taken for a wish about the other.
	d.must(container.Alice, "vpnctl connect work; vpnctl disconnect work; vpnctl connect work")
	d.awaitActive("work")
	d.awaitState("work", "connected")
	d.requireSource(tunnelAddress)
}

// testNMSwitch: connecting one ends the other, in the menu as well.
func testNMSwitch(t *testing.T, d *desktop) {
	t.Helper()
	d.must(container.Alice, "nmcli connection up work")
	d.must(container.Alice, "nmcli connection up home")
	d.awaitNotActive("work")
	d.awaitActive("home")
	d.awaitState("home", "connected")
	if got := d.must(container.Alice, "nmcli --escape no -g vpn.data connection show work"); strings.Contains(got, "failure") {
		t.Errorf("to be replaced is no failure: %s", got)
	}
}

// testNMOthers: another user neither activates nor ends it, nor speaks for it,
// and nobody can take the plugin's place.
func testNMOthers(t *testing.T, d *desktop) {
	t.Helper()
	uuid := d.must(container.Alice, "nmcli -g connection.uuid connection show work")
	if out, err := d.as(container.Bob, "nmcli connection up "+uuid); err == nil {
		t.Errorf("Bob activates it: %s", out)
	}
	path := d.must(container.Alice, "nmcli -g connection.id,connection.uuid connection show work >/dev/null; busctl --json=short call org.freedesktop.NetworkManager "+
		"/org/freedesktop/NetworkManager/Settings org.freedesktop.NetworkManager.Settings GetConnectionByUuid s "+uuid+" | cut -d'\"' -f6")
	manager := "busctl call org.freedesktop.NetworkManager /org/freedesktop/NetworkManager org.freedesktop.NetworkManager "
	if out, err := d.as(container.Bob, manager+"ActivateConnection ooo "+path+" / /"); err == nil {
		t.Errorf("Bob activates %s: %s", path, out)
	}
	d.awaitState("work", "idle")

	d.must(container.Alice, "nmcli connection up work")
	name := d.sh("busctl list --no-legend | grep -o '^org.freedesktop.NetworkManager.vpnprovider[^ ]*'")
	d.must(container.Bob, "dbus-send --system --type=signal --dest="+name+" /org/vpnprovider/NetworkManagerBridge org.vpnprovider.NetworkManagerBridge.State string:failed string:forged")
	for _, user := range []string{container.Alice, container.Bob} {
		out, err := d.as(user, "busctl call "+name+" /org/freedesktop/NetworkManager/VPN/Plugin org.freedesktop.NetworkManager.VPN.Plugin Disconnect")
		if err == nil || !strings.Contains(out, "denied") {
			t.Errorf("%s may call the plugin: %v %s", user, err, out)
		}
		request := "busctl call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus RequestName su org.freedesktop.NetworkManager.vpnprovider.Connection_99 4"
		if out, err := d.as(user, request); err == nil {
			t.Errorf("%s may be a plugin: %s", user, out)
		}
	}
	d.awaitActive("work")
	d.awaitState("work", "connected")
}

// testNMConnecting: it can be given up on either side before it is connected.
func testNMConnecting(t *testing.T, d *desktop) {
	t.Helper()
	d.server.Signal(syscall.SIGSTOP)
	defer d.server.Signal(syscall.SIGCONT)
	if out, err := d.as(container.Alice, "nmcli --wait 1 connection up work"); err == nil {
		t.Errorf("up, with a server that does not answer: %s", out)
	}
	d.awaitState("work", "connecting")
	d.must(container.Alice, "nmcli connection down work")
	d.awaitState("work", "idle")

	d.must(container.Alice, "vpnctl connect --wait 0 work")
	d.await("it is shown while it connects", func() error {
		if out := d.alice("nmcli -t -f NAME,STATE connection show --active"); !strings.Contains(out, "work:activating") {
			return errors.New(out)
		}
		return nil
	})
	d.must(container.Alice, "vpnctl disconnect work")
	d.awaitNotActive("work")
}

// testNMFailures: the menu is told, and the profile says why.
func testNMFailures(t *testing.T, d *desktop) {
	t.Helper()
	failure := func(want string) {
		t.Helper()
		d.await("the failure is told", func() error {
			if got := d.alice("nmcli --escape no -g vpn.data connection show work"); !strings.Contains(got, "failure = "+want) {
				return errors.New(got)
			}
			return nil
		})
	}
	d.must(container.Alice, "nmcli connection up work")
	d.must(container.Alice, "systemctl --user kill --signal=KILL wg")
	d.awaitNotActive("work")
	failure("provider gone")

	out, err := d.as(container.Alice, "nmcli connection up work")
	if err == nil || !strings.Contains(out, "The VPN service stopped unexpectedly") {
		t.Errorf("up without its app: %v %s", err, out)
	}
	failure("cannot connect: ")
	d.serve()
	d.must(container.Alice, "nmcli connection up work")
	if got := d.must(container.Alice, "nmcli --escape no -g vpn.data connection show work"); strings.Contains(got, "failure") {
		t.Errorf("a failure of before: %s", got)
	}

	// A plugin that is killed says nothing about the tunnel.
	network := d.network()
	d.sh("kill -KILL $(pgrep -u vpnprovider-nm vpn-nm-bridge)")
	d.await("there is another plugin", func() error { return d.try("pgrep -u vpnprovider-nm vpn-nm-bridge") })
	d.awaitActive("work")
	d.awaitState("work", "connected")
	d.requireNetwork(network)
}

// testNMUplink: when the network below goes and comes back, both the tunnel
// and what is shown of it stay.
func testNMUplink(t *testing.T, d *desktop) {
	t.Helper()
	d.must(container.Alice, "nmcli connection up work")
	network := d.network()
	d.ns.IP(t, "link set lan0 down")
	d.awaitState("work", "reconnecting")
	d.awaitActive("work")
	d.ns.IP(t, "link set lan0 up")
	d.awaitState("work", "connected")
	d.awaitActive("work")
	d.requireSource(tunnelAddress)
	d.requireNetwork(network)

	for _, script := range [][2]string{
		{"nmcli device disconnect eth0", "nmcli connection up uplink"}, {"nmcli networking off", "nmcli networking on"},
	} {
		d.sh(script[0])
		d.awaitState("work", "reconnecting")
		d.sh(script[1])
		d.awaitState("work", "connected")
		d.awaitActive("work")
		d.requireNetwork(network)
	}
}

// testNMEnds: NetworkManager restarted, killed or absent does the tunnel no
// harm, and shows it again when it is back.
func testNMEnds(t *testing.T, d *desktop) {
	t.Helper()
	d.must(container.Alice, "nmcli connection up work")
	network := d.network()
	session := d.must(container.Alice, "vpnctl show --json work | grep session")
	for _, script := range []string{"systemctl restart NetworkManager", "systemctl kill --signal=KILL NetworkManager"} {
		d.sh(script)
		d.requireNetwork(network)
		d.awaitActive("work")
		d.awaitProfiles(bothProfiles)
		d.requireNetwork(network)
		d.requireSource(tunnelAddress)
	}
	d.sh("systemctl stop NetworkManager")
	d.requireNetwork(network)
	d.requireSource(tunnelAddress)
	if got := d.must(container.Alice, "vpnctl show --json work | grep session"); got != session {
		t.Errorf("the session was\n%s\nand is\n%s", session, got)
	}
	d.must(container.Alice, "vpnctl disconnect work; vpnctl connect home; systemctl --user is-active vpn-nm-bridge")
	d.sh("systemctl start NetworkManager")
	d.awaitActive("home")
	d.awaitNotActive("work")
	d.awaitState("home", "connected")
}

// testNMBridgeEnds: without the bridge there are no profiles, and the session
// stays.
func testNMBridgeEnds(t *testing.T, d *desktop) {
	t.Helper()
	d.must(container.Alice, "nmcli connection up work")
	network := d.network()
	session := d.must(container.Alice, "vpnctl show --json work | grep session")
	d.must(container.Alice, "systemctl --user kill --signal=KILL vpn-nm-bridge")
	d.await("another bridge runs", func() error {
		if got := d.alice("systemctl --user show -P NRestarts -P ActiveState vpn-nm-bridge"); !strings.Contains(got, "active\n1") && !strings.Contains(got, "1\nactive") {
			return errors.New(got)
		}
		return nil
	})
	d.awaitActive("work")
	d.awaitProfiles(bothProfiles)

	d.must(container.Alice, "systemctl --user stop vpn-nm-bridge")
	d.awaitProfiles("")
	d.awaitState("work", "connected")
	d.requireNetwork(network)
	if got := d.must(container.Alice, "vpnctl show --json work | grep session"); got != session {
		t.Errorf("the session was\n%s\nand is\n%s", session, got)
	}
	d.must(container.Alice, "systemctl --user start vpn-nm-bridge")
	d.awaitActive("work")
	d.must(container.Alice, "nmcli connection down work")
	d.awaitState("work", "idle")
}

// testNMRemoved: a profile is there for as long as its config is.
func testNMRemoved(t *testing.T, d *desktop) {
	t.Helper()
	d.must(container.Alice, "nmcli connection up work")
	d.must(container.Alice, "nmcli connection delete work")
	d.awaitState("work", "idle")
	d.awaitProfiles(bothProfiles)
	d.must(container.Alice, "vpnctl create com.example.Other work")
	d.awaitProfiles("home:vpn\nwork (com.example.Other):vpn\nwork (org.vpnprovider.WireGuard):vpn")
	d.must(container.Alice, "nmcli connection up home")
	d.must(container.Alice, "vpnctl remove com.example.Other/work; vpn-wireguard remove home")
	d.awaitProfiles("work:vpn")
	d.awaitNotActive("home")
	if got := d.alice("systemctl --user show -P NRestarts vpn-nm-bridge"); got != "0" {
		t.Errorf("the bridge was restarted %s times", got)
	}
}
